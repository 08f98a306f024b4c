"""What the service has to be told at its start, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The name under which the hub knows this service; part of its URL and of its access scope.
SERVICE_NAME = "gpuslice"


@dataclass(frozen=True)
class ServiceConfig:
    """Addresses and secrets. ``prefix`` and ``hub_prefix`` are paths as browsers send them, that
    is percent-encoded, and begin and end with ``/``. Secrets never appear in ``repr``."""

    prefix: str
    hub_prefix: str
    hub_api_url: str
    service_token: str = field(repr=False)
    broker_token: str = field(repr=False)
    node_token: str = field(repr=False)
    operator_token: str = field(repr=False)
    cookie_secret: bytes = field(repr=False)
    #: Scheme and host of hub and service; set only where the hub uses subdomains.
    hub_host: str = ""
    service_host: str = ""
    #: How long the hub's answer about a token is believed.
    cache_s: int = 300
    #: How long a person's request waits for the hub to say who they are.
    hub_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("prefix", "hub_prefix"):
            path = getattr(self, name)
            if not (path.startswith("/") and path.endswith("/")):
                raise ValueError(f"{name} must begin and end with '/', not {path!r}")
        tokens = (self.service_token, self.broker_token, self.node_token, self.operator_token)
        if len(set(tokens)) < len(tokens):
            raise ValueError("the tokens of service, broker, node and operator must differ")

    @property
    def access_scope(self) -> str:
        """What a token needs to reach the service at all."""
        return f"access:services!service={SERVICE_NAME}"
