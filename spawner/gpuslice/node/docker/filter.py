"""The filtered Docker API: what the hub can ask of the engine without becoming root by it.

docker-py talks to this as if it were an engine. No path, query or body of a caller's is ever
passed on: what is understood is answered with calls that the node makes up itself, and everything
else is refused with status 403.
"""

from __future__ import annotations

from typing import Protocol

from tornado.web import Application

from gpuslice import containers, wire
from gpuslice.errors import Refused
from gpuslice.node.app import MAX_LOG_LINES, log_request, server_routes
from gpuslice.node.docker.api import API_VERSION, DockerApi, Json
from gpuslice.node.docker.call import Call, NotAllowed, engine_refusals
from gpuslice.node.docker.images import ImageHandler, PullHandler
from gpuslice.node.docker.wanted import lease_of_body, parse_body, read_wanted
from gpuslice.node.ports import Engine
from gpuslice.settings import DockerSettings

#: Clients put the version that they speak before a path, or do not.
_VERSION = r"(?:/v1\.[0-9]{1,2})?"
#: An id in full, or a name as :func:`containers.container_name` makes them.
_CONTAINER = r"([0-9a-f]{64}|gpuslice-[a-z0-9-]{1,200})"
_MAX_GRACE_S = 600
_GRACE_S = int(wire.StopServer().grace_s)
_STDOUT = 1

_STATE = (
    "Status", "Running", "Paused", "Restarting", "OOMKilled", "Dead", "ExitCode", "Error",
    "StartedAt", "FinishedAt",
)  # fmt: skip


class Gate(Protocol):
    """The node's leases, as far as the hub's calls need them.

    Every method raises Refused, EngineDown or EngineSaysNo.
    """

    async def prepared(self, lease_id: str) -> wire.PrepareSlice:
        """The slice that a server may still be created in. Asks nothing of the engine."""

    async def create(self, lease_id: str, name: str, wanted: Json) -> Json:
        """Creates the lease's one container; the engine's answer."""

    async def start(self, lease_id: str) -> None: ...

    async def stop(self, lease_id: str, grace_s: float) -> None: ...

    async def lease_of(self, container: str) -> str | None:
        """Whose container this is, by its name or full id; None when it is none of ours."""

    async def remove(self, lease_id: str) -> None:
        """Removes a settled lease's container."""


class PingHandler(Call):
    def initialize(self, api: DockerApi) -> None:  # type: ignore[override]
        self.api = api

    async def get(self) -> None:
        with engine_refusals():
            await self.api.ping()
        self.set_header("Api-Version", API_VERSION)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("OK")

    async def head(self) -> None:
        await self.get()


class VersionHandler(PingHandler):
    async def get(self) -> None:
        with engine_refusals():
            found = await self.api.version()
        known = {name: found.get(name) for name in ("Version", "Os", "Arch")}
        self.finish({**known, "ApiVersion": API_VERSION, "MinAPIVersion": API_VERSION})

    async def head(self) -> None:
        raise self.not_allowed()


class ContainerCall(Call):
    def initialize(  # type: ignore[override]
        self, gate: Gate, api: DockerApi, policy: DockerSettings
    ) -> None:
        self.gate = gate
        self.api = api
        self.policy = policy

    async def lease(self, container: str) -> str:
        """The lease of a container that is ours. Any other is as if it were not there."""
        lease_id = await self.gate.lease_of(container)
        if lease_id is None:
            raise _no_container(container)
        return lease_id


class CreateHandler(ContainerCall):
    """``POST /containers/create``"""

    QUERY = frozenset({"name"})
    BODY = True

    async def post(self) -> None:
        wanted = parse_body(self.request.body)
        lease_id = lease_of_body(wanted)
        with engine_refusals():
            piece = await self.gate.prepared(lease_id)
            name = containers.container_name(piece.user, piece.server, lease_id)
            if self.parameter("name") != name:
                text = f"name: the container of this lease is called {name}."
                raise Refused("field-refused", text, status=403)
            # Before anybody asks the engine for anything.
            read_wanted(wanted, piece, self.policy)
            made = await self.gate.create(lease_id, name, wanted)
        self.set_status(201)
        self.finish({"Id": made["Id"], "Warnings": made.get("Warnings") or []})


class StartHandler(ContainerCall):
    """``POST /containers/<container>/start``"""

    async def post(self, container: str) -> None:
        with engine_refusals():
            await self.gate.start(await self.lease(container))
        self.set_status(204)
        self.finish()


class EngineStopHandler(ContainerCall):
    """``POST /containers/<container>/stop``"""

    QUERY = frozenset({"t"})

    async def post(self, container: str) -> None:
        grace_s = self.number("t", 0, _MAX_GRACE_S, _GRACE_S)
        with engine_refusals():
            await self.gate.stop(await self.lease(container), grace_s)
        self.set_status(204)
        self.finish()


class InspectHandler(ContainerCall):
    """``GET /containers/<container>/json``"""

    async def get(self, container: str) -> None:
        with engine_refusals():
            lease_id = await self.lease(container)
            found = await self.api.container(container)
        if found is None or _labels(found).get(containers.LABEL_LEASE) != lease_id:
            raise _no_container(container)
        self.finish(shown_container(found))


class LogsHandler(ContainerCall):
    """``GET /containers/<container>/logs``: the last lines, as one piece of standard output."""

    QUERY = frozenset({"follow", "stderr", "stdout", "tail", "timestamps"})

    async def get(self, container: str) -> None:
        self.switch_off("follow")
        self.switch_off("timestamps")
        lines = self.number("tail", 1, MAX_LOG_LINES)
        with engine_refusals():
            await self.lease(container)
            text = (await self.api.log_tail(container, lines)).encode()
        self.set_header("Content-Type", "application/vnd.docker.multiplexed-stream")
        self.finish(bytes([_STDOUT, 0, 0, 0]) + len(text).to_bytes(4, "big") + text)


class RemoveHandler(ContainerCall):
    """``DELETE /containers/<container>``"""

    # Volumes of its own it has none, and the home is not one of them.
    QUERY = frozenset({"force", "link", "v"})

    async def delete(self, container: str) -> None:
        self.switch_off("force")
        self.switch_off("link")
        self.parameter("v")
        with engine_refusals():
            await self.gate.remove(await self.lease(container))
        self.set_status(204)
        self.finish()


def filter_app(gate: Gate, api: DockerApi, policy: DockerSettings, engine: Engine) -> Application:
    """All that the hub can ask: an engine's calls, and the node's own three about servers."""
    looks = {"api": api}
    images = {"api": api, "policy": policy}
    ours = {"gate": gate, "api": api, "policy": policy}
    container = rf"{_VERSION}/containers/{_CONTAINER}"
    return Application(
        [
            (rf"{_VERSION}/_ping", PingHandler, looks),
            (rf"{_VERSION}/version", VersionHandler, looks),
            (rf"{_VERSION}/images/create", PullHandler, images),
            (rf"{_VERSION}/images/([^?#]+)/json", ImageHandler, images),
            (rf"{_VERSION}/containers/create", CreateHandler, ours),
            (rf"{container}/start", StartHandler, ours),
            (rf"{container}/stop", EngineStopHandler, ours),
            (rf"{container}/json", InspectHandler, ours),
            (rf"{container}/logs", LogsHandler, ours),
            (container, RemoveHandler, ours),
            *server_routes(engine),
        ],
        default_handler_class=NotAllowed,
        log_function=log_request,
    )


def shown_container(found: Json) -> Json:
    """What the spawner needs to know: no environment, for it has other people's tokens."""
    state = found.get("State") or {}
    shown = {name: state.get(name) for name in _STATE}
    if health := state.get("Health"):
        shown["Health"] = {name: health.get(name) for name in ("Status", "FailingStreak")}
    networks = (found.get("NetworkSettings") or {}).get("Networks") or {}
    config = found.get("Config") or {}
    return {
        **{name: found.get(name) for name in ("Id", "Name", "Created", "Image")},
        "State": shown,
        "Config": {
            "Image": config.get("Image"),
            "Tty": config.get("Tty"),
            "Labels": {k: v for k, v in _labels(found).items() if k.startswith("gpuslice.")},
        },
        "HostConfig": {"NetworkMode": (found.get("HostConfig") or {}).get("NetworkMode")},
        "NetworkSettings": {
            "Networks": {
                name: {part: network.get(part) for part in ("IPAddress", "Gateway")}
                for name, network in networks.items()
            }
        },
    }


def _labels(found: Json) -> dict[str, str]:
    labels: dict[str, str] = (found.get("Config") or {}).get("Labels") or {}
    return labels


def _no_container(container: str) -> Refused:
    return Refused("no-container", f"No such container: {container}", status=404)
