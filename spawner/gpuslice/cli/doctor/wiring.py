"""Checks of the running parts: whether hub, service, node and proxy answer, and know each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from gpuslice.cli.doctor.findings import (
    Group,
    Verdict,
    Verdicts,
    named,
    note,
    ok,
    problem,
    unknown,
    warning,
)
from gpuslice.cli.doctor.machine import EngineKind, Machine, text_of
from gpuslice.cli.doctor.versions import Version, shown, version_in
from gpuslice.service.secretfiles import SecretFileError, read_secret
from gpuslice.spawners.builders import SERVICE_NAME
from gpuslice.spawners.configure import SERVICE_SCOPES, service_url
from gpuslice.wire import Inventory

_ANSWER_S = 5.0
_MOST_BYTES = 1 << 20
#: Older hubs have published flaws in sharing, filtered administrators and forms.
_HUB_FLOOR: Version = (5, 5, 1)
_HUB_ADVISORIES = (
    "CVE-2026-40864",
    "CVE-2026-54338",
    "GHSA-c4gm-pwx9-9w8j",
    "GHSA-69wv-m5fw-2fhp",
)
#: What ``api/health`` of the service says.
_WELL, _DEGRADED = "ok", "degraded"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one address; ``status`` None: nothing."""

    url: str
    status: int | None
    body: Mapping[str, Any] = field(default_factory=dict)
    #: How many things the answer is a list of; None when it is none.
    items: int | None = None
    error: str = ""

    @property
    def there(self) -> bool:
        return self.status is not None


@dataclass(frozen=True, slots=True)
class WiringFacts:
    hub: Reply
    service: Reply
    node: Inventory | str
    #: Who the hub takes us for with the service's token; None: the token could not be read.
    ourselves: Reply | None
    token_problem: str = ""
    #: What the service offers to the spawner; None: its token could not be read.
    offers: Reply | None = None
    #: The service and the hub as browsers reach them; None: nobody said where.
    public_service: Reply | None = None
    public_hub: Reply | None = None
    engine: EngineKind = "local"
    node_id: str = "local"

    @property
    def running(self) -> bool:
        return self.hub.there or self.service.there or not isinstance(self.node, str)


def look(machine: Machine, public_url: str | None) -> WiringFacts:
    settings = machine.settings
    api = settings.hub.api_url.rstrip("/")
    service_at = service_url(settings)
    ourselves = offers = None
    token_problem = ""
    try:
        secrets = machine.state.secrets
        ourselves = get(f"{api}/user", read_secret(secrets / "service_token"))
        offers = get(f"{service_at}api/broker/offers", read_secret(secrets / "broker_token"))
    except SecretFileError as error:
        token_problem = str(error)
    public_url = public_url or _address_of_up(machine)
    public_service = public_hub = None
    if public_url is not None:
        prefix = settings.service.public_prefix
        base = prefix.removesuffix(f"services/{SERVICE_NAME}/")
        public_service = get(f"{public_url.rstrip('/')}{prefix}api/health")
        public_hub = get(f"{public_url.rstrip('/')}{base}hub/health")
    return WiringFacts(
        hub=get(f"{api}/"),
        service=get(f"{service_at}api/health"),
        node=machine.inventory,
        ourselves=ourselves,
        token_problem=token_problem,
        offers=offers,
        public_service=public_service,
        public_hub=public_hub,
        engine=machine.kind,
        node_id=settings.node.id,
    )


def _address_of_up(machine: Machine) -> str | None:
    """Where a ``gpuslice up`` with this data folder says that browsers find it."""
    try:
        address = json.loads(text_of(machine.state.run / "up.lock") or "")["address"]
    except (ValueError, KeyError, TypeError):
        return None
    return address if isinstance(address, str) and address.startswith("http") else None


def get(url: str, token: str | None = None) -> Reply:
    """One GET. It follows no redirect, and goes through no proxy of the environment: the token
    reaches nobody but who was asked."""
    headers = {"Authorization": f"token {token}"} if token else {}
    try:
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        with closing(kind(parts.netloc, timeout=_ANSWER_S)) as connection:
            connection.request("GET", parts.path or "/", headers=headers)
            answer = connection.getresponse()
            text = answer.read(_MOST_BYTES)
    except (OSError, HTTPException, ValueError) as error:
        return Reply(url, None, error=str(error) or type(error).__name__)
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    items = len(body) if isinstance(body, list) else None
    return Reply(url, answer.status, body if isinstance(body, dict) else {}, items)


# --- the judgements -------------------------------------------------------------------------


def running(facts: WiringFacts) -> Verdict:
    if facts.running:
        return ok("The platform runs.")
    return note(
        f"Nothing runs: neither hub ({facts.hub.url}) nor service ({facts.service.url}) nor node "
        "answers.",
        "Start the platform and ask again, to have its connections checked.",
    )


def hub(facts: WiringFacts) -> Verdict | None:
    if not facts.running:
        return None
    if not facts.hub.there:
        return problem(
            f"The hub does not answer at {facts.hub.url} ({facts.hub.error}).",
            "Start it, or correct hub.api_url.",
        )
    found = version_in(str(facts.hub.body.get("version", "")))
    if facts.hub.status != 200 or found is None:
        return problem(
            f"What answers at {facts.hub.url} is no hub (status {facts.hub.status}).",
            "Correct hub.api_url: it ends in /hub/api.",
        )
    if found < _HUB_FLOOR:
        return problem(
            f"JupyterHub {shown(found)} has published flaws.",
            f"Upgrade to {shown(_HUB_FLOOR)} or later.",
            *_HUB_ADVISORIES,
        )
    return ok(f"JupyterHub {shown(found)} answers.")


def token(facts: WiringFacts) -> Verdict | None:
    """Whether the hub knows the service by the token that the service has."""
    if not facts.running or not facts.hub.there:
        return None
    mine = facts.ourselves
    if mine is None:
        return unknown(
            f"The service's token cannot be read: {facts.token_problem}.", "Run it again as root."
        )
    if mine.status in (401, 403):
        return problem(
            "The hub does not know the service's token.",
            "Give the hub the same data folder (gpuslice.configure(c, state=…)) and restart it.",
        )
    if mine.status != 200 or mine.body.get("name") != SERVICE_NAME:
        return problem(
            f"The hub takes the service's token for {mine.body.get('name')!r} (status "
            f"{mine.status}).",
            f"Look for another service or user with this token; the service's name is "
            f"{SERVICE_NAME}.",
        )
    scopes = mine.body.get("scopes")
    held = {str(scope) for scope in scopes} if isinstance(scopes, list) else set()
    missing = sorted(set(SERVICE_SCOPES) - held)
    if missing:
        return problem(
            f"The service may not do in the hub what it has to: {named(missing)}.",
            "Call gpuslice.configure(c) last in jupyterhub_config.py, and restart the hub.",
        )
    return ok("The hub knows the service by its token.")


def service(facts: WiringFacts) -> Verdict | None:
    if not facts.running:
        return None
    reply = facts.service
    if not reply.there:
        return problem(
            f"The service does not answer at {reply.url} ({reply.error}).",
            "Start it, or correct [service].",
        )
    said = reply.body.get("status")
    if reply.status == 200 and said == _WELL:
        return ok("The service is well.")
    if reply.status == 200 and said == _DEGRADED:
        return problem(
            "The service cannot use the node, so nothing is granted.",
            "Start the node; the service must be able to open its control.sock. GPU admin shows "
            "the reason.",
        )
    if reply.status == 503:
        return problem(
            f"The service cannot use its database: {reply.body.get('message')}",
            "Look at its log, and at [database].",
        )
    return problem(
        f"What answers at {reply.url} is not the service (status {reply.status}).",
        "Correct service.port and service.public_prefix.",
    )


def offers(facts: WiringFacts) -> Verdict | None:
    """Whether the service knows the spawner by its token, and has anything to give."""
    if not facts.running or not facts.service.there:
        return None
    reply = facts.offers
    if reply is None:
        return unknown(
            f"The spawner's token cannot be read: {facts.token_problem}.", "Run it again as root."
        )
    if reply.status in (401, 403):
        return problem(
            "The service does not know the spawner's token (broker_token), so no server starts.",
            "Give hub and service the same secrets (gpuslice init), and restart both.",
        )
    if reply.items is None:
        return unknown(
            f"The service does not say what it offers (status {reply.status}).", "Look at its log."
        )
    if reply.items == 0:
        return warning(
            "Nothing is on offer, so nobody can start a server.",
            "Compare [[slice]] with the devices (gpuslice devices); GPU admin shows what is not "
            "offered, and why.",
        )
    return ok(f"{reply.items} slices are on offer.")


def node(facts: WiringFacts) -> list[Verdict]:
    if not facts.running:
        return []
    seen = facts.node
    if isinstance(seen, str):
        return [
            problem(
                f"{seen[:1].upper()}{seen[1:]}.".replace("..", "."),
                "Start the node, or name its socket (--node).",
            )
        ]
    found = []
    if seen.engine != facts.engine:
        found.append(
            problem(
                f"The node runs the engine '{seen.engine}', and '{facts.engine}' was asked for.",
                "Start both with the same --engine.",
            )
        )
    if seen.node_id != facts.node_id:
        found.append(
            problem(
                f"The node calls itself {seen.node_id!r}, and node.id is {facts.node_id!r}: its "
                "leases are another's.",
                "Start the node with this gpuslice.toml.",
            )
        )
    return found or [ok(f"The node {seen.node_id!r} answers.")]


def proxy(facts: WiringFacts) -> Verdict | None:
    """Whether browsers get to hub and service."""
    if not facts.running:
        return None
    if facts.public_hub is None or facts.public_service is None:
        return note(
            "Whether browsers reach the hub was not looked at.",
            "Say where they do: gpuslice doctor --url https://…",
        )
    if not facts.public_hub.there:
        return problem(
            f"Nothing answers at {facts.public_hub.url} ({facts.public_hub.error}).",
            "Start the proxy, or name the right address with --url.",
        )
    if facts.public_hub.status != 200:
        return problem(
            f"The proxy does not lead to the hub ({facts.public_hub.url}: status "
            f"{facts.public_hub.status}).",
            "Wait until the hub has told the proxy its routes; both need the same proxy token.",
        )
    if facts.public_service.body.get("status") not in (_WELL, _DEGRADED):
        return problem(
            f"The proxy does not lead to the service ({facts.public_service.url}: status "
            f"{facts.public_service.status}).",
            "Call gpuslice.configure(c) in jupyterhub_config.py, and compare "
            "service.public_prefix with the hub's base_url.",
        )
    return ok("Browsers reach hub and service.")


CHECKS: Mapping[str, Callable[[WiringFacts], Verdicts]] = {
    "running": running,
    "hub": hub,
    "token": token,
    "service": service,
    "offers": offers,
    "node": node,
    "proxy": proxy,
}


def group(machine: Machine, public_url: str | None) -> Group[WiringFacts]:
    return Group("wiring", lambda: look(machine, public_url), CHECKS)
