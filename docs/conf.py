"""Sphinx configuration."""

from bids_perfdeficit import __version__

project = 'bids_perfdeficit'
author = 'The bids_perfdeficit developers'
copyright = '2026, The bids_perfdeficit developers'
release = __version__
extensions = ['sphinx.ext.autodoc', 'sphinx.ext.mathjax', 'numpydoc', 'sphinxarg.ext']
numpydoc_show_class_members = False
autodoc_typehints = 'none'
html_theme = 'pydata_sphinx_theme'
html_show_sourcelink = False
exclude_patterns = ['_build']
