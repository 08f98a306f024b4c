"""The command ``gpuslice``.

Invariants:
- A command imports what it needs when it runs: ``gpuslice --help`` is instant.
- What a person did wrong is one readable sentence and exit code 1, never a traceback.

Not owned here: anything that a running platform does; commands start it or ask it.
"""

from __future__ import annotations

from gpuslice.cli.app import main

__all__ = ["main"]
