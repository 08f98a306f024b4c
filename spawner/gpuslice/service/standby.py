"""What a service answers while it waits for another one's end: its health, and no to the rest."""

from __future__ import annotations

from tornado.httputil import HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.web import Application

from gpuslice.errors import Refused
from gpuslice.service import models
from gpuslice.service.auth import Access, Gate
from gpuslice.service.config import ServiceConfig
from gpuslice.service.handlers import BaseHandler, Parts, log_request
from gpuslice.service.look import Look
from gpuslice.service.metrics import Metrics
from gpuslice.service.ports import Broker

#: When a client should ask again; a take-over is a matter of seconds.
RETRY_S = 5


class Front(HTTPServerConnectionDelegate):
    """The application that answers now; it can be exchanged while connections are open."""

    def __init__(self, application: Application) -> None:
        self.application = application

    def start_request(self, server_conn: object, request_conn: object) -> HTTPMessageDelegate:
        return self.application.start_request(server_conn, request_conn)  # type: ignore[arg-type]

    def on_close(self, server_conn: object) -> None:
        self.application.on_close(server_conn)


class StandbyHandler(BaseHandler):
    """Every path of a service that stands by."""

    def initialize(self, parts: Parts) -> None:
        super().initialize(parts)
        self.asked = self.request.path.removeprefix(parts.prefix)
        self.wants_page = not self.asked.startswith("api/") and self.asked != "metrics"

    async def prepare(self) -> None:
        self.count_in()
        reads = self.request.method in ("GET", "HEAD")
        try:
            if reads and self.asked == "api/health":
                self.set_header("Content-Type", "application/json")
                self.finish(models.Health(status="standby").model_dump_json())
            elif reads and self.asked == "metrics":
                await self._metrics()
            else:
                raise Refused(
                    "standby",
                    "This service stands by; another one does the work. Try again in a moment.",
                    status=503,
                    retry_after_s=RETRY_S,
                )
        except Refused as refused:
            self.refuse(refused)

    async def _metrics(self) -> None:
        gate = self.parts.gate
        self.caller = await gate.identify(self, Access.METRICS)
        gate.admit(self.caller, Access.METRICS)
        content, content_type = self.parts.metrics.exposition(None)
        self.set_header("Content-Type", content_type)
        self.finish(content)


def make_standby(broker: Broker, config: ServiceConfig) -> Application:
    """The application of a service that waits; the broker is not asked for anything."""
    parts = Parts(
        broker=broker, gate=Gate(config), metrics=Metrics([]), look=Look(config), openapi={},
        prefix=config.prefix,
    )  # fmt: skip
    return Application(
        default_handler_class=StandbyHandler,
        default_handler_args={"parts": parts},
        cookie_secret=config.cookie_secret,
        log_function=log_request,
        parts=parts,
    )
