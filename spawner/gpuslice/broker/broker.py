"""The broker as the service sees it: leases asked for, watched and ended, off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker import (
    admin,
    choices,
    devices,
    grant,
    lifecycle,
    meter,
    reconcile,
    reconciler,
    reserved,
    starts,
    stats,
    views,
    watch,
)
from gpuslice.broker.core import Core, Hub
from gpuslice.broker.devicedesk import DeviceDesk
from gpuslice.broker.fleetcache import FleetCache
from gpuslice.broker.hostlock import HostLock
from gpuslice.broker.housekeeping import EVERY_S, Housekeeping
from gpuslice.broker.moneydesk import MoneyDesk
from gpuslice.broker.peopledesk import LOOK_EVERY_S, PeopleDesk
from gpuslice.broker.policydesk import PolicyDesk
from gpuslice.broker.queuedesk import QueueDesk
from gpuslice.broker.reservationdesk import ReservationDesk
from gpuslice.broker.states import OVER
from gpuslice.broker.strangerdesk import StrangerDesk
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import SliceCatalogue, slice_types
from gpuslice.ledger import accounts, corrections, migrate
from gpuslice.ledger.database import Database, LedgerError
from gpuslice.ledger.digest import Signer
from gpuslice.ledger.prices import follow_settings
from gpuslice.ledger.tables import Claim, Lease
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.quotas import policies
from gpuslice.settings import Settings
from gpuslice.units import now_us

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How long the start waits for the node to describe itself before it goes on without.
FIRST_INVENTORY_S = 10.0
#: At most so many notices in one answer.
NOTICES = 100


class Broker:
    """One platform's leases. `start`, then `run` until cancelled, then `close`."""

    def __init__(
        self, settings: Settings, database: Database, node: NodeClient, hub: Hub | None = None,
        clock: Callable[[], int] = now_us, signer: Signer | None = None,
        lock: HostLock | None = None,
    ) -> None:  # fmt: skip
        self.core = Core(settings, database, clock)
        self.housekeeping = Housekeeping(self.core, signer)
        self.policies = PolicyDesk(self.core, self._rules, hub, self._policies_changed)
        self.money = MoneyDesk(self.core)
        self.queue = QueueDesk(self.core, self._rules, hub)
        self.people = PeopleDesk(self.core, hub, self._policies_changed)
        self.reservations = ReservationDesk(self.core, self._rules)
        self.strangers = StrangerDesk(self.core, node, self._rules)
        self.fleet = DeviceDesk(self.core, node)
        self._settings = settings
        self._db = database
        self._node = node
        self._hub = hub
        self._lock = lock
        self._tick_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inventory: wire.Inventory | None = None
        self._catalogue = SliceCatalogue((), ())
        self._fleets = FleetCache()
        #: Why nothing may be granted on a node now, by (node, source of the reason).
        self._closed: dict[tuple[str, str], str] = {}
        self._draining: str | None = None
        self.errors = self.core.errors
        self._reconciled_us: int | None = None
        #: What each lease's server uses, from the last list; live numbers need no database.
        self._uses: dict[str, wire.Use] = {}
        timing = settings.timing
        self._timing = reconcile.Timing(
            heartbeat_us=int(timing.heartbeat_s * 1e6),
            node_stop_after_us=int(timing.node_stop_after_s * 1e6),
        )
        self._billing = self._billing_rules(frozenset())
        #: Policies have changed, and which time zones they name now could not be read.
        self._zones_stale = False

    @classmethod
    def create(
        cls, settings: Settings, database_url: str, node_state_dir: Path, hub: Hub | None,
        signer: Signer, lock: HostLock | None = None,
    ) -> Broker:  # fmt: skip
        """A broker on the ledger at ``database_url`` and the node of ``node_state_dir``.

        Args:
            signer: Signs the daily digests.
            lock: Shows the next service of this machine that this one has ended.

        Raises:
            LedgerError: the URL names no database that the ledger runs on.
        """
        node = NodeClient(node_state_dir, timeout_s=settings.timing.node_timeout_s)
        return cls(settings, Database(database_url), node, hub, signer=signer, lock=lock)

    def _billing_rules(self, zones: frozenset[str]) -> lifecycle.BillingRules:
        """How time is billed while policies name these time zones."""
        timing = self._settings.timing
        return lifecycle.BillingRules(
            timezones=zones | {self._settings.timezone},
            hold_horizon_us=int(timing.hold_horizon_s * 1e6),
            unattended_us=int(timing.unattended_grace_s * 1e6),
        )

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Become the ledger's meter, bring the schema up to date, and look at the node once.

        Raises:
            MeterLives: another service meters this ledger; nothing was changed.
            LedgerError: the database cannot be used.
            SettingsError: a configured slice does not fit on what the node has.
        """
        loop = asyncio.get_running_loop()
        # The meter first: a schema is not changed under a service that works on it. Only a
        # database without a table has to have some before there can be a meter.
        if await loop.run_in_executor(None, migrate.current_revision, self._db.engine) is None:
            await loop.run_in_executor(None, migrate.upgrade, self._db.engine)
        self.core.epoch = await self._db.awrite(
            lambda s: meter.acquire(s, now=self.core.now(), lock=self._lock)
        )
        await loop.run_in_executor(None, migrate.upgrade, self._db.engine)
        limit = self._settings.limits.leases_per_user
        await self._write(lambda s, now: policies.follow_settings(s, limit, now=now))
        await self._read_zones()
        await self._first_inventory()
        await self._first_look()

    async def _policies_changed(self) -> None:
        """After a change is committed, so nothing is raised: whoever made it would be told that
        it failed. What cannot be read now is read before the next comparison."""
        try:
            await self._read_zones()
        except LedgerError as error:
            self.errors.count("ledger")
            log.error("event=zones-not-read message=%r", str(error))

    async def _read_zones(self) -> None:
        """Segments are cut where the periods of the policies begin.

        Raises:
            LedgerError: the ledger cannot be read; the next comparison tries it again.
        """
        # First: another change may fail to be read while this one waits.
        self._zones_stale = False
        try:
            zones = await self._db.aread(policies.zones)
        except LedgerError:
            self._zones_stale = True
            raise
        self._billing = self._billing_rules(zones)

    async def _first_inventory(self) -> None:
        deadline = asyncio.get_running_loop().time() + FIRST_INVENTORY_S
        while True:
            try:
                await self._sync_inventory(strict=True)
                return
            except NodeUnavailable as error:
                if asyncio.get_running_loop().time() >= deadline:
                    self._node_down(error, "inventory")
                    return
            await asyncio.sleep(0.2)

    async def _first_look(self) -> None:
        """Before the first grant: a server without a lease (as after a restore) has its slice."""
        try:
            listing = await self._node.listing()
        except NodeUnavailable as error:
            self._node_down(error)
            return
        self._judge_strangers(
            listing.node_id, await self._db.aread(lambda s: reconciler.unaccounted(s, listing))
        )

    @property
    def may_stand_by(self) -> bool:
        """Whether a service may wait for another one's end on this ledger."""
        return self._db.engine.dialect.name == "postgresql"

    async def wait_for_meter(self) -> None:
        """As standby: returns when no other service seems to meter this ledger any more."""
        while True:
            try:
                if not await self._db.aread(lambda s: meter.lives(s, now=self.core.now())):
                    return
            except LedgerError as error:
                log.warning("event=standby-cannot-look message=%r", str(error))
            await asyncio.sleep(meter.BEAT_S)

    async def run(self) -> None:
        """Reconcile and follow the inventory until cancelled, or until the epoch is lost."""
        pause_s = self._settings.timing.reconcile_s
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(self.reconcile, "list", pause_s))
            group.create_task(self._every(self._sync_inventory, "inventory", pause_s))
            # By itself: it waits for the hub, and no beat, end or stop may wait for that.
            group.create_task(self._every(self.queue.serve_line, "queue", pause_s))
            group.create_task(self._follow_people())
            group.create_task(self._every(self.housekeeping.round, "housekeeping", EVERY_S))
            if self.may_stand_by:
                # A comparison may wait long for its node; a standby must not take that for death.
                group.create_task(self._every(self._beat, "beat", meter.BEAT_S))

    async def _beat(self) -> None:
        """A write of nothing: it says that this service lives, and finds out if it must not."""
        await self._write(lambda _session, _now: None)

    async def _follow_people(self) -> None:
        """The hub's users, now and then; not at once, while the hub may be starting too."""
        await asyncio.sleep(LOOK_EVERY_S)
        await self._every(self.people.follow, "people", LOOK_EVERY_S)

    async def _every(
        self, work: Callable[[], Awaitable[object]], source: str, pause_s: float
    ) -> None:
        """Repeat ``work``; what fails is logged and counted, and tried again the next time."""
        while True:
            try:
                await work()
            except meter.EpochLost:
                raise
            except NodeUnavailable as error:
                self._node_down(error, source)
            except LedgerError as error:
                self.errors.count("ledger")
                log.error("event=ledger-unavailable message=%r", str(error))
            except Exception:
                self.errors.count("internal")
                log.exception("event=work-failed work=%s", source)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Finish what was begun, hand the ledger over, and close the database."""
        if asked := self._tasks | self.queue.under_way:
            _, late = await asyncio.wait(asked, timeout=5)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self.core.epoch:
            try:
                await self._db.awrite(lambda s: meter.hand_over(s, self.core.epoch))
            except LedgerError as error:
                log.warning("event=not-handed-over message=%r", str(error))
        if self._lock is not None:
            self._lock.release()
        await asyncio.get_running_loop().run_in_executor(None, self._db.close)

    # --- the node ----------------------------------------------------------------------------

    def _node_down(self, error: NodeUnavailable, source: str = "list") -> None:
        """Nothing is freed and nothing new is granted while the node does not answer."""
        self.errors.count("node")
        node_id = self._node_id()
        if (node_id, source) not in self._closed:
            log.error("event=node-unavailable node=%s message=%r", node_id, error.message)
        self._closed[node_id, source] = f"the node does not answer ({error.reason})"

    def _node_up(self, node_id: str, source: str) -> None:
        if self._closed.pop((node_id, source), None) is not None:
            log.info("event=node-available node=%s source=%s", node_id, source)

    def _closed_nodes(self) -> dict[str, str]:
        return {node_id: why for (node_id, _source), why in sorted(self._closed.items())}

    def _node_id(self) -> str:
        return self._inventory.node_id if self._inventory else self._settings.node.id

    async def _sync_inventory(self, strict: bool = False) -> None:
        inventory = await self._node.inventory()
        catalogue = slice_types(self._settings, [inventory], strict=strict)

        def work(session: Session, now: int) -> None:
            devices.sync_inventory(session, inventory, now=now)
            for offered in catalogue.types:
                follow_settings(
                    session, offered.name, offered.rate_u_per_hour, now=now,
                    actor=f"settings:{offered.price_source}",
                )  # fmt: skip

        await self._write(work)
        self._inventory, self._catalogue = inventory, catalogue
        self._node_up(inventory.node_id, "inventory")

    async def reconcile(self) -> None:
        """One comparison of all leases with the node's fresh list, and what follows from it.

        Raises:
            NodeUnavailable: no list, so nothing was concluded.
            LedgerError: the ledger cannot be used.
        """
        async with self._tick_lock:
            if self._zones_stale:
                await self._read_zones()
            asked = self.core.now()
            listing = await self._node.listing()
            todo = await self._write(
                lambda s, now: reconciler.apply_listing(
                    s, listing, asked_us=asked, now=now, timing=self._timing, rules=self._billing
                )
            )
            self._uses = {r.lease_id: r.use for r in listing.servers if r.use is not None}
            self._judge_node(listing, todo)
            await self._carry_out(todo)
            await self._hold_to_limits()
            self._reconciled_us = self.core.now()

    async def _hold_to_limits(self) -> None:
        """Warn and stop what runs into a limit; the hub is asked first, then the node."""
        rules = watch.WatchRules(
            timezone=self._settings.timezone,
            currency=self._settings.currency,
            grace_us=int(self._settings.timing.limit_grace_s * 1e6),
        )

        def work(session: Session, now: int) -> list[str]:
            self.queue.spare_unseen(session, now)
            grants = self._rules()
            asked = reserved.going(
                session, grants.catalogue, grants.reserve_bytes, grants.host_reserve_ram,
                grants.closed_nodes, now=now,
            )  # fmt: skip
            return watch.look(session, rules, now=now, going=asked)

        for lease_id in await self._write(work):
            view = await self.lease(lease_id)
            log.info("event=stopped-at-its-limit lease=%s", lease_id)
            if view is not None:
                self._ask_hub_soon(view)

    def _judge_node(self, listing: wire.Listing, todo: reconciler.Todo) -> None:
        if todo.clock_jump_us:
            self.errors.count("clock_jump")
            log.warning("event=clock-jump node=%s us=%d", listing.node_id, todo.clock_jump_us)
        self._judge_strangers(listing.node_id, todo.unaccounted)
        self._node_up(listing.node_id, "list")

    def _judge_strangers(self, node_id: str, unaccounted: list[str]) -> None:
        """Nothing is granted where servers run whose slices the ledger does not know."""
        if not unaccounted:
            self._node_up(node_id, "unaccounted")
            return
        self.errors.count("unaccounted")
        log.error("event=unaccounted-servers leases=%s", ",".join(unaccounted[:20]))
        self._closed[node_id, "unaccounted"] = (
            f"{len(unaccounted)} server(s) run there that the ledger does not know; an "
            "administrator has to adopt or stop them (gpuslice unaccounted list)"
        )

    async def _carry_out(self, todo: reconciler.Todo) -> None:
        jobs = [
            *(self._quietly(self._stop_server(lease_id)) for lease_id in todo.stop),
            *(self._quietly(self._release(lease_id)) for lease_id in todo.release),
            *(self._quietly(self._clear(lease_id)) for lease_id in todo.clear),
        ]
        if todo.fence:
            jobs.append(self._quietly(self._fence(todo.fence)))
        await asyncio.gather(*jobs)

    async def _quietly(self, job: Awaitable[None]) -> None:
        """What the node refuses or fails to do now is tried again at the next comparison."""
        try:
            await job
        except (NodeUnavailable, NodeRefused) as error:
            self.errors.count("node")
            log.warning("event=node-call-failed reason=%s message=%r", error.reason, error.message)

    async def _stop_server(self, lease_id: str) -> None:
        await self._node.stop(lease_id, self._settings.timing.stop_grace_s)

    async def _release(self, lease_id: str) -> None:
        result = await self._node.release(lease_id)
        unclean = None if result.clean else (result.reason or "not clean")
        await self._write(lambda s, now: lifecycle.end(s, lease_id, unclean, now=now))

    async def _clear(self, lease_id: str) -> None:
        await self._node.fence(lease_id)
        await self._node.release(lease_id)

    async def _fence(self, lease_ids: list[str]) -> None:
        """Fence, look again with a fresh list, free what that list shows to be gone."""
        for lease_id in lease_ids:
            await self._node.fence(lease_id)
        listing = await self._node.listing()
        reports = {report.lease_id: report for report in listing.servers}
        for lease_id in lease_ids:
            await self._quietly(self._after_fence(lease_id, reports.get(lease_id), listing.boot_id))

    async def _after_fence(
        self, lease_id: str, report: wire.ServerReport | None, boot_id: str
    ) -> None:
        def work(session: Session, now: int) -> str:
            return reconciler.after_fence(
                session, lease_id, report, boot_id=boot_id, rules=self._billing, now=now
            )

        next_step = await self._write(work)
        if next_step == "stop":
            await self._stop_server(lease_id)
        elif next_step == "settled":
            await self._release(lease_id)
        else:
            await self._cancel(lease_id)

    async def _cancel(self, lease_id: str) -> None:
        result = await self._node.release(lease_id)
        unclean = None if result.clean else (result.reason or "not clean")
        await self._write(lambda s, now: lifecycle.cancel(s, lease_id, unclean, now=now))

    async def _write(self, work: Callable[[Session, int], T]) -> T:
        return await self.core.write(work)

    async def _serve(self, job: Awaitable[T]) -> T:
        return await self.core.serve(job)

    # --- what the service calls --------------------------------------------------------------

    def _rules(self) -> grant.GrantRules:
        fleet, timing = self._settings.fleet, self._settings.timing
        closed = self._closed_nodes()
        if self._draining is not None:
            # Nothing is offered to those who wait, either: what is stopped stays free.
            closed[self._node_id()] = f"no new servers: {self._draining}"
        return grant.GrantRules(
            catalogue=self._catalogue, reserve_bytes=fleet.reserve_memory,
            host_reserve_ram=fleet.host_reserve_ram,
            start_timeout_us=int(timing.start_timeout_s * 1e6),
            hold_horizon_us=self._billing.hold_horizon_us, timezone=self._settings.timezone,
            currency=self._settings.currency, closed_nodes=closed,
            reservation_lead_us=int(timing.reservation_lead_s * 1e6), fleets=self._fleets,
        )  # fmt: skip

    async def offers(self, user: str | None, groups: Sequence[str] = ()) -> list[wire.Offer]:
        """The slice types on offer, with what is free now to somebody in these groups."""
        return await self._offers(None, groups, "")

    async def _offers(
        self, user: str | None, groups: Sequence[str], server: str
    ) -> list[wire.Offer]:
        """The offers to a server of this user, which may wait in line itself; None: to anybody."""
        rules, line, currency = self._rules(), self.queue.rules, self._settings.currency

        def work(session: Session) -> list[wire.Offer]:
            now = self.core.now()
            account_id = None if user is None else accounts.find(session, accounts.HUB_USER, user)
            found = starts.ahead(
                session, rules, line, groups, now=now, account_id=account_id, server=server
            )  # fmt: skip
            return views.offers(session, rules, currency, groups, now=now, ahead=found)

        return await self._serve(self._db.aread(work))

    async def choices(self, user: str, groups: Sequence[str], server: str = "") -> wire.Choices:
        """What a user may choose from for one server: the offers, what the limits say of each and
        leave, and this server's place in the queue."""
        mine = await self.me(user, None, groups)
        rules, now = self._rules(), self.core.now()
        found = await self.core.serve_read(lambda s: choices.terms(s, user, groups, rules, now=now))
        return wire.Choices(
            offers=await self._offers(user, groups, server),
            leases_held=len(mine.leases),
            leases_limit=mine.leases_limit,
            gpu_problem=self._inventory.gpu_problem if self._inventory else None,
            terms=found.slices, limits=found.limits, charges=found.charges,
            hours_needed=found.hours_needed, longest_us=found.longest_us,
            request=await self.queue.waiting(user, server),
        )  # fmt: skip

    async def grant(self, request: wire.LeaseRequest) -> wire.LeaseGrant:
        """Grant a slice and have the node prepare it.

        Raises:
            Refused: with the reason; no lease is left behind.
        """
        if self._draining is not None:
            raise Refused("shutting-down", f"No new servers: {self._draining}.", status=503,
                          retry_after_s=grant.FULL_RETRY_S)  # fmt: skip
        rules, line, currency = self._rules(), self.queue.rules, self._settings.currency

        def work(session: Session, now: int) -> tuple[wire.LeaseGrant, wire.PrepareSlice]:
            lease = starts.start(session, request, rules, line, now=now)
            if lease.state != wire.LeaseState.GRANTED:
                raise Refused("attempt-over", f"This attempt's lease is {lease.state} already.")
            granted = views.lease_grant(session, lease, currency=currency)
            return granted, _prepare(request, granted, views.host_claim(session, lease.id))

        granted, slice_ = await self._serve(self._write(work))
        try:
            await self._node.prepare(slice_)
        except (NodeUnavailable, NodeRefused) as error:
            await self._take_back(granted.lease_id, error)
        return granted

    async def _take_back(self, lease_id: str, error: NodeUnavailable | NodeRefused) -> None:
        """The node could not prepare the slice: the lease goes the way of one that never ran."""
        self.errors.count("node")
        await self._serve(
            self._write(lambda s, now: lifecycle.revoke(s, lease_id, error.message, now=now))
        )
        raise Refused(
            "runtime-unavailable",
            f"The GPU host cannot start servers now: {error.message}. Try again in a minute.",
            status=503,
            retry_after_s=grant.FULL_RETRY_S,
        )

    async def started(self, lease_id: str, body: wire.ServerStarted) -> None:
        """The supervisor's question whether its server may start.

        Raises:
            Refused: it may not.
        """
        await self._serve(self._write(lambda s, now: lifecycle.started(s, lease_id, body, now=now)))

    async def stop(
        self, lease_id: str, body: wire.StopLease, *, ask_hub: bool = False
    ) -> wire.LeaseView:
        """Commit a stop; with ``ask_hub`` the hub is asked to end the server, as its user would.

        Without a hub, or if that does not help, the node stops the server after a while.

        Raises:
            Refused: unknown lease, or over already.
        """

        def work(session: Session, now: int) -> wire.LeaseView:
            lease = lifecycle.request_stop(session, lease_id, body.reason, body.actor, now=now)
            return self._view(session, lease)

        view = await self._serve(self._write(work))
        if ask_hub:
            self._ask_hub_soon(view)
        return view

    def _ask_hub_soon(self, view: wire.LeaseView) -> None:
        """Have the hub end a server, as its user would; without a hub the node does so later."""
        if self._hub is None:
            return
        task = asyncio.create_task(self._ask_hub(self._hub, view))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_hub(self, hub: Hub, view: wire.LeaseView) -> None:
        def still_runs(session: Session, _now: int) -> bool:
            lease = views.live_lease(session, view.user, view.server)
            return lease is not None and lease.id == view.lease_id

        try:
            # The hub knows servers by name only, and this service may have slept for long: it must
            # not end the next server of that name, nor ask at all once another one meters.
            if await self._write(still_runs):
                await hub.stop_server(view.user, view.server)
        except LedgerError as error:
            log.warning("event=hub-not-asked lease=%s message=%r", view.lease_id, str(error))
        except Exception as error:  # noqa: BLE001 (whatever it is, the node stops it later)
            self.errors.count("hub")
            log.warning("event=hub-stop-failed lease=%s message=%r", view.lease_id, str(error))

    async def settle(self, lease_id: str, wait_s: float) -> wire.LeaseView:
        """Compare now instead of at the next interval; returns when the lease is over or time is.

        Raises:
            Refused: unknown lease, or the ledger cannot be used.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            try:
                await self._serve(self.reconcile())
            except NodeUnavailable as error:
                self._node_down(error)
            view = await self.lease(lease_id)
            if view is None:
                raise Refused("no-such-lease", "There is no such lease.", status=404)
            if view.state in OVER or loop.time() >= deadline:
                return view
            await asyncio.sleep(0.25)

    def _view(self, session: Session, lease: Lease) -> wire.LeaseView:
        return views.lease_view(
            session,
            lease,
            currency=self._settings.currency,
            timezones=self._billing.timezones,
            use=self._uses.get(lease.id),
        )

    async def lease(self, lease_id: str, user: str | None = None) -> wire.LeaseView | None:
        """One lease, live or over; with ``user`` only that user's, and no work for another's."""

        def work(session: Session) -> wire.LeaseView | None:
            lease = _lease_of(session, lease_id, user)
            return None if lease is None else self._view(session, lease)

        return await self._serve(self._db.aread(work))

    async def current(self, user: str, server: str) -> wire.LeaseView | None:
        """The live lease of a named server."""

        def work(session: Session) -> wire.LeaseView | None:
            lease = views.live_lease(session, user, server)
            return None if lease is None else self._view(session, lease)

        return await self._serve(self._db.aread(work))

    async def leases(
        self, user: str | None, live: bool | None, limit: int, before: str | None
    ) -> tuple[list[wire.LeaseView], str | None]:
        """Leases, newest first, and the cursor of the next page."""

        def work(session: Session) -> tuple[list[wire.LeaseView], str | None]:
            rows, cursor = views.leases(session, user=user, live=live, limit=limit, before=before)
            return [self._view(session, row) for row in rows], cursor

        return await self._serve(self._db.aread(work))

    async def me(self, user: str, server: str | None, groups: Sequence[str] = ()) -> wire.Me:
        """A user's live leases, and the limit that the user's own and groups' policies give."""
        simulated = self._inventory.simulated if self._inventory else False
        return await self._serve(
            self._db.aread(
                lambda s: views.me(
                    s, user, server, currency=self._settings.currency,
                    timezones=self._billing.timezones, simulated=simulated, now=self.core.now(),
                    uses=self._uses,
                    groups=groups,
                )
            )
        )  # fmt: skip

    async def notices(self, user: str, since: int) -> list[wire.Notice]:
        """A user's notices after number ``since``."""
        return await self._serve(self._db.aread(lambda s: views.notices(s, user, since, NOTICES)))

    async def keep(self, user: str, lease_id: str) -> wire.LeaseView:
        """Note that the user wants to keep an idle lease for a while.

        Raises:
            Refused: unknown, somebody else's, or over.
        """
        keep_us = int(self._settings.timing.keep_s * 1e6)

        def work(session: Session, now: int) -> wire.LeaseView:
            return self._view(session, lifecycle.keep(session, lease_id, user, now + keep_us))

        return await self._serve(self._write(work))

    async def devices(self) -> list[wire.DeviceView]:
        """Every device with the leases that hold a part of it."""
        return await self._serve(self._db.aread(views.devices))

    async def drain(self, reason: str, actor: str) -> int:
        """Refuse new leases and commit a stop for all live ones; returns how many still live."""
        self._draining = reason

        def work(session: Session, now: int) -> list[wire.LeaseView]:
            rows, _ = views.leases(session, user=None, live=True, limit=10_000, before=None)
            return [
                self._view(session, lifecycle.request_stop(session, row.id, reason, actor, now=now))
                for row in rows
            ]

        live = await self._serve(self._write(work))
        for view in live:
            if view.state in (wire.LeaseState.RUNNING, wire.LeaseState.STOPPING):
                await self._quietly(self._stop_server(view.lease_id))
        return len(live)

    async def bill(self, lease_id: str, user: str | None = None) -> wire.Bill | None:
        """A lease with its segments and the entries that paid them; ``user`` as for `lease`."""

        def work(session: Session) -> wire.Bill | None:
            lease = _lease_of(session, lease_id, user)
            if lease is None:
                return None
            lines = admin.bill_lines(session, lease_id)
            return wire.Bill(
                lease=self._view(session, lease), lines=lines,
                corrected_u=corrections.of_lease(session, lease_id),
            )  # fmt: skip

        return await self._serve(self._db.aread(work))

    async def limits(
        self, find: str | None, after: int | None, limit: int
    ) -> tuple[list[wire.LimitView], int | None]:
        """Limits on leases that hold now, everybody's first, and the ``after`` of the next page;
        ``find``: only of those with this in their names."""
        return await self._serve(self._db.aread(lambda s: admin.limits(s, find, after, limit)))

    async def set_limit(self, body: wire.SetLimit, actor: str) -> wire.LimitView:
        """Change a limit from now on.

        Raises:
            Refused: somebody else changed it in the meantime, or it names nobody.
        """
        return await self._serve(
            self._write(lambda s, now: admin.set_limit(s, body, actor=actor, now=now))
        )

    async def audit(self, limit: int, before: int | None) -> list[wire.AuditRow]:
        """The newest administrative acts."""
        return await self._serve(
            self._db.aread(lambda s: admin.audit(s, limit=limit, before=before))
        )

    # --- for operators -----------------------------------------------------------------------

    async def health(self) -> dict[str, object]:
        """Whether the broker can grant now, and since when it has not compared."""
        try:
            counts = await self._db.aread(stats.leases_by_state)
            database = True
        except LedgerError:
            counts, database = {}, False
        return {
            "database_ok": database,
            "node_ok": not self._closed and self._inventory is not None,
            "closed_nodes": self._closed_nodes(),
            "gpu_problem": self._inventory.gpu_problem if self._inventory else None,
            "simulated": self._inventory.simulated if self._inventory else None,
            "not_offered": {item.name: item.reason for item in self._catalogue.not_offered},
            "draining": self._draining,
            "reconcile_age_s": self._age_s(),
            "leases": counts,
        }

    def _age_s(self) -> float | None:
        return (
            None if self._reconciled_us is None else (self.core.now() - self._reconciled_us) / 1e6
        )

    async def metrics_snapshot(self) -> stats.Snapshot:
        """Numbers for Prometheus."""
        names = self._slice_names()
        found = await self._serve(
            self._db.aread(lambda session: stats.look(session, names, self.core.now()))
        )
        return stats.Snapshot(
            ledger=found, reconcile_age_s=self._age_s(),
            node_reachable=not self._closed and self._inventory is not None,
            errors=self.errors.counts(),
        )  # fmt: skip

    def _slice_names(self) -> set[str]:
        """Every slice type that is configured, offered now or not."""
        return {
            *(one.name for one in self._settings.slice),
            *(one.name for one in self._catalogue.types),
            *(one.name for one in self._catalogue.not_offered),
        }


def _lease_of(session: Session, lease_id: str, user: str | None) -> Lease | None:
    """A lease, if it is this user's (None: whosever)."""
    lease = session.get(Lease, lease_id)
    return lease if lease is not None and user in (None, lease.user_name) else None


def _prepare(
    request: wire.LeaseRequest, granted: wire.LeaseGrant, host: Claim
) -> wire.PrepareSlice:
    return wire.PrepareSlice(
        lease_id=granted.lease_id, user=request.user, server=request.server,
        slice_type=granted.slice, kind=granted.kind, device_uuid=granted.device_uuid,
        memory_bytes=granted.memory_bytes, share_milli=granted.share_milli,
        enforcement=granted.enforcement, cpu_milli=host.cpu_milli, ram_bytes=host.ram_bytes,
    )  # fmt: skip
