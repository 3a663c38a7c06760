"""Figures of one patient, as SVG files that need nothing beside them.

Slices are embedded as JPEG, while outlines, marks and colour scales stay text and lines, so that a
figure is sharp, small, searchable and the same byte for byte on every run. Must not compute
results: it windows, crops and projects for the eye alone, and knows no file but the one it writes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from nibabel.spatialimages import SpatialImage
from PIL import Image
from scipy.cluster.hierarchy import fclusterdata
from skimage.measure import approximate_polygon, find_contours

from bids_perfdeficit.bids import write_text

#: Width of every figure in SVG units, so that letters have one size on a page.
WIDTH = 1200.0
#: Space for the marks left and right of a row, and for a line of text, in SVG units.
GUTTER = 22.0
LINE = 24.0
#: Between two slices, in SVG units.
GAP = 4.0
#: HU window in which stroke is read on NCCT.
STROKE_WINDOW = (0.0, 80.0)
#: HU window in which early ischaemia is read: level 35, width 30.
NARROW_WINDOW = (20.0, 50.0)
#: mm of slices that are averaged for the narrow window, so that noise does not fill it.
NARROW_MM = 5.0
#: mm of an axial slab: thin enough that M1 is not covered by the sinuses.
SLAB_MM = 12.0
#: Views of the turning projection, and HU below which a voxel is left out of it.
TURNS, TURN_HU = 24, 60.0
#: HU window in which vessels, brain and skull can be distinguished on CTA.
CTA_WINDOW = (-20.0, 220.0)
#: HU window of the subtraction; below 40 HU a projection shows only noise.
SUBTRACTION_WINDOW = (40.0, 240.0)
#: Orange and sky blue of Okabe and Ito's palette, which are distinct in all kinds of colour
#: vision.
OUTLINE_COLOUR = '#E69F00'
SOURCE_COLOUR = '#56B4E9'
#: JPEG quality; at 88, with full colour resolution, noise stays noise and edges stay edges.
JPEG_QUALITY = 88
CONVENTION = 'Radiological display: the patient’s right (R) is on the left'
#: What is at the left and the right end of a picture across each axis of a RAS array.
_ENDS = {0: ('A', 'P'), 1: ('R', 'L'), 2: ('R', 'L')}

#: From axis and index of a slice to a picture.
Paint = Callable[[int, int], np.ndarray]
#: Axis and indices of each row of slices.
Rows = Sequence[tuple[int, tuple[int, ...]]]


@dataclass(frozen=True)
class _View:
    """A part of a RAS grid that is looked at.

    Parameters
    ----------
    start, stop : tuple of int
        Voxel box, (X, Y, Z), that is shown.
    first, last : tuple of int
        What is looked at in it: slices are taken from first to last.
    affine : ndarray, (4, 4)
        Voxel to mm.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        return nib.affines.voxel_sizes(self.affine)

    def size(self, axis: int) -> tuple[float, float]:
        """Return width and height in mm of a picture across an axis."""
        across, down = (a for a in range(3) if a != axis)
        extent = (np.array(self.stop) - self.start) * self.spacing
        return float(extent[across]), float(extent[down])

    def plane(self, volume: np.ndarray, axis: int, index: int | None) -> np.ndarray:
        """Return a slice as a picture, rows from the top; None projects the maximum."""
        box = volume[tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))]
        if index is None:
            flat = box.max(axis)
        else:  # a view: `take` would copy the box wherever its axes lie in memory otherwise
            flat = box[(slice(None),) * axis + (index - self.start[axis],)]
        # RAS: the first in-plane axis runs to the right or front, the second to the front or top.
        return flat[::-1, ::-1].T

    def locate(self, points: np.ndarray, axis: int) -> np.ndarray:
        """Return where points (N, 3), in voxels, lie on a picture: (N, 2) mm right and down."""
        kept = [a for a in range(3) if a != axis]
        return (np.array(self.stop)[kept] - 0.5 - points[:, kept]) * self.spacing[kept]

    def spread(self, axis: int, number: int) -> tuple[int, ...]:
        """Return evenly spaced slices, none of them at the very border of what is looked at."""
        # A third of a step off the border: the outermost slices show little, but not nothing.
        rim = (self.last[axis] - self.first[axis]) / (number - 1 / 3) / 3
        steps = np.linspace(self.first[axis] + rim, self.last[axis] - rim, number)
        return tuple(int(s) for s in np.round(steps))


def draw_brain_outline(ncct: SpatialImage, brain: SpatialImage, out: Path) -> Path:
    """Draw the NCCT in three planes in the stroke window, with the outline of the brain mask.

    Parameters
    ----------
    ncct : SpatialImage
        HU.
    brain : SpatialImage
        Mask on the same grid.
    out : Path
        SVG to write.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    head, mask = _volumes(ncct, brain)
    view = _look(mask > 0, ncct, margin=14)
    rows = [(2, view.spread(2, 16)[:8]), (2, view.spread(2, 16)[8:])]
    rows += [(1, view.spread(1, 8)), (0, view.spread(0, 8))]
    body = _tiles(view, rows, _paint_grey(view, head, STROKE_WINDOW))
    lines, height = _marks(view, rows, mask > 0)
    title = f'NCCT {_window_text(STROKE_WINDOW)} with the outline of the brain mask'
    return _save(out, title, body + lines, height)


def draw_narrow_window(ncct: SpatialImage, brain: SpatialImage, out: Path) -> Path:
    """Draw axial slices of the NCCT in the narrow window in which early ischaemia is read.

    Parameters
    ----------
    ncct : SpatialImage
        HU.
    brain : SpatialImage
        Mask on the same grid; the view is cropped to it.
    out : Path
        SVG to write.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    head, mask = _volumes(ncct, brain)
    view = _look(mask > 0, ncct, margin=4)
    spread = view.spread(2, 16)
    rows: Rows = [(2, spread[:8]), (2, spread[8:])]
    reach = round(float(NARROW_MM / 2 / view.spacing[2]))

    def paint(axis: int, index: int) -> np.ndarray:
        planes = [
            view.plane(head, axis, k)
            for k in range(index - reach, index + reach + 1)
            if view.start[axis] <= k < view.stop[axis]
        ]
        return _grey(np.mean(planes, axis=0), NARROW_WINDOW)

    lines, height = _marks(view, rows, None)
    title = f'NCCT {_window_text(NARROW_WINDOW)}, means of {NARROW_MM:g} mm'
    return _save(out, title, _tiles(view, rows, paint) + lines, height)


def draw_slabs(
    subtraction: SpatialImage,
    brain: SpatialImage,
    out: Path,
    *,
    site: Sequence[Sequence[float]] | np.ndarray = (),
    called: str = '',
) -> Path:
    """Draw maximum-intensity projections of axial slabs of the enhancement.

    Parameters
    ----------
    subtraction : SpatialImage
        CTA - NCCT in HU.
    brain : SpatialImage
        Mask on the same grid; its outline is drawn and the view cropped to it.
    out : Path
        SVG to write.
    site : array-like, (N, 3)
        Course in mm, RAS, of the artery that is reported to be occluded; N may be 0.
    called : str
        What the mark is, for the legend.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    vessels, mask = _volumes(subtraction, brain)
    view = _look(mask > 0, subtraction, margin=4)
    points = nib.affines.apply_affine(
        np.linalg.inv(view.affine), np.reshape(np.asarray(site, dtype=float), (-1, 3))
    )
    tall = max(round(float(SLAB_MM / view.spacing[2])), 1)
    middles = [
        min(low + tall // 2, view.last[2])
        for low in range(view.first[2], view.last[2] - tall // 3, tall)
    ]
    columns = 6
    rows: Rows = [(2, tuple(middles[n : n + columns])) for n in range(0, len(middles), columns)]

    def slab(index: int) -> tuple[int, int]:
        return max(index - tall // 2, 0), min(index - tall // 2 + tall, vessels.shape[2])

    def paint(axis: int, index: int) -> np.ndarray:
        low, high = slab(index)
        planes = [
            view.plane(vessels, 2, k)
            for k in range(max(low, view.start[2]), min(high, view.stop[2]))
        ]
        return _grey(np.max(planes, axis=0), SUBTRACTION_WINDOW)

    slices, ends, scale, height = _layout(view, rows)
    body = _tiles(view, rows, paint)
    for axis, index, left, top in slices:
        body += _outline(view.plane(mask > 0, axis, index), view, axis, left, top, scale)
        low, high = slab(index)
        span = ' to '.join(
            f'{view.affine[2, 3] + k * view.affine[2, 2]:.0f}'.replace('-', '−')
            for k in (low, high)
        )
        bottom = top + view.size(axis)[1] * scale
        body += _text(left + 3, bottom - 4, f'z {span} mm', size=11)
        inside = (points[:, 2] >= low) & (points[:, 2] < high)
        if inside.any():
            body += _ellipse(view.locate(points[inside], 2), left, top, scale)
    body += ''.join(_ends(axis, GUTTER, WIDTH - GUTTER, middle) for axis, middle in ends)
    if len(points) and called:
        middle = height + LINE + 14
        body += (
            f'<ellipse class="site" cx="{GUTTER + 12:g}" cy="{middle:.1f}" rx="12" ry="7"/>'
            f'{_text(GUTTER + 32, middle + 4, called)}'
        )
    title = (
        f'CTA − NCCT {_window_text(SUBTRACTION_WINDOW)}, axial maximum-intensity projections of '
        f'{tall * view.spacing[2]:.0f} mm'
    )
    return _save(out, title, body, height + (LINE if len(points) and called else 0))


def draw_rotation(subtraction: SpatialImage, brain: SpatialImage, out: Path) -> Path:
    """Draw a maximum-intensity projection that turns while the pointer or the focus is on it.

    Parameters
    ----------
    subtraction : SpatialImage
        CTA - NCCT in HU.
    brain : SpatialImage
        Mask on the same grid.
    out : Path
        SVG to write.

    Returns
    -------
    Path
        `out`. At rest and in print it shows four of the views.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    vessels, mask = _volumes(subtraction, brain)
    view = _look(mask > 0, subtraction, margin=4)
    index = np.argwhere((vessels > TURN_HU) & (mask > 0))
    values = vessels[tuple(index.T)]
    middle = (np.array(view.first) + view.last) / 2
    x, y, z = ((index - middle) * view.spacing).T
    radius = float(np.hypot(*(np.array(view.size(2)) / 2)))
    tall = view.size(0)[1]
    pixel = float(view.spacing.max()) * 1.2  # no holes between turned voxels
    shape = int(np.ceil(tall / pixel)) + 1, int(np.ceil(2 * radius / pixel)) + 1

    def project(turn: int) -> np.ndarray:
        angle = 2 * np.pi * turn / TURNS
        across = x * np.cos(angle) + y * np.sin(angle)
        picture = np.zeros(shape, np.float32)
        row = ((tall / 2 - z) / pixel).astype(int).clip(0, shape[0] - 1)
        # From the front the patient's right (x > 0) is on the left of the picture.
        column = ((radius - across) / pixel).astype(int).clip(0, shape[1] - 1)
        np.maximum.at(picture, (row, column), values)
        return _grey(picture, SUBTRACTION_WINDOW)

    pictures = [project(turn) for turn in range(TURNS)]
    names = ('from the front', 'from the left', 'from the back', 'from the right')
    wide = (WIDTH - 2 * GUTTER - 3 * GAP) / 4
    high = wide * shape[0] / shape[1]
    larger = 1.4
    rest = ''
    for n, name in enumerate(names):
        left, top = GUTTER + n * (wide + GAP), LINE + (larger - 1) / 2 * high
        rest += _image(pictures[n * TURNS // 4], (left, top, wide, high))
        rest += _text(left + 4, top + high - 6, name)
    place = WIDTH / 2 - larger * wide / 2, LINE, larger * wide, larger * high
    frames = ''.join(
        f'<g class="frame" style="animation-delay:{6 * n / TURNS:.2f}s">'
        f'{_image(picture, place)}</g>'
        for n, picture in enumerate(pictures)
    )
    style = (
        f'<style>@keyframes frame{{0%,{100 / TURNS:.3f}%{{opacity:1}}{100 / TURNS + 0.01:.3f}%,'
        '100%{opacity:0}}.frame{opacity:0}'
        'svg:hover .frame,svg:focus .frame{animation:frame 6s step-end infinite}'
        'svg:hover .rest,svg:focus .rest{opacity:0}</style>'
    )
    title = (
        f'CTA − NCCT {_window_text(SUBTRACTION_WINDOW)} above {TURN_HU:g} HU, projections around '
        'the vertical axis'
    )
    return _save(
        out,
        title,
        f'{style}<g class="rest">{rest}</g>{frames}',
        larger * high,
        interactive=True,
    )


def draw_flicker(
    background: SpatialImage,
    foreground: SpatialImage,
    out: Path,
    *,
    labels: tuple[str, str] = ('NCCT', 'CTA'),
    windows: tuple[tuple[float, float] | None, tuple[float, float] | None] = (
        STROKE_WINDOW,
        CTA_WINDOW,
    ),
    contour: SpatialImage | None = None,
) -> Path:
    """Draw two images that take turns while the pointer or the keyboard focus is on them.

    Parameters
    ----------
    background, foreground : SpatialImage
        On one grid; the background is what shows at rest and in print.
    out : Path
        SVG to write.
    labels : tuple of str
        What background and foreground are.
    windows : tuple of (low, high) or None
        Grey levels; None takes the 1st and 99.5th percentile of what is not zero.
    contour : SpatialImage, optional
        Mask whose outline stays while the images change; the view is cropped to it.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    back, front, *masks = _volumes(
        background, foreground, *(() if contour is None else (contour,))
    )
    view = _look(
        masks[0] > 0 if masks else np.isfinite(back), background, margin=14 if masks else 0
    )
    rows = [(axis, view.spread(axis, 7)) for axis in (2, 1, 0)]
    lines, height = _marks(view, rows, masks[0] > 0 if masks else None)
    layers = ''
    pair = f'{labels[0]} and {labels[1]} in turn'
    for name, label, volume, window in zip(
        ('rest', 'turn'), labels, (back, front), windows, strict=True
    ):
        tiles = _tiles(view, rows, _paint_grey(view, volume, window))
        grey = f' {_window_text(window)}' if window else ''
        layers += (
            f'<g class="{name}"><rect width="{WIDTH:g}" height="{height + LINE:g}"/>'
            f'{_text(GUTTER, LINE - 7, f"{pair} · now: {label}{grey}", bold=True)}{tiles}</g>'
        )
    title = f'{pair}, three planes'
    # Each image is held a while: the eye sees a jump of an edge better than a slow fade.
    style = (
        '<style>@keyframes turn{0%,40%{opacity:0}50%,90%{opacity:1}100%{opacity:0}}'
        '.turn{opacity:0}svg:hover .turn,svg:focus .turn{animation:turn 2s infinite}</style>'
    )
    return _save(out, title, style + layers + lines, height, heading='', interactive=True)


def draw_subtraction_mip(
    subtraction: SpatialImage,
    sources: Sequence[Sequence[float]] | np.ndarray,
    brain: SpatialImage,
    out: Path,
) -> Path:
    """Draw maximum-intensity projections of the enhancement, with the sources of arrival.

    Axial, coronal, and each half of the head sagittal.

    Parameters
    ----------
    subtraction : SpatialImage
        CTA - NCCT in HU.
    sources : array-like, (N, 3)
        Points of inflow in mm, RAS; N may be 0.
    brain : SpatialImage
        Mask on the same grid; its silhouette is drawn and the view cropped to it.
    out : Path
        SVG to write.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    vessels, mask = _volumes(subtraction, brain)
    view = _look(mask > 0, subtraction, margin=6)
    points = nib.affines.apply_affine(
        np.linalg.inv(view.affine), np.reshape(np.asarray(sources, dtype=float), (-1, 3))
    )
    middle = (view.first[0] + view.last[0] + 1) / 2
    whole = np.ones(len(points), dtype=bool)
    right = points[:, 0] >= middle
    x = np.arange(mask.shape[0])[:, None, None]
    panels = (
        ('axial (radiological)', 2, vessels, whole),
        ('coronal (radiological)', 1, vessels, whole),
        ('right half, sagittal', 0, np.where(x >= middle, vessels, 0), right),
        ('left half, sagittal', 0, np.where(x < middle, vessels, 0), ~right),
    )
    widths = [view.size(axis)[0] for _, axis, *_ in panels]
    scale = (WIDTH - 2 * GUTTER * len(panels)) / sum(widths)
    height = max(view.size(axis)[1] for _, axis, *_ in panels) * scale
    body, left = '', GUTTER
    for (name, axis, volume, chosen), width in zip(panels, widths, strict=True):
        tall = view.size(axis)[1]
        top = 2 * LINE
        body += _image(
            _grey(view.plane(volume, axis, None), SUBTRACTION_WINDOW),
            (left, top, width * scale, tall * scale),
        )
        body += _outline(view.plane(mask > 0, axis, None), view, axis, left, top, scale)
        body += _rings(view.locate(points[chosen], axis), left, top, scale)
        body += _text(left, top - 7, name) + _ends(
            axis, left, left + width * scale, top + tall * scale / 2
        )
        left += width * scale + 2 * GUTTER
    body += _text(GUTTER, 2 * LINE + height + 17, '○', colour=SOURCE_COLOUR, size=20)
    found = 'inflow from which arrival is computed' if len(points) else 'no inflow was marked'
    body += _text(GUTTER + 16, 2 * LINE + height + 17, found)
    title = f'CTA − NCCT {_window_text(SUBTRACTION_WINDOW)}, maximum-intensity projections'
    return _save(out, title, body, height + 2 * LINE)


def draw_map_mosaic(
    map: SpatialImage,
    brain: SpatialImage,
    background: SpatialImage,
    out: Path,
    *,
    label: str,
    units: str = '',
    cmap: str = 'viridis',
    ends: tuple[str, str] = ('earlier', 'later'),
    limits: tuple[float, float] | None = None,
    contour: SpatialImage | None = None,
    outlined: str = '',
    note: str = '',
    clear: float = 0.0,
) -> Path:
    """Draw a map in the brain as a lightbox of axial slices with its colour scale.

    Parameters
    ----------
    map : SpatialImage
        Any unit; values that are not finite are left out.
    brain : SpatialImage
        Mask: the map is drawn inside, the background outside.
    background : SpatialImage
        NCCT in HU on the same grid.
    out : Path
        SVG to write.
    label, units : str
        The heading.
    cmap : str
        A perceptually uniform colour map of matplotlib.
    ends : tuple of str
        What low and high values mean.
    limits : tuple of float, optional
        Values at the ends of the scale; default the 1st and 99th percentile in the brain.
    contour : SpatialImage, optional
        Mask to outline on the map, or a map that is 0.5 at the line to draw.
    outlined : str
        What the outline is, for the legend.
    note : str
        A line of text below the map, such as its volumes.
    clear : float
        Share of the scale from its low end in which the map fades into the background.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    values, mask, head, *masks = _volumes(
        map, brain, background, *(() if contour is None else (contour,))
    )
    inside = (mask > 0) & np.isfinite(values)
    low, high = limits or _percentiles(values[inside], 1, 99)
    view = _look(mask > 0, map, margin=4)
    colours = colormaps[cmap]

    def paint(axis: int, index: int) -> np.ndarray:
        grey = _grey(view.plane(head, axis, index), STROKE_WINDOW)
        part = np.nan_to_num((view.plane(values, axis, index) - low) / (high - low), posinf=1.0)
        strength = np.asarray(view.plane(inside, axis, index), np.float32)
        if clear:
            strength = strength * np.clip(part / clear, 0, 1)
        shown = colours(part)[..., :3] * 255
        return strength[..., None] * shown + (1 - strength[..., None]) * grey

    rows = _lightbox(view)
    lines, height = _marks(view, rows, masks[0] if masks else None, halo=True)
    body = _tiles(view, rows, paint) + lines + _legend(outlined, height)
    body += _colour_bar(
        colours(np.linspace(0, 1, 256))[None, :, :3] * 255,
        (low, high),
        ends,
        height,
        beyond=(bool((values[inside] < low).any()), bool((values[inside] > high).any())),
    )
    height += 2 * LINE
    if note:
        body += _text(GUTTER, height + 1.5 * LINE, note, bold=True, size=16)
        height += LINE
    return _save(out, _with_units(label, units), body, height)


def draw_thumbnail(
    map: SpatialImage, brain: SpatialImage, background: SpatialImage, late: SpatialImage, out: Path
) -> Path:
    """Draw the axial slice with the largest area that is outlined, small and without words.

    Parameters
    ----------
    map : SpatialImage
        Probability, 0 to 1.
    brain : SpatialImage
        Mask: the map is drawn inside.
    background : SpatialImage
        NCCT in HU on the same grid.
    late : SpatialImage
        0.5 at the border of what counts; without any, a slice through the middle is drawn.
    out : Path
        SVG to write.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    values, mask, head, border = _volumes(map, brain, background, late)
    view = _look(mask > 0, map, margin=4)
    areas = ((border > 0.5) & (mask > 0)).sum((0, 1))
    index = int(areas.argmax()) if areas.any() else (view.first[2] + 2 * view.last[2]) // 3
    grey = _grey(view.plane(head, 2, index), STROKE_WINDOW)
    part = np.clip(np.nan_to_num(view.plane(values, 2, index)), 0, 1)
    strength = (np.clip(part * 4, 0, 1) * (view.plane(mask, 2, index) > 0))[..., None]
    colour = colormaps['inferno'](part)[..., :3] * 255
    picture = strength * colour + (1 - strength) * grey
    step = max(1, round(float(2 / view.spacing[0])))
    wide, tall = view.size(2)
    size = max(wide, tall)
    box = ((size - wide) / 2, (size - tall) / 2, wide, tall)
    write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size:.0f} {size:.0f}" role="img" '
        f'aria-label="Probability of hypoperfusion"><rect width="100%" height="100%"/>'
        f'{_image(picture[::step, ::step], box)}</svg>',
        out,
    )
    return out


def draw_asymmetry(
    asymmetry: SpatialImage,
    template_background: SpatialImage,
    out: Path,
    *,
    limit: float | None = None,
) -> Path:
    """Draw how much later each voxel is than its mirror image, over the symmetric template.

    The earlier side stays grey: the same difference drawn on both sides would read as
    hyperperfusion of the healthy one.

    Parameters
    ----------
    asymmetry : SpatialImage
        Map minus its mirror, unitless; positive is later than the other side.
    template_background : SpatialImage
        Brain of the template on the same grid, zero outside.
    out : Path
        SVG to write.
    limit : float, optional
        Value at the end of the scale; default the 99th percentile of the absolute map.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    values, brain = _volumes(asymmetry, template_background)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    limit = limit or _percentiles(np.abs(values[values != 0]), 0, 99)[1]
    grey_limits = _percentiles(brain[brain != 0], 1, 99.5)
    view = _look(values != 0, asymmetry, margin=4)
    colours = colormaps['inferno']

    def blend(part: np.ndarray, grey: np.ndarray) -> np.ndarray:
        # Clear at zero, so that the anatomy shows where both sides agree.
        strength = np.clip(part / 0.35, 0, 1)[..., None]
        shown = colours(0.35 + 0.65 * np.clip(part, 0, 1))[..., :3] * 255
        return strength * shown + (1 - strength) * grey

    def paint(axis: int, index: int) -> np.ndarray:
        grey = _grey(view.plane(brain, axis, index), grey_limits) * 0.6
        return blend(view.plane(values, axis, index) / limit, grey)

    rows = _lightbox(view)
    lines, height = _marks(view, rows, None)
    body = _tiles(view, rows, paint) + lines
    body += _colour_bar(
        blend(np.linspace(0, 1, 256)[None], np.full(3, 80.0)),
        (0.0, limit),
        ('as the other side', 'later'),
        height,
        beyond=(False, bool((values > limit).any())),
    )
    return _save(
        out, 'Asymmetry: how much later than the mirrored region', body, height + 2 * LINE
    )


def draw_side_by_side(
    maps: Sequence[tuple[SpatialImage, SpatialImage, str, tuple[float, float]]],
    brain: SpatialImage,
    background: SpatialImage,
    out: Path,
    *,
    title: str,
    cmap: str = 'viridis',
    ends: tuple[str, str] = ('earlier', 'later'),
) -> Path:
    """Draw several maps of one brain below each other, on the same axial slices.

    Parameters
    ----------
    maps : sequence of (SpatialImage, SpatialImage, str, (float, float))
        Each with the mask that is outlined on it, its heading, and the values at the ends of its
        colours. What is not finite shows the background.
    brain : SpatialImage
        Mask: maps are drawn inside, the background outside.
    background : SpatialImage
        NCCT in HU on the same grid.
    out : Path
        SVG to write.
    title : str
        The heading of it all.
    cmap : str
        A perceptually uniform colour map of matplotlib.
    ends : tuple of str
        What low and high values mean.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an image is not 3-D or the grids differ.
    """
    mask, head, *volumes = _volumes(
        brain, background, *(image for one in maps for image in one[:2])
    )
    view = _look(mask > 0, brain, margin=4)
    slices = view.spread(2, 12)
    rows = [(2, slices[1:-2])]
    colours = colormaps[cmap]
    body, down = '', LINE
    for k, (_, _, heading, (low, high)) in enumerate(maps):
        values, outline = volumes[2 * k], volumes[2 * k + 1]
        inside = (mask > 0) & np.isfinite(values)

        def paint(
            axis: int,
            index: int,
            values: np.ndarray = values,
            inside: np.ndarray = inside,
            low: float = low,
            high: float = high,
        ) -> np.ndarray:
            grey = _grey(view.plane(head, axis, index), STROKE_WINDOW)
            part = (view.plane(values, axis, index) - low) / (high - low)
            colour = colours(np.nan_to_num(part))[..., :3] * 255
            return np.where(view.plane(inside, axis, index)[..., None], colour, grey)

        lines, height = _marks(view, rows, outline, halo=True)
        body += (
            f'<g transform="translate(0 {down:.1f})">{_tiles(view, rows, paint)}{lines}'
            f'{_text(GUTTER, LINE - 7, heading)}</g>'
        )
        down += height + LINE
    ramp = colours(np.linspace(0, 1, 256))[None, :, :3] * 255
    left, width, top = WIDTH / 2 - 200, 400.0, down + 8
    body += _image(ramp, (left, top, width, 12))
    body += _text(left - 14, top + 10, ends[0], anchor='end')
    body += _text(left + width + 14, top + 10, ends[1])
    return _save(out, title, body, down + LINE)


def _volumes(*images: SpatialImage) -> list[np.ndarray]:
    """Return the voxels of images on one grid, axes turned to (X, Y, Z) in RAS."""
    first = nib.as_closest_canonical(images[0])
    volumes = []
    for image in images:
        turned = nib.as_closest_canonical(image)
        if len(turned.shape) != 3:
            raise ValueError(f'a figure needs 3-D images, this one has shape {turned.shape}')
        if turned.shape != first.shape or not np.allclose(turned.affine, first.affine, atol=1e-2):
            raise ValueError(
                f'the images of a figure must share a grid: {turned.shape} against {first.shape}, '
                f'or their affines differ'
            )
        volumes.append(np.asarray(turned.dataobj, dtype=np.float32))
    return volumes


def _look(mask: np.ndarray, image: SpatialImage, *, margin: float) -> _View:
    """Return the box around a mask, with a margin in mm; all of the grid for an empty mask."""
    affine = nib.as_closest_canonical(image).affine
    spacing = nib.affines.voxel_sizes(affine)
    ends = []
    for axis, size in enumerate(mask.shape):
        used = np.nonzero(mask.any(tuple(a for a in range(3) if a != axis)))[0]
        ends.append((int(used[0]), int(used[-1])) if used.size else (0, size - 1))
    steps = [int(np.ceil(margin / s)) for s in spacing]
    return _View(
        start=tuple(max(a - n, 0) for (a, _), n in zip(ends, steps, strict=True)),
        stop=tuple(
            min(b + n + 1, size) for (_, b), n, size in zip(ends, steps, mask.shape, strict=True)
        ),
        first=tuple(a for a, _ in ends),
        last=tuple(b for _, b in ends),
        affine=affine,
    )


def _lightbox(view: _View) -> Rows:
    """Return three rows of axial slices, from the base to the vertex."""
    slices = view.spread(2, 24)
    return [(2, slices[n : n + 8]) for n in (0, 8, 16)]


def _layout(
    view: _View, rows: Rows
) -> tuple[list[tuple[int, int, float, float]], list[tuple[int, float]], float, float]:
    """Lay rows of slices below each other.

    Returns axis, index, left and top of each slice; axis and middle of each row; SVG units per mm;
    and the height of it all.
    """
    cell = (WIDTH - 2 * GUTTER) / max(len(indices) for _, indices in rows)
    scale = (cell - GAP) / max(view.size(axis)[0] for axis, _ in rows)
    slices, middles, top = [], [], LINE
    for axis, indices in rows:
        wide, tall = (scale * mm for mm in view.size(axis))
        for column, index in enumerate(indices):
            slices.append((axis, index, GUTTER + column * cell + (cell - wide) / 2, top))
        middles.append((axis, top + tall / 2))
        top += tall + GAP
    return slices, middles, scale, top - LINE


def _tiles(view: _View, rows: Rows, paint: Paint) -> str:
    """Draw the slices of a mosaic."""
    slices, _, scale, _ = _layout(view, rows)
    parts = []
    for axis, index, left, top in slices:
        wide, tall = view.size(axis)
        parts.append(_image(paint(axis, index), (left, top, wide * scale, tall * scale)))
    return ''.join(parts)


def _marks(
    view: _View, rows: Rows, outline: np.ndarray | None, *, halo: bool = False
) -> tuple[str, float]:
    """Draw what lies on the slices of a mosaic; return the SVG and the height of the mosaic."""
    slices, middles, scale, height = _layout(view, rows)
    parts = []
    for axis, index, left, top in slices:
        if outline is not None:
            flat = view.plane(outline, axis, index)
            parts.append(_outline(flat, view, axis, left, top, scale, halo=halo))
        bottom = top + view.size(axis)[1] * scale
        parts.append(_text(left + 3, bottom - 4, _position(view, axis, index), size=10))
    parts += [_ends(axis, GUTTER, WIDTH - GUTTER, middle) for axis, middle in middles]
    return ''.join(parts), height


def _paint_grey(view: _View, volume: np.ndarray, window: tuple[float, float] | None) -> Paint:
    limits = window or _percentiles(volume[volume != 0], 1, 99.5)
    return lambda axis, index: _grey(view.plane(volume, axis, index), limits)


def _position(view: _View, axis: int, index: int) -> str:
    """Return the position of a slice: mm from the middle for sides, coordinate in mm otherwise."""
    position = view.affine[axis, 3] + index * view.affine[axis, axis]
    if axis == 0:
        middle = view.affine[0, 3] + (view.first[0] + view.last[0]) / 2 * view.affine[0, 0]
        away = round(abs(position - middle))
        return f'{away} mm {"R" if position > middle else "L"}' if away else 'middle'
    return f'{"xyz"[axis]} {position:.0f}'.replace('-', '−')


def _grey(plane: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return a picture (rows, columns, 3) in 0 to 255."""
    low, high = limits
    part = np.clip((np.nan_to_num(plane) - low) / (high - low), 0, 1)
    return np.repeat(part[..., None] * 255, 3, axis=-1)


def _percentiles(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return limits for display that are finite and apart, whatever the values."""
    values = values[np.isfinite(values)]
    first, last = (float(v) for v in np.percentile(values, (low, high))) if values.size else (0, 0)
    return (first, last) if last > first else (first, first + 1.0)


def _with_units(label: str, units: str) -> str:
    return f'{label} ({units})' if units else label


def _window_text(window: tuple[float, float]) -> str:
    return f'({window[0]:g} to {window[1]:g} HU)'.replace('-', '−')


def _image(picture: np.ndarray, place: tuple[float, float, float, float]) -> str:
    """Embed a picture (rows, columns, 3) at left, top, width and height."""
    stream = io.BytesIO()
    pixels = np.ascontiguousarray(np.clip(np.round(picture), 0, 255).astype(np.uint8))
    if (pixels == pixels[..., :1]).all():
        Image.fromarray(pixels[..., 0]).save(stream, 'JPEG', quality=JPEG_QUALITY)
    else:
        Image.fromarray(pixels).save(stream, 'JPEG', quality=JPEG_QUALITY, subsampling=0)
    code = base64.b64encode(stream.getvalue()).decode('ascii')
    left, top, width, height = (f'{value:.1f}' for value in place)
    return (
        f'<image x="{left}" y="{top}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none" href="data:image/jpeg;base64,{code}"/>'
    )


def _outline(
    flat: np.ndarray,
    view: _View,
    axis: int,
    left: float,
    top: float,
    scale: float,
    *,
    halo: bool = False,
) -> str:
    """Draw the border of a picture of a mask; with a halo, to be seen on any colour."""
    across, down = view.spacing[[a for a in range(3) if a != axis]] * scale
    parts = []
    for line in find_contours(np.pad(flat.astype(float), 1), 0.5):
        corners = approximate_polygon(line, 0.1 if halo else 0.35)
        # Minus the padding, plus half a voxel to the centre.
        x, y = left + (corners[:, 1] - 0.5) * across, top + (corners[:, 0] - 0.5) * down
        parts.append('M' + ' '.join(f'{a:.1f},{b:.1f}' for a, b in zip(x, y, strict=True)))
    if not parts:
        return ''
    course = ''.join(parts)
    if halo:
        return f'<path class="edge" d="{course}"/><path class="core" d="{course}"/>'
    return f'<path class="outline" d="{course}"/>'


def _legend(outlined: str, top: float) -> str:
    """Draw, beside the colour scale, what the line with a halo is."""
    if not outlined:
        return ''
    middle = top + LINE + 14
    course = f'M{GUTTER:g},{middle:.1f}h24'
    return (
        f'<path class="edge" d="{course}"/><path class="core" d="{course}"/>'
        f'{_text(GUTTER + 32, middle + 4, outlined)}'
    )


def _rings(spots: np.ndarray, left: float, top: float, scale: float) -> str:
    """Draw a ring around each group of spots (N, 2) in mm."""
    groups = fclusterdata(spots, 8.0, 'distance') if len(spots) > 1 else np.ones(len(spots), int)
    parts = []
    for group in np.unique(groups):
        members = spots[groups == group]
        centre = members.mean(0)
        radius = 4 + float(np.sqrt(((members - centre) ** 2).sum(1)).max())
        x, y = left + centre[0] * scale, top + centre[1] * scale
        parts.append(
            f'<circle class="source" cx="{x:.1f}" cy="{y:.1f}" r="{radius * scale:.1f}"/>'
        )
    return ''.join(parts)


def _ellipse(spots: np.ndarray, left: float, top: float, scale: float) -> str:
    """Draw an ellipse around spots (N, 2) in mm."""
    low, high = spots.min(0), spots.max(0)
    (x, y), (rx, ry) = (low + high) / 2, (high - low) / 2 + 6
    return (
        f'<ellipse class="site" cx="{left + x * scale:.1f}" cy="{top + y * scale:.1f}" '
        f'rx="{rx * scale:.1f}" ry="{ry * scale:.1f}"/>'
    )


def _ends(axis: int, left: float, right: float, middle: float) -> str:
    """Mark what is at the left and the right end of a row or a panel."""
    first, last = _ENDS[axis]
    return _text(left - GUTTER / 2, middle, first, bold=True, size=16, anchor='middle') + _text(
        right + GUTTER / 2, middle, last, bold=True, size=16, anchor='middle'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    bold: bool = False,
    size: float = 13,
    anchor: str = 'start',
    colour: str = '#fff',
) -> str:
    weight = ' font-weight="bold"' if bold else ''
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" '
        f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
    )


def _colour_bar(
    ramp: np.ndarray,
    limits: tuple[float, float],
    ends: tuple[str, str],
    top: float,
    *,
    beyond: tuple[bool, bool],
) -> str:
    """Draw a colour scale with words at its ends; `beyond` says where values are cut off."""
    left, width = WIDTH / 2 - 200, 400.0
    top += LINE + 8
    parts = [_image(ramp, (left, top, width, 12))]
    for step in range(5):
        value = limits[0] + (limits[1] - limits[0]) * step / 4
        sign = '≤ ' if step == 0 and beyond[0] else '≥ ' if step == 4 and beyond[1] else ''
        number = f'{sign}{_number(value)}'
        parts.append(_text(left + width * step / 4, top + 25, number, size=11, anchor='middle'))
    parts.append(_text(left - 14, top + 10, ends[0], anchor='end'))
    parts.append(_text(left + width + 14, top + 10, ends[1]))
    return ''.join(parts)


def _number(value: float) -> str:
    """Return a value as it stands beside a scale: two digits, and no powers of ten."""
    plain = f'{value:.0f}' if abs(value) >= 10 else f'{value:.2g}'
    return '0' if abs(value) < 1e-9 else plain.replace('-', '−')


def _save(
    out: Path,
    title: str,
    body: str,
    height: float,
    *,
    heading: str | None = None,
    interactive: bool = False,
    white: bool = False,
    convention: str = CONVENTION,
    width: float = WIDTH,
) -> Path:
    """Write a figure: black or white ground, a heading, the display convention, and the body."""
    tall = height + LINE
    focus = ' tabindex="0" class="turning"' if interactive else ''
    ground, letters = ('#fff', 'text{fill:#000;stroke:#fff}') if white else ('#000', '')
    # No width or height on the root element: the page decides, and the view box keeps the shape.
    content = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {tall:.0f}" '
        f'role="img" aria-label="{escape(title)}"'
        f'{focus}>'
        '<style>text{font-family:Helvetica,Arial,"Liberation Sans",sans-serif;stroke:#000;'
        f'stroke-width:2.5px;paint-order:stroke}}{letters}'
        f'.outline{{fill:none;stroke:{OUTLINE_COLOUR};stroke-width:1.2}}'
        '.edge{fill:none;stroke:#000;stroke-width:3.4}.core{fill:none;stroke:#fff;stroke-width:1.4}'
        f'.source{{fill:none;stroke:{SOURCE_COLOUR};stroke-width:2}}'
        f'.site{{fill:none;stroke:{OUTLINE_COLOUR};stroke-width:2;stroke-dasharray:6 3}}</style>'
        f'<rect width="{width:g}" height="{tall:.0f}" fill="{ground}"/>'
        f'{body}{_text(GUTTER, LINE - 7, title if heading is None else heading, bold=True)}'
        f'{_text(width - GUTTER, LINE - 7, convention, size=12, anchor="end")}</svg>'
    )
    write_text(content, out)
    return out
