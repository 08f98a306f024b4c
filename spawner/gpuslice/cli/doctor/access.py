"""Checks of the Docker engine's socket: whoever can open it is root on this machine."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from gpuslice.cli.doctor.findings import Group, Verdict, named, ok, problem, warning
from gpuslice.cli.doctor.machine import Machine


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """The engine's socket as a file; ``mode`` None when it is not there."""

    path: str
    mode: int | None
    group: str | None = None
    #: Users who can open it by that group; root is left out.
    members: tuple[str, ...] = ()
    #: Whether we ourselves may connect.
    ours: bool = True


def look_at_socket(machine: Machine) -> SocketFacts:
    path = machine.settings.docker.socket
    try:
        seen = Path(path).stat()
    except OSError:
        return SocketFacts(path, None)
    groups, users = machine.host_text("/etc/group") or "", machine.host_text("/etc/passwd") or ""
    name, members = group_members(seen.st_gid, groups, users)
    by_group = members if seen.st_mode & stat.S_IWGRP else ()
    ours = os.access(path, os.W_OK)
    return SocketFacts(path, seen.st_mode, name, by_group, ours)


def group_members(
    gid: int, group_file: str, passwd_file: str
) -> tuple[str | None, tuple[str, ...]]:
    """The name of a group and who is in it (root left out), from the texts of the two files."""
    name: str | None = None
    members: set[str] = set()
    for entry in _entries(group_file, 4):
        if entry[2] == str(gid):
            name = entry[0]
            members.update(user for user in entry[3].split(",") if user)
    members.update(entry[0] for entry in _entries(passwd_file, 7) if entry[3] == str(gid))
    return name, tuple(sorted(members - {"root"}))


def _entries(text: str, fields: int) -> list[list[str]]:
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= fields]


def socket_file(facts: SocketFacts) -> Verdict:
    """Whoever can write to the socket is root on this machine."""
    if facts.mode is None:
        return problem(
            f"There is no engine socket {facts.path}.",
            "Install and start the Docker engine, or set docker.socket to where its socket is.",
        )
    if not stat.S_ISSOCK(facts.mode):
        return problem(
            f"{facts.path} is no socket.", "Set docker.socket to the engine's unix socket."
        )
    if facts.mode & stat.S_IWOTH:
        return problem(
            f"Everybody on this machine may use the engine ({facts.path} has mode "
            f"{stat.S_IMODE(facts.mode):04o}), so everybody is root.",
            f"Run: chmod o-rwx {facts.path}, and find out what changed it.",
        )
    if facts.members:
        return warning(
            f"Users in the group {facts.group} may use the engine, which makes them root on this "
            f"machine: {named(facts.members)}.",
            "Take out whoever does not administer this machine (gpasswd -d USER "
            f"{facts.group}); the hub's user must not be in it.",
        )
    return ok(f"Only root uses {facts.path}.")


def group(machine: Machine) -> Group[SocketFacts]:
    return Group("socket", lambda: look_at_socket(machine), {"access": socket_file})
