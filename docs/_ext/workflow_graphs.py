"""``.. workflow:: NAME`` draws one of the app's workflows, from the workflow itself.

The workflows are built as a run builds them, of one made-up participant and one made-up cohort;
nothing runs. Drawn by matplotlib, so that neither Graphviz nor a browser is needed.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path

import matplotlib as mpl
import networkx as nx
import numpy as np
from docutils import nodes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from scipy.optimize import isotonic_regression
from sphinx.util.docutils import SphinxDirective

#: Inches of a box, and from one to the next.
_BOX = (1.5, 0.42)
_STEP = (1.64, 0.66)
#: Fill, by what a node is.
_FILLS = {
    'identity': '#f2f2f2',
    'sink': '#d8e8d0',
    'workflow': '#dce6f5',
    'step': '#fbe6c8',
}


class WorkflowGraph(SphinxDirective):
    """Put the drawing of a workflow into the page."""

    required_arguments = 1

    def run(self):
        self.env.note_reread()  # the code may have changed where the page has not
        name = self.arguments[0]
        graph = _graph(_WORKFLOWS[name]())
        said = '; '.join(f'{a} to {b}' for a, b in graph.edges)
        html = (
            f'<figure style="overflow-x:auto" role="img" '
            f'aria-label="Graph of {escape(name)}: {escape(said)}">{_draw(graph)}</figure>'
        )
        return [nodes.raw('', html, format='html')]


def _graph(workflow) -> nx.DiGraph:
    """Return a workflow's own nodes, those of workflows in it as one."""
    from nipype.pipeline import engine as pe

    graph = nx.DiGraph()
    for node in workflow._graph.nodes:
        if isinstance(node, pe.Workflow):
            kind, label = 'workflow', 'workflow'
        else:
            label = type(node.interface).__name__
            kind = {'IdentityInterface': 'identity'}.get(label, 'step')
            kind = 'sink' if label.endswith('Sink') else kind
            label = 'fields' if kind == 'identity' else label
            label += ', many' if isinstance(node, pe.MapNode) else ''
        graph.add_node(node.name, kind=kind, label=label)
    graph.add_edges_from((a.name, b.name) for a, b in workflow._graph.edges)
    return graph


def _layers(graph: nx.DiGraph) -> tuple[list[list], dict[tuple, list]]:
    """Put nodes on layers by their longest way from a start, with way points of long edges.

    A node without a way in is put just above what it leads to.
    """
    depth: dict = {}
    for node in nx.topological_sort(graph):
        depth[node] = max((depth[p] + 1 for p in graph.predecessors(node)), default=0)
    for node in reversed(list(nx.topological_sort(graph))):
        if not graph.in_degree(node) and graph.out_degree(node):
            depth[node] = min(depth[s] for s in graph.successors(node)) - 1
    layers: list[list] = [[] for _ in range(max(depth.values()) + 1)]
    for node, level in depth.items():
        layers[level].append(node)
    ways = {}
    for a, b in graph.edges:
        points = [(a, b, level) for level in range(depth[a] + 1, depth[b])]
        for point in points:
            layers[point[2]].append(point)
        ways[a, b] = [a, *points, b]
    return layers, ways


def _place(graph: nx.DiGraph, layers: list[list], ways: dict[tuple, list]) -> dict:
    """Return the x of all, ordered so that edges are short and cross little."""
    near: dict = {}
    for way in ways.values():
        for a, b in itertools.pairwise(way):
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
    x = {node: float(i) for layer in layers for i, node in enumerate(layer)}
    for sweep in range(60):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {n: np.mean([x[m] for m in near.get(n, [n])]) for n in layer}
            if sweep < 20:
                layer.sort(key=wanted.__getitem__)
            else:  # boxes follow boxes, and long edges go around them
                boxes = {
                    n: [m for m in near.get(n, []) if m in graph] for n in layer if n in graph
                }
                wanted |= {n: np.mean([x[m] for m in own]) for n, own in boxes.items() if own}
            width = [0.45 if isinstance(n, tuple) else 1.0 for n in layer]
            gaps = np.cumsum([0, *((a + b) / 2 for a, b in itertools.pairwise(width))])
            goals = np.array([wanted[n] for n in layer]) - gaps
            weight = [0.2 if isinstance(n, tuple) else 1.0 for n in layer]
            places = isotonic_regression(goals, weights=weight).x + gaps
            x.update(zip(layer, places, strict=True))
    return x


def _draw(graph: nx.DiGraph) -> str:
    layers, ways = _layers(graph)
    x = _place(graph, layers, ways)
    y = {node: -level for level, layer in enumerate(layers) for node in layer}
    place = {n: (x[n] * _STEP[0], y[n] * _STEP[1]) for n in x}
    xs, ys = (np.array(v) for v in zip(*place.values(), strict=True))
    low = (xs.min() - _BOX[0] / 2 - 0.1, ys.min() - _BOX[1] / 2 - 0.1)
    high = (xs.max() + _BOX[0] / 2 + 0.1, ys.max() + _BOX[1] / 2 + 0.1)
    size = (high[0] - low[0], high[1] - low[1])
    with mpl.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'docs', 'font.size': 8}):
        figure = Figure(size)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        for (start, end), way in ways.items():
            _arrow(axes, [place[n] for n in way], start, end)
        for node, data in graph.nodes.items():
            left, bottom = (c - b / 2 for c, b in zip(place[node], _BOX, strict=True))
            axes.add_patch(
                FancyBboxPatch(
                    (left, bottom), *_BOX, boxstyle='round,pad=0,rounding_size=0.08',
                    facecolor=_FILLS[data['kind']], edgecolor='#555555', linewidth=0.8, zorder=2,
                )
            )  # fmt: skip
            cx, cy = place[node]
            axes.text(cx, cy + 0.07, node, ha='center', va='center', weight='bold', zorder=3)
            axes.text(cx, cy - 0.1, data['label'], ha='center', va='center', size=7,
                      color='#333333', zorder=3)  # fmt: skip
        out = io.StringIO()
        figure.savefig(out, format='svg', metadata={'Date': None}, facecolor='white')
    return '<svg style="max-width:100%;height:auto"' + out.getvalue().partition('<svg')[2]


def _arrow(axes, points: list[tuple[float, float]], start: str, end: str) -> None:
    """Draw a smooth edge that leaves a box at the bottom and comes in at the top."""
    points = list(points)
    half = _BOX[1] / 2
    points[0] = (points[0][0], points[0][1] - half)
    points[-1] = (points[-1][0], points[-1][1] + half)
    vertices, codes = [points[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        bend = (y0 - y1) / 2
        vertices += [(x0, y0 - bend), (x1, y1 + bend), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    axes.annotate(
        '', points[-1], (points[-1][0], points[-1][1] + 0.03),
        arrowprops={'arrowstyle': '-|>', 'color': '#555555', 'lw': 0.8, 'shrinkA': 0,
                    'shrinkB': 0, 'mutation_scale': 8},
    )  # fmt: skip
    axes.add_patch(
        PathPatch(Curve(vertices, codes), fill=False, edgecolor='#555555', lw=0.8, zorder=1)
    )


@cache
def _participant():
    """The workflow of one participant, of whom nothing is done yet."""
    from bids_perfdeficit.bids import ScanPair
    from bids_perfdeficit.settings import InputSettings, Settings
    from bids_perfdeficit.workflows.base import init_pair_wf
    from bids_perfdeficit.workflows.plan import make_plan

    root = Path('/nowhere')
    settings = Settings(inputs=InputSettings(bids_dir=root / 'bids', output_dir=root / 'out'))
    folder = root / 'bids/sub-01/ct'
    pair = ScanPair(
        participant='01', session=None,
        ncct=folder / 'sub-01_ct.nii.gz', cta=folder / 'sub-01_cta.nii.gz',
    )  # fmt: skip
    return init_pair_wf(plan=make_plan(pair, settings), settings=settings)


@cache
def _group(apply: bool = False):
    """The workflow of a group of which nothing is done yet."""
    from bids_perfdeficit.bids.cohort import Cohort, Entry
    from bids_perfdeficit.deficit import Item
    from bids_perfdeficit.settings import GroupSettings, InputSettings, MapKind, Settings
    from bids_perfdeficit.stages.task import State, Task
    from bids_perfdeficit.workflows.group import init_group_wf
    from bids_perfdeficit.workflows.group_plan import GroupPlan

    here = Path(__file__).resolve()  # a file that exists: the interfaces ask for one
    root = Path('/nowhere')
    options = GroupSettings(model=('spatial', 'ridge'), permutations=20, bootstraps=20)
    settings = Settings(
        inputs=InputSettings(bids_dir=root / 'bids', output_dir=root / 'out'), group=options
    )
    stages = ['apply'] if apply else ['fit', 'validation', 'null', 'stability']
    keys = [(stage, model) for model in options.model for stage in stages]
    keys += [] if apply else [('cohort', '')]
    plan = GroupPlan(
        cohort=Cohort((Entry('01', '', here, here),)),
        items=(Item('nihss_5a', 5),),
        skipped={},
        tasks={key: Task(key[0], 1, root, root / key[0], {}) for key in keys},
        states=dict.fromkeys(keys, State(False)),
        models=dict.fromkeys(options.model, here) if apply else {},
        resolution=4.0,
        map_kind=MapKind.PERFUSION,
    )
    return init_group_wf(plan=plan, settings=settings)


def _inner(outer: Callable, name: str) -> Callable:
    return lambda: outer().get_node(name)


_WORKFLOWS: dict[str, Callable] = {
    'init_pair_wf': _participant,
    'init_ct_fit_wf': _inner(_participant, 'ct_fit_wf'),
    'init_perfusion_wf': _inner(_participant, 'perfusion_wf'),
    'init_figures_wf': _inner(_participant, 'figures_wf'),
    'init_group_wf': _group,
    'init_cohort_wf': _inner(_group, 'cohort_wf'),
    'init_model_wf': _inner(_group, 'spatial_wf'),
    'init_apply_wf': lambda: _group(apply=True).get_node('spatial_wf'),
}


def setup(app):
    """Register the directive."""
    app.add_directive('workflow', WorkflowGraph)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
