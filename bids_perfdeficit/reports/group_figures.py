"""Figures of a cohort: deficit maps on the template, coverage, and how good predictions are.

Slices share their style with the participant's figures. Must not compute results: maps and numbers
are handed in.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

from bids_perfdeficit.bids import write_text
from bids_perfdeficit.deficit import get_model, model_names
from bids_perfdeficit.reports.figures import (
    GAP,
    GUTTER,
    LINE,
    WIDTH,
    Paint,
    Rows,
    _colour_bar,
    _ends,
    _grey,
    _image,
    _legend,
    _look,
    _marks,
    _outline,
    _percentiles,
    _save,
    _text,
    _tiles,
    _View,
    _volumes,
)

#: From values and a grey ground to colours.
Blend = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: Colour, and a mark of its own for print without colour, of each baseline; models name theirs
#: (Okabe and Ito's palette).
_BASELINES: Mapping[str, tuple[str, str]] = {
    'territories': ('#000000', '|'),
    'sides': ('#444444', '1'),
    'volume': ('#777777', 'x'),
    'frequency': ('#BBBBBB', '+'),
}
#: mm beneath the surface whose highest value colours it.
SURFACE_MM = 16.0
#: mm of the lowest and the highest slice: from the temporal lobes to below the vertex.
SLICES_MM = (-36.0, 69.0)


def predictor_marks() -> dict[str, tuple[str, str]]:
    """Return colour and mark of all models and baselines, in the order of plots and tables."""
    models = {name: get_model(name).drawing for name in model_names()}
    return {name: (d.colour, d.mark) for name, d in models.items()} | dict(_BASELINES)


def draw_deficit(
    values: SpatialImage,
    declared: SpatialImage,
    brain: SpatialImage,
    out: Path,
    *,
    title: str,
    ends: tuple[str, str],
    outlined: str = '',
    limits: tuple[float, float] | None = None,
    cmap: str = 'inferno',
    glass: bool = True,
) -> Path:
    """Draw a map over the template, on white: surfaces, projections, and axial slices.

    Parameters
    ----------
    values : SpatialImage
        Not negative; what is 0 is clear.
    declared : SpatialImage
        Mask that is outlined; where it was interpolated, the line is drawn at 0.5.
    brain : SpatialImage
        T1 of the template on the same grid, 0 outside the brain.
    out : Path
        SVG to write.
    title : str
        Heading.
    ends : tuple of str
        What low and high values mean.
    outlined : str
        What the outline is, for the legend.
    limits : tuple of float, optional
        Values at the ends of the scale; default 0 and the highest one.
    cmap : str
        Perceptually uniform; its dark end is clear.
    glass : bool
        Whether to draw the projections too.

    Returns
    -------
    Path
        `out`.
    """
    field, mask, t1 = _volumes(values, declared, brain)
    field = np.nan_to_num(field)
    inside = t1 > 0
    low, high = limits or (0.0, float(field.max()))
    if high <= low:
        high = low + 1.0
    view = _look(inside, brain, margin=4)
    ramp = colormaps[cmap]
    grey_limits = _percentiles(t1[inside], 1, 99.5)

    def blend(plane: np.ndarray, ground: np.ndarray) -> np.ndarray:
        part = np.clip((plane - low) / (high - low), 0, 1)
        # Clear below a tenth of the scale, so that the anatomy shows where there is nothing.
        strength = np.clip(part / 0.3 - 0.3, 0, 1)[..., None]
        return strength * ramp(0.25 + 0.75 * part)[..., :3] * 255 + (1 - strength) * ground

    brain_share = inside.astype(np.float32)

    def paint(axis: int, index: int) -> np.ndarray:
        ground = _grey(_fine(view.plane(t1, axis, index)), grey_limits) * 0.6
        colour = blend(_fine(view.plane(field, axis, index)), ground)
        return _on_white(colour, _fine(view.plane(brain_share, axis, index)))

    top, body = LINE, ''
    if glass:
        body, top = _glass(view, field, mask, t1, blend)
    zero, step = view.affine[2, 3], view.affine[2, 2]
    slices = tuple(round((z - zero) / step) for z in np.linspace(*SLICES_MM, 16))
    rows = [(2, slices[:8]), (2, slices[8:])]
    tiles, height = _shifted(view, rows, paint, mask, top - LINE)
    body += tiles + _legend(outlined if (mask > 0.5).any() else '', top - LINE + height)
    body += _colour_bar(
        blend(np.linspace(low, high, 256)[None], np.full(3, 60.0)),
        (low, high),
        ends,
        top - LINE + height,
        beyond=(False, bool((field > high).any())),
    )
    return _save(out, title, body, top - LINE + height + 2 * LINE, white=True)


def draw_thumbnail(
    values: SpatialImage,
    declared: SpatialImage,
    brain: SpatialImage,
    out: Path,
    *,
    title: str,
    limits: tuple[float, float] | None = None,
) -> Path:
    """Draw a map small, as an axial and a coronal projection on white.

    Parameters
    ----------
    values, declared, brain : SpatialImage
        As in `draw_deficit`.
    out : Path
        SVG to write.
    title : str
        What it is, for those who do not see it.
    limits : tuple of float, optional
        Values at the ends of the scale; default 0 and the highest one.

    Returns
    -------
    Path
        `out`.
    """
    field, mask, t1 = _volumes(values, declared, brain)
    field = np.nan_to_num(field)
    inside = (t1 > 0).astype(np.float32)
    low, high = limits or (0.0, float(field.max()))
    high = high if high > low else low + 1.0
    view = _look(inside > 0, brain, margin=2)
    ramp = colormaps['inferno']
    body, left = '', GUTTER
    tall = 110.0
    for axis in (2, 1):
        wide, high_mm = view.size(axis)
        scale = tall / high_mm
        part = np.clip((view.plane(field, axis, None) - low) / (high - low), 0, 1)
        shape = view.plane(inside, axis, None)
        strength = np.clip(part / 0.3 - 0.3, 0, 1)[..., None]
        colour = strength * ramp(0.25 + 0.75 * part)[..., :3] * 255 + (1 - strength) * 60
        body += _image(_on_white(colour, shape), (left, 2, wide * scale, tall))
        body += _outline(view.plane(mask, axis, None), view, axis, left, 2, scale, halo=True)
        body += _ends(axis, left, left + wide * scale, 2 + tall / 2)
        left += wide * scale + 2 * GUTTER
    return _save(
        out, title, body, tall + 4 - LINE, heading='', white=True, convention='',
        width=left - GUTTER,
    )  # fmt: skip


def _on_white(colour: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return a picture (rows, columns, 3) that is white outside of the brain."""
    share = np.clip(inside * 2 - 0.5, 0, 1)[..., None]
    return share * colour + (1 - share) * 255


def _surface(
    view: _View, field: np.ndarray, t1: np.ndarray, blend: Blend, *, left: bool
) -> np.ndarray:
    """Return a shaded picture of one side of the brain, coloured by what lies beneath."""
    # Sulci are dark in a T1: a threshold carves them out of the mask.
    tissue = t1 > 0.45 * np.percentile(t1[t1 > 0], 95)
    solid, values = (v if left else v[::-1] for v in (tissue, field))
    half = solid.shape[0] // 2 + 1
    solid, values = solid[:half], values[:half]
    found = solid.any(0)
    depth = np.where(found, solid.argmax(0), half).astype(float)
    steps = max(1, round(SURFACE_MM / float(view.spacing[0])))
    along = np.minimum(depth.astype(int)[None] + np.arange(steps)[:, None, None], half - 1)
    deepest = np.asarray(np.take_along_axis(values, along, axis=0).max(0))
    beneath = np.where(found, deepest, 0)
    slope = np.hypot(*np.gradient(ndimage.gaussian_filter(depth, 0.7)))
    shade = 1 / np.sqrt(1 + 0.5 * slope**2)

    def picture(plane: np.ndarray) -> np.ndarray:
        across, down = (slice(view.start[a], view.stop[a]) for a in (1, 2))
        turned = plane[across, down].T[::-1]  # rows from the top, front on the right
        return _fine(turned[:, ::-1] if left else turned)

    light = picture(np.asarray(shade, np.float32))[..., None]
    colour = blend(picture(beneath), np.full(3, 175.0)) * (0.25 + 0.75 * light)
    return _on_white(colour, picture(np.asarray(found, np.float32)))


def _glass(
    view: _View, field: np.ndarray, mask: np.ndarray, t1: np.ndarray, blend: Blend
) -> tuple[str, float]:
    """Draw both surfaces, and projections with the silhouette; return where they end."""
    panels = (
        ('left surface (16 mm deep)', 0), ('coronal projection', 1), ('axial projection', 2),
        ('right surface (16 mm deep)', 0),
    )  # fmt: skip
    inside = t1 > 0
    widths = [view.size(axis)[0] for _, axis in panels]
    scale = (WIDTH - 2 * GUTTER * len(panels)) / sum(widths)
    tall = max(view.size(axis)[1] for _, axis in panels) * scale
    body, left = '', GUTTER
    for (name, axis), width in zip(panels, widths, strict=True):
        height = view.size(axis)[1] * scale
        top = 2 * LINE + (tall - height) / 2
        box = (left, top, width * scale, height)
        if axis == 0:
            is_left = name.startswith('left')
            body += _image(_surface(view, field, t1, blend, left=is_left), box)
            ends = ('A', 'P') if is_left else ('P', 'A')
            for end, x in zip(ends, (left, left + width * scale), strict=True):
                shift = -GUTTER / 2 if x == left else GUTTER / 2
                body += _text(x + shift, top + height / 2, end, bold=True, size=16,
                              anchor='middle')  # fmt: skip
        else:
            brain = _fine(view.plane(inside.astype(np.float32), axis, None))
            colour = blend(_fine(view.plane(field, axis, None)), np.full(3, 60.0))
            body += _image(_on_white(colour, brain), box)
            flat = view.plane(mask, axis, None)
            body += _outline(flat, view, axis, left, top, scale, halo=True)
            body += _ends(axis, left, left + width * scale, top + height / 2)
        body += _text(left, 2 * LINE - 7, name)
        left += width * scale + 2 * GUTTER
    return body, 2 * LINE + tall + GAP


def _fine(plane: np.ndarray) -> np.ndarray:
    """Return a picture with half the spacing, interpolated for the eye."""
    return ndimage.zoom(plane, 2, order=1, mode='nearest', grid_mode=True)


def _shifted(
    view: _View, rows: Rows, paint: Paint, outline: np.ndarray | None, down: float
) -> tuple[str, float]:
    lines, height = _marks(view, rows, outline, halo=True)
    return (
        f'<g transform="translate(0 {down:.1f})">{_tiles(view, rows, paint)}{lines}</g>',
        height,
    )


def draw_calibration(
    curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    out: Path,
    *,
    names: Mapping[str, str],
) -> Path:
    """Draw how often a deficit was there against how probable it was said to be.

    Parameters
    ----------
    curves : mapping of str to mapping of str to (bins, 3) numbers
        By model and item: mean probability, observed share, number.
    out : Path
        SVG to write.
    names : mapping of str to str
        What items are called.
    """
    items = list(dict.fromkeys(item for model in curves.values() for item in model))
    marks = predictor_marks()
    columns = min(5, max(len(items), 1))
    rows = -(-len(items) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.9 * rows), layout='constrained')
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, item in zip(axes, items, strict=False):
        axis.plot([0, 1], [0, 1], color='#999', linewidth=1, linestyle='--')
        for model, found in curves.items():
            if item in found:
                curve = np.asarray(found[item])
                colour, mark = marks[model]
                axis.plot(curve[:, 0], curve[:, 1], color=colour, marker=mark, markersize=4,
                          linewidth=1.2, label=model)  # fmt: skip
        axis.set(xlim=(0, 1), ylim=(0, 1), title=names.get(item, item), aspect='equal',
                 xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])  # fmt: skip
        axis.title.set_fontsize(9)
    for axis in axes[len(items) :]:
        axis.axis('off')
    figure.supxlabel('predicted probability of any deficit', fontsize=10)
    figure.supylabel('observed share with a deficit', fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc='outside upper right', ncols=len(labels), fontsize=9)
    return save_plot(figure, out, 'Calibration of held-out predictions')


def draw_gain(
    rows: Sequence[tuple[str, str, float, float, float]],
    out: Path,
    *,
    names: Mapping[str, str],
    size: str = 'deficit',
) -> Path:
    """Draw how much better each predictor is than the mean deficit (or lesion) of each territory.

    Parameters
    ----------
    rows : sequence of (item, predictor, gain, low, high)
        Log score minus that of the baseline of territories, with its 95 % interval.
    out : Path
        SVG to write.
    names : mapping of str to str
        What items are called.
    size : str
        What the volume is of.
    """
    items = list(dict.fromkeys(row[0] for row in rows))
    marks = predictor_marks()
    predictors = [p for p in marks if p != 'territories' and any(row[1] == p for row in rows)]
    figure = Figure(figsize=(11, 1.2 + 0.16 * (len(predictors) + 1.5) * len(items)),
                    layout='constrained')  # fmt: skip
    axis = figure.subplots()
    axis.axvline(0, color='#000', linewidth=1)
    step = 0.8 / max(len(predictors), 1)
    for n, predictor in enumerate(predictors):
        colour, mark = marks[predictor]
        own = [(items.index(i), g, lo, hi) for i, p, g, lo, hi in rows if p == predictor]
        y = [place - 0.4 + (n + 0.5) * step for place, *_ in own]
        gain = np.array([g for _, g, _, _ in own])
        error = np.array([[g - lo, hi - g] for _, g, lo, hi in own]).T
        axis.errorbar(gain, y, xerr=np.maximum(error, 0), fmt=mark, color=colour, markersize=5,
                      linewidth=1.2, label=predictor)  # fmt: skip
    axis.set_yticks(range(len(items)), [names.get(i, i) for i in items])
    axis.set_ylim(len(items) - 0.5, -0.5)
    for place in range(len(items) - 1):
        axis.axhline(place + 0.5, color='#e5e5e5', linewidth=0.8)
    axis.set_xlabel(f'gain over the {size} in each territory, nats per participant '
                    '(right of 0 is better)')  # fmt: skip
    axis.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside upper right', ncols=len(predictors), fontsize=9)
    return save_plot(figure, out, 'Held-out performance')


def save_plot(figure: Figure, out: Path, title: str) -> Path:
    """Write a plot as SVG, the same byte for byte on every run."""
    stream = io.StringIO()
    with mpl.rc_context({'svg.hashsalt': title, 'svg.fonttype': 'none',
                         'font.family': ['Helvetica', 'Arial', 'Liberation Sans',
                                         'DejaVu Sans']}):  # fmt: skip
        figure.savefig(stream, format='svg', metadata={'Date': None, 'Title': title})
    write_text(stream.getvalue(), out)
    return out
