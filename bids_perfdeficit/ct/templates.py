"""Templates, and the CT contrast that head CTs are registered to.

The default ships with nilearn. Others are looked up in TEMPLATEFLOW_HOME and never fetched. Must
not know patients.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_perfdeficit.errors import InputError

DEFAULT_SPACE = 'MNI152NLin2009aSym'
#: HU of fluid, grey and white matter in adults, at 120 kV.
FLUID_HU, GREY_HU, WHITE_HU = 8.0, 37.0, 29.0


@dataclass(frozen=True)
class Template:
    """A template on a grid that is symmetric about the mid-sagittal plane.

    Parameters
    ----------
    name : str
        As TemplateFlow has it.
    t1 : Nifti1Image
        T1 contrast, float32, (X, Y, Z), RAS.
    brain_mask : Nifti1Image
        uint8, on the same grid; so are the others.
    grey, white : Nifti1Image
        Tissue probability, float32.
    pseudo_ct : Nifti1Image
        The brain as CT shows it, HU; 0 outside.
    symmetric : bool
        Whether the template's anatomy is its own mirror image, so that asymmetry is exact.
    """

    name: str
    t1: nib.Nifti1Image
    brain_mask: nib.Nifti1Image
    grey: nib.Nifti1Image
    white: nib.Nifti1Image
    pseudo_ct: nib.Nifti1Image
    symmetric: bool


@cache
def load_template(space: str = DEFAULT_SPACE, *, spacing: float = 2.0) -> Template:
    """Load a template.

    Parameters
    ----------
    space : str
        `DEFAULT_SPACE` or a name in TEMPLATEFLOW_HOME.
    spacing : float
        mm of the grid.

    Returns
    -------
    Template
        Voxel columns lie in mirror pairs about x = 0: reversing the first axis is the mirror.

    Raises
    ------
    InputError
        When the template is not at hand.
    """
    images = _load_default() if space == DEFAULT_SPACE else _load_templateflow(space)
    shape, affine = _symmetric_grid(images['brain_mask'], spacing)
    values = {name: _on_grid(image, shape, affine, spacing) for name, image in images.items()}
    mask = values['brain_mask'] > 0.5
    grey, white = (np.clip(values[name], 0, 1) for name in ('grey', 'white'))
    fluid = np.clip(1 - grey - white, 0, 1)
    density = (FLUID_HU * fluid + GREY_HU * grey + WHITE_HU * white) / (fluid + grey + white)

    def image(array: np.ndarray, dtype: type = np.float32) -> nib.Nifti1Image:
        return nib.Nifti1Image(np.asarray(array, dtype=dtype), affine)

    return Template(
        name=space,
        t1=image(values['t1']),
        brain_mask=image(mask, np.uint8),
        grey=image(grey),
        white=image(white),
        pseudo_ct=image(np.where(mask, density, 0)),
        symmetric=bool((mask == mask[::-1]).all()),
    )


def _load_default() -> dict[str, nib.Nifti1Image]:
    from nilearn import datasets  # here, for it takes a second

    return {
        't1': datasets.load_mni152_template(resolution=1),
        'brain_mask': datasets.load_mni152_brain_mask(resolution=1),
        'grey': datasets.load_mni152_gm_template(resolution=1),
        'white': datasets.load_mni152_wm_template(resolution=1),
    }


#: TemplateFlow's entities of each image; ``desc`` is None where the entity must be absent.
_QUERIES: dict[str, dict[str, str | None]] = {
    't1': {'suffix': 'T1w', 'desc': None},
    'brain_mask': {'suffix': 'mask', 'desc': 'brain'},
    'grey': {'suffix': 'probseg', 'label': 'GM'},
    'white': {'suffix': 'probseg', 'label': 'WM'},
}
#: TemplateFlow's resolutions, the finer one first: 1 and 2 mm in its templates of the brain.
_RESOLUTIONS = (1, 2)


def find_template_files(space: str) -> dict[str, Path]:
    """Find the files that a template is read from.

    Listing never fetches a file. TemplateFlow fills a home that is empty or missing when it is
    imported, over the network if it can, so that it is imported only when the template is there.

    Parameters
    ----------
    space : str
        `DEFAULT_SPACE` or a name in TEMPLATEFLOW_HOME.

    Returns
    -------
    dict of str to Path
        By image; empty for `DEFAULT_SPACE`, which comes with nilearn.

    Raises
    ------
    InputError
        When the template is not at hand.
    """
    if space == DEFAULT_SPACE:
        return {}
    home = Path(os.environ.get('TEMPLATEFLOW_HOME', ''))

    def missing(what: str) -> InputError:
        return InputError(
            f'template {space} has no {what} in TEMPLATEFLOW_HOME ({home})',
            fix=f'on a machine with a network run: TEMPLATEFLOW_HOME={home} '
            f'python -c \'import templateflow.api as t; t.get("{space}", resolution=1)\'',
        )

    if not os.environ.get('TEMPLATEFLOW_HOME') or not (home / f'tpl-{space}').is_dir():
        raise missing('folder')
    os.environ['TEMPLATEFLOW_AUTOUPDATE'] = '0'
    from templateflow.client import TemplateFlowClient

    client = TemplateFlowClient(root=home, autoupdate=False)
    files = {}
    for name, query in _QUERIES.items():
        listed = [
            path
            for resolution in _RESOLUTIONS
            for path in sorted(
                client.ls(space, resolution=resolution, extension='.nii.gz', **query)
            )
        ]
        # What was listed and never fetched is an empty file.
        found = [path for path in listed if path.is_file() and path.stat().st_size]
        if not found:
            raise missing(' '.join(value for value in query.values() if value))
        files[name] = found[0]
    return files


def _load_templateflow(space: str) -> dict[str, nib.Nifti1Image]:
    images = {}
    for name, path in find_template_files(space).items():
        image = nib.load(path)
        assert isinstance(image, nib.Nifti1Image)
        images[name] = image
    return images


def _symmetric_grid(mask: nib.Nifti1Image, spacing: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of an RAS grid around the template, even about x = 0."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in mask.shape])).reshape(3, -1)
    world = mask.affine[:3, :3] @ corners + mask.affine[:3, 3:]
    half = float(np.abs(world[0]).max())
    low = np.array([-half, world[1].min(), world[2].min()])
    high = np.array([half, world[1].max(), world[2].max()])
    count = np.floor((high - low) / spacing + 1e-6).astype(int) + 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = low
    affine[0, 3] = -(count[0] - 1) * spacing / 2
    return tuple(int(n) for n in count), affine


def _on_grid(
    image: nib.Nifti1Image, shape: tuple[int, ...], affine: np.ndarray, spacing: float
) -> np.ndarray:
    values = np.asarray(image.dataobj, dtype=np.float32)
    old = float(image.header.get_zooms()[0])
    if spacing > old:
        values = ndimage.gaussian_filter(values, np.sqrt(((spacing / old) ** 2 - 1) / 12))
    to_old = np.linalg.inv(image.affine) @ affine
    return np.asarray(
        ndimage.affine_transform(values, to_old[:3, :3], to_old[:3, 3], shape, order=1)
    )
