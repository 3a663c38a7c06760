"""Equations as drawings in the page, by matplotlib: they need no script and no network.

MathJax would be fetched by each reader's browser. Matplotlib knows less TeX than it does: enough
here, and an equation beyond it fails the build.
"""

from __future__ import annotations

from html import escape

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath

#: Points of the drawing, and how many of them are one em of the text around it.
_SIZE, _EM = 12.0, 11.0
_LETTERS = {Path.MOVETO: 'M', Path.LINETO: 'L', Path.CURVE3: 'Q', Path.CURVE4: 'C'}
_PARSER = MathTextParser('path')
_FONT = FontProperties(size=_SIZE, math_fontfamily='stix')


def draw(tex: str) -> str:
    """Return one line of TeX as an SVG in the colour of the text around it."""
    source = f'${" ".join(tex.split())}$'
    width, height, depth = _PARSER.parse(source, 72, _FONT)[:3]
    path = TextPath((0, 0), source, prop=_FONT)
    parts = []
    for points, code in path.iter_segments(simplify=False, curves=True):
        if code == Path.CLOSEPOLY:
            parts.append('Z')
            continue
        pairs = np.asarray(points).reshape(-1, 2) * (1, -1)
        parts.append(_LETTERS[code] + ' '.join(f'{x:.2f} {y:.2f}' for x, y in pairs))
    return (
        f'<svg role="img" aria-label="{escape(tex, quote=True)}" fill="currentColor" '
        f'style="width:{width / _EM:.3f}em;height:{height / _EM:.3f}em;'
        f'vertical-align:{-depth / _EM:.3f}em" '
        f'viewBox="0 {depth - height:.2f} {width:.2f} {height:.2f}">'
        f'<path d="{"".join(parts)}"/></svg>'
    )


def _inline(translator, node):
    translator.body.append(draw(node.astext()))
    raise _skip()


def _block(translator, node):
    lines = (line.replace('&', '') for line in node.astext().split(r'\\'))
    drawn = '<br>'.join(draw(line) for line in lines if line.strip())
    translator.body.append(
        f'<div class="equation" style="text-align:center;margin:1.2em 0;line-height:2.6;'
        f'overflow-x:auto">{drawn}</div>\n'
    )
    raise _skip()


def _skip() -> Exception:
    from docutils import nodes

    return nodes.SkipNode()


def setup(app):
    """Offer the renderer to Sphinx, which takes it when it is the only one."""
    app.add_html_math_renderer('mathtext', (_inline, None), (_block, None))
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
