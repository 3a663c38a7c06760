"""Computed perfusion: from NCCT, CTA and a brain mask to the arrival of contrast.

Works on torch tensors in (Z, Y, X) order with the spacing in mm in that same order, so that it
runs in a notebook and on any device. Must not know files, BIDS, templates on disk, or Nipype.

The one exception to the order are `inflow_prior` and `vein_prior`: they are made on a template's
own grid, from its shape and affine, as (X, Y, Z) arrays, because they are warped as images.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
