"""``gpuslice up``: the whole platform on this machine, from one command until Ctrl-C."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import gpuslice
from gpuslice.cli import gpus, ports, ready
from gpuslice.cli.console import INTERRUPTED, Signals, device_lines, say
from gpuslice.cli.drain import Doors, drain
from gpuslice.cli.parts import PARTS, SUPERVISOR, Plan, parts, write_parts, write_supervisor_conf
from gpuslice.cli.proxy import proxy_command
from gpuslice.cli.secrets import ensure_secrets, read_secret
from gpuslice.cli.state import Running, State
from gpuslice.cli.supervise import GAVE_UP, PartState, Supervisor, end_leftovers, log_tail
from gpuslice.cli.trouble import Trouble
from gpuslice.settings import SettingsError, load_settings
from gpuslice.spawners.configure import service_url
from gpuslice.wire import Inventory

_START_S = 120.0
_LEFTOVERS_S = 20.0
_LOG_LINES = 15
#: A part that had to be started more often than this before it ever answered never will.
_TRIES = 2


@dataclass(frozen=True)
class Wishes:
    """The command line."""

    state: Path
    config: Path | None
    port: int
    proxy_api_port: int
    simulated: bool
    hub_config: Path | None
    drain_timeout_s: float


def run(wishes: Wishes) -> int:
    """Start everything, stay until told to end; returns the exit code.

    Raises:
        Trouble: it cannot start; nothing of it is left running.
    """
    signals = Signals()
    plan, chosen = _prepare(wishes)
    supervisor = Supervisor(plan.state)
    write_parts(plan.state, parts(plan))
    write_supervisor_conf(plan.state, supervisor.socket)
    supervisor.start()
    try:
        if not _wait_until_ready(plan, supervisor, signals):
            return INTERRUPTED
        say(_welcome(plan, chosen, ready.inventory(plan)))
        _stay(supervisor, plan.state, signals)
        return _end(plan, wishes, signals)
    finally:
        supervisor.stop()
        say("All parts have ended.")


# --- before the start -----------------------------------------------------------------------


def _prepare(wishes: Wishes) -> tuple[Plan, gpus.Gpus]:
    try:
        settings = load_settings(wishes.config)
    except SettingsError as error:
        raise Trouble(str(error)) from None
    state = State(wishes.state)
    state.prepare()
    chosen_ports = ports.choose(settings, wishes.port, wishes.proxy_api_port)
    claim = Running(state)
    claim.claim(address=_address(chosen_ports))
    _CLAIMS.append(claim)
    end_leftovers(state, _LEFTOVERS_S)
    unclean = state.pid_file(SUPERVISOR).exists()
    ports.check_free(chosen_ports, patience_s=_LEFTOVERS_S if unclean else 0.0)
    ensure_secrets(state.secrets)
    command = proxy_command()
    say("Looking for GPUs")
    chosen = gpus.choose(state, simulated=wishes.simulated)
    plan = Plan(
        state=state,
        settings=settings,
        config=wishes.config,
        ports=chosen_ports,
        hub_config=wishes.hub_config or _demo_hub_config(),
        proxy_command=command,
        node_gpus=chosen.node_arguments,
    )
    return plan, chosen


#: Held until this process ends, whichever way.
_CLAIMS: list[Running] = []


def _demo_hub_config() -> Path:
    """The demo's ``jupyterhub_config.py``: in a wheel beside this file, in a checkout on top."""
    package = Path(str(gpuslice.__file__)).resolve().parent
    for path in (
        package / "hub_config" / "local" / "jupyterhub_config.py",
        package.parents[1] / "hub_config" / "local" / "jupyterhub_config.py",
    ):
        if path.exists():
            return path
    raise Trouble("The demo's jupyterhub_config.py is missing; name one with --hub-config.")


# --- while it starts ------------------------------------------------------------------------


def _wait_until_ready(plan: Plan, supervisor: Supervisor, signals: Signals) -> bool:
    """Tell each part as it answers. False: somebody does not want to wait any longer.

    Raises:
        Trouble: a part keeps crashing, or does not answer in time; its last lines are shown.
    """
    say(f"Starting {', '.join(PARTS)}")
    waiting = ready.checks(plan)
    tries: dict[str, set[int]] = {name: set() for name in PARTS}
    began = time.monotonic()
    while waiting:
        if signals.asked:
            return False
        for name, part in _raise_if_given_up(supervisor, plan.state).items():
            tries[name] |= {part.pid} - {0}
            if len(tries[name]) > _TRIES:
                raise _keeps_ending(plan.state, name)
        for name in [name for name, answers in waiting.items() if answers()]:
            del waiting[name]
            say(f"  {name} answers ({time.monotonic() - began:.0f} s)")
        if waiting and time.monotonic() - began > _START_S:
            name = next(iter(waiting))
            raise Trouble(
                f"{name} did not answer in {_START_S:.0f} s.\n{_last_lines(plan.state, name)}"
            )
        time.sleep(0.2)
    return True


def _raise_if_given_up(supervisor: Supervisor, state: State) -> dict[str, PartState]:
    if supervisor.ended:
        lines = "\n".join(log_tail(state.log / "supervisord.out", _LOG_LINES))
        raise Trouble(f"The supervisor of the parts ended.\n{lines}")
    states = supervisor.states()
    for name, part in states.items():
        if part.word in GAVE_UP:
            raise _keeps_ending(state, name)
    return states


def _keeps_ending(state: State, name: str) -> Trouble:
    return Trouble(f"{name} keeps ending at its start.\n{_last_lines(state, name)}")


def _last_lines(state: State, name: str) -> str:
    path = state.log / f"{name}.log"
    lines = "\n".join(f"    {line}" for line in log_tail(path, _LOG_LINES))
    return f"  The end of {path}:\n{lines}"


# --- while it runs --------------------------------------------------------------------------


def _stay(supervisor: Supervisor, state: State, signals: Signals) -> None:
    while not signals.wait(1.0):
        _raise_if_given_up(supervisor, state)


def _welcome(plan: Plan, chosen: gpus.Gpus, seen: Inventory | None) -> str:
    secrets = plan.state.secrets
    lines = [
        "",
        "gpuslice runs.",
        "",
        f"  Address   {_address(plan.ports)}",
        f"  Login     any user name, password {read_secret(secrets, 'demo_password')}",
        f"  Admin     user name admin, password in {secrets / 'admin_password'}",
        *_gpu_lines(chosen, seen),
        "",
        "This is a demo: all notebook servers run as one user of this machine, so demo users are",
        "not private from each other, and no memory cap is held (every cap is advisory).",
    ]
    if os.geteuid() == 0:
        lines.append("You are root, so notebook servers run as root too; better use another user.")
    lines += ["", "Ctrl-C stops it: servers are ended and leases settled first.", ""]
    return "\n".join(lines)


def _gpu_lines(chosen: gpus.Gpus, seen: Inventory | None) -> list[str]:
    simulated = seen.simulated if seen is not None else chosen.simulated_because is not None
    if simulated:
        lines = [f"  GPUs      SIMULATED ({chosen.simulated_because}); no real money is charged"]
    else:
        lines = ["  GPUs      real"]
    if seen is None:
        return [*lines, "            (the node does not answer now)"]
    return [*lines, *device_lines(seen)]


# --- the end --------------------------------------------------------------------------------


def _end(plan: Plan, wishes: Wishes, signals: Signals) -> int:
    say("\nEnding: stopping all servers. Ctrl-C again ends the parts at once; servers then go on.")
    doors = Doors(
        service_url=service_url(plan.settings),
        token_file=plan.state.secrets / "broker_token",
        node=plan.state.node,
        stop_grace_s=plan.settings.timing.stop_grace_s,
    )
    left = drain(doors, wishes.drain_timeout_s, say, lambda: signals.insisted, actor="gpuslice up")
    if signals.insisted:
        say("Ended at once: servers go on, and the next 'gpuslice up' finds them.")
        return INTERRUPTED
    if left == 0:
        return 0
    if left is None:
        say("The service did not answer, so leases were not settled; the next start does it.")
    else:
        say(
            f"{left} leases did not settle in {wishes.drain_timeout_s:g} s; "
            "the next 'gpuslice up' settles them."
        )
    return 1


def _address(chosen: ports.Ports) -> str:
    return f"http://{chosen.public.host}:{chosen.public.number}"
