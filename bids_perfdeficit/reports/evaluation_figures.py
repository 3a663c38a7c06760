"""Plots of an evaluation: volumes against each other, and the computed map against controls.

Must not compute results: numbers are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bids_perfdeficit.reports.group_figures import save_plot

#: Colour and mark of each map, for print without colour too (Okabe and Ito's palette).
MARKS: Mapping[str, tuple[str, str]] = {
    'computed': ('#0072B2', 'o'),
    'probability': ('#56B4E9', 's'),
    'blend': ('#D55E00', '^'),
    'published': ('#E69F00', 'D'),
    'asymmetry': ('#009E73', 'v'),
    'distance': ('#777777', 'x'),
}
#: Bars stand on points of this colour that are drawn for single participants.
_SINGLE = '#B0B0B0'


def draw_volumes(
    found: Sequence[float],
    true: Sequence[float],
    names: Sequence[str],
    out: Path,
    *,
    bias: float,
    limits: tuple[float, float],
    concordance: float,
) -> Path:
    """Draw volumes against those of the reference, and their differences (Bland and Altman).

    Parameters
    ----------
    found, true : sequence of float
        mL, of each participant.
    names : sequence of str
        Of the participants; those with the three largest differences are named.
    out : Path
        SVG to write.
    bias : float
        Mean difference, mL; not finite where it is not known.
    limits : tuple of float
        Limits of agreement, mL.
    concordance : float
        Lin's coefficient.

    Returns
    -------
    Path
        `out`.
    """
    x, y = np.asarray(true, float), np.asarray(found, float)
    colour, mark = MARKS['computed']
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    left, right = figure.subplots(1, 2)
    most = float(max(x.max(), y.max(), 1.0)) * 1.06
    left.plot([0, most], [0, most], color='#999', linewidth=1, linestyle='--')
    left.plot(x, y, mark, color=colour, markersize=6, alpha=0.8)
    title = f'Concordance {concordance:.2f}' if np.isfinite(concordance) else 'Volumes'
    left.set(
        xlim=(-0.02 * most, most), ylim=(-0.02 * most, most), aspect='equal', title=title,
        xlabel='reference: Tmax > 6 s, mL', ylabel='computed: hypoperfused, mL',
    )  # fmt: skip
    mean, difference = (x + y) / 2, y - x
    right.plot(mean, difference, mark, color=colour, markersize=6, alpha=0.8)
    right.axhline(0, color='#999', linewidth=1, linestyle='--')
    for value, word in ((bias, 'bias'), *((v, '95 % limit') for v in limits)):
        if np.isfinite(value):
            right.axhline(
                value, color='#000', linewidth=1, linestyle='-' if word == 'bias' else ':'
            )
            right.annotate(
                f'{word} {value:.0f} mL'.replace('-', '−'), (1, value), (-4, 3),
                xycoords=('axes fraction', 'data'), textcoords='offset points', ha='right',
                fontsize=9,
            )  # fmt: skip
    right.set(
        title='Differences', xlabel='mean of the two, mL', ylabel='computed minus reference, mL'
    )
    for place in np.argsort(-np.abs(difference))[: min(3, len(x))]:
        beyond = mean[place] > mean.max() / 2  # its name would leave the plot
        right.annotate(
            names[place], (mean[place], difference[place]), (-7 if beyond else 7, -3),
            textcoords='offset points', fontsize=8, ha='right' if beyond else 'left',
        )  # fmt: skip
    for axis in (left, right):
        axis.spines[['top', 'right']].set_visible(False)
    return save_plot(figure, out, 'Volumes of hypoperfusion against the reference')


def draw_measures(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    out: Path,
    *,
    maps: Mapping[str, str],
    measures: Mapping[str, str],
) -> Path:
    """Draw each measure of each map: participants as points, and their mean as a bar.

    Parameters
    ----------
    values : mapping of str to mapping of str to sequence of float
        By measure and map, one for each participant; what is not known is left out.
    out : Path
        SVG to write.
    maps, measures : mapping of str to str
        What they are called.

    Returns
    -------
    Path
        `out`.
    """
    figure = Figure(figsize=(11, 0.9 + 0.42 * len(maps)), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, len(measures), sharey=True))
    for axis, measure in zip(axes, measures, strict=True):
        lowest = 0.0
        for place, name in enumerate(maps):
            own = np.asarray(values[measure].get(name, ()), float)
            own = own[np.isfinite(own)]
            if not len(own):
                continue
            lowest = min(lowest, float(own.min()))
            colour, mark = MARKS[name]
            axis.plot(own, np.full(len(own), place), '|', color=_SINGLE, markersize=11)
            axis.plot(own.mean(), place, mark, color=colour, markersize=8)
        axis.set(xlim=(lowest - 0.05, 1.05), title=measures[measure])
        axis.title.set_fontsize(9)
        axis.set_ylim(len(maps) - 0.5, -0.5)
        axis.set_yticks(range(len(maps)), list(maps.values()))
        axis.tick_params(labelsize=8)
        axis.grid(axis='x', color='#e5e5e5', linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right', 'left']].set_visible(False)
    return save_plot(figure, out, 'Agreement of each map with the reference')


def draw_changes(values: Mapping[str, tuple[np.ndarray, np.ndarray]], out: Path) -> Path:
    """Draw measures of each participant before and after, joined by lines, with their means.

    Parameters
    ----------
    values : mapping of str to two ndarrays, (N,)
        By what is measured; not a number where it is not known.
    out : Path
        SVG to write.

    Returns
    -------
    Path
        `out`.
    """
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, len(values)))
    colour, mark = MARKS['computed']
    for axis, (title, (before, after)) in zip(axes, values.items(), strict=True):
        known = np.isfinite(before) & np.isfinite(after)
        for one, other in zip(before[known], after[known], strict=True):
            axis.plot([0, 1], [one, other], '-', color=_SINGLE, linewidth=1)
        if known.any():
            means = [before[known].mean(), after[known].mean()]
            axis.plot([0, 1], means, mark, linestyle='-', color=colour, markersize=8, linewidth=2)
        axis.set(xlim=(-0.2, 1.2))
        axis.set_title(title, fontsize=9)
        axis.set_xticks([0, 1], ['before', 'after'])
        axis.tick_params(labelsize=8)
        axis.spines[['top', 'right']].set_visible(False)
    return save_plot(figure, out, 'Measures before and after the calibration')


def draw_volumes_twice(before: np.ndarray, after: np.ndarray, true: np.ndarray, out: Path) -> Path:
    """Draw volumes of two calibrations against those of the reference.

    Parameters
    ----------
    before, after, true : ndarray, (N,)
        mL, of each participant.
    out : Path
        SVG to write.

    Returns
    -------
    Path
        `out`.
    """
    figure = Figure(figsize=(5.6, 4.8), layout='constrained')
    axis = figure.subplots()
    most = float(max(before.max(), after.max(), true.max(), 1.0)) * 1.06
    axis.plot([0, most], [0, most], color='#999', linewidth=1, linestyle='--')
    for one, other, x in zip(before, after, true, strict=True):
        axis.plot([x, x], [one, other], '-', color=_SINGLE, linewidth=1)
    colour, mark = MARKS['blend']
    axis.plot(true, before, mark, color=colour, markersize=6, fillstyle='none', label='before')
    colour, mark = MARKS['computed']
    axis.plot(true, after, mark, color=colour, markersize=6, label='after')
    axis.set(
        xlim=(-0.02 * most, most), ylim=(-0.02 * most, most), aspect='equal',
        xlabel='reference: Tmax > 6 s, mL', ylabel='computed: hypoperfused, mL',
    )  # fmt: skip
    axis.legend(frameon=False, fontsize=9)
    axis.spines[['top', 'right']].set_visible(False)
    return save_plot(figure, out, 'Volumes of hypoperfusion before and after the calibration')
