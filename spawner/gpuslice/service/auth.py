"""Who is calling and what they may do: every decision about access is made in this module.

Spawner and node show a fixed token from a private file; it is compared here and the hub is not
asked. So does an administrator on the machine itself (``gpuslice quota …``), whom no hub has to
know. People and notebooks show a token of the hub (a browser has it in a cookie); the hub says
whose it is and which scopes it has. Scopes decide, never whether the owner is an admin: an admin's
token made for little may do little.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any, NoReturn

from jupyterhub.scopes import Scope, has_scope, parse_scopes
from jupyterhub.services.auth import HubOAuth
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from gpuslice.errors import Refused
from gpuslice.service.config import SERVICE_NAME, ServiceConfig
from gpuslice.wire import LeaseView

#: Do everything here; includes READ_ALL.
SCOPE_ADMIN = "custom:gpuslice:admin"
#: Read everybody's leases, money, limits and accounts, the queue and all devices.
SCOPE_READ_ALL = "custom:gpuslice:read-all"
#: Read one's own leases, money and places in the queue, and ask to keep leases; a notebook's token
#: holds it for its server only.
SCOPE_LEASE = "custom:gpuslice:lease"
#: Stop one's own leases with a token and, where it is for all of the user's servers, take and
#: give up places in the queue: a place may become a server that costs. A browser login needs no
#: scope for that.
SCOPE_STOP = "custom:gpuslice:stop"
#: The hub's own scope for metrics.
SCOPE_METRICS = "read:metrics"

#: Who runs the command that shows the operator's token; for the audit only.
ACTOR_HEADER = "X-Gpuslice-Actor"

#: What RFC 6750 allows in a token. Anything else is refused before it gets into another request.
_TOKEN = re.compile(r"(?:token|bearer) +([A-Za-z0-9\-._~+/]{1,512}=*)", re.IGNORECASE)


class Access(Enum):
    """What a route asks of its caller."""

    PUBLIC = "anybody"
    BROKER = "the spawner's fixed token"
    NODE = "the node's fixed token"
    USER = "a person"
    OWN = f"a login, or a token with {SCOPE_LEASE}"
    OWN_ALL = f"a login, or a token with {SCOPE_LEASE} for all servers of its user"
    READ = f"a login, or a token with {SCOPE_LEASE} or {SCOPE_READ_ALL}"
    STOP = f"a login, or a token with {SCOPE_STOP}"
    WAIT = f"a login, or a token with {SCOPE_STOP} for all servers of its user"
    READ_ALL = f"scope {SCOPE_READ_ALL}"
    ADMIN = f"scope {SCOPE_ADMIN}"
    METRICS = f"scope {SCOPE_METRICS}"

    @property
    def by_hub(self) -> bool:
        """Whether the hub says who the caller is."""
        return self not in (Access.PUBLIC, Access.BROKER, Access.NODE)


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request. ``kind``: ``user``, ``service``, ``operator``, ``broker``, ``node``,
    ``public``;
    a hub service may have the name of a user, so never compare ``name`` alone."""

    kind: str
    name: str = ""
    scopes: frozenset[str] = frozenset()
    #: Logged in with a browser (a cookie), not with a token.
    browser: bool = False
    #: The user's groups, as the hub names them to every token; limits may hang on them.
    groups: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For logs and as the actor of a stop."""
        return self.name if self.kind == "user" else f"{self.kind}:{self.name}".rstrip(":")

    def has(self, scope: str) -> bool:
        return bool(has_scope(scope, self.scopes))

    @property
    def is_admin(self) -> bool:
        return self.has(SCOPE_ADMIN)

    @property
    def reads_all(self) -> bool:
        return self.is_admin or self.has(SCOPE_READ_ALL)

    @property
    def reads_all_own(self) -> bool:
        """May read all leases of one's own, not just one server's."""
        return self.kind == "user" and (self.browser or self.has(f"{SCOPE_LEASE}!user={self.name}"))

    @property
    def changes_all_own(self) -> bool:
        """May change what is one's own for whichever server, not just stop one server's lease."""
        return self.kind == "user" and (self.browser or self.has(f"{SCOPE_STOP}!user={self.name}"))

    @cached_property
    def servers(self) -> frozenset[str]:
        """The servers that a token is narrowed to; empty for anything wider, and for nothing."""
        if self.kind != "user" or self.reads_all_own:
            return frozenset()
        filters = parse_scopes(self.scopes).get(SCOPE_LEASE, {})
        if filters == Scope.ALL:
            return frozenset()
        # A hub user name has no '/', so the first one ends it.
        named = (entry.partition("/") for entry in filters.get("server", ()))
        return frozenset(server for user, _, server in named if user == self.name)

    def person(self) -> str:
        """The user's name; Refused for a hub service, which has no leases."""
        if self.kind != "user":
            raise Refused("person-needed", "This is for people, not for services.", status=403)
        return self.name

    def own_server(self) -> str | None:
        """The one server that a notebook's token speaks for; None: all of the user's."""
        if self.reads_all_own:
            return None
        if len(self.servers) != 1:
            # Never guess: with None the token would read more than it was made for.
            raise Refused(
                "ambiguous-token",
                f"This token's {SCOPE_LEASE} must name exactly one server, or all of the user's.",
                status=403,
            )
        return next(iter(self.servers))

    @property
    def looks_at(self) -> str | None:
        """Whose leases are looked for when it asks for one by its id; None: everybody's."""
        return None if self.reads_all else self.name

    def may_read(self, lease: LeaseView) -> bool:
        own = self.kind == "user" and lease.user == self.name
        return self.reads_all or (own and (self.reads_all_own or lease.server in self.servers))

    def may_stop(self, lease: LeaseView) -> bool:
        own = self.kind == "user" and lease.user == self.name
        return self.is_admin or (
            own and (self.browser or self.has(f"{SCOPE_STOP}!server={lease.user}/{lease.server}"))
        )

    def holds(self, access: Access) -> bool:
        """Whether a caller that the hub named may use a route at all."""
        match access:
            case Access.USER:
                return self.kind == "user"
            case Access.OWN:
                return self.reads_all_own or bool(self.servers)
            case Access.OWN_ALL:
                return self.reads_all_own
            case Access.READ:
                return self.reads_all_own or bool(self.servers) or self.reads_all
            case Access.STOP:
                return self.browser or self.is_admin or self._names(SCOPE_STOP)
            case Access.WAIT:
                return self.changes_all_own
            case Access.READ_ALL:
                return self.reads_all
            case Access.ADMIN:
                return self.is_admin
            case Access.METRICS:
                return self.has(SCOPE_METRICS)
            case _:
                return False

    def _names(self, scope: str) -> bool:
        """Holds the scope at all, be it for one server; ``may_stop`` looks closer."""
        return bool(has_scope(scope, self.scopes, post_filter=True))


# --- fixed tokens ---------------------------------------------------------------------------


class FixedToken:
    """Spawner or node: one token from a private file, compared in constant time, no hub."""

    def __init__(self, kind: str, token: str, scopes: frozenset[str] = frozenset()) -> None:
        self._caller = Caller(kind, scopes=scopes)
        self._digest = _digest(token)

    def shown_by(self, request: HTTPServerRequest) -> bool:
        """Whether the request shows this very token."""
        token = header_token(request)
        return token is not None and hmac.compare_digest(_digest(token), self._digest)

    def identify(self, request: HTTPServerRequest) -> Caller:
        if not self.shown_by(request):
            raise Refused(
                "login-needed", f"This needs the {self._caller.kind}'s token.", status=401
            )
        return self._caller


def header_token(request: HTTPServerRequest) -> str | None:
    """The token of ``Authorization: token …`` (or ``Bearer``), if it can be one."""
    match = _TOKEN.fullmatch(request.headers.get("Authorization", "").strip())
    return match[1] if match else None


def _actor(request: HTTPServerRequest) -> str:
    """The login name that an operator's command says it runs for."""
    said = request.headers.get(ACTOR_HEADER, "").strip()
    return said if re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", said) else ""


def _digest(token: str) -> bytes:
    # Of equal length whatever the caller sent, so that the comparison tells nothing.
    return hashlib.sha256(token.encode()).digest()


# --- tokens and cookies of the hub ----------------------------------------------------------


class HubLogin(HubOAuth):
    """The hub's OAuth with our settings; a token counts only in the header, never in a URL."""

    def get_token(self, handler: RequestHandler, in_cookie: bool = True) -> str | None:
        token = header_token(handler.request)
        if token is None and in_cookie:
            token = self._get_token_cookie(handler)
        return token

    def has_cookie(self, handler: RequestHandler) -> bool:
        """Whether the browser shows a login that this service once signed."""
        return bool(self._get_token_cookie(handler))


def make_hub_login(config: ServiceConfig) -> HubLogin:
    """The hub's login for ``config``. Values are given, not left to ``JUPYTERHUB_*`` variables;
    of those only TLS files, cookie prefix and public URL still count."""
    return HubLogin(
        api_url=config.hub_api_url.rstrip("/"),
        api_token=config.service_token,
        base_url=config.prefix,
        hub_prefix=config.hub_prefix,
        hub_host=config.hub_host,
        oauth_client_id=f"service-{SERVICE_NAME}",
        oauth_redirect_uri=f"{config.service_host}{config.prefix}oauth_callback",
        access_scopes={config.access_scope},
        allow_token_in_url=False,
        cache_max_age=config.cache_s,
        # Lax and not Strict: the way back from the hub's login is a cross-page navigation.
        cookie_options={"samesite": "Lax"},
    )


class Gate:
    """Lets a request in, or raises Refused: the only way from a request to a :class:`Caller`."""

    def __init__(self, config: ServiceConfig) -> None:
        self.hub = make_hub_login(config)
        self._config = config
        self._fixed = {
            Access.BROKER: FixedToken("broker", config.broker_token),
            Access.NODE: FixedToken("node", config.node_token),
        }
        scopes = frozenset({SCOPE_ADMIN, SCOPE_METRICS, config.access_scope})
        self._operator = FixedToken("operator", config.operator_token, scopes)

    async def identify(self, handler: RequestHandler, access: Access) -> Caller:
        """The caller of a request, by the means that a route asking for ``access`` accepts."""
        if access is Access.PUBLIC:
            return Caller("public")
        if access in self._fixed:
            return self._fixed[access].identify(handler.request)
        if self._operator.shown_by(handler.request):
            # Which person it was the machine knows: they could read the token.
            caller = self._operator.identify(handler.request)
            return replace(caller, name=_actor(handler.request))
        return await self._ask_hub(handler)

    def admit(self, caller: Caller, access: Access) -> None:
        """Refuse a caller who may not use a route that asks for ``access``."""
        if not access.by_hub:
            return  # the token was the proof
        # A scraper's token needs nothing but the metrics.
        wanted = access is Access.METRICS or caller.has(self._config.access_scope)
        if not (wanted and caller.holds(access)):
            raise Refused("forbidden", f"This needs {access.value}.", status=403)

    async def who(self, handler: RequestHandler) -> dict[str, Any] | None:
        """The hub's answer about the request's token or cookie. Raises Refused (503)."""
        model: dict[str, Any] | None = await self.with_hub(
            lambda: self.hub.get_user(handler, sync=False)
        )
        return model

    async def with_hub(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Await what ``ask`` returns; a hub that is down, slow or broken becomes a Refused."""
        try:
            async with asyncio.timeout(self._config.hub_timeout_s):
                return await ask()
        except TimeoutError:
            _hub_unavailable()
        except HTTPError as exc:
            if exc.status_code < 500:
                raise
            _hub_unavailable()

    async def _ask_hub(self, handler: RequestHandler) -> Caller:
        model = await self.who(handler)
        by_token = bool(getattr(handler, "_token_authenticated", False))
        if not by_token and self.hub.has_cookie(handler):
            # Raises 403 itself. Also when model is None: a failed check is why the hub's class
            # did not accept the cookie, and "forbidden" is then the true answer.
            self.hub.check_xsrf_cookie(handler)
        if model is None:
            raise Refused("login-needed", "This needs a login, or a token of yours.", status=401)
        caller = Caller(str(model.get("kind", "user")), str(model["name"]))
        return replace(
            caller,
            scopes=frozenset(model["scopes"]),
            browser=not by_token,
            groups=tuple(model.get("groups") or ()),
        )


def _hub_unavailable() -> NoReturn:
    raise Refused(
        "hub-unavailable",
        "JupyterHub, which knows who you are, does not answer. Running servers are not affected.",
        status=503,
        retry_after_s=10,
    ) from None
