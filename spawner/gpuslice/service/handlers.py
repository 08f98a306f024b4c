"""The tornado side: one handler class serves every row of the route table."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from gpuslice.errors import Refused
from gpuslice.ledger.idempotency import Claim
from gpuslice.service.auth import Caller, Gate
from gpuslice.service.calls import Call, Stream, Text
from gpuslice.service.log import event
from gpuslice.service.look import Look
from gpuslice.service.metrics import NO_ROUTE, Metrics
from gpuslice.service.once import once, read_key
from gpuslice.service.pages import Page, Redirect, Viewer, error_page
from gpuslice.service.parse import parse_body, parse_path, parse_query
from gpuslice.service.ports import Broker
from gpuslice.service.route import AnyRoute
from gpuslice.wire import Refusal

_LOG = logging.getLogger("gpuslice.service")

_SAFE_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_CSP_DATA = "default-src 'none'; frame-ancestors 'none'"
#: What tornado and the hub's classes mean by a status, as the reason of a refusal.
_REASONS = {
    400: "bad-request",
    401: "login-needed",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "bad-content-type",
}


#: Pages to which an error on one of their forms leads back.
_TABS = ("admin/limits", "admin/queue", "admin/prices")


class InFlight:
    """Counts the requests that are being answered, for an orderly end."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def enter(self) -> None:
        self._count += 1
        self._none.clear()

    def leave(self) -> None:
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def wait_for_none(self) -> None:
        await self._none.wait()


@dataclass(frozen=True)
class Parts:
    """What every handler is given."""

    broker: Broker
    gate: Gate
    metrics: Metrics
    look: Look
    openapi: dict[str, Any]
    prefix: str
    in_flight: InFlight = field(default_factory=InFlight)


class BaseHandler(RequestHandler):
    """Headers, error rendering, and the end of a request: the same everywhere."""

    parts: Parts
    caller: Caller | None = None
    route: AnyRoute | None = None
    refusal: Refusal | None = None
    lease_id: str | None = None
    #: Whether errors are for eyes.
    wants_page = False
    _counted = False

    def initialize(self, parts: Parts) -> None:
        self.parts = parts

    def prepare(self) -> Any:
        self.count_in()

    def count_in(self) -> None:
        self._counted = True
        self.parts.in_flight.enter()

    def on_finish(self) -> None:
        if self._counted:
            self.parts.in_flight.leave()

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _SAFE_ALWAYS.items():
            self.set_header(name, value)
        self.set_header("Content-Security-Policy", _CSP_DATA)

    def check_xsrf_cookie(self) -> None:
        """Nothing here: handlers of this class change nothing and know no cookie."""

    def compute_etag(self) -> str | None:
        # Answers change all the time; a hash of each would be work for nothing.
        return None

    def write_page(self, page: Page, xsrf_token: str = "") -> None:
        caller = self.caller
        viewer = None if caller is None else Viewer(caller.name, caller.reads_all)
        rendered = self.parts.look.render(page, viewer, xsrf_token)
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.set_header("Content-Security-Policy", rendered.policy)
        self.finish(rendered.html)

    def refuse(self, refused: Refused, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a refusal: the only place where one becomes HTTP."""
        self.clear()
        for name, value in (headers or {}).items():
            self.set_header(name, value)
        self.refusal = refusal = refused.refusal
        self.parts.metrics.refused(refusal.reason)
        self.set_status(refused.status)
        if refusal.retry_after_s is not None:
            self.set_header("Retry-After", str(refusal.retry_after_s))
        if refused.status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="gpuslice"')
        if self.wants_page:
            self.write_page(error_page(refused.status, refusal.message, self._back()))
        else:
            self.set_header("Content-Type", "application/json")
            self.finish(refusal.model_dump_json())

    def _back(self) -> str:
        """The page from which somebody who reads an error came."""
        path = self.request.path.removeprefix(self.parts.prefix)
        if not path.startswith("admin/") or self.caller is None or not self.caller.reads_all:
            return ""
        if path.startswith("admin/policy"):
            return "admin/policies"
        part = "/".join(path.split("/")[:2])
        return part if part in _TABS else "admin"

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Errors that are no Refused: those of tornado and the hub's classes, and our mistakes."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        if status_code >= 500:
            message = "The service failed to answer this; the reason is in its log."
            self.refuse(Refused("internal", message, status=status_code))
            return
        said = error.log_message if isinstance(error, HTTPError) and status_code == 403 else None
        message = said or http.HTTPStatus(status_code).phrase
        self.refuse(
            Refused(_REASONS.get(status_code, "refused"), message[:300], status=status_code)
        )

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """A traceback for our own mistakes only; whatever a client did wrong is in the request
        line."""
        if not isinstance(value, HTTPError) or value.status_code >= 500:
            fields = {"route": self.route.name if self.route else NO_ROUTE}
            _LOG.error("request failed", exc_info=(typ, value, tb), extra={"fields": fields})


class RouteHandler(HubOAuthenticated, BaseHandler):
    """One path of the table."""

    _model: dict[str, Any] | None = None
    _xsrf_ready = False

    def initialize(self, parts: Parts, routes: dict[str, AnyRoute]) -> None:  # type: ignore[override]
        super().initialize(parts)
        self.hub_auth = parts.gate.hub
        self.routes = routes
        self.wants_page = any(route.is_page for route in routes.values())

    def get_current_user(self) -> dict[str, Any] | None:
        # The inherited one asks the hub and blocks the event loop while it does.
        return getattr(self, "_cached_hub_user", None)

    def check_xsrf_cookie(self) -> None:
        # tornado calls this before prepare(), when nobody knows yet whether the caller came with a
        # token (which needs no check) or a cookie. The gate checks, for every method.
        if self._xsrf_ready:
            self.hub_auth.check_xsrf_cookie(self)

    async def prepare(self) -> None:
        self.count_in()
        method = "GET" if self.request.method == "HEAD" else self.request.method
        self.route = self.routes.get(method or "")
        if self.route is None:
            allow = ", ".join(sorted(self.routes))
            message = f"This path answers to {allow} only."
            self.refuse(Refused("method-not-allowed", message, status=405), {"Allow": allow})
            return
        self._xsrf_ready = True
        try:
            self.caller = await self.parts.gate.identify(self, self.route.access)
            self.parts.gate.admit(self.caller, self.route.access)
        except Refused as refused:
            if refused.status == 401 and self.wants_page and method == "GET":
                self.redirect(self.get_login_url())
            else:
                self.refuse(refused)

    async def serve(self, **path: str) -> None:
        assert self.route is not None and self.caller is not None
        try:
            call = self._call(self.route, self.caller, path)
            claim = read_key(self.request, self.route, self.caller)
            if claim is not None:
                await self._once(self.route, call, claim)
                return
            answer = await self.route.run(call)
        except Refused as refused:
            self.refuse(refused)
            return
        self.set_status(self.route.status)
        await self._answer(self.route, answer)

    async def _once(self, route: AnyRoute, call: Call[Any, Any], claim: Claim) -> None:
        """A write under an idempotency key: done now, or answered as it was the first time."""
        status, text = await once(self.parts.broker.core, claim, route, call)
        if route.is_page:
            await self._answer(route, route.load(text))
            return
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(text)

    get = head = post = put = patch = delete = options = serve

    def _call(self, route: AnyRoute, caller: Caller, path: dict[str, str]) -> Call[Any, Any]:
        parsed = parse_path(path)
        self.lease_id = parsed.get("lease_id")
        content_type = self.request.headers.get("Content-Type", "")
        return Call(
            broker=self.parts.broker,
            caller=caller,
            body=parse_body(route, self.request.body, content_type),
            query=parse_query(route, self.request.query_arguments),
            metrics=self.parts.metrics,
            openapi=self.parts.openapi,
            path=parsed,
        )

    async def _answer(self, route: AnyRoute, answer: object) -> None:
        match answer:
            case Page():
                self.write_page(answer, self.xsrf_token.decode("ascii"))
            case Redirect():
                self.redirect(self.parts.prefix + answer.path, status=303)
            case Text():
                self.set_header("Content-Type", answer.content_type)
                self.finish(answer.content)
            case Stream():
                await self._stream(answer)
            case _:
                self.set_header("Content-Type", "application/json")
                self.finish(route.dump(answer))

    async def _stream(self, answer: Stream) -> None:
        """Piece by piece; a client that reads slowly holds back what is made."""
        self.set_header("Content-Type", answer.content_type)
        self.set_header("Content-Disposition", f'attachment; filename="{answer.file_name}"')
        try:
            async for piece in answer.pieces:
                self.write(piece)
                await self.flush()
        except StreamClosedError:
            return  # whoever asked has gone
        except Exception as error:
            if not self._headers_written and isinstance(error, Refused):
                self.refuse(error)
                return
            # tornado would end the answer as if it were whole: what is cut off has to look so.
            connection = self.request.connection
            assert isinstance(connection, HTTP1Connection)
            connection.close()
            raise
        self.finish()


class CallbackHandler(HubOAuthCallbackHandler, BaseHandler):
    """The way back from the hub's login; state and PKCE are the hub's class's work."""

    wants_page = True

    def initialize(self, parts: Parts) -> None:
        super().initialize(parts)
        self.hub_auth = parts.gate.hub

    def get_current_user(self) -> dict[str, Any] | None:
        return getattr(self, "_cached_hub_user", None)

    async def get(self) -> None:
        try:
            # Whether they are logged in already; the inherited method would block to find out.
            await self.parts.gate.who(self)
            await self.parts.gate.with_hub(lambda: HubOAuthCallbackHandler.get(self))
        except Refused:
            # Down, or it did not like the code: the hub's class raises the same for both.
            message = "JupyterHub did not complete the login. Try again."
            self.refuse(Refused("login-failed", message, status=503, retry_after_s=10))


class NotFoundHandler(BaseHandler):
    """Every path that no row names."""

    def initialize(self, parts: Parts) -> None:
        super().initialize(parts)
        self.wants_page = not self.request.path.startswith(f"{parts.prefix}api/")

    def prepare(self) -> None:
        self.count_in()
        raise HTTPError(404)


class StaticHandler(BaseHandler, StaticFileHandler):
    """Style sheets, scripts, fonts, pictures: ours and the hub's."""

    def initialize(self, parts: Parts, path: str) -> None:  # type: ignore[override]
        BaseHandler.initialize(self, parts)
        StaticFileHandler.initialize(self, path=path)

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "public, max-age=300")

    def compute_etag(self) -> str | None:
        return StaticFileHandler.compute_etag(self)


def log_request(handler: RequestHandler) -> None:
    """One line and one count per answered request. The query is left out: it may hold a secret."""
    if not isinstance(handler, BaseHandler):
        return
    status, seconds = handler.get_status(), handler.request.request_time()
    route = handler.route.name if handler.route else NO_ROUTE
    handler.parts.metrics.observe(route, status, seconds)
    level = logging.ERROR if status >= 500 else logging.INFO
    event(
        _LOG,
        level,
        "request",
        route=route,
        method=handler.request.method,
        status=status,
        ms=round(seconds * 1000, 1),
        caller=handler.caller.label if handler.caller else None,
        lease=handler.lease_id,
        reason=handler.refusal.reason if handler.refusal else None,
        path=handler.request.path if handler.route is None else None,
    )
