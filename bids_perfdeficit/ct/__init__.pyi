from .brain import Brain as Brain
from .brain import extract_brain as extract_brain
from .conforming import (
    Conformed as Conformed,
)
from .conforming import (
    Coverage as Coverage,
)
from .conforming import (
    conform as conform,
)
from .conforming import (
    resample as resample,
)
from .frames import Series as Series
from .frames import align_frames as align_frames
from .frames import first_frames as first_frames
from .frames import read_series as read_series
from .hounsfield import Scale as Scale
from .quality import (
    check_pair as check_pair,
)
from .quality import (
    measure_pair as measure_pair,
)
from .quality import (
    measure_quality as measure_quality,
)
from .quality import (
    sidecar_metrics as sidecar_metrics,
)
from .reading import CTVolume as CTVolume
from .reading import Geometry as Geometry
from .reading import read_ct as read_ct
from .reading import read_map as read_map
from .refinement import (
    Refinement as Refinement,
)
from .refinement import (
    refine_rigid as refine_rigid,
)
from .registration import (
    RigidResult as RigidResult,
)
from .registration import (
    TemplateTransform as TemplateTransform,
)
from .registration import (
    register_cta as register_cta,
)
from .registration import (
    register_template as register_template,
)
from .templates import Template as Template
from .templates import load_template as load_template
from .warping import (
    Transform as Transform,
)
from .warping import (
    all_points as all_points,
)
from .warping import (
    apply_transform as apply_transform,
)
from .warping import (
    carry as carry,
)
from .warping import (
    grid_points as grid_points,
)
from .warping import (
    read_rigid as read_rigid,
)
from .warping import (
    read_transform as read_transform,
)
from .warping import (
    sample as sample,
)
from .warping import (
    write_rigid as write_rigid,
)

__all__ = [
    'Brain',
    'CTVolume',
    'Conformed',
    'Coverage',
    'Geometry',
    'Refinement',
    'RigidResult',
    'Scale',
    'Series',
    'Template',
    'TemplateTransform',
    'Transform',
    'align_frames',
    'all_points',
    'apply_transform',
    'carry',
    'check_pair',
    'conform',
    'extract_brain',
    'first_frames',
    'grid_points',
    'load_template',
    'measure_pair',
    'measure_quality',
    'read_ct',
    'read_map',
    'read_rigid',
    'read_series',
    'read_transform',
    'refine_rigid',
    'register_cta',
    'register_template',
    'resample',
    'sample',
    'sidecar_metrics',
    'write_rigid',
]
