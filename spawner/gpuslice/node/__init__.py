"""The node daemon: which devices there are, and which leased servers really run on this machine.

Invariants:

* One start per lease. A start needs a marker file that exactly one rename can take; fencing
  takes the same marker, so a fenced lease can never start, not even after a restart of the node.
* The list is read at every call from the disk, and from ``/proc`` or the container engine, and is
  complete, or it is an error. What runs is never deduced from the node's memory.
* A process is named by pid *and* start time *and* boot, so a reused pid is never taken for the
  old server.
* A running server needs neither node nor service: its supervisor lives in a session of its own,
  or the engine holds its container.

It does not own leases, prices or the decision to start or stop: it carries them out.
"""
