"""The extension's REST surface: what is new in the ring, the bill, the home, notices and *keep*.

Handlers only copy what sampler, home meter and service client have. None of them waits for NVML or
a disk, and none counts as activity: a page that looks at its numbers must not keep an idle server
alive.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any, TypeVar, cast

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from gpuslice.errors import Refused
from gpuslice.nvml import NotAvailable
from gpuslice.units import now_us
from jupyterlab_gpuslice.home import HomeMeter
from jupyterlab_gpuslice.sampler import Row, Sampler
from jupyterlab_gpuslice.service import Service
from jupyterlab_gpuslice.slice import Meter, Sample

NAMESPACE = "gpuslice/api"
_MOST = 1 << 53  # what a browser can count to

H = TypeVar("H", bound=Callable[..., Any])


@dataclass
class Parts:
    """What the handlers share. ``boot`` names this process: sequences of another start anew."""

    sampler: Sampler[Sample]
    meter: Meter
    home: HomeMeter
    service: Service | None
    boot: str = field(default_factory=lambda: secrets.token_hex(4))

    @classmethod
    def make(cls, environment: Mapping[str, str]) -> Parts:
        service = Service.from_environment(environment)
        meter = Meter(
            environment,
            lambda: None if service is None else service.bill,
            behind_hub=service is not None,
        )
        home = HomeMeter.from_environment(environment, behind_hub=service is not None)
        return cls(Sampler(meter.read), meter, home, service)


def sample_answer(parts: Parts, since: int) -> dict[str, Any]:
    """Everything that a tab shows, with the rows after ``since`` only."""
    rows = parts.sampler.since(since)
    now = now_us()
    service = parts.service
    bill = None if service is None else service.bill
    answer: dict[str, Any] = {
        "boot": parts.boot,
        "now_us": now,
        "rows": [_row(row) for row in rows],
        "bill": None,
        "bill_problem": None if service is None else service.problem,
        "behind_hub": service is not None,
    }
    if bill is not None:
        answer["bill"] = {
            "title": bill.title,
            "state": bill.state.value,
            "rate_u_per_hour": bill.rate_u_per_hour,
            "cost_u": bill.cost_u,
            "as_of_us": bill.as_of_us,
            "heard_us": bill.heard_us,
            "currency": bill.currency,
            "simulated": bill.simulated,
            "ticking": bill.ticking(now),
            "stop_requested_us": bill.stop_requested_us,
            "stop_reason": bill.stop_reason,
            "deadline_us": bill.deadline_us,
            "deadline_reason": bill.deadline_reason,
        }
    if rows:
        answer["device"] = _device(rows[-1].value)
    return answer


def _row(row: Row[Sample]) -> list[int | float | None]:
    sample = row.value
    memory, busy = sample.memory_used, sample.utilisation
    return [
        row.sequence,
        sample.taken_us,
        None if isinstance(memory, NotAvailable) else memory,
        None if isinstance(busy, NotAvailable) else round(busy, 1),
        sample.cost_u,
    ]


def _device(sample: Sample) -> dict[str, Any]:
    device = sample.device
    return {
        "kind": device.kind.value,
        "label": device.label,
        "model": device.model,
        "memory_total": device.memory_total,
        "simulated": device.simulated,
        "problem": sample.problem,
        "memory_reason": _reason(sample.memory_used),
        "utilisation_reason": _reason(sample.utilisation),
    }


def _reason(reading: object) -> str | None:
    return reading.reason if isinstance(reading, NotAvailable) else None


def login(method: H) -> H:
    """Every method of every route: a login, and the server's own rules about who may read."""
    return cast("H", web.authenticated(authorized(method)))


def refusals(method: H) -> H:
    """A Refused becomes an answer with its words, never a traceback."""

    @wraps(method)
    async def answering(self: Handler, *arguments: Any) -> None:
        try:
            await method(self, *arguments)
        except Refused as refused:
            self.set_status(refused.status)
            self.finish(refused.refusal.model_dump_json())

    return cast("H", answering)


class Handler(APIHandler):
    """What all routes have in common."""

    auth_resource = "gpuslice"
    _track_activity = False
    parts: Parts

    def initialize(self, parts: Parts) -> None:
        self.parts = parts

    def since(self) -> int:
        """The ``since`` of the query, which must be a count."""
        text = self.get_query_argument("since", "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _MOST):
            raise Refused("bad-request", "since: a number from an earlier answer", status=400)
        return int(text)


class SampleHandler(Handler):
    """``GET sample?since=SEQUENCE``."""

    @login
    @refusals
    async def get(self) -> None:
        since = self.since()
        if self.parts.service is not None:
            self.parts.service.refresh()  # and does not wait: what is known is answered at once
        self.finish(json.dumps(sample_answer(self.parts, since)))


class HomeHandler(Handler):
    """``GET home``: how full the home is."""

    @login
    @refusals
    async def get(self) -> None:
        home = self.parts.home.look()
        self.finish(json.dumps({**asdict(home), "warn": home.warn}))


class NoticesHandler(Handler):
    """``GET notices?since=ID``."""

    @login
    @refusals
    async def get(self) -> None:
        since, service = self.since(), self.parts.service
        found = [] if service is None else await service.notices(since)
        self.finish(json.dumps([notice.model_dump(mode="json") for notice in found]))


class KeepHandler(Handler):
    """``POST keep``: the person wants to keep the slice although it is idle."""

    @login
    @refusals
    async def post(self) -> None:
        service = self.parts.service
        if service is None:
            raise Refused("no-service", "There is no gpuslice service here.", status=404)
        await service.keep()
        self.set_status(204)
        self.finish()


ROUTES: dict[str, type[Handler]] = {
    "sample": SampleHandler,
    "home": HomeHandler,
    "notices": NoticesHandler,
    "keep": KeepHandler,
}


def add_routes(
    web_app: web.Application, parts: Parts, routes: Mapping[str, type[Handler]] = ROUTES
) -> None:
    """Hang the routes under the server's base URL."""
    base = str(web_app.settings["base_url"])
    web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, NAMESPACE, path), handler, {"parts": parts})
            for path, handler in routes.items()
        ],
    )
