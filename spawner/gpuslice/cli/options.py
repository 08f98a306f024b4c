"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path

import click

STATE = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".run"),
    show_default=True,
    help="The platform's data folder.",
)
CONFIG = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="gpuslice.toml; without it the defaults.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
REASON = click.option("--reason", required=True, help="Why, for the audit.")
