"""Pages in the hub's look: its own template around ours, or a plain one of ours without it.

The hub's template and static files are those of the JupyterHub that is installed with the service.
They are served from here, so a page looks right and works while the hub is down, and the
content-security policy names no other origin than ourselves.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupyterhub
from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from jupyterhub._data import DATA_FILES_PATH
from markupsafe import Markup

from gpuslice.service.config import ServiceConfig
from gpuslice.service.log import event
from gpuslice.service.once import new_form_key
from gpuslice.service.pages import Page, Viewer

_LOG = logging.getLogger("gpuslice.service")

_HERE = Path(__file__).parent
STATIC_PATH = _HERE / "static"
HUB_SHARE = Path(DATA_FILES_PATH or _HERE / "no-hub-files")
HUB_STATIC_PATH = HUB_SHARE / "static"

#: A script of the hub's template that has its text in the page; those may run, ours never do so.
_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc\s*=)", re.IGNORECASE)


class _HubLoader(FileSystemLoader):
    """The hub's templates; only *their* inline scripts get the policy's nonce. It is put into the
    template's source, before any value is, so nothing that is shown can ever carry it."""

    def get_source(
        self, environment: Environment, template: str
    ) -> tuple[str, str, Callable[[], bool]]:
        source, filename, uptodate = super().get_source(environment, template)
        return _INLINE_SCRIPT.sub('<script nonce="{{ csp_nonce }}"', source), filename, uptodate


@dataclass(frozen=True)
class _HubUser:
    """What the hub's template asks of a user."""

    name: str

    @property
    def json_escaped_name(self) -> str:
        """For the inside of a string in a script; unlike the hub's, also safe in HTML."""
        text = json.dumps(self.name)[1:-1]
        for character in "<>&'":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


@dataclass(frozen=True)
class Rendered:
    """A page and the policy that belongs to it."""

    html: str
    policy: str


class Look:
    """Renders pages, with escaping always on."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._hub = f"{config.hub_host}{config.hub_prefix}"
        self._common: dict[str, object] = {
            "prefix": config.prefix,
            "hub_home": f"{self._hub}home",
        }
        # A name that is missing in one of our templates is an error, in the hub's it is empty.
        self._ours = _environment(FileSystemLoader(_HERE / "templates"), StrictUndefined)
        # Another one for each form: what a click sends twice is done once.
        self._ours.globals["once"] = new_form_key
        self._theirs = _environment(
            ChoiceLoader(
                [
                    FileSystemLoader(_HERE / "templates" / "layout"),
                    _HubLoader(HUB_SHARE / "templates"),
                ]
            )
        )
        self._warned = False

    def render(self, page: Page, viewer: Viewer | None, xsrf_token: str = "") -> Rendered:
        """The whole page. ``xsrf_token`` is for forms and for the script that keeps it fresh."""
        nonce = secrets.token_urlsafe(18)
        common = self._common | {"xsrf_token": xsrf_token}
        content = self._ours.get_template(page.template).render({**common, **page.context})
        around = common | {
            "title": page.title,
            "script": page.script,
            "viewer": viewer,
            "content": Markup(content),  # noqa: S704 (rendered with escaping just above)
        }
        return Rendered(self._around(around, viewer, nonce), self._policy(nonce))

    def _around(self, around: dict[str, object], viewer: Viewer | None, nonce: str) -> str:
        try:
            template = self._theirs.get_template("hub.html")
            return template.render(around | self._hub_context(viewer, nonce))
        except Exception as exc:  # noqa: BLE001 (a template of another hub may fail in any way)
            if not self._warned:
                self._warned = True
                event(_LOG, logging.WARNING, "hub-template-failed", error=str(exc)[:300])
            return self._ours.get_template("layout/plain.html").render(around)

    def _hub_context(self, viewer: Viewer | None, nonce: str) -> dict[str, Any]:
        """What the hub gives its templates, as far as a service knows it."""
        return {
            "base_url": self._hub,
            "prefix": self._config.prefix.removesuffix("services/gpuslice/"),
            "service_prefix": self._config.prefix,
            "login_url": f"{self._hub}login",
            "logout_url": f"{self._hub}logout",
            "user": None if viewer is None else _HubUser(viewer.name),
            "services": [],
            "parsed_scopes": {},
            "no_spawner_check": True,
            "static_url": self._static_url,
            "csp_nonce": nonce,
        }

    def _static_url(self, path: str, include_version: bool = True) -> str:
        url = f"{self._config.prefix}static/hub/{path}"
        return f"{url}?v={jupyterhub.__version__}" if include_version else url

    def _policy(self, nonce: str) -> str:
        """No script but from files of ours and, with a nonce, the hub's template's own; no style
        attributes. ``data:`` is for the icons in the hub's style sheet, ``hub_host`` its logo."""
        images = f"'self' data: {self._config.hub_host}".strip()
        return (
            f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self'; "
            f"img-src {images}; font-src 'self'; connect-src 'self'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        )


def _environment(loader: BaseLoader, undefined: Any = None) -> Environment:
    # select_autoescape() would decide by file name; this cannot be got wrong.
    options = {} if undefined is None else {"undefined": undefined}
    return Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, **options
    )
