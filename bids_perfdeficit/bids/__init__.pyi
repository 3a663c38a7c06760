from .dataset import (
    write_dataset_files as write_dataset_files,
)
from .dataset import (
    write_participants as write_participants,
)
from .discovery import Discovery as Discovery
from .discovery import ScanPair as ScanPair
from .discovery import discover as discover
from .files import (
    copy_file as copy_file,
)
from .files import (
    write_bytes as write_bytes,
)
from .files import (
    write_json as write_json,
)
from .files import (
    write_nifti as write_nifti,
)
from .files import (
    write_text as write_text,
)
from .files import (
    write_tsv as write_tsv,
)
from .listing import Problem as Problem
from .nihss import ITEMS as ITEMS
from .outputs import (
    output_keys as output_keys,
)
from .outputs import (
    output_path as output_path,
)
from .outputs import (
    participant_outputs as participant_outputs,
)
from .outputs import (
    resolution_label as resolution_label,
)
from .outputs import (
    sidecar as sidecar,
)
from .outputs import (
    sidecar_path as sidecar_path,
)
from .scores import (
    Scores as Scores,
)
from .scores import (
    check_sides as check_sides,
)
from .scores import (
    read_scores as read_scores,
)
from .scores import (
    write_phenotype as write_phenotype,
)

__all__ = [
    'ITEMS',
    'Discovery',
    'Problem',
    'ScanPair',
    'Scores',
    'check_sides',
    'copy_file',
    'discover',
    'output_keys',
    'output_path',
    'participant_outputs',
    'read_scores',
    'resolution_label',
    'sidecar',
    'sidecar_path',
    'write_bytes',
    'write_dataset_files',
    'write_json',
    'write_nifti',
    'write_participants',
    'write_phenotype',
    'write_text',
    'write_tsv',
]
