"""Finding images and scores in a BIDS dataset, and naming what is written.

Knows BIDS entities, layouts in the wild and the output table (`data/io_spec.json`). Must not know
what an image shows, nor any algorithm: it never reads voxels.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name -> submodule. Loaded on first use, so that importing the package costs nothing.
_PUBLIC: dict[str, str] = {
    'Discovery': 'discovery',
    'Problem': 'listing',
    'ScanPair': 'discovery',
    'discover': 'discovery',
    'write_dataset_files': 'dataset',
    'write_participants': 'dataset',
    'copy_file': 'files',
    'write_bytes': 'files',
    'write_json': 'files',
    'write_nifti': 'files',
    'write_text': 'files',
    'write_tsv': 'files',
    'ITEMS': 'nihss',
    'Scores': 'scores',
    'check_sides': 'scores',
    'read_scores': 'scores',
    'write_phenotype': 'scores',
    'output_keys': 'outputs',
    'output_path': 'outputs',
    'participant_outputs': 'outputs',
    'resolution_label': 'outputs',
    'sidecar': 'outputs',
    'sidecar_path': 'outputs',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
