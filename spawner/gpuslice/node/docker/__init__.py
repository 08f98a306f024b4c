"""The ``docker`` engine: one hardened container per lease, and one CDI device in it.

Invariants:

* One create and one start per lease. Each needs a marker file that exactly one rename takes, on
  the disk before the engine is asked; the lease's lock is held until it has answered.
* A container is a lease's by the id that the engine answered with, never by its labels alone.
* An engine that does not answer, or not as it should, is a refusal with status 503; nothing is
  concluded from it, and nothing is freed.
* A lease's times are the engine's own. The boot clock only bounds them where somebody has set the
  wall clock, and after a restart of the machine an end that nobody saw stays unknown.
* A slice is given back when a fresh answer of the engine shows that nothing with its lease's label
  runs, and its container, network and CDI device are gone; whatever was broken off goes on there.
* What is cleared away unasked is this node's own, and of leases that are over.

It does not own prices, the decision to start or stop, or users' homes, which outlive every lease.
"""
