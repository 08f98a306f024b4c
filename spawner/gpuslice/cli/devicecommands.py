"""``gpuslice device``: every device with its state, and what was quarantined granted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE
from gpuslice.cli.text import Column, of, show, table

_COLUMNS = (
    of("device", "uuid"),
    of("node", "node_id"),
    of("model", "model"),
    of("state", "state"),
    Column("held by", lambda row: f"{len(row['leases'])} lease(s)" if row["leases"] else ""),
    of("why", "state_reason"),
)
_PATH = "api/devices"


@click.group()
def device() -> None:
    """Devices, and what is wrong with them."""


@device.command("list")
@STATE
@CONFIG
@JSON
def list_command(state: Path, config: Path | None, as_json: bool) -> None:
    """Every device that the ledger knows, with its state and why."""
    from gpuslice.cli.operator import operator

    found = operator(state, config).get(_PATH)
    show(found, table(found, _COLUMNS), as_json)


@device.command()
@click.argument("name")
@REASON
@STATE
@CONFIG
@JSON
def clear(name: str, reason: str, state: Path, config: Path | None, as_json: bool) -> None:
    """Grant a quarantined device again: NAME is its UUID, or how that begins.

    It is looked at anew, and stays quarantined while something is left on it or a lease holds it.
    """
    from urllib.parse import quote

    from gpuslice.cli.operator import operator

    service = operator(state, config)
    one = _named(service.get(_PATH), name)
    where = "/".join(quote(one[key], safe="") for key in ("node_id", "uuid"))
    body = {"version": one["version"], "reason": reason}
    found = service.send("POST", f"api/admin/devices/{where}/clear", body)
    show(found, table([found], _COLUMNS), as_json)


def _named(devices: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The one device that is meant.

    Raises:
        Trouble: none is, or several are.
    """
    from gpuslice.cli.trouble import Trouble

    exact = [one for one in devices if one["uuid"] == name]
    found = exact or [one for one in devices if one["uuid"].startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise Trouble(f"There is no device {name!r}; gpuslice device list names them.")
    names = ", ".join(f"{one['uuid']} on {one['node_id']}" for one in found[:5])
    raise Trouble(f"{name!r} may be any of {len(found)} devices: {names}.")
