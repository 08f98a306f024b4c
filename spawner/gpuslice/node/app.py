"""The node's HTTP interfaces: all of it for the service, a few calls for the spawner."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError
from tornado.web import Application, HTTPError, RequestHandler

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.events import log_event
from gpuslice.node.ports import Engine

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger("gpuslice.node")

MAX_BODY = 1 << 20
MAX_LOG_LINES = 1_000
#: A pattern, its handler, and what the handler is made with.
Route: TypeAlias = tuple[str, type[RequestHandler], dict[str, Any]]

_LEASE = r"([0-9a-f]{32})"
_LINES = re.compile(r"[0-9]{1,9}")
_Body = TypeVar("_Body", bound=BaseModel)


class InventorySource(Protocol):
    async def inventory(self) -> wire.Inventory: ...

    async def look(self, uuid: str) -> wire.DeviceCheck: ...


class StartingEngine(Engine, Protocol):
    """An engine that starts servers by a call of our own."""

    async def start(self, spec: wire.StartServer) -> None:
        """One attempt per lease, ever."""


class Handler(RequestHandler):
    """Validates bodies against ``wire`` and answers in JSON, errors as ``{reason, message}``."""

    def initialize(self, leases: Engine) -> None:
        self.leases = leases

    def body(self, model: type[_Body]) -> _Body:
        try:
            return model.model_validate_json(self.request.body)
        except ValidationError as problem:
            raise Refused("bad-body", _first(problem), status=400) from None

    def answer(self, body: BaseModel | None = None, status: int = HTTPStatus.OK) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(body.model_dump_json() if body is not None else "{}")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        problem = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(problem, Refused):
            self.answer(problem.refusal, problem.status)
            return
        reason = {404: "not-found", 405: "not-allowed"}.get(status_code, "node-error")
        message = f"{type(problem).__name__}: {problem}" if problem else "the node failed"
        if isinstance(problem, HTTPError):
            message = HTTPStatus(status_code).phrase
        self.answer(wire.Refusal(reason=reason, message=message[:500]), status_code)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        # Tornado knows no status for our own exception.
        problem = kwargs.get("exc_info", (None, None, None))[1]
        super().send_error(
            problem.status if isinstance(problem, Refused) else status_code, **kwargs
        )

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(value, Refused):
            log_event(log, "refused", path=self.request.path, reason=value.refusal.reason)
        elif not isinstance(value, HTTPError):
            log.error(
                "event=failed path=%s",
                self.request.path,
                exc_info=(typ, value, tb),  # type: ignore[arg-type]
            )


class NotFound(Handler):
    def prepare(self) -> None:
        raise HTTPError(HTTPStatus.NOT_FOUND)


class InventoryHandler(Handler):
    def initialize(  # type: ignore[override]
        self, leases: Engine, inventory: InventorySource
    ) -> None:
        super().initialize(leases)
        self.inventory = inventory

    async def get(self) -> None:
        self.answer(await self.inventory.inventory())


class DeviceHandler(InventoryHandler):
    """One device, looked at anew; its UUID may have slashes."""

    async def get(self) -> None:
        self.answer(await self.inventory.look(self.get_query_argument("uuid")))


class ListHandler(Handler):
    async def get(self) -> None:
        self.answer(await self.leases.listing())


class PrepareHandler(Handler):
    async def post(self) -> None:
        await self.leases.prepare(self.body(wire.PrepareSlice))
        self.answer()


class FenceHandler(Handler):
    async def delete(self, lease_id: str) -> None:
        await self.leases.fence(lease_id)
        self.answer()


class ReleaseHandler(Handler):
    async def post(self, lease_id: str) -> None:
        self.answer(await self.leases.release(lease_id))


class StartHandler(Handler):
    leases: StartingEngine

    async def post(self) -> None:
        await self.leases.start(self.body(wire.StartServer))
        self.answer(status=HTTPStatus.ACCEPTED)


class StopHandler(Handler):
    async def post(self, lease_id: str) -> None:
        stop = self.body(wire.StopServer)
        await self.leases.stop(lease_id, stop.grace_s)
        self.answer(status=HTTPStatus.ACCEPTED)


class ServerHandler(Handler):
    async def get(self, lease_id: str) -> None:
        server = await self.leases.server(lease_id)
        if server is None:
            raise Refused("no-server", "no server of this lease is here", status=404)
        self.answer(server)


class LogHandler(Handler):
    async def get(self, lease_id: str) -> None:
        lines = self.get_query_argument("tail", "50")
        if not _LINES.fullmatch(lines) or not 1 <= int(lines) <= MAX_LOG_LINES:
            raise Refused("bad-body", f"tail is a number from 1 to {MAX_LOG_LINES}", status=400)
        text = await self.leases.log_tail(lease_id, int(lines))
        if text is None:
            raise Refused("no-server", "no server of this lease is here", status=404)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(text)


def control_app(leases: Engine, inventory: InventorySource) -> Application:
    """What the service may do: everything but start a server."""
    return application(
        leases,
        [
            (r"/v1/inventory", InventoryHandler, {"leases": leases, "inventory": inventory}),
            (r"/v1/device", DeviceHandler, {"leases": leases, "inventory": inventory}),
            *_routes(
                leases,
                (r"/v1/servers", ListHandler),
                (r"/v1/slices", PrepareHandler),
                (rf"/v1/slices/{_LEASE}", FenceHandler),
                (rf"/v1/slices/{_LEASE}/release", ReleaseHandler),
                (rf"/v1/servers/{_LEASE}/stop", StopHandler),
            ),
        ],
    )


def engine_app(leases: StartingEngine) -> Application:
    """What the spawner may do: start, stop and look at servers."""
    routes = _routes(leases, (r"/v1/servers", StartHandler))
    return application(leases, [*routes, *server_routes(leases)])


def server_routes(leases: Engine) -> list[Route]:
    """How the spawner stops and looks at one server, whatever the engine."""
    return _routes(
        leases,
        (rf"/v1/servers/{_LEASE}", ServerHandler),
        (rf"/v1/servers/{_LEASE}/stop", StopHandler),
        (rf"/v1/servers/{_LEASE}/log", LogHandler),
    )


def application(leases: Engine, routes: Sequence[Route]) -> Application:
    """These routes, and an answer in JSON for every other path."""
    return Application(
        list(routes),
        default_handler_class=NotFound,
        default_handler_args={"leases": leases},
        log_function=log_request,
    )


def _routes(leases: Engine, *routes: tuple[str, type[Handler]]) -> list[Route]:
    return [(path, handler, {"leases": leases}) for path, handler in routes]


def log_request(handler: RequestHandler) -> None:
    """Reads happen every few seconds and say nothing; changes are logged where they are made."""
    if handler.get_status() >= HTTPStatus.INTERNAL_SERVER_ERROR:
        request = handler.request
        log_event(
            log,
            "request-failed",
            logging.ERROR,
            method=request.method,
            path=request.path,
            status=handler.get_status(),
        )


def _first(problem: ValidationError) -> str:
    """The first thing wrong with a body: where, and what; never the value."""
    error = problem.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}"[:500] if where else str(error["msg"])[:500]
