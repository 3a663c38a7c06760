from .cohort import Cohort as Cohort
from .cohort import make_cohort as make_cohort
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
    ScannerSettings as ScannerSettings,
)

__all__ = [
    'Cohort',
    'Occlusion',
    'Patient',
    'PersonSettings',
    'ScannerSettings',
    'draw_scores',
    'make_cohort',
    'make_patient',
    'substrates',
]
