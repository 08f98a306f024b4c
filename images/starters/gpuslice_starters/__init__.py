"""The starter notebooks: which there are, each one's .ipynb, and a copy of it in somebody's home.

`starters()` lists them for launcher cards, `notebook()` makes one's file, `copy_for()` puts it into
a home folder without ever touching a file that is there. Only the standard library is needed.
"""

from gpuslice_starters.build import NotebookSourceError, Starter, build, notebook, starters
from gpuslice_starters.copies import NoFreeName, UnknownStarter, copy_for

__all__ = [
    "NoFreeName",
    "NotebookSourceError",
    "Starter",
    "UnknownStarter",
    "build",
    "copy_for",
    "notebook",
    "starters",
]
