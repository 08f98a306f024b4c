"""A working day of many people on one hub, beside the same hub with JupyterHub's own spawner of
local processes: ``make bench BENCH=day``.

Everybody logs in, looks at the spawn page, starts a server, works and stops it. With gpuslice there
are fewer slices than people, so most of them wait in line; while they work they look at My GPU, and
their notebooks read the meter. JupyterHub alone keeps no line, so there as many are let in at a
time as there are slices. One platform after the other, on loopback, with a server that answers
HTTP and does nothing else. It ends by itself, and takes away what it made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import secrets
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The platform is the one of the tests; the table is the one of the other benchmark.
sys.path[1:1] = [
    *(str(ROOT / "tests" / folder) for folder in ("lib", "hub")),
    str(ROOT / "benchmarks" / "spawn"),
]

from figures import table  # noqa: E402
from people import Day, Record, everybody  # noqa: E402
from platforms import PER_GPU, Ours, Stock  # noqa: E402

#: What is done on both platforms.
BOTH = ("log in", "spawn page", "start", "stop")
#: What a platform is made of; notebook servers, and who watches over them, are not counted.
PARTS = ("proxy", "hub", "service", "node")
#: So many of what went wrong are shown.
MOST_SHOWN = 5
#: People for each slice, if nothing is said.
CROWD = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/day", description=__doc__)
    parser.add_argument("--users", type=int, default=20, help="people; 200 is a whole course")
    parser.add_argument("--slots", type=int, help="slices; else one for ten people")
    parser.add_argument("--work", type=float, default=10, help="seconds that each one works")
    parser.add_argument("--rate", type=float, default=2, help="people who come in a second")
    parser.add_argument("--limit", type=int, default=1800, help="seconds, then it gives up")
    options = parser.parse_args()
    wanted = options.slots or options.users / CROWD
    slots = min(16, max(1, -(-int(wanted) // PER_GPU))) * PER_GPU
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, _too_long)
    signal.alarm(options.limit)
    say(machine())
    with ExitStack() as stack:
        try:
            run(stack, options, slots)
        finally:
            signal.alarm(0)  # taking things away has all the time that it needs
    return 0


def run(stack: ExitStack, options: argparse.Namespace, slots: int) -> None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpuslice-bench-")))
    names = [f"person{number:03}" for number in range(options.users)]
    password = secrets.token_hex(16)
    say(f"{len(names)} people, {options.rate:g} a second, {slots} servers at a time, "
        f"{options.work:g} s of work each\n")  # fmt: skip

    stock = Stock(folder / "stock", names, password)
    stack.callback(stock.end)
    say(f"Starting {stock.name}")
    stock.start()
    theirs, theirs_s, theirs_cpu = one_day(stock, names, password, options, slots)
    stock.end()

    ours = Ours(folder / "ours", names, password, slots)
    stack.callback(ours.kill)
    say(f"Starting {ours.name}")
    ours.start()
    mine, mine_s, mine_cpu = one_day(ours, names, password, options, None)
    wrong = ours.end()

    say("")
    say(compared(mine, theirs))
    say("")
    say(alone(mine))
    say("")
    days = ((ours.name, mine, mine_s), (stock.name, theirs, theirs_s))
    rows = [
        [name, f"{took:.0f}", f"{60 * len(names) / took:.1f}",
         f"{record.counts['requests'] / took:.0f}"]
        for name, record, took in days
    ]  # fmt: skip
    say(table(["", "the day, s", "people a minute", "requests a second"], rows))
    say("")
    rows = [
        [name, *(f"{1000 * cpu.get(part, 0.0) / len(names):.0f}" for part in PARTS)]
        for name, cpu in ((ours.name, mine_cpu), (stock.name, theirs_cpu))
    ]
    say(table(["processor, ms for each person", *PARTS], rows))
    say(
        f"\nWaited in line: {len(mine.seconds['in line'])} times; meter readings: "
        f"{mine.counts['meter readings']}; asked again after *not now* (503): "
        f"{mine.counts['not now']} and {theirs.counts['not now']}. Load: {load()}."
    )
    failed = [*mine.failures, *theirs.failures]
    say(f"Days that ended early: {len(mine.failures)} and {len(theirs.failures)}.")
    for line in [*failed[:MOST_SHOWN], *wrong[:MOST_SHOWN]]:
        say(f"  {line}")
    say("The ledger is not in order." if wrong else "The ledger is in order.")
    if wrong or failed:
        raise SystemExit(1)


def one_day(
    world: Ours | Stock, names: list[str], password: str, options: argparse.Namespace,
    seats: int | None,
) -> tuple[Record, float, dict[str, float]]:  # fmt: skip
    """What was seen, how long it took, and the processor time of each part for it."""
    before = world.processor_s()

    async def go() -> tuple[Record, float]:
        room = None if seats is None else asyncio.Semaphore(seats)
        return await everybody(world.url, names, password, Day(options.work, room), options.rate)

    record, took = asyncio.run(go())
    after = world.processor_s()
    return record, took, {part: after[part] - before[part] for part in after}


def compared(mine: Record, theirs: Record) -> str:
    """What both platforms do, and how much longer it takes with gpuslice."""
    rows = []
    for what in BOTH:
        a, b = mine.seconds[what], theirs.seconds[what]
        if not a or not b:
            continue
        ratio = statistics.median(a) / statistics.median(b)
        rows.append([what, *figures(a), *figures(b), f"{ratio:.2f}"])
    heads = ["median, s", "95 %", "most"]
    return table(
        ["", *(f"gpuslice: {head}" for head in heads), *(f"stock: {head}" for head in heads),
         "ratio"], rows,
    )  # fmt: skip


def alone(mine: Record) -> str:
    """What there is with gpuslice only."""
    rows = [
        [what, str(len(found)), *figures(found)]
        for what, found in mine.seconds.items()
        if what not in BOTH
    ]
    return table(["with gpuslice only", "times", "median, s", "95 %", "most"], rows)


def figures(seconds: Sequence[float]) -> list[str]:
    """Median, 95 % and the longest."""
    ordered = sorted(seconds)
    most = ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]
    return [f"{one:.3f}" for one in (statistics.median(ordered), most, ordered[-1])]


def machine() -> str:
    """What it runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}; load average at the start: {load()}."
    )


def load() -> str:
    return " ".join(f"{one:.1f}" for one in os.getloadavg())


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _too_long(number: int, frame: object) -> NoReturn:
    del frame
    raise SystemExit(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
