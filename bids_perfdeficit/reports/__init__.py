"""Figures and pages for people: what was found in a patient and in a cohort.

Draws from images and tables that are handed in; must not compute any of the results that it
shows. Every brain is shown as radiologists read CT: the patient's right is on the left of the
picture, anterior is up or, from the side, on the left; every row carries its marks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
