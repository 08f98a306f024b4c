"""`python -m nvmlsim`: build the library, make a demo fleet, show a fleet, run a command on one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from nvmlsim import BuildError, Fleet, FleetFileError, UnknownName, build_library, demo_fleet


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except (BuildError, FleetFileError, UnknownName, OSError) as error:
        sys.stderr.write(f"nvmlsim: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nvmlsim", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="compile libnvidia-ml.so.1 into DIR")
    build.add_argument("dir", type=Path)
    build.set_defaults(run=_build)
    demo = commands.add_parser("demo", help="make the demo fleet file STATE unless it is there")
    demo.add_argument("state", type=Path)
    demo.set_defaults(run=_demo)
    show = commands.add_parser("show", help="print the devices of the fleet file STATE")
    show.add_argument("state", type=Path)
    show.set_defaults(run=_show)
    run = commands.add_parser("run", help="run COMMAND so that it sees the fleet of STATE")
    run.add_argument("dir", type=Path, help="where the library is built")
    run.add_argument("state", type=Path)
    run.add_argument("command", nargs=argparse.REMAINDER)
    run.set_defaults(run=_run)
    return parser


def _build(options: argparse.Namespace) -> None:
    _say(str(build_library(options.dir)))


def _demo(options: argparse.Namespace) -> None:
    demo_fleet(options.state).close()
    _show(options)


def _show(options: argparse.Namespace) -> None:
    with Fleet.open(options.state, writable=False) as fleet:
        for gpu in fleet.gpus():
            _say(
                f"GPU {gpu.index}  {gpu.model}  {gpu.uuid}  {_mib(gpu.used)}/{_mib(gpu.total)} MiB"
                f"  {gpu.utilisation:.0f} %  {gpu.health}"
            )
            for mig in gpu.migs():
                _say(
                    f"  MIG {mig.profile}  slots {mig.slot}-{mig.slot + mig.size - 1}  {mig.uuid}"
                    f"  {_mib(mig.used)}/{_mib(mig.total)} MiB  {mig.utilisation:.0f} %"
                )


def _run(options: argparse.Namespace) -> NoReturn:
    if not options.command:
        raise UnknownName("no command given")
    library = build_library(options.dir)
    with Fleet.open(options.state, writable=False) as fleet:
        environment = os.environ | fleet.environment(library)
    os.execvpe(options.command[0], options.command, environment)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _mib(value: int) -> int:
    return value >> 20


if __name__ == "__main__":
    sys.exit(main())
