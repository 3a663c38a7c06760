"""A digital stroke patient and cohort whose vessels, delays and scores are all known.

Its physics is flow along a grown vascular tree. It must never import the algorithms of `ct`,
`perfusion` or `deficit` that it is there to test.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
