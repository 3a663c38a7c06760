"""Files that ship with the package: tables, configurations and page templates.

``load('io_spec.json')`` returns the path of a file, also from a zipped installation.
"""

from acres import Loader

load = Loader(__spec__.name)
