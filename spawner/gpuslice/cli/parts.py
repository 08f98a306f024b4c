"""What the four parts are: commands and environments as plain values, and the supervisor's file."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpuslice.cli.ports import Ports
from gpuslice.cli.state import State
from gpuslice.settings import Settings
from gpuslice.spawners.configure import CONFIG_VARIABLE, STATE_VARIABLE, service_url

#: In the order in which they start.
PARTS = ("proxy", "node", "service", "hub")
SUPERVISOR = "supervisord"


@dataclass(frozen=True)
class Part:
    """One process. ``secret_env`` names files in ``secrets/``, whose text is put in."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    secret_env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that the parts are made from."""

    state: State
    settings: Settings
    config: Path | None
    ports: Ports
    hub_config: Path
    proxy_command: list[str]
    #: Extra arguments of the node: none for real GPUs, the simulated fleet otherwise.
    node_gpus: list[str]


def parts(plan: Plan) -> dict[str, Part]:
    """The parts by name, the supervisor among them."""
    return {
        "proxy": _proxy(plan),
        "node": _node(plan),
        "service": _service(plan),
        "hub": _hub(plan),
        SUPERVISOR: Part(
            [
                sys.executable, "-m", "supervisor.supervisord",
                "-n", "-c", str(plan.state.supervisor_conf),
            ]
        ),
    }  # fmt: skip


def _proxy(plan: Plan) -> Part:
    public, api = plan.ports.public, plan.ports.proxy_api
    hub = f"http://{plan.ports.hub.host}:{plan.ports.hub.number}"
    argv = [
        *plan.proxy_command,
        "--ip", public.host, "--port", str(public.number),
        "--api-ip", api.host, "--api-port", str(api.number),
        # Also before the hub has told its routes: to a new proxy it tells them only after a while.
        "--default-target", hub,
        "--error-target", f"{hub}/hub/error",
    ]  # fmt: skip
    return Part(argv, secret_env={"CONFIGPROXY_AUTH_TOKEN": "proxy_token"})


def _node(plan: Plan) -> Part:
    argv = [
        sys.executable, "-m", "gpuslice.node",
        "--state", str(plan.state.node),
        "--node-id", plan.settings.node.id,
        "--engine", "local",
        "--service-url", service_url(plan.settings),
        "--token-file", str(plan.state.secrets / "node_token"),
        *plan.node_gpus,
    ]  # fmt: skip
    return Part(argv)


def _service(plan: Plan) -> Part:
    config = ["--config", str(plan.config)] if plan.config else []
    argv = [sys.executable, "-m", "gpuslice.service", *config, "--state", str(plan.state.root)]
    return Part(argv)


def _hub(plan: Plan) -> Part:
    env = {
        STATE_VARIABLE: str(plan.state.root),
        CONFIG_VARIABLE: str(plan.config or ""),
        "GPUSLICE_PORT": str(plan.ports.public.number),
        "GPUSLICE_PROXY_API_PORT": str(plan.ports.proxy_api.number),
        # Notebook servers get this PATH: `pip` and `jupyter` in a terminal are this Python's.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    argv = [sys.executable, "-m", "jupyterhub", "-f", str(plan.hub_config)]
    return Part(argv, env, {"CONFIGPROXY_AUTH_TOKEN": "proxy_token"})


def write_parts(state: State, made: dict[str, Part]) -> None:
    """Write ``run/parts.json`` for :mod:`gpuslice.cli.part`."""
    text = json.dumps({name: asdict(part) for name, part in made.items()}, indent=1)
    _write_private(state.parts, text)


def write_supervisor_conf(state: State, socket: Path) -> None:
    """Write the file of ``supervisord``, and the script with which it starts a part."""
    shown = socket.relative_to(state.root) if socket.is_relative_to(state.root) else socket
    _write_private(state.supervisor_conf, supervisor_conf(shown))
    _write_private(
        state.run / "part.sh",
        f'exec {shlex.quote(sys.executable)} -m gpuslice.cli.part . "$1"\n',
    )


def supervisor_conf(socket: Path) -> str:
    """The supervisor's configuration. Its working folder is the data folder.

    No path of this machine is in it: supervisor reads ``%``, ``#`` and ``;`` in them as its own
    language, some of it twice. Commands are in ``run/parts.json``.

    Ending a part never ends more than its own process: notebook servers live in sessions of
    their own.
    """
    root = "user=root\n" if os.geteuid() == 0 else ""
    sections = [_HEADER.format(socket=str(socket).replace("%", "%%"), user=root)]
    sections += [_PROGRAM.format(name=name, priority=number) for number, name in enumerate(PARTS)]
    return "\n".join(sections)


_HEADER = """\
[unix_http_server]
file={socket}
chmod=0600

[supervisord]
{user}logfile=log/supervisord.log
logfile_maxbytes=5MB
logfile_backups=2
loglevel=info
pidfile=run/supervisord.child.pid
identifier=gpuslice
childlogdir=log
# Nobody reads it: up has a log of its own.
silent=true

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

_PROGRAM = """\
[program:{name}]
command=/bin/sh run/part.sh {name}
priority={priority}
autostart=true
autorestart=true
startsecs=2
startretries=3
stopsignal=TERM
stopwaitsecs=15
stopasgroup=false
killasgroup=false
redirect_stderr=true
stdout_logfile=log/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    temporary.replace(path)
