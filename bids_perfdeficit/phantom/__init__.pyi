from .cohort import Cohort as Cohort
from .cohort import make_cohort as make_cohort
from .ctp import CtpSeries as CtpSeries
from .ctp import make_ctp as make_ctp
from .patient import Patient as Patient
from .patient import make_patient as make_patient
from .scores import draw_scores as draw_scores
from .scores import substrates as substrates
from .settings import (
    Occlusion as Occlusion,
)
from .settings import (
    PersonSettings as PersonSettings,
)
from .settings import (
    ScanErrors as ScanErrors,
)
from .settings import (
    ScannerSettings as ScannerSettings,
)

__all__ = [
    'Cohort',
    'CtpSeries',
    'Occlusion',
    'Patient',
    'PersonSettings',
    'ScanErrors',
    'ScannerSettings',
    'draw_scores',
    'make_cohort',
    'make_ctp',
    'make_patient',
    'substrates',
]
