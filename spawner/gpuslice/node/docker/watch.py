"""The engine's containers of this node: a fresh list at every look, inspected where it changed.

The engine's events say which containers to inspect again before the list shows it. They only save
calls: what the list itself contradicts is inspected anyway, and after any break in the stream
everything is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gpuslice import containers
from gpuslice.node.docker.api import DockerApi, EngineDown, EngineSaysNo, Json
from gpuslice.node.docker.reports import Container, parse_container
from gpuslice.node.events import log_event

log = logging.getLogger("gpuslice.node")

#: How long a whole look may take.
LOOK_LIMIT_S = 4.0
#: Inspections at a time.
_AT_ONCE = 16
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_CREATED = "created"


@dataclass(frozen=True, slots=True)
class _Known:
    container: Container
    #: As the list showed it then.
    state: str
    #: How often it had changed by then, and how often the stream had broken off.
    changes: int
    breaks: int


class EngineView:
    """Looks at the containers with this node's label. Raises EngineDown: nothing is known."""

    def __init__(self, api: DockerApi, node_id: str) -> None:
        self._api = api
        self._label = f"{containers.LABEL_NODE}={node_id}"
        self._known: dict[str, _Known] = {}
        self._changes: dict[str, int] = {}
        self._breaks = 0
        self._following = False

    async def look(self) -> list[Container]:
        """All of them, created and ended ones included, as they are now."""
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                rows = await self._api.containers(self._label)
                found = await self._inspect(rows)
        except TimeoutError:
            raise EngineDown(f"the Docker engine took more than {LOOK_LIMIT_S:g} s") from None
        present = {_id(row) for row in rows}
        for gone in self._known.keys() - present:
            del self._known[gone]
        for gone in self._changes.keys() - present:
            del self._changes[gone]
        # One that is gone by now was listed, and then removed.
        return [container for container in found if container is not None]

    async def look_at(self, name: str) -> Container | None:
        """One container by name or id, with or without our label; None when there is none."""
        inspected = await self._api.container(name)
        return None if inspected is None else parse_container(inspected)

    async def of_lease(self, lease_id: str) -> list[Container]:
        """Everything with this lease's and this node's label, as it is now."""
        rows = await self._api.containers(self._label, f"{containers.LABEL_LEASE}={lease_id}")
        found = [await self.look_at(_id(row)) for row in rows]
        return [container for container in found if container is not None]

    async def _inspect(self, rows: list[Json]) -> list[Container | None]:
        gate = asyncio.Semaphore(_AT_ONCE)
        tasks = [asyncio.ensure_future(self._look_at(row, gate)) for row in rows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _look_at(self, row: Json, gate: asyncio.Semaphore) -> Container | None:
        container_id, state = _id(row), str(row.get("State"))
        known = self._known.get(container_id)
        now = (state, self._changes.get(container_id, 0), self._breaks)
        # A failed start changes a created container, and the list does not show it.
        trusted = self._following and state != _CREATED
        if known is not None and trusted and (known.state, known.changes, known.breaks) == now:
            return known.container
        async with gate:
            container = await self.look_at(container_id)
        if container is not None:
            self._known[container_id] = _Known(container, *now)
        return container

    # --- events -----------------------------------------------------------------------------

    async def follow(self, changed: Callable[[str], None]) -> None:
        """Follows the engine's events for ever.

        Args:
            changed: Told the lease of each container that something happened to.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            since = time.time()
            self._breaks += 1
            self._following = True
            try:
                async for event in self._api.events(self._label, since=since):
                    pause_s = _FIRST_PAUSE_S
                    self._note(event, changed)
            except (EngineDown, EngineSaysNo) as problem:
                log_event(log, "events-broke-off", logging.WARNING, problem=problem)
            finally:
                self._following = False
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _note(self, event: Json, changed: Callable[[str], None]) -> None:
        # An event of a shape that nobody knows tells nothing; the list does.
        with suppress(LookupError, TypeError, AttributeError):
            actor = event["Actor"]
            container_id = str(actor["ID"])
            self._changes[container_id] = self._changes.get(container_id, 0) + 1
            if lease_id := actor["Attributes"].get(containers.LABEL_LEASE):
                changed(str(lease_id))


def _id(row: Json) -> str:
    try:
        return str(row["Id"])
    except (LookupError, TypeError) as problem:
        raise EngineDown("the engine's list is not understood") from problem
