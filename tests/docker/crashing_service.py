"""The service under test: SIGKILL right before or right after a beat is committed, where armed.

``beat-written`` dies inside the transaction, when all of it is written and nothing is durable;
``beat-committed`` as soon as it is.
"""

import os
import signal
import sys
from pathlib import Path

from gpuslice.broker import broker, lifecycle
from gpuslice.service.run import main

STATE = Path(sys.argv[sys.argv.index("--state") + 1])


def crash(point):
    """Die here as SIGKILL would, if this point is armed; once."""
    armed = STATE / "crash-service"
    if armed.exists() and armed.read_text() == point:
        armed.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class Beats:
    """Whether the comparison under way has moved a lease's beat."""

    seen = False


def beat(session, seen, rules, *, now):
    before = [lease.covered_us for lease, _ in seen]
    really_beat(session, seen, rules, now=now)
    Beats.seen |= [lease.covered_us for lease, _ in seen] != before


def apply_listing(*args, **kwargs):
    Beats.seen = False
    todo = really_apply(*args, **kwargs)
    if Beats.seen:
        crash("beat-written")
    return todo


async def carry_out(self, todo):
    """The first that is done after the commit."""
    if Beats.seen:
        crash("beat-committed")
    await really_carry_out(self, todo)


really_beat, lifecycle.beat = lifecycle.beat, beat
really_apply = broker.reconciler.apply_listing
broker.reconciler.apply_listing = apply_listing
really_carry_out, broker.Broker._carry_out = broker.Broker._carry_out, carry_out

if __name__ == "__main__":
    raise SystemExit(main())
