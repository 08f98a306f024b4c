"""Which leased servers run now as processes of this machine, for the samplers."""

from __future__ import annotations

from gpuslice.node.observe import observe
from gpuslice.node.ports import Live
from gpuslice.node.procs import all_processes, descendants
from gpuslice.node.store import Store, slice_of


class LocalServers:
    """The ``local`` engine's running servers: what is below their supervisors."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def live(self) -> list[Live]:
        """The running servers that have a device, with their processes as they are now."""
        supervised = []
        for lease in self._store.all():
            piece = slice_of(lease)
            if piece is None or piece.device_uuid is None:
                continue
            seen = observe(lease)
            if seen is None or not seen.busy or seen.record is None:
                continue
            if seen.record.state == "running":
                supervised.append((piece, piece.device_uuid, seen.record.supervisor_pid))
        # Nobody runs: then nobody's processes are looked for.
        table = all_processes() if supervised else {}
        return [
            Live(
                lease_id=piece.lease_id,
                kind=piece.kind,
                device_uuid=uuid,
                share_milli=piece.share_milli or 1000,
                # The supervisor is the reaper of all that its server starts: no process leaves it.
                pids=frozenset(process.pid for process in descendants(table, [pid])),
            )
            for piece, uuid, pid in supervised
        ]
