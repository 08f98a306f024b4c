"""The broker: grants leases, watches them against what really runs, and ends them.

Invariants: a slice is granted in one transaction, or not at all; everything is committed before
the engine is asked for anything; a slice is freed only after a fresh, complete list of the node
shows nothing of the lease; no call to node or hub happens inside a transaction.

Owns: the lease's life (grant, run, stop, settle, end), the reconciler, the fleet's rows. Does not
own: how time becomes money (``ledger``), limits (``quotas``), where a slice fits (``placement``),
who is asking (``service``).
"""

from gpuslice.broker.broker import Broker

__all__ = ["Broker"]
