"""Checks of the platform's private files: secrets, and the node's sockets."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuslice.cli.doctor.findings import (
    Group,
    NotLooked,
    Verdict,
    Verdicts,
    named,
    note,
    ok,
    problem,
    unknown,
    warning,
)
from gpuslice.cli.doctor.machine import Machine
from gpuslice.cli.doctor.places import Place, look_at
from gpuslice.cli.handout import HANDED_OUT
from gpuslice.cli.secrets import SECRETS
from gpuslice.nodeclient import node_sockets


@dataclass(frozen=True, slots=True)
class PrivateFacts:
    folder: Place
    secrets: tuple[Place, ...]
    sockets: tuple[Place, ...]


def look(machine: Machine) -> PrivateFacts:
    state = machine.state
    if not state.root.is_dir():
        raise NotLooked(
            note(
                f"There is no data folder {state.root} yet.",
                "Name it with --state, or make it: gpuslice init --state FOLDER.",
            )
        )
    node = machine.node
    sockets = (node,) if node.suffix == ".sock" else node_sockets(node)
    return PrivateFacts(
        folder=_place(state.secrets),
        secrets=tuple(_place(state.secrets / name) for name in _names()),
        sockets=tuple(_place(socket) for socket in sockets),
    )


def _names() -> list[str]:
    """Every secret that any part may have."""
    return sorted({*SECRETS, *(name for names in HANDED_OUT.values() for name in names)})


def _place(path: Path) -> Place:
    return look_at(str(path.absolute()))


def secrets(facts: PrivateFacts) -> list[Verdict]:
    """Each is one person's: whoever reads one can act as a part of the platform."""
    if facts.folder.kind == "hidden" or any(place.kind == "hidden" for place in facts.secrets):
        return [
            unknown(
                f"The secrets in {facts.folder.path} may not be looked at by this user.",
                "Run it again as root, or as the user that the platform runs as.",
            )
        ]
    found = []
    there = {_name(place) for place in facts.secrets if place.there}
    missing = [name for name in SECRETS if name not in there]
    # A container of the deployment has its own part's, and no other.
    if missing and not any(there == set(names) for names in HANDED_OUT.values()):
        found.append(
            warning(
                f"Secrets are missing in {facts.folder.path}: {named(missing)}.",
                "Run: gpuslice init --state FOLDER; what is there is kept.",
            )
        )
    open_ones = [place for place in facts.secrets if place.there and place.mode & 0o077]
    if open_ones:
        found.append(
            problem(
                f"Others can read or change these secrets: {named([_name(p) for p in open_ones])}.",
                f"Run: chmod 600 {facts.folder.path}/*, and change the secrets if strangers had "
                "access (remove them and run gpuslice init).",
            )
        )
    odd = [place for place in facts.secrets if place.there and place.kind != "file"]
    if odd:
        found.append(
            problem(
                f"These secrets are no files: {named([_name(place) for place in odd])}.",
                "Remove them and run: gpuslice init.",
            )
        )
    strange = {p.owner for p in facts.secrets if p.there} - {0, facts.folder.owner}
    if strange:
        found.append(
            problem(
                f"Secrets in {facts.folder.path} belong to other users than their folder: "
                f"{named([str(owner) for owner in sorted(strange)])}.",
                f"Run: chown {facts.folder.owner} {facts.folder.path}/*.",
            )
        )
    return found or [ok(f"The secrets in {facts.folder.path} are private.")]


def _name(place: Place) -> str:
    return place.path.rpartition("/")[2]


def folder(facts: PrivateFacts) -> Verdict | None:
    """Whoever can change a folder above a secret can put another secret there."""
    place = facts.folder
    if not place.there:
        return None
    if place.weak or place.others_write:
        doubts = [*place.weak]
        if place.others_write:
            doubts.append(f"it can be changed by others ({place.shown_mode})")
        return problem(
            f"Others can replace the secrets in {place.path}: {named(doubts)}.",
            f"Run: chmod 700 {place.path}, and chmod go-w on the folders above it.",
        )
    if place.mode & 0o077:
        return warning(
            f"Others may look into {place.path} (mode {place.shown_mode}).",
            f"Run: chmod 700 {place.path}.",
        )
    return ok(f"Only its owner enters {place.path}.")


def sockets(facts: PrivateFacts) -> list[Verdict]:
    """The node's sockets take orders from whoever may open them."""
    found = []
    for place in facts.sockets:
        if place.there and (place.mode & stat.S_IWOTH):
            found.append(
                problem(
                    f"Everybody may open {place.path} (mode {place.shown_mode}), which gives "
                    "orders to the node.",
                    f"Run: chmod o-rwx {place.path}, and restart the node with a strict umask.",
                )
            )
        elif place.there and place.weak:
            found.append(
                problem(
                    f"Others can replace {place.path}: {named(place.weak)}.",
                    "Run chmod go-w on these folders.",
                )
            )
    there = [place for place in facts.sockets if place.there]
    if found:
        return found
    return [ok(f"{len(there)} sockets of the node are private.")] if there else []


CHECKS: Mapping[str, Callable[[PrivateFacts], Verdicts]] = {
    "secrets": secrets,
    "folder": folder,
    "sockets": sockets,
}


def group(machine: Machine) -> Group[PrivateFacts]:
    return Group("files", lambda: look(machine), CHECKS)
