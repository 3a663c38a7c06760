from .agreement import (
    Agreement as Agreement,
)
from .agreement import (
    Artefacts as Artefacts,
)
from .agreement import (
    measure_agreement as measure_agreement,
)
from .combination import Mirror as Mirror
from .eikonal import solve_eikonal as solve_eikonal
from .guards import ReadOut as ReadOut
from .guards import holds as holds
from .guards import withhold as withhold
from .occlusion import (
    OcclusionFinding as OcclusionFinding,
)
from .occlusion import (
    evidence as evidence,
)
from .occlusion import (
    find_occlusion as find_occlusion,
)
from .occlusion import (
    is_late as is_late,
)
from .occlusion import (
    measure_phase as measure_phase,
)
from .occlusion import (
    nearest_site as nearest_site,
)
from .occlusion import (
    site_course as site_course,
)
from .phase_weights import fusion_sha256 as fusion_sha256
from .phase_weights import phase_fusion as phase_fusion
from .priors import inflow_prior as inflow_prior
from .priors import vein_prior as vein_prior
from .recalibration import base_sha256 as base_sha256
from .recalibration import calibration as calibration
from .recalibration import join_calibration as join_calibration
from .reference import ReferenceField as ReferenceField
from .reference import fit_reference as fit_reference
from .reference import plane as plane
from .regions import (
    aspects_regions as aspects_regions,
)
from .regions import (
    measure_regions as measure_regions,
)
from .regions import (
    territories as territories,
)
from .settings import PerfusionSettings as PerfusionSettings
from .sources import Sources as Sources
from .sources import find_sources as find_sources
from .synthesis import (
    Enhancement as Enhancement,
)
from .synthesis import (
    PerfusionMaps as PerfusionMaps,
)
from .synthesis import (
    asymmetry as asymmetry,
)
from .synthesis import (
    domain as domain,
)
from .synthesis import (
    enhance as enhance,
)
from .synthesis import (
    subtract as subtract,
)
from .synthesis import (
    synthesize as synthesize,
)
from .vessels import orientation_metric as orientation_metric
from .vessels import vesselness as vesselness
from .volumes import volume_interval as volume_interval

__all__ = [
    'Agreement',
    'Artefacts',
    'Enhancement',
    'Mirror',
    'OcclusionFinding',
    'PerfusionMaps',
    'PerfusionSettings',
    'ReadOut',
    'ReferenceField',
    'Sources',
    'aspects_regions',
    'asymmetry',
    'base_sha256',
    'calibration',
    'domain',
    'enhance',
    'evidence',
    'find_occlusion',
    'find_sources',
    'fit_reference',
    'fusion_sha256',
    'holds',
    'inflow_prior',
    'is_late',
    'join_calibration',
    'measure_agreement',
    'measure_phase',
    'measure_regions',
    'nearest_site',
    'orientation_metric',
    'phase_fusion',
    'plane',
    'site_course',
    'solve_eikonal',
    'subtract',
    'synthesize',
    'territories',
    'vein_prior',
    'vesselness',
    'volume_interval',
    'withhold',
]
