"""Templates: mirrored about the midline, and never fetched."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.ct import load_template
from bids_perfdeficit.errors import InputError
from tests.ct.heads import box_affine

IMAGES = ('t1', 'brain_mask', 'grey', 'white', 'pseudo_ct')


@pytest.mark.parametrize('spacing', [2.0, 3.0])
def test_default_is_its_own_mirror_image(spacing):
    template = load_template(spacing=spacing)
    assert template.symmetric
    for name in IMAGES:
        image = getattr(template, name)
        affine, count = image.affine, image.shape[0]
        assert affine[0, 3] == -spacing * (count - 1) / 2
        assert np.array_equal(np.diag(affine)[:3], [spacing] * 3)
        values = np.asarray(image.dataobj)
        assert np.allclose(values, values[::-1], atol=0.02 * values.max()), name


def test_brain_has_the_density_of_its_tissues():
    template = load_template(spacing=2.0)
    mask = np.asarray(template.brain_mask.dataobj) > 0
    density = np.asarray(template.pseudo_ct.dataobj)
    assert 1500 < mask.sum() * 8 / 1000 < 2100
    assert (density[~mask] == 0).all()
    assert density[mask].min() > 7
    assert density[mask].max() < 38
    grey, white = (np.asarray(getattr(template, n).dataobj) > 0.9 for n in ('grey', 'white'))
    assert density[grey & mask].mean() > density[white & mask].mean() + 5


@pytest.mark.parametrize('content', [None, b''], ids=['no file', 'empty files'])
def test_missing_template_is_told_with_the_command(tmp_path, monkeypatch, content):
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path))
    if content is not None:
        folder = tmp_path / 'tpl-Absent'
        folder.mkdir()
        (folder / 'tpl-Absent_res-01_T1w.nii.gz').write_bytes(content)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(InputError, match='template Absent') as caught:
        load_template('Absent')
    assert f'TEMPLATEFLOW_HOME={tmp_path}' in caught.value.fix
    assert 't.get("Absent"' in caught.value.fix
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('resolution', ['01', '2'])
def test_template_of_templateflow_is_found(tmp_path, monkeypatch, resolution):
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path))
    folder = tmp_path / f'tpl-Own{resolution}'
    folder.mkdir()
    shape = (37, 40, 38)
    inside = np.zeros(shape, np.float32)
    inside[6:-8, 5:-5, 5:-5] = 1  # not symmetric
    stem = f'tpl-Own{resolution}_res-{resolution}_'
    for ending, values in (
        ('T1w', inside * 100),
        ('desc-brain_T1w', inside * 7),
        ('desc-brain_mask', inside),
        ('label-GM_probseg', inside * 0.5),
        ('label-WM_probseg', inside * 0.5),
    ):
        image = nib.Nifti1Image(values, box_affine(4.0, (-73, -90, -70)))
        nib.save(image, folder / f'{stem}{ending}.nii.gz')
    template = load_template(f'Own{resolution}', spacing=4.0)
    assert not template.symmetric
    assert np.asarray(template.t1.dataobj).max() > 90, 'the stripped T1w was taken'
    assert template.brain_mask.affine[0, 3] == -4.0 * (template.brain_mask.shape[0] - 1) / 2
