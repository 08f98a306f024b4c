"""Checks of ``[docker]`` in gpuslice.toml against this machine: images, folders, addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
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
from gpuslice.cli.doctor.places import Place
from gpuslice.containers import LABEL_NODE
from gpuslice.errors import Refused
from gpuslice.node.docker.api import EngineDown, EngineSaysNo, Json
from gpuslice.node.docker.networks import Gate, host_networks
from gpuslice.settings import DockerSettings

_VOLUMES = "/var/lib/docker"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    reference: str
    there: bool
    #: Whether it came from a registry, where its name may come to mean another image.
    from_registry: bool = False


@dataclass(frozen=True, slots=True)
class GateFacts:
    container: str
    #: ``running``, ``exited``, …; None without such a container.
    state: str | None


@dataclass(frozen=True, slots=True)
class SettingsFacts:
    settings: DockerSettings
    images: tuple[ImageFacts, ...]
    #: The folder with the homes: ``docker.home``, or the engine's for volumes.
    home: Place
    shared: Place | None
    host_dir: Place
    cdi_dir: Place
    gates: tuple[GateFacts, ...]
    #: What of the machine's addresses lies in the pool, apart from leases' networks; None: unknown.
    in_pool: tuple[str, ...] | None


def look(machine: Machine) -> SettingsFacts:
    if machine.engine.problem is not None:
        raise NotLooked(
            unknown(
                "The settings of [docker] were not compared with the machine, since the engine "
                "does not answer.",
                "Put the engine right first.",
            )
        )
    settings = machine.settings.docker
    root = machine.engine.info.get("DockerRootDir")
    volumes = root if isinstance(root, str) and root.startswith("/") else _VOLUMES
    home = settings.home if settings.home != "volume" else f"{volumes}/volumes"
    try:
        images, gates, networks = asyncio.run(_ask(machine))
    except (EngineDown, EngineSaysNo) as error:
        raise NotLooked(
            unknown(f"The engine did not answer all questions ({error}).", "Try again.")
        ) from None
    return SettingsFacts(
        settings=settings,
        images=images,
        home=machine.place(home),
        shared=machine.place(settings.shared) if settings.shared else None,
        host_dir=machine.place(settings.host_dir),
        cdi_dir=machine.place(settings.cdi_dir),
        gates=gates,
        in_pool=_in_pool(machine, networks),
    )


async def _ask(
    machine: Machine,
) -> tuple[tuple[ImageFacts, ...], tuple[GateFacts, ...], list[Json]]:
    settings, api = machine.settings.docker, machine.docker
    images = []
    for entry in settings.image:
        found = await api.image(entry.reference)
        digests = (found or {}).get("RepoDigests")
        images.append(ImageFacts(entry.reference, found is not None, bool(digests)))
    gates = []
    for text in settings.gates:
        container = Gate.parse(text).container
        state = ((await api.container(container)) or {}).get("State")
        gates.append(GateFacts(container, state.get("Status") if state else None))
    return tuple(images), tuple(gates), await api.networks()


def _in_pool(machine: Machine, networks: Sequence[Json]) -> tuple[str, ...] | None:
    try:
        routes = host_networks(Path(machine.root))
    except Refused:
        return None
    return overlaps(IPv4Network(machine.settings.docker.network_pool), networks, routes)


def overlaps(
    pool: IPv4Network, networks: Sequence[Json], routes: Iterable[IPv4Network]
) -> tuple[str, ...]:
    """What else has addresses of the pool: networks of the engine by name, and routes.

    Leases' networks belong there, and so do the addresses and routes that come with them.
    """
    leases, found = [], []
    for network in networks:
        ours = LABEL_NODE in (network.get("Labels") or {})
        for subnet in _subnets(network):
            if ours:
                leases.append(subnet)
            elif subnet.overlaps(pool):
                found.append(f"the engine's network {network.get('Name')} ({subnet})")
    known = [*leases, *(subnet for network in networks for subnet in _subnets(network))]
    found += [
        f"a route or address of the host ({route})"
        for route in sorted(routes)
        if route.overlaps(pool) and not any(route.subnet_of(subnet) for subnet in known)
    ]
    return tuple(found)


def _subnets(network: Json) -> list[IPv4Network]:
    found = []
    for config in (network.get("IPAM") or {}).get("Config") or ():
        try:
            subnet = ip_network(config.get("Subnet") or "", strict=False)
        except ValueError:
            continue
        if isinstance(subnet, IPv4Network):
            found.append(subnet)
    return found


# --- the judgements -------------------------------------------------------------------------


def images(facts: SettingsFacts) -> list[Verdict]:
    """Whether a first start has to pull, and whether a name can come to mean something else."""
    found = []
    missing = [image.reference for image in facts.images if not image.there]
    if missing:
        found.append(
            warning(
                f"Not on this machine: {named(missing)}. The first start of each has to pull it.",
                "Build them (make images) or pull them (docker pull) before users come.",
            )
        )
    movable = [
        image.reference
        for image in facts.images
        if image.from_registry and "@sha256:" not in image.reference
    ]
    if movable:
        found.append(
            note(
                f"Named without a digest: {named(movable)}; whoever can write to the registry "
                "decides what runs.",
                "Put the digest into docker.image (docker images --digests shows it).",
            )
        )
    return found or [ok(f"{len(facts.images)} images are here.")]


def home(facts: SettingsFacts) -> Verdict:
    """Whether homes can be made, and are safe from other users of the host."""
    place = facts.home
    if facts.settings.home == "volume":
        return ok(f"Homes are volumes of the engine, on {_files(place)}.")
    if place.kind == "missing":
        return problem(
            f"The folder {place.path} of docker.home does not exist, so no server can start.",
            f"Make it (install -d -m 755 {place.path}), or mount it.",
        )
    if place.kind == "hidden":
        return unknown(f"{place.path} may not be looked at by this user.", "Run it again as root.")
    if place.kind != "folder" or place.by_link:
        return problem(
            f"{place.path} of docker.home is no folder, or a symbolic link leads there, which the "
            "node does not follow.",
            "Name the folder itself.",
        )
    if place.mode & 0o002:
        return problem(
            f"Everybody can write to {place.path} of docker.home, so the node makes no home in it.",
            f"Run: chmod o-w {place.path}.",
        )
    if place.mount is not None and "ro" in place.mount.options:
        return problem(
            f"{place.path} of docker.home is on a file system that is mounted read-only.",
            "Mount it for writing.",
        )
    if place.mount is not None and place.mount.network:
        return note(
            f"Homes are on the network ({_files(place)}); its server may not let root make them "
            "(root_squash).",
            f"Make each home there: install -d -m 700 -o USER -g GROUP {place.path}/NAME, with "
            f"docker.user's numbers ({facts.settings.user}).",
        )
    return ok(f"Homes are in {place.path}, on {_files(place)}.")


def _files(place: Place) -> str:
    return place.mount.kind if place.mount is not None else "an unknown file system"


def home_size(facts: SettingsFacts) -> Verdict | None:
    """Whether ``docker.home_size`` is held by the file system, or only warned about."""
    if facts.settings.home_size is None:
        return note(
            "Homes have no size limit: one user can fill the disk.",
            "Set docker.home_size; XFS that is mounted with prjquota holds it.",
        )
    mount = facts.home.mount
    if mount is None:
        return unknown(
            f"What file system {facts.home.path} is on is not known.",
            "Look with findmnt whether it is XFS with the option prjquota.",
        )
    volumes = facts.settings.home == "volume"
    if not mount.project_quotas or (volumes and mount.kind != "xfs"):
        return warning(
            f"docker.home_size is not held, users are only warned: {facts.home.path} is on "
            f"{mount.kind} without project quotas.",
            "Put the homes on XFS that is mounted with prjquota.",
            "https://man7.org/linux/man-pages/man8/xfs_quota.8.html",
        )
    if not volumes:
        return note(
            f"{mount.point} can hold size limits, and the folders' own have to be set there.",
            f"Give each folder in {facts.home.path} a project with a limit (xfs_quota).",
            "https://man7.org/linux/man-pages/man8/xfs_quota.8.html",
        )
    return ok("The file system holds docker.home_size.")


def shared(facts: SettingsFacts) -> Verdict | None:
    place = facts.shared
    if place is None:
        return None
    if place.kind != "folder" or place.by_link:
        return problem(
            f"{place.path} of docker.shared is {_what(place)}, so no server can start.",
            "Make the folder, name the one that a link leads to, or remove docker.shared.",
        )
    if place.mode & 0o005 != 0o005:
        return warning(
            f"{place.path} of docker.shared is closed to others (mode {place.shown_mode}), and "
            f"notebooks run as {facts.settings.user}.",
            f"Run: chmod o+rx {place.path}, if its files are meant for everybody.",
        )
    return ok(f"{place.path} is there and open for reading.")


def _what(place: Place) -> str:
    words = {"missing": "missing", "hidden": "hidden from this user", "folder": "behind a link"}
    return words.get(place.kind, "no folder")


def host_dir(facts: SettingsFacts) -> Verdict:
    """What lies in it is run or loaded inside every container."""
    return _private(facts.host_dir, "docker.host_dir", "files that every container is given")


def cdi_dir(facts: SettingsFacts) -> Verdict:
    """A CDI file says which devices and host programs a container gets."""
    return _private(facts.cdi_dir, "docker.cdi_dir", "devices, mounts and programs run as root")


def _private(place: Place, key: str, content: str) -> Verdict:
    if place.kind == "hidden":
        return unknown(f"{place.path} may not be looked at by this user.", "Run it again as root.")
    if place.kind == "missing":
        return note(
            f"The folder {place.path} of {key} does not exist yet.",
            "The node makes it when it starts; in a container it must be mounted from the host.",
        )
    if place.kind != "folder":
        return problem(f"{place.path} of {key} is no folder.", "Name a folder.")
    doubts = [*place.weak]
    if place.owner != 0:
        doubts.append(f"it belongs to user {place.owner}")
    if place.others_write:
        doubts.append(f"others can write to it ({place.shown_mode})")
    if doubts:
        return problem(
            f"{place.path} of {key} holds {content}, and is not root's alone: {named(doubts)}.",
            f"Run: chown root: {place.path} && chmod go-w {place.path}; the same for folders "
            "above it.",
        )
    return ok(f"Only root can change {place.path}.")


def network_pool(facts: SettingsFacts) -> Verdict:
    pool = facts.settings.network_pool
    if facts.in_pool is None:
        return unknown(
            "The host's routes cannot be read from here.",
            f"Compare docker.network_pool ({pool}) with ip route.",
        )
    if facts.in_pool:
        return problem(
            f"docker.network_pool ({pool}) is used by others: {named(facts.in_pool, 3)}.",
            "Choose addresses that nothing on this machine or behind it uses.",
        )
    return ok(f"Nothing else uses addresses of {pool}.")


def gates(facts: SettingsFacts) -> Verdict | None:
    if not facts.gates:
        return None
    missing = [gate.container for gate in facts.gates if gate.state is None]
    if missing:
        return problem(
            f"There is no container {named(missing)} (docker.gates), so no server can start.",
            "Start the hub's and the proxy's containers, or correct docker.gates.",
        )
    still = [gate.container for gate in facts.gates if gate.state != "running"]
    if still:
        return warning(
            f"These containers of docker.gates do not run: {named(still)}.", "Start them."
        )
    return ok(f"The gates run: {named([gate.container for gate in facts.gates])}.")


CHECKS: Mapping[str, Callable[[SettingsFacts], Verdicts]] = {
    "images": images,
    "home": home,
    "home-size": home_size,
    "shared": shared,
    "host-dir": host_dir,
    "cdi-dir": cdi_dir,
    "network-pool": network_pool,
    "gates": gates,
}


def group(machine: Machine) -> Group[SettingsFacts]:
    return Group("docker", lambda: look(machine), CHECKS)
