"""``python -m gpuslice.node`` runs the node daemon."""

from __future__ import annotations

import sys

from gpuslice.node.main import main

if __name__ == "__main__":
    sys.exit(main())
