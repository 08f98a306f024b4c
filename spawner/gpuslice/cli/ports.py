"""Which TCP ports the parts use, and whether they are free before anything is started."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from gpuslice.cli.trouble import Trouble
from gpuslice.settings import Settings


@dataclass(frozen=True)
class Port:
    """One port: what it is for, and which option or setting changes it."""

    host: str
    number: int
    use: str
    change: str


@dataclass(frozen=True)
class Ports:
    """All ports of one platform."""

    public: Port
    proxy_api: Port
    hub: Port
    service: Port

    def all(self) -> tuple[Port, ...]:
        return self.public, self.proxy_api, self.hub, self.service


def choose(settings: Settings, port: int, proxy_api_port: int) -> Ports:
    """The ports that options and settings ask for.

    Raises:
        Trouble: two parts were given the same one.
    """
    hub = urlsplit(settings.hub.api_url)
    ports = Ports(
        public=Port("127.0.0.1", port, "browsers", "--port"),
        proxy_api=Port("127.0.0.1", proxy_api_port, "the proxy's routes", "--proxy-api-port"),
        hub=Port("127.0.0.1", hub.port or 80, "the hub", "hub.api_url in gpuslice.toml"),
        service=Port(
            settings.service.host,
            settings.service.port,
            "the gpuslice service",
            "service.port in gpuslice.toml",
        ),
    )
    seen: dict[int, Port] = {}
    for one in ports.all():
        other = seen.setdefault(one.number, one)
        if other is not one:
            raise Trouble(
                f"Port {one.number} is asked for twice, for {other.use} ({other.change}) and for "
                f"{one.use} ({one.change}); change one of them."
            )
    return ports


def check_free(ports: Ports, patience_s: float = 0.0) -> None:
    """Make sure that every port can be had; ``patience_s`` is for parts that are just ending.

    Raises:
        Trouble: one is taken; the text says which, what for, and what changes it.
    """
    deadline = time.monotonic() + patience_s
    for port in ports.all():
        while (problem := problem_of(port)) is not None:
            if time.monotonic() >= deadline:
                raise Trouble(problem)
            time.sleep(0.2)


def problem_of(port: Port) -> str | None:
    """Why this port cannot be had, in one sentence; None if it can."""
    family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the parts do: a port that only waits for old connections to die is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.number))
            probe.listen(1)
        except OSError as error:
            why = (
                "is in use" if error.errno == errno.EADDRINUSE
                else f"cannot be used ({error.strerror})"
            )  # fmt: skip
            return (
                f"Port {port.number} for {port.use} {why}; "
                f"stop what has it, or choose another with {port.change}."
            )
    return None
