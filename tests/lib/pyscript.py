"""Programs for tests: Python scripts that a system starts by their path."""

from __future__ import annotations

import sys
from pathlib import Path

#: A shell starts Python, because a ``#!`` line allows no spaces in the interpreter's path. To
#: Python these lines are a text.
_HEADER = """\
#!/bin/sh
''':'
exec '{python}' "$0" "$@"
'''
"""


def write_script(path: Path, text: str) -> None:
    """Make ``path`` a program that runs ``text`` with this Python."""
    path.write_text(_HEADER.format(python=sys.executable) + text)
    path.chmod(0o755)
