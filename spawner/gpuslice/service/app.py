"""The tornado application: the route table, the login's callback, static files."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from tornado.routing import URLSpec
from tornado.web import Application

from gpuslice.service.auth import Gate
from gpuslice.service.config import ServiceConfig
from gpuslice.service.handlers import (
    CallbackHandler,
    NotFoundHandler,
    Parts,
    RouteHandler,
    StaticHandler,
    log_request,
)
from gpuslice.service.look import HUB_STATIC_PATH, STATIC_PATH, Look
from gpuslice.service.metrics import Metrics
from gpuslice.service.openapi import build_openapi
from gpuslice.service.ports import Broker
from gpuslice.service.route import AnyRoute
from gpuslice.service.routes import ROUTES


def make_app(broker: Broker, config: ServiceConfig) -> Application:
    """The service over a broker. ``app.settings["parts"].in_flight`` knows when none is open."""
    parts = Parts(
        broker=broker,
        gate=Gate(config),
        metrics=Metrics([route.name for route in ROUTES]),
        look=Look(config),
        openapi=build_openapi(config, _version()),
        prefix=config.prefix,
    )
    by_path: dict[str, dict[str, AnyRoute]] = {}
    for route in ROUTES:
        by_path.setdefault(route.pattern, {})[route.method] = route
    prefix = re.escape(config.prefix)
    specs = [
        URLSpec(f"{prefix}{pattern}", RouteHandler, {"parts": parts, "routes": routes})
        for pattern, routes in by_path.items()
    ]
    specs += [
        URLSpec(f"{prefix}oauth_callback", CallbackHandler, {"parts": parts}),
        # What the hub's own pages load, from the same package; public there, too.
        URLSpec(
            rf"{prefix}static/hub/((?:components|css|images|js)/.+|favicon\.ico)",
            StaticHandler,
            {"parts": parts, "path": str(HUB_STATIC_PATH)},
        ),
        URLSpec(
            rf"{prefix}static/([a-z]+\.(?:css|js))",
            StaticHandler,
            {"parts": parts, "path": str(STATIC_PATH)},
        ),
    ]
    return Application(
        specs,
        default_handler_class=NotFoundHandler,
        default_handler_args={"parts": parts},
        cookie_secret=config.cookie_secret,
        xsrf_cookies=True,
        xsrf_cookie_kwargs={"httponly": True, "samesite": "Lax"},
        # A second fence, by Sec-Fetch-Site and Origin (tornado 6.6; ignored before).
        cross_origin_protection=True,
        log_function=log_request,
        parts=parts,
    )


def _version() -> str:
    try:
        return version("gpuslice")
    except PackageNotFoundError:
        return "0"
