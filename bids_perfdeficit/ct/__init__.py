"""Head CT geometry: reading, conforming, brain extraction and registration.

Knows Hounsfield units, affines and templates. Must not know BIDS names, Nipype, perfusion or
scores. Images are nibabel images with (X, Y, Z) arrays; the conformed ones are in RAS order.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
