"""How long the ledger's larger work takes, beside something plain on the same database.

``python benchmarks/ledger heartbeat|usage|verify [--entries 10000000] [--database URL]``

Without ``--database`` it makes SQLite books in a folder that it takes away. With one it takes the
books there, and makes them first if it is empty; it goes on in them, so give it none of yours.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# After this folder: the other benchmark has experiments, too.
sys.path[1:1] = [
    str(ROOT / folder) for folder in ("spawner", "tests/lib", "benchmarks", "benchmarks/spawn")
]

from books import Size, add_size, size_of  # noqa: E402
from experiments import heartbeat, usage, verify  # noqa: E402

from gpuslice.ledger import migrate  # noqa: E402
from gpuslice.ledger.database import make_engine, sqlite_url  # noqa: E402

DEFAULTS = {
    "heartbeat": Size(devices=250, users=2_000, entries=50_000, live=1_000),
    "usage": Size(devices=250, users=1_000, entries=300_000, live=500),
    "verify": Size(devices=250, users=1_000, entries=200_000, live=500),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/ledger", description=__doc__)
    parsers = parser.add_subparsers(dest="what", required=True)
    for what, size in DEFAULTS.items():
        one = parsers.add_parser(what)
        one.add_argument("--database", help="URL of a database (default: SQLite, taken away)")
        add_size(one, size)
    options = parser.parse_args()
    say(machine())
    if options.what == "verify":
        for size in _sizes(options):
            with books(options.database, size) as url:
                say(verify(url))
        return 0
    with books(options.database, size_of(options)) as url:
        say({"heartbeat": heartbeat, "usage": usage}[options.what](url))
    return 0


def _sizes(options: argparse.Namespace) -> list[Size]:
    """For verify a quarter, too: what takes longer in proportion is not linear."""
    size = size_of(options)
    return [size] if options.database else [replace(size, entries=size.entries // 4), size]


@contextmanager
def books(url: str | None, size: Size) -> Iterator[str]:
    """The URL of books: those that are there, or new ones."""
    with tempfile.TemporaryDirectory(prefix="gpuslice-books-") as folder:
        chosen = url or sqlite_url(Path(folder) / "books.sqlite")
        engine = make_engine(chosen)
        there = migrate.current_revision(engine) is not None
        engine.dispose()
        if not there:
            say(f"Making books of {size.entries:,} entries, {size.live:,} leases live")
            # In a process of its own: what it takes of memory is not measured.
            subprocess.run(
                [
                    sys.executable, str(ROOT / "benchmarks/books.py"), chosen,
                    *(f"--{name}={value}" for name, value in vars(size).items()),
                ],
                check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "spawner")},
            )  # fmt: skip
        yield chosen


def machine() -> str:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}; load average at the start: {load}."
    )


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
