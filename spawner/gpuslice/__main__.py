"""``python -m gpuslice`` is the command ``gpuslice``."""

from __future__ import annotations

from gpuslice.cli import main

if __name__ == "__main__":
    main()
