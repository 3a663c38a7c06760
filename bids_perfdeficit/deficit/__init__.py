"""The perfusion-deficit model: which brain regions each NIHSS item depends on.

Works on maps of a template, as files or arrays, and a table of ordinal scores. Must not know BIDS,
Nipype, where a template comes from, or how a perfusion map was computed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
