"""The hub's side: spawners that ask for a lease, start the server in it, and hand it back.

Invariants:
- A spawner holds no truth. What is leased the service knows, what runs the node knows; after a
  hub crash both are asked again, whatever the hub's own database says.
- Nothing is started without a granted lease, and a stop is committed at the service before
  anything is asked of the node.
- "I could not ask" is never read as "it is not running".

Not owned here: who may have what (broker, quotas), money (ledger), processes (node).

``GpuDockerSpawner`` is in :mod:`gpuslice.spawners.docker`, because it needs packages that a hub
with another engine does not have.
"""

from __future__ import annotations

from gpuslice.spawners.base import GpuSpawner
from gpuslice.spawners.local import LocalGpuSpawner

__all__ = ["GpuSpawner", "LocalGpuSpawner"]
