"""The public pipeline: what happens to one patient and to one cohort, as functions.

Joins what the domain packages must not know of each other. Arrays, images and frozen dataclasses
go in and come out, so that it is used from a notebook as from the interfaces: `patient` from two
scans to maps and metrics, `cohort` from maps and scores to a fit. Must not know Nipype, the
command line, or where outputs lie.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
