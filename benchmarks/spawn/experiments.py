"""The three experiments, each the same for both platforms."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from worlds import World, until

from registrystub import RegistryStub


@dataclass(frozen=True)
class Outcome:
    """How long a start took, and why it failed if it did."""

    seconds: float
    problem: str = ""


def time_to_ready(worlds: tuple[World, World], pairs: int, user: str) -> list[tuple[float, float]]:
    """Starts of a GPU server (where there are GPUs), one of each platform right after the other,
    and the other way round the next time.

    Each is from the request over REST to the hub's answer that the server is ready.
    """
    for world in worlds:
        world.add(user)
        world.ready(user, gpu=True)  # the first one makes the home
        world.stop(user)
    measured = []
    for number in range(pairs):
        order = worlds if number % 2 == 0 else worlds[::-1]
        seconds: dict[str, float] = {}
        for world in order:
            seconds[world.name] = world.ready(user, gpu=True)
            world.stop(user)
        measured.append((seconds[worlds[0].name], seconds[worlds[1].name]))
    return measured


def start_beside_stops(world: World, users: list[str], ninth: str) -> Outcome:
    """Servers that do not end at SIGTERM are stopped, all at once; then somebody starts one."""
    for user in [*users, ninth]:
        world.add(user)
    for user in users:
        world.ready(user)
    with ThreadPoolExecutor(len(users)) as pool:
        for user in users:
            pool.submit(world.rest, "DELETE", f"users/{user}/server")
        until("all are stopping", lambda: all(world.stopping(user) for user in users))
        outcome = Outcome(*world.ask(ninth))
        world.kill()
    return outcome


def start_beside_pull(
    world: World, registry: RegistryStub, reference: str, layer: str, users: tuple[str, str],
    pull_s: float,
) -> Outcome:  # fmt: skip
    """Somebody's image is pulled for ``pull_s`` seconds; somebody else's is here already."""
    puller, other = users
    for user in users:
        world.add(user)
    gate = registry.hold(layer)
    with ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(world.ask, puller, image=reference)
        gate.wait_hit()
        opened = threading.Timer(pull_s, gate.release)
        began = time.monotonic()
        opened.start()
        try:
            outcome = Outcome(*world.ask(other))
        finally:
            # Not before its time: the wait of the other one is what is measured.
            time.sleep(max(0.0, pull_s - (time.monotonic() - began)))
            opened.cancel()
            gate.release()
        _, problem = pulled.result()
    if problem:
        raise RuntimeError(f"{world.name}: the pulled image did not start: {problem}")
    for user in users:
        if world.has(user):
            world.stop(user)
    return outcome
