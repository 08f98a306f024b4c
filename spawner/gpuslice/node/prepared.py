"""Whether a lease may be prepared or started: what the node's disk says, whatever the engine."""

from __future__ import annotations

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.leasedir import CLAIMED, FENCED, PREPARED, STARTED, LeaseDir
from gpuslice.node.store import Store, slice_of


def check_slice(piece: wire.PrepareSlice) -> None:
    """Raises Refused for a slice that contradicts itself."""
    if (piece.kind is wire.SliceKind.CPU) != (piece.device_uuid is None):
        raise Refused("bad-slice", "a CPU slice has no device, and every other kind has one")


def already_prepared(store: Store, piece: wire.PrepareSlice) -> bool:
    """Whether this very slice is here. Raises Refused when it must not be prepared (again)."""
    if store.result(piece.lease_id) is not None:
        raise Refused("ended", "this lease has ended on this node")
    lease = store.get(piece.lease_id)
    if lease is None:
        return False
    if lease.marker() == FENCED:
        raise Refused("fenced", "this lease was taken back")
    if slice_of(lease) != piece:
        raise Refused("different-slice", "this lease was prepared with other contents")
    return True


def startable(store: Store, lease_id: str) -> LeaseDir:
    """The folder of a lease that nobody has begun to start. Raises Refused for any other."""
    lease = store.get(lease_id)
    marker = lease.marker() if lease is not None else None
    if lease is None:
        if store.result(lease_id) is not None:
            raise Refused("ended", "this lease has ended")
        raise Refused("not-prepared", "no slice is prepared for this lease")
    if marker == FENCED:
        raise Refused("fenced", "this lease was taken back")
    if marker in (CLAIMED, STARTED):
        raise Refused("already-started", "this lease was started before")
    if marker != PREPARED:
        raise Refused("not-prepared", "no slice is prepared for this lease")
    return lease


def prepared_slice(lease: LeaseDir) -> wire.PrepareSlice:
    """What was prepared. Raises Refused where the folder does not say."""
    piece = slice_of(lease)
    if piece is None:
        raise Refused("torn", "what was prepared for this lease is unreadable")
    return piece
