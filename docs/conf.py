"""Sphinx configuration."""

import json
import sys
from pathlib import Path

from bids_perfdeficit import __version__

sys.path.insert(0, str(Path(__file__).parent / '_ext'))

project = 'bids_perfdeficit'
author = 'The bids_perfdeficit developers'
copyright = '2026, The bids_perfdeficit developers'
release = __version__
extensions = ['sphinx.ext.autodoc', 'mathtext', 'workflow_graphs', 'numpydoc', 'sphinxarg.ext']
numpydoc_show_class_members = False
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
html_theme = 'pydata_sphinx_theme'
html_title = project
html_show_sourcelink = False
# All pages at the side of each: the theme's own lists know one part of the tree at a time.
html_sidebars = {'**': ['globaltoc.html']}
html_theme_options = {'navbar_center': []}
exclude_patterns = ['_build']
# What the photographed run found (scripts/page_pictures.py): |pages-site| and the like.
_found = json.loads((Path(__file__).parent / '_static' / 'pages.json').read_text(encoding='utf-8'))
rst_prolog = '\n'.join(
    f'.. |pages-{key.replace("_", "-")}| replace:: {value}' for key, value in _found.items()
)
