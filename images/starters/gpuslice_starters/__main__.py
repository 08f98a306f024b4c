"""`python -m gpuslice_starters FOLDER`: write the starters as .ipynb files into a folder."""

import sys
from pathlib import Path

from gpuslice_starters.build import build


def main(arguments: list[str]) -> int:
    """Write them and name each; 2 when it was called wrongly."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m gpuslice_starters FOLDER\n")
        return 2
    for path in build(Path(arguments[0])):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
