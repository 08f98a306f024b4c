"""How long a server takes to start, beside DockerSpawner as it comes: ``make bench``.

Both platforms run at the same time on the same engine and start the same image, a stub that
answers HTTP at once, so that what is measured is the platform. It ends by itself, and takes away
what it made.
"""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
# It measures in the tests' worlds: the tiny image, the registry that waits, the platform's parts.
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("lib", "hub")]

from experiments import (  # noqa: E402
    Outcome,
    start_beside_pull,
    start_beside_stops,
    time_to_ready,
)
from figures import Sample, paired_ratio, table  # noqa: E402
from worlds import Ours, Stock, World, remove_homes  # noqa: E402

from dockerworld import engine_client, tiny_image  # noqa: E402
from registrystub import payload, registry_stub, saved_layers  # noqa: E402

GOAL = 1.05
PULL_S = 15.0
STOPPING = 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/spawn", description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="starts of each, alternating")
    parser.add_argument("--pulls", type=int, default=2, help="pulls of each")
    parser.add_argument("--limit", type=int, default=1500, help="seconds, then it gives up")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, _too_long)
    signal.alarm(options.limit)
    say(machine())
    with ExitStack() as stack:
        try:
            run(stack, options.pairs, options.pulls)
        finally:
            signal.alarm(0)  # taking things away has all the time that it needs
    return 0


def run(stack: ExitStack, pairs: int, pulls: int) -> None:
    """All three experiments; what was made is taken away by ``stack``."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpuslice-bench-")))
    client = engine_client()
    stack.callback(client.close)
    tiny = tiny_image(client)
    registry = stack.enter_context(registry_stub())
    stack.callback(registry.forget, client)
    layers = saved_layers(tiny)
    slow = [registry.add(f"slow{number}", [*layers, payload()]) for number in range(2 * pulls)]
    images = [tiny, *(image.reference for image in slow)]
    people = People()
    stack.callback(remove_homes, client, people.made)
    ours, stock = Ours(folder / "ours", client, images), Stock(folder / "stock", client, images)
    for world in (ours, stock):
        stack.callback(world.end)
        say(f"Starting {world.name}")
        world.start(people("first"))
    worlds: tuple[World, World] = (ours, stock)

    say(f"\nTime to ready, {pairs} pairs")
    measured = time_to_ready(worlds, pairs, people("ada"))
    mine, theirs = Sample(tuple(m for m, _ in measured)), Sample(tuple(t for _, t in measured))
    ratio = paired_ratio(mine.seconds, theirs.seconds)
    rows = [[world.name, f"{one.median:.2f}", one.spread]
            for world, one in zip(worlds, (mine, theirs), strict=True)]  # fmt: skip
    say(table(["time to ready", "median, s", "middle half (all), s"], rows))
    say(f"Ratio, median of the pairs: {ratio:.2f} (goal: at most {GOAL:.2f}). Load: {load()}.")

    say(f"\n{STOPPING} servers that ignore SIGTERM are stopped (grace 10 s), and a user starts one")
    usual = {ours.name: mine.median, stock.name: theirs.median}
    users = [people(f"stubborn{number}") for number in range(STOPPING)]
    ninth = people("zoe")
    outcomes = {world.name: [start_beside_stops(world, users, ninth)] for world in worlds}
    say(f"{waits(outcomes, usual)}\nLoad: {load()}.")

    say(f"\nAn image is pulled for {PULL_S:.0f} s, and a user starts one that is here")
    outcomes, pair = {}, (people("puller"), people("other"))
    for number, world in enumerate(worlds):
        mine_of_it = slow[number * pulls : (number + 1) * pulls]
        outcomes[world.name] = [
            start_beside_pull(world, registry, one.reference, one.layers[-1], pair, PULL_S)
            for one in mine_of_it
        ]
    say(f"{waits(outcomes, usual)}\nLoad: {load()}.")


class People:
    """Users that nobody else on this engine has, whose homes may be taken away."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self._mark = secrets.token_hex(4)

    def __call__(self, name: str) -> str:
        self.made.append(f"bench-{self._mark}-{name}")
        return self.made[-1]


def waits(outcomes: dict[str, list[Outcome]], usual: dict[str, float]) -> str:
    """Each start beside something else, and what that added to the usual."""
    rows = []
    for name, found in outcomes.items():
        for one in found:
            end = f"failed: {one.problem}" if one.problem else "ready"
            added = "-" if one.problem else f"{one.seconds - usual[name]:+.2f}"
            rows.append([name, f"{one.seconds:.2f}", added, end])
    return table(["beside it", "s", "added, s", "and then"], rows)


def machine() -> str:
    """What it ran on."""
    info = engine_client().info()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}, "
        f"Docker {info['ServerVersion']} ({info['Driver']}, cgroup v{info['CgroupVersion']}), "
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
