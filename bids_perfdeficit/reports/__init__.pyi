from .figures import (
    draw_asymmetry as draw_asymmetry,
)
from .figures import (
    draw_brain_outline as draw_brain_outline,
)
from .figures import (
    draw_flicker as draw_flicker,
)
from .figures import (
    draw_map_mosaic as draw_map_mosaic,
)
from .figures import (
    draw_narrow_window as draw_narrow_window,
)
from .figures import (
    draw_rotation as draw_rotation,
)
from .figures import (
    draw_slabs as draw_slabs,
)
from .figures import (
    draw_subtraction_mip as draw_subtraction_mip,
)
from .page import build_page as build_page
from .participant import FIGURES as FIGURES
from .participant import build_participant_report as build_participant_report

__all__ = [
    'FIGURES',
    'build_page',
    'build_participant_report',
    'draw_asymmetry',
    'draw_brain_outline',
    'draw_flicker',
    'draw_map_mosaic',
    'draw_narrow_window',
    'draw_rotation',
    'draw_slabs',
    'draw_subtraction_mip',
]
