"""``gpuslice up --engine docker``: the compose deployment, from one command until Ctrl-C."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpuslice.cli import compose, ready
from gpuslice.cli.compose import INIT, PARTS, Compose, Deployment, PartState
from gpuslice.cli.console import INTERRUPTED, Signals, device_lines, say
from gpuslice.cli.ports import Port, problem_of
from gpuslice.cli.state import Running, State
from gpuslice.cli.trouble import Trouble
from gpuslice.settings import Settings, SettingsError, load_settings
from gpuslice.wire import Inventory

_START_S = 240.0
_LOG_LINES = 15
#: A part that had to be started more often than this before it was ever ready never will be.
_TRIES = 3
_LOOK_S = 0.5
_WATCH_S = 5.0
#: Paths inside the containers, as compose.yaml has them.
_STATE = "/var/lib/gpuslice"
_CONFIG = "/etc/gpuslice/gpuslice.toml"
_CONTROL = "/run/gpuslice/control/control.sock"


@dataclass(frozen=True)
class Wishes:
    """The command line. What is None is left to .env and compose.yaml."""

    state: Path
    config: Path | None
    hub_config: Path | None
    port: int | None
    simulated: bool
    drain_timeout_s: float

    def environment(self) -> dict[str, str]:
        """What was asked for, as compose.yaml knows it."""
        given = {
            "GPUSLICE_CONFIG": self.config,
            "GPUSLICE_HUB_CONFIG": self.hub_config,
            "GPUSLICE_PORT": self.port,
            "GPUSLICE_SIMULATED": "1" if self.simulated else None,
        }
        return {name: str(value) for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """One run: what is to be started, and where its output goes."""

    wishes: Wishes
    engine: Compose
    deployment: Deployment
    settings: Settings
    log: Path

    @property
    def address(self) -> str:
        host = self.deployment.host
        # "All addresses" is none that a browser can be given.
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.deployment.port}"

    def parts(self) -> dict[str, PartState]:
        return self.engine.parts(self.deployment.project)


def run(wishes: Wishes) -> int:
    """Start the deployment, stay until told to end; returns the exit code.

    Raises:
        Trouble: it cannot start; what this command started of it is ended.
    """
    signals = Signals()
    plan = _prepare(wishes)
    ran_already = any(part.status == "running" for part in plan.parts().values())
    if ran_already:
        say("It runs already; from now on Ctrl-C here ends it.")
    try:
        ready_now = _start(plan, signals)
    except Trouble:
        # What somebody else started is not ours to end only because one part of it is unwell.
        if not ran_already:
            _down(plan)
        raise
    if not ready_now:
        _down(plan)
        return INTERRUPTED
    say(_welcome(plan))
    if not _stay(plan, signals):
        return 1
    code = _end(plan, signals)
    _down(plan)
    return code


# --- before the start -----------------------------------------------------------------------

#: Held until this process ends, whichever way.
_CLAIMS: list[Running] = []


def _prepare(wishes: Wishes) -> Plan:
    compose.check_engine()
    engine = Compose(compose.folder(), wishes.environment())
    deployment = engine.deployment()
    settings = _checked_settings(deployment)
    state = State(wishes.state)
    state.prepare()
    plan = Plan(wishes, engine, deployment, settings, state.log / "compose.log")
    claim = Running(state)
    claim.claim(address=plan.address)
    _CLAIMS.append(claim)
    missing = engine.missing_images(deployment.images)
    if missing:
        raise Trouble(f"{_listed(missing)} not built yet; run 'make images' (some minutes).")
    if "proxy" not in plan.parts():
        port = Port(deployment.host, deployment.port, "browsers", "--port")
        problem = problem_of(port)
        if problem is not None:
            raise Trouble(problem)
    return plan


def _checked_settings(deployment: Deployment) -> Settings:
    for file in (deployment.config, deployment.hub_config):
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise Trouble(f"Cannot read {file}: {error.strerror}.") from None
        if not mode & 0o004:
            # The containers' users are nobody on this machine.
            raise Trouble(f"The containers cannot read {file}; run: chmod o+r '{file}'")
    try:
        return load_settings(deployment.config)
    except SettingsError as error:
        raise Trouble(str(error)) from None


def _listed(images: list[str]) -> str:
    verb = "is" if len(images) == 1 else "are"
    noun = "image" if len(images) == 1 else "images"
    return f"The {noun} {', '.join(images)} {verb}"


# --- while it starts ------------------------------------------------------------------------


def _start(plan: Plan, signals: Signals) -> bool:
    """Tell each part as it becomes ready. False: somebody does not want to wait any longer.

    Raises:
        Trouble: a part keeps ending, or is not ready in time; its last lines are shown.
    """
    say(f"Starting {', '.join(PARTS)}")
    began = time.monotonic()
    waiting = list(PARTS)
    with plan.log.open("w", encoding="utf-8") as output:
        starter = plan.engine.start(output)
        try:
            while waiting or starter.poll() is None:
                if signals.asked:
                    return False
                # Asked before the parts are, so that what it says of them is what it ended with.
                failed = bool(starter.poll())
                parts = plan.parts()
                _raise_if_hopeless(plan, parts)
                for name in [name for name in waiting if name in parts and parts[name].ready]:
                    waiting.remove(name)
                    say(f"  {name} is ready ({time.monotonic() - began:.0f} s)")
                if failed:
                    raise _failed(plan, parts)
                if waiting and time.monotonic() - began > _START_S:
                    raise _not_ready(plan, parts, waiting[0])
                time.sleep(_LOOK_S)
        finally:
            if starter.poll() is None:
                starter.terminate()
                starter.wait()
    return _wait_for_the_address(plan, signals, began)


def _wait_for_the_address(plan: Plan, signals: Signals, began: float) -> bool:
    """As a browser does it: through the published port, the hub and the service."""
    waiting = [
        f"{plan.address}/hub/health",
        f"{plan.address}{plan.settings.service.public_prefix}api/health",
    ]
    while waiting:
        if signals.asked:
            return False
        if ready.answers(waiting[0]):
            waiting.pop(0)
        elif time.monotonic() - began > _START_S:
            raise Trouble(f"All parts run, but {waiting[0]} does not answer.")
        else:
            time.sleep(_LOOK_S)
    return True


def _raise_if_hopeless(plan: Plan, parts: dict[str, PartState]) -> None:
    init = parts.get(INIT)
    if init is not None and init.status == "exited" and init.exit_code:
        raise Trouble(f"The secrets cannot be made.\n{_last_lines(plan, init)}")
    for name, part in parts.items():
        if part.restarts > _TRIES and not part.ready:
            raise Trouble(f"{name} keeps ending at its start.\n{_last_lines(plan, part)}")


def _failed(plan: Plan, parts: dict[str, PartState]) -> Trouble:
    """Why ``docker compose up`` gave up: the first part that is unwell, or its own words."""
    for name in PARTS:
        if name in parts and parts[name].failed:
            return Trouble(f"{name} does not become ready.\n{_last_lines(plan, parts[name])}")
    return Trouble(f"docker compose up failed.\n{_output(plan)}")


def _not_ready(plan: Plan, parts: dict[str, PartState], name: str) -> Trouble:
    part = parts.get(name)
    shown = _output(plan) if part is None else _last_lines(plan, part)
    return Trouble(f"{name} was not ready in {_START_S:.0f} s.\n{shown}")


def _last_lines(plan: Plan, part: PartState) -> str:
    lines = "\n".join(f"    {line}" for line in plan.engine.log(part.container, _LOG_LINES))
    return f"  The end of 'docker logs {part.container}':\n{lines}"


def _output(plan: Plan) -> str:
    lines = plan.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-_LOG_LINES:])


# --- while it runs --------------------------------------------------------------------------


def _stay(plan: Plan, signals: Signals) -> bool:
    """Until told to end (True), or until somebody else has ended it (False)."""
    unwell: set[str] = set()
    while not signals.wait(_WATCH_S):
        try:
            parts = plan.parts()
        except Trouble:
            continue  # an engine that restarts; the parts come back with it
        if not parts:
            if plan.engine.answers():
                say("The deployment was ended by somebody else.")
                return False
            continue
        now = {name for name in PARTS if name not in parts or not parts[name].ready}
        for name in sorted(now - unwell):
            say(f"  {name} is not ready; the engine starts it again by itself.")
        for name in sorted(unwell - now):
            say(f"  {name} is ready again.")
        unwell = now
    return True


def _welcome(plan: Plan) -> str:
    project = plan.deployment.project
    secrets = f"{_STATE}/secrets"
    shared_password = _has_shared_password(plan.deployment.hub_config)
    lines = [
        "",
        "gpuslice runs.",
        "",
        f"  Address   {plan.address}",
    ]
    if shared_password:
        password = plan.engine.ask(f"{project}-hub", "cat", f"{secrets}/demo_password").stdout
        admin = f"docker exec {project}-hub cat {secrets}/admin_password"
        lines += [
            f"  Login     any user name, password {password.strip()}",
            f"  Admin     user name admin, password: {admin}",
        ]
    lines += _gpu_lines(plan)
    if shared_password:
        lines += [
            "",
            "Whoever has the password can log in under any name; for people of your own see",
            "hub_config/docker/jupyterhub_config.py.",
        ]
    return "\n".join(
        [*lines, "", "Ctrl-C stops it: servers are ended and leases settled first.", ""]
    )


def _has_shared_password(hub_config: Path) -> bool:
    """Whether people log in with the password that ``init`` made, as far as the file shows."""
    lines = hub_config.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith("c.SharedPasswordAuthenticator.user_password") for line in lines)


def _gpu_lines(plan: Plan) -> list[str]:
    asked = plan.engine.ask(
        f"{plan.deployment.project}-service", "gpuslice", "devices", "--json",
        "--node-socket", _CONTROL,
    )  # fmt: skip
    if asked.returncode:
        return ["  GPUs      (the node does not answer now)"]
    seen = Inventory.model_validate_json(asked.stdout)
    kind = "SIMULATED; no real money is charged" if seen.simulated else "real"
    return [f"  GPUs      {kind}", *device_lines(seen)]


# --- the end --------------------------------------------------------------------------------


def _end(plan: Plan, signals: Signals) -> int:
    """Drain unless somebody insists; returns the exit code."""
    say("\nEnding: stopping all servers. Ctrl-C again ends the parts at once; servers then go on.")
    left = None if signals.insisted else _drain(plan, signals)
    if signals.insisted:
        say("Ended at once: servers go on, and the next start finds them.")
        return INTERRUPTED
    if left == 0:
        return 0
    if left == 1:
        say(f"Not all leases settled in {plan.wishes.drain_timeout_s:g} s; the next start does it.")
    else:
        say("The service did not answer, so leases were not settled; the next start does it.")
    return 1


def _drain(plan: Plan, signals: Signals) -> int:
    """``gpuslice drain`` in the service's container, which can reach what is not published."""
    drain = plan.engine.begin(
        f"{plan.deployment.project}-service", "gpuslice", "drain",
        "--config", _CONFIG, "--state", _STATE, "--node-socket", _CONTROL,
        "--timeout", f"{plan.wishes.drain_timeout_s:g}",
    )  # fmt: skip
    _follow(drain, signals)
    return drain.returncode


def _follow(process: subprocess.Popen[str], signals: Signals) -> None:
    """Pass on what it says until it ends, or somebody insists."""
    assert process.stdout is not None
    teller = threading.Thread(target=_tell, args=(process.stdout,), daemon=True)
    teller.start()
    while process.poll() is None and not signals.insisted:
        time.sleep(0.1)
    if signals.insisted:
        process.terminate()
    process.wait()
    teller.join(timeout=1)


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        say(line.rstrip("\n"))


def _down(plan: Plan) -> None:
    say("All parts have ended." if plan.engine.down() else "The parts could not be ended.")
