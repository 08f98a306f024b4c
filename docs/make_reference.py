"""Writes the pages that are made from the code: ``make docs`` runs it, a test compares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from gpuslice.cli.app import main as gpuslice_command
from gpuslice.settings import settings_reference

DOCS = Path(__file__).resolve().parent
SETTINGS = DOCS / "administrators" / "settings.md"
COMMANDS = DOCS / "administrators" / "commands.md"
_INTRO = """
The file is read once, when a part starts: by the service, and by the hub for the addresses. An
unknown key, a bad price or a slice that fits on no device stops the start and says which. A key
that is left out has the default below. `hub_config/local/gpuslice.toml` is a file to copy.

The environment wins over the file: `GPUSLICE__NODE__ID=gpu2` is `id` of `[node]`. Values are
written as in the file, and a text may go without its quotes. The compose deployment uses it for
what its `.env` decides.

Sizes are stored in bytes, shares and cores in thousandths, prices in millionths; write them as the
examples do.
"""


def settings_page() -> str:
    """The reference of ``gpuslice.toml``, with what holds for all of it after the heading."""
    heading, rest = settings_reference().split("\n", 1)
    return f"{heading}\n{_INTRO}{rest}"


_COMMANDS_INTRO = """# The commands

`--help` after any of them lists its options. Those that look into or change a running platform
take `--state`, its data folder, whose owner may use them, and `--config`, the service's settings;
what they change is written to the audit record with the login of whoever ran them. `--json` prints
the service's own answer, for programs: money in millionths, times as UTC microseconds.

An exit code of 1 is *no*: refused, not found, a problem. 2 is a command that was typed wrong, or
something that could not be looked at.

| command | what it does |
|---|---|
"""


def commands_page() -> str:
    """Every command with its arguments and its first sentence."""
    return _COMMANDS_INTRO + "".join(_rows(gpuslice_command, ["gpuslice"]))


def _rows(command: click.Command, path: list[str]) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _rows(command.commands[name], [*path, name])
        return
    context = click.Context(command)
    arguments = [
        parameter.make_metavar(context)
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    usage = " ".join([*path, *arguments]).replace("|", "\\|")
    yield f"| `{usage}` | {command.get_short_help_str(limit=300)} |\n"


def main() -> None:
    """Write them."""
    SETTINGS.write_text(settings_page(), encoding="utf-8")
    COMMANDS.write_text(commands_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
