"""Hooks the routes into a Jupyter server; nothing is opened before somebody looks."""

from __future__ import annotations

import os
from typing import Any

from jupyterlab_gpuslice import starters
from jupyterlab_gpuslice.routes import ROUTES, Parts, add_routes

_SETTING = "jupyterlab_gpuslice"


def _load_jupyter_server_extension(app: Any) -> None:
    parts = Parts.make(os.environ)
    app.web_app.settings[_SETTING] = parts
    add_routes(app.web_app, parts, {**ROUTES, **starters.ROUTES})
