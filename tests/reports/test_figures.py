"""Figures show the right thing on the right side, and the same bytes every time."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_perfdeficit.reports import (
    draw_asymmetry,
    draw_brain_outline,
    draw_flicker,
    draw_map_mosaic,
    draw_narrow_window,
    draw_rotation,
    draw_slabs,
    draw_subtraction_mip,
)

SVG = '{http://www.w3.org/2000/svg}'
SHAPE = (40, 48, 36)


def image(values: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    if affine is None:
        affine = nib.affines.from_matvec(np.diag([4.0, 4.0, 4.0]), [-78, -94, -70])
    return nib.Nifti1Image(np.asarray(values, dtype=np.float32), affine)


def ball() -> np.ndarray:
    x, y, z = np.indices(SHAPE)
    return ((x - 19.5) / 16) ** 2 + ((y - 23.5) / 20) ** 2 + ((z - 17.5) / 15) ** 2 < 1


@pytest.fixture
def brain() -> nib.Nifti1Image:
    return image(ball())


@pytest.fixture
def ncct() -> nib.Nifti1Image:
    noise = np.random.default_rng(1).normal(0, 6, SHAPE)
    return image(np.where(ball(), 35 + noise, -1000))


def marked_on_the_right(value: float = 200.0) -> np.ndarray:
    """Return a volume whose only bright spot is on the patient's right, in front, and high."""
    values = np.zeros(SHAPE)
    values[29:33, 30:34, 22:26] = value
    return values


def read(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()  # noqa: S314 - drawn by the test itself


def pictures(path: Path) -> list[tuple[float, float, np.ndarray]]:
    """Return left, top and grey values of every picture in a figure."""
    found = []
    for element in read(path).iter(f'{SVG}image'):
        code = element.get('href', '').partition('base64,')[2]
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert('L'))
        found.append((float(element.get('x', 0)), float(element.get('y', 0)), grey))
    return found


def texts(path: Path) -> list[tuple[str, float, float]]:
    return [
        (element.text or '', float(element.get('x', 0)), float(element.get('y', 0)))
        for element in read(path).iter(f'{SVG}text')
    ]


def halves(picture: np.ndarray) -> tuple[float, float]:
    """Return the brightest value in the left and the right half of a picture."""
    middle = picture.shape[1] // 2
    return float(picture[:, :middle].max()), float(picture[:, -middle:].max())


def draw_all(folder: Path, ncct: nib.Nifti1Image, brain: nib.Nifti1Image) -> list[Path]:
    spot = image(marked_on_the_right())
    return [
        draw_brain_outline(ncct, brain, folder / 'brain.svg'),
        draw_flicker(ncct, spot, folder / 'turn.svg', contour=brain),
        draw_subtraction_mip(spot, [[10, 0, -20], [-10, 0, -20]], brain, folder / 'mip.svg'),
        draw_map_mosaic(spot, brain, ncct, folder / 'map.svg', label='Arrival', units='unitless'),
        draw_asymmetry(spot, brain, folder / 'asymmetry.svg'),
    ]


def test_every_figure_is_small_well_formed_and_the_same_bytes_twice(tmp_path, ncct, brain):
    first = draw_all(tmp_path / 'a', ncct, brain)
    second = draw_all(tmp_path / 'b', ncct, brain)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size < 700_000
        assert read(one).get('aria-label')


def test_no_figure_refers_to_anything_outside_itself(tmp_path, ncct, brain):
    for path in draw_all(tmp_path, ncct, brain):
        references = re.findall(r'[ (](?:href=|src=|url\()["\']?(.{1,40})', path.read_text())
        assert references
        for reference in references:
            assert reference.startswith('data:image/jpeg;base64,')


def test_what_is_on_the_patients_right_is_drawn_at_the_r(tmp_path, ncct, brain):
    path = draw_map_mosaic(
        image(marked_on_the_right()),
        brain,
        image(np.full(SHAPE, -1000)),
        tmp_path / 'map.svg',
        label='Arrival',
        limits=(0, 200),
    )
    slices = [p for _, _, p in pictures(path)[:-1]]  # the last one is the colour scale
    bright = [halves(p) for p in slices if p.max() > 150]
    assert bright
    assert all(left > right + 50 for left, right in bright)
    marks = {(word, x < 600) for word, x, _ in texts(path) if word in ('R', 'L')}
    assert marks == {('R', True), ('L', False)}


@pytest.mark.parametrize('codes', ['LAS', 'RAS', 'PSR', 'LPI'])
def test_storage_order_does_not_move_a_finding_to_the_other_side(tmp_path, brain, codes):
    def stored(values: np.ndarray) -> nib.Nifti1Image:
        ras = image(values)
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt('RAS'), nib.orientations.axcodes2ornt(codes)
        )
        return ras.as_reoriented(turn)

    expected = draw_subtraction_mip(
        image(marked_on_the_right()), [], brain, tmp_path / 'expected.svg'
    )
    drawn = draw_subtraction_mip(
        stored(marked_on_the_right()), [], stored(ball()), tmp_path / 'drawn.svg'
    )
    assert drawn.read_bytes() == expected.read_bytes()


def test_projections_show_a_vessel_on_its_side_and_at_its_height(tmp_path, brain):
    path = draw_subtraction_mip(image(marked_on_the_right()), [], brain, tmp_path / 'mip.svg')
    above, front, right_half, left_half = (p for _, _, p in pictures(path))
    assert halves(above)[0] > 150 > 100 > halves(above)[1]
    assert halves(front)[0] > 150 > 100 > halves(front)[1]
    assert right_half.max() > 150 > 50 > left_half.max()
    row, column = np.unravel_index(right_half.argmax(), right_half.shape)
    assert row < right_half.shape[0] / 2, 'what is high is up'
    assert column < right_half.shape[1] / 2, 'what is in front is at the A'
    row, _ = np.unravel_index(above.argmax(), above.shape)
    assert row < above.shape[0] / 2, 'anterior is up'


def test_a_source_is_ringed_where_its_vessel_shows(tmp_path, brain):
    affine = brain.affine
    point = nib.affines.apply_affine(affine, [30.5, 31.5, 23.5])
    path = draw_subtraction_mip(image(marked_on_the_right()), [point], brain, tmp_path / 'm.svg')
    root = read(path)
    rings = [(float(c.get('cx')), float(c.get('cy'))) for c in root.iter(f'{SVG}circle')]
    assert len(rings) == 3, 'from above, from the front, and on its own half'
    boxes = list(root.iter(f'{SVG}image'))
    for (x, y), box in zip(rings, boxes[:3], strict=True):
        left, top, width, height = (float(box.get(k)) for k in ('x', 'y', 'width', 'height'))
        code = box.get('href').partition('base64,')[2]
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
        row = int((y - top) / height * picture.shape[0])
        column = int((x - left) / width * picture.shape[1])
        assert picture[row, column] > 150


def test_the_outline_of_the_brain_runs_along_the_mask(tmp_path, brain):
    bright = image(np.where(ball(), 80, 0))
    path = draw_brain_outline(bright, brain, tmp_path / 'brain.svg')
    root = read(path)
    box = list(root.iter(f'{SVG}image'))[11]
    left, width = float(box.get('x')), float(box.get('width'))
    picture = pictures(path)[11][2]
    columns = np.nonzero((picture > 128).any(0))[0] / picture.shape[1] * width + left
    outline = next(
        np.array(re.findall(r'([\d.]+),([\d.]+)', p.get('d', '')), dtype=float)
        for p in list(root.iter(f'{SVG}path'))[11:]
    )
    step = width / picture.shape[1]
    assert outline[:, 0].min() == pytest.approx(columns.min(), abs=step)
    assert outline[:, 0].max() == pytest.approx(columns.max() + step, abs=step)


def test_a_flicker_has_both_images_and_says_which_is_shown(tmp_path, ncct, brain):
    path = draw_flicker(
        ncct, image(marked_on_the_right()), tmp_path / 'f.svg', labels=('NCCT', 'CTA')
    )
    words = [word for word, *_ in texts(path)]
    assert 'NCCT and CTA in turn · now: NCCT (0 to 80 HU)' in words
    assert 'NCCT and CTA in turn · now: CTA (−20 to 220 HU)' in words
    root = read(path)
    assert root.get('tabindex') == '0', 'the keyboard can reach it'
    groups = {g.get('class'): len(list(g.iter(f'{SVG}image'))) for g in root.iter(f'{SVG}g')}
    assert groups == {'rest': 21, 'turn': 21}


def test_the_scale_of_a_map_shows_its_limits_and_that_values_go_beyond(tmp_path, ncct, brain):
    values = image(np.where(ball(), np.indices(SHAPE)[0], 0))
    path = draw_map_mosaic(
        values, brain, ncct, tmp_path / 'm.svg', label='Arrival', units='s', limits=(10, 20)
    )
    words = [word for word, *_ in texts(path)]
    assert {'Arrival (s)', '≤ 10', '15', '≥ 20', 'earlier', 'later'} <= set(words)


def test_asymmetry_has_a_colour_where_it_is_later_and_none_on_the_mirror_side(tmp_path, brain):
    values = marked_on_the_right(0.4)
    path = draw_asymmetry(image(values - values[::-1]), brain, tmp_path / 'a.svg')
    for element in read(path).iter(f'{SVG}image'):
        code = element.get('href', '').partition('base64,')[2]
        rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert('RGB'), int)
        redness = rgb[..., 0] - rgb[..., 2]
        if float(element.get('height', 0)) > 20 and redness.max() > 60:
            middle = rgb.shape[1] // 2
            assert redness[:, :middle].max() > 40 > redness[:, middle:].max()
            assert np.abs(redness[:, middle:]).max() < 25
            break
    else:
        pytest.fail('no slice shows the difference')


@pytest.mark.parametrize('fill', [0.0, np.nan, np.inf])
def test_images_without_content_are_drawn_all_the_same(tmp_path, fill):
    empty = image(np.full(SHAPE, fill))
    nothing = image(np.zeros(SHAPE))
    assert draw_brain_outline(empty, nothing, tmp_path / '1.svg').is_file()
    assert draw_flicker(
        empty, empty, tmp_path / '2.svg', windows=(None, None), contour=nothing
    ).is_file()
    assert draw_subtraction_mip(empty, [], nothing, tmp_path / '3.svg').is_file()
    assert draw_map_mosaic(empty, nothing, empty, tmp_path / '4.svg', label='x').is_file()
    assert draw_asymmetry(empty, nothing, tmp_path / '5.svg').is_file()


def test_images_on_different_grids_are_refused(tmp_path, ncct, brain):
    shifted = image(ball(), brain.affine + np.diag([0.5, 0, 0, 0]))
    with pytest.raises(ValueError, match='share a grid'):
        draw_brain_outline(ncct, shifted, tmp_path / 'x.svg')
    with pytest.raises(ValueError, match='3-D'):
        draw_brain_outline(image(np.zeros((*SHAPE, 2))), brain, tmp_path / 'x.svg')
    assert not list(tmp_path.iterdir())


def test_a_slab_shows_a_vessel_once_and_the_site_in_its_slab(tmp_path, brain):
    vessels = image(np.where(marked_on_the_right(), 200.0, 0.0))
    spot = nib.affines.apply_affine(vessels.affine, [31, 32, 24])
    path = draw_slabs(vessels, brain, tmp_path / 'x.svg', site=[spot], called='the site')
    bright = [p for *_, p in pictures(path) if p.max() > 200]
    assert 1 <= len(bright) <= 2
    assert all(halves(p)[0] > halves(p)[1] for p in bright), 'the right is on the left'
    marks = [e for e in read(path).iter(f'{SVG}ellipse') if e.get('class') == 'site']
    assert len(marks) == 2, 'one in a slab, one in the legend'
    assert 'the site' in [text for text, *_ in texts(path)]
    plain = draw_slabs(vessels, brain, tmp_path / 'y.svg')
    assert not list(read(plain).iter(f'{SVG}ellipse'))


def test_the_turning_projection_turns_to_the_named_sides(tmp_path, brain):
    path = draw_rotation(image(marked_on_the_right()), brain, tmp_path / 'x.svg')
    front, left, back, right = (p for *_, p in pictures(path)[:4])
    assert [t for t, *_ in texts(path) if t.startswith('from')] == [
        'from the front', 'from the left', 'from the back', 'from the right',
    ]  # fmt: skip
    assert halves(front)[0] > 100 > halves(front)[1], 'the right is on the left'
    assert halves(back)[1] > 100 > halves(back)[0]
    assert halves(left)[0] > 100 > halves(left)[1], 'the front is on the left'
    assert halves(right)[1] > 100 > halves(right)[0]


def test_the_narrow_window_is_narrow(tmp_path, brain, ncct):
    path = draw_narrow_window(ncct, brain, tmp_path / 'x.svg')
    assert '20 to 50 HU' in read(path).get('aria-label', '')
    assert all(p.max() > 120 for *_, p in pictures(path)), 'tissue of 35 HU is in its middle'
