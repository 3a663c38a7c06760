"""Finding images and scores in a BIDS dataset, and naming what is written.

Knows BIDS entities, layouts in the wild and the output table (`data/io_spec.json`). Must not know
what an image shows, nor any algorithm: it never reads voxels.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
