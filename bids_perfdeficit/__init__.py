"""Computed perfusion and perfusion-deficit mapping of ischaemic stroke, as a BIDS App."""

try:
    from bids_perfdeficit._version import __version__
except ImportError:  # a source tree that was never built
    __version__ = '0+unknown'

__all__ = ['__version__']
