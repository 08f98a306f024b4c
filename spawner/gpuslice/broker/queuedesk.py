"""The queue as its users and administrators see it, and the work that serves it in turn."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker import lifecycle, queue, views
from gpuslice.broker.core import Core, Hub, HubUser
from gpuslice.broker.grant import GrantRules
from gpuslice.broker.meter import EpochLost
from gpuslice.errors import Refused
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import LIVE_STATES, WAITING_STATES, Lease, QueueRequest
from gpuslice.placement import Placement
from gpuslice.placement.queue import Outlook
from gpuslice.units import SECOND_US
from gpuslice.wire import JoinFor, JoinQueue, LeaseState, Reason, RequestView, SliceName, Wire

log = logging.getLogger(__name__)

#: So many users are looked at in the hub in one round; the others have their turn later.
_AT_ONCE = 20
#: Whom something bars is looked at in the hub again after so long.
_BARRED_US = 60 * SECOND_US
#: For so long somebody who was refused in their turn, without notice, is in nobody's way.
_HELD_US = 60 * SECOND_US
#: All questions of one round to the hub together take at most so long.
_LOOKUPS_S = 20.0
#: The hub took a start on and nobody came for the slice: it may have been restarted meanwhile.
_ASK_AGAIN_US = 30 * SECOND_US
#: A server was used, and not just started, if it was active so long after it was first seen ready.
_OPENED_AFTER_US = 20 * SECOND_US

#: For so long a place in line is shown as it was, unless something is written.
_MOMENT_US = 5 * SECOND_US


@dataclass(frozen=True)
class _Places:
    """The line as it is shown: place (from 1) and outlook by request, and how many wait."""

    of: Mapping[str, tuple[int, Outlook]]
    waiting: int


@dataclass(frozen=True)
class _Unopened:
    """A server as the hub described it when it was first seen ready, and when it last did.

    ``active_us``: activity up to then is its own start (the proxy notes a new route as activity);
    None: it was not ready yet.
    """

    active_us: int | None
    looked_us: int


class ChangeRequest(Wire):
    """Changes what is waited for; null leaves it as it is. ``version`` is the one that was read."""

    slice: SliceName | None = None
    auto_start: bool | None = None
    version: int


class LeaveQueue(Wire):
    """Gives a place up; an administrator says why."""

    reason: Reason | None = None


class QueueDesk:
    """Joining, leaving and changing; and one round of serving the line."""

    def __init__(self, core: Core, rules: Callable[[], GrantRules], hub: Hub | None) -> None:
        self._core = core
        self._rules = rules
        self._hub = hub
        #: Users whom the hub did not know when it was last asked.
        self._absent: frozenset[str] = frozenset()
        #: Users of whom it said nothing while it spoke of others.
        self._silent: frozenset[str] = frozenset()
        #: When it was last asked about whom in line.
        self._asked_us: dict[str, int] = {}
        #: Requests that were refused in their turn without notice: until when, and why.
        self._held: dict[str, tuple[int, Refused]] = {}
        self._round = asyncio.Lock()
        #: Starts that the hub has not answered yet, and when it may be asked again; by lease.
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, int] = {}
        #: Servers that the queue started and nobody has opened yet, by lease.
        self._unopened: dict[str, _Unopened] = {}
        self._looking = threading.Lock()
        self._seen: tuple[tuple[object, ...], _Places] | None = None

    @property
    def rules(self) -> queue.QueueRules:
        """What the queue goes by now."""
        timing = self._core.settings.timing
        now = self._core.now()
        return queue.QueueRules(
            offer_us=int(timing.offer_s * 1e6),
            patience_us=int(timing.queue_patience_s * 1e6),
            first_open_us=int(timing.first_open_s * 1e6),
            absent=self._absent,
            silent=self._silent,
            held={key: why for key, (til_us, why) in self._held.items() if now < til_us},
        )

    # --- users -------------------------------------------------------------------------------

    async def join(self, body: JoinFor) -> RequestView:
        """Take a place in line; the same again finds the same place.

        Raises:
            Refused: the limits do not allow it, the server runs or waits already, or there is no
                such option.
        """
        rules = self._rules()
        asked = wire.LeaseRequest(
            attempt="0" * 32, user=body.user, server=body.server, slice=body.slice,
            groups=body.groups, group=body.group, declared_us=body.declared_us,
        )  # fmt: skip
        _check_options(body.options)
        # Who is charged is checked above; what a client calls so in its options is not. And that
        # it waits is what made this request.
        options = {
            key: text for key, text in body.options.items() if key not in ("charge", "queue")
        }
        options["slice"] = body.slice
        if body.group is not None:
            options["charge"] = body.group

        def work(session: Session, now: int) -> RequestView:
            made = queue.join(session, asked, options, body.auto_start, rules, now=now)
            return self._views(session, [made], now, fresh=True)[0]

        return await self._core.serve_write(work)

    async def mine(self, user: str) -> list[RequestView]:
        """A user's requests that are not over, and the last few that are."""

        def work(session: Session) -> list[RequestView]:
            rows = session.scalars(
                sa.select(QueueRequest)
                .where(QueueRequest.user_name == user)
                # Those that wait first: many that are over must not push one out of sight.
                .order_by(
                    QueueRequest.state.in_(WAITING_STATES).desc(), QueueRequest.created_us.desc()
                )
                .limit(20)
            ).all()
            newest = sorted(rows, key=lambda row: row.created_us, reverse=True)
            return self._views(session, newest, self._core.now())

        return await self._core.serve_read(work)

    async def page(
        self, user: str, live: bool | None, limit: int, before: str | None
    ) -> tuple[list[RequestView], str | None]:
        """A user's requests, newest first, and the cursor of the next page.

        Raises:
            Refused: ``before`` is no cursor.
        """
        mine = [QueueRequest.user_name == user]
        if live is not None:
            waits = QueueRequest.state.in_(WAITING_STATES)
            mine.append(waits if live else sa.not_(waits))
        if before is not None:
            moment, request_id = views.cursor(before)
            mine.append(sa.tuple_(QueueRequest.created_us, QueueRequest.id) < (moment, request_id))

        def work(session: Session) -> tuple[list[RequestView], str | None]:
            rows = session.scalars(
                sa.select(QueueRequest)
                .where(*mine)
                .order_by(QueueRequest.created_us.desc(), QueueRequest.id.desc())
                .limit(limit + 1)
            ).all()
            shown = rows[:limit]
            following = f"{shown[-1].created_us}-{shown[-1].id}" if len(rows) > limit else None
            return self._views(session, shown, self._core.now()), following

        return await self._core.serve_read(work)

    async def waiting(self, user: str, server: str) -> RequestView | None:
        """The request of a named server that is not over."""

        def work(session: Session) -> RequestView | None:
            account_id = accounts.find(session, accounts.HUB_USER, user)
            found = None if account_id is None else queue.live(session, account_id, server)
            return None if found is None else self._views(session, [found], self._core.now())[0]

        return await self._core.serve_read(work)

    async def all(self) -> list[RequestView]:
        """Everybody who waits or has an offer, in the order in which they are served."""

        def work(session: Session) -> list[RequestView]:
            rows = session.scalars(
                sa.select(QueueRequest).where(QueueRequest.state.in_(WAITING_STATES))
            ).all()
            views = self._views(session, rows, self._core.now())
            return sorted(views, key=lambda view: (view.position or 0, view.created_us))

        return await self._core.serve_read(work)

    async def change(self, request_id: str, user: str, body: ChangeRequest) -> RequestView:
        """Change what is waited for.

        Raises:
            Refused: not the user's, changed in the meantime, or its turn has come.
        """
        rules = self._rules()

        def work(session: Session, now: int) -> RequestView:
            found = queue.get(session, request_id, user)
            queue.change(
                session, found, slice_type=body.slice, auto_start=body.auto_start,
                version=body.version, rules=rules, now=now,
            )  # fmt: skip
            return self._views(session, [found], now, fresh=True)[0]

        return await self._core.serve_write(work)

    async def leave(
        self, request_id: str, user: str | None, actor: str, reason: str | None
    ) -> RequestView:
        """Give a place up, and what was reserved with it; ``user`` None: anybody's.

        Raises:
            Refused: not the user's, or over already; or the server runs by now, which is noted.
        """

        def work(session: Session, now: int) -> RequestView:
            found = queue.get(session, request_id, user)
            why = reason or "left the queue"
            lease_id = queue.leave(session, found, actor=actor, reason=why, now=now)
            if lease_id is not None:
                lifecycle.revoke(session, lease_id, why, now=now)
            return self._views(session, [found], now, fresh=True)[0]

        left = await self._core.serve_write(work)
        if left.state == "fulfilled":
            raise Refused(
                "already-over", "It runs already, and is billed; stop the server.", status=409
            )
        return left

    def _views(
        self, session: Session, rows: Sequence[QueueRequest], now: int, *, fresh: bool = False
    ) -> list[RequestView]:
        """What users are told; ``fresh`` after a change in this very transaction."""
        if not rows:
            return []
        places = self._look(session, now) if fresh else self._places(session, now)
        if any(row.state == "waiting" and row.id not in places.of for row in rows):
            # Its look began before this one came.
            places = self._look(session, now)
        return [self._view(row, places) for row in rows]

    def _places(self, session: Session, now: int) -> _Places:
        """The line as it was a moment ago, if nothing has been written since.

        Everybody who waits looks again and again, and each look at the line asks for the limits of
        all who are in it. What is decided never comes from here.
        """
        rules = self._rules()
        key = (self._core.writes, now // _MOMENT_US, tuple(rules.closed_nodes), self._absent,
               self._silent)  # fmt: skip
        with self._looking:
            if self._seen is None or self._seen[0] != key:
                self._seen = key, self._look(session, now)
            return self._seen[1]

    def _look(self, session: Session, now: int) -> _Places:
        line = queue.line(session, self._rules(), self.rules, now=now)
        of = {
            request.id: (place, outlook)
            for place, (request, outlook) in enumerate(
                zip(line.requests, line.outlooks, strict=True), 1
            )
        }
        return _Places(of, len(line.requests))

    def _view(self, row: QueueRequest, places: _Places) -> RequestView:
        found = places.of.get(row.id) if row.state == "waiting" else None
        position, outlook = found if found is not None else (None, None)
        return RequestView.model_validate(
            {
                "request_id": row.id, "user": row.user_name, "server": row.server_name,
                "slice": row.slice_type, "auto_start": row.auto_start, "state": row.state,
                "position": position, "waiting": places.waiting,
                "start_by_us": outlook.reserved_us if outlook else None,
                "expected_us": outlook.expected_us if outlook else None,
                "offer_til_us": row.offer_til_us, "lease_id": row.lease_id, "reason": row.reason,
                "created_us": row.created_us, "version": row.version,
            }
        )  # fmt: skip

    # --- serving -----------------------------------------------------------------------------

    async def serve_line(self) -> None:
        """One round: note what became of offers, and make those that can be made now.

        It waits for the hub, so nothing that must not wait may depend on its end.
        """
        async with self._round:
            await self._core.write(lambda session, now: queue.sweep(session, now=now))
            placed, barred, everybody = await self._core.read(self._in_turn)
            self._forget_all_but(everybody)
            if turn := self._whom(placed, barred):
                users = await self._fresh(turn)
                if users:
                    # Of whom the hub says nothing while it speaks of others, that one holds nobody
                    # up; if it says nothing at all, it is the hub that is not there.
                    self._silent = (self._silent | set(turn)) - users.keys()
                # The rules as they are after the wait: a node may have been closed meanwhile.
                held = await self._core.write(
                    lambda session, now: self._offer(session, self._rules(), users, now)
                )
                now = self._core.now()
                self._held = {key: one for key, one in self._held.items() if now < one[0]}
                self._held |= {key: (now + _HELD_US, why) for key, why in held.items()}
            self._ask_to_start(await self._core.read(queue.to_start))
            await self._first_opens()

    @property
    def under_way(self) -> set[asyncio.Task[None]]:
        """What the hub was asked and has not answered yet."""
        return set(self._starts.values())

    def _in_turn(self, session: Session) -> tuple[list[str], list[str], set[str]]:
        """Whose turn it may be, who is barred, and everybody who waits."""
        line = queue.line(session, self._rules(), self.rules, now=self._core.now())
        placed = [
            request.user_name
            for request, outlook in zip(line.requests, line.outlooks, strict=True)
            if outlook.placement is not None
        ]
        barred = [one.user_name for one in line.requests if one.id in line.barred]
        return placed, barred, {one.user_name for one in line.requests}

    def _forget_all_but(self, names: Set[str]) -> None:
        self._absent &= names
        self._silent &= names
        self._asked_us = {name: at for name, at in self._asked_us.items() if name in names}

    def _whom(self, placed: Sequence[str], barred: Sequence[str]) -> list[str]:
        """Whom to ask the hub about in this round: whose turn it may be, and of the barred those
        who were not asked about for longest, so that each of them is looked at now and then."""
        now = self._core.now()
        due = [name for name in barred if now >= self._asked_us.get(name, 0) + _BARRED_US]
        due.sort(key=lambda name: self._asked_us.get(name, 0))
        turn = list(dict.fromkeys([*placed, *due]))[:_AT_ONCE]
        self._asked_us |= dict.fromkeys(turn, now)
        return turn

    async def _fresh(self, names: Iterable[str]) -> dict[str, HubUser | None]:
        """Users as the hub has them now, None for one it does not know. Who is missing was not
        answered for: nobody's turn comes like that, as groups may have changed."""
        found: dict[str, HubUser | None] = {}
        if self._hub is None:
            return found
        hub = self._hub

        async def ask(name: str) -> None:
            try:
                found[name] = await hub.user(name)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is tried again)
                self._core.errors.count("hub")
                log.warning("event=hub-user-failed message=%r", str(error))

        try:
            async with asyncio.timeout(_LOOKUPS_S):
                await asyncio.gather(*(ask(name) for name in dict.fromkeys(names)))
        except TimeoutError:
            self._core.errors.count("hub")
            log.warning("event=hub-users-late answered=%d", len(found))
        gone = {name for name, user in found.items() if user is None}
        self._absent = self._absent.difference(found) | gone
        return found

    def _offer(
        self, session: Session, rules: GrantRules, users: Mapping[str, HubUser | None], now: int
    ) -> Mapping[str, Refused]:
        """Offer what can be offered; the requests that were refused without notice."""
        held: dict[str, Refused] = {}
        line_rules = self.rules
        line = queue.line(session, rules, line_rules, now=now)
        for request in line.requests:
            refused, known = line.barred.get(request.id), users.get(request.user_name)
            if refused is not None and known is not None:
                queue.held_up(session, request, known.groups, refused, now=now)
            elif refused is not None and request.user_name in self._absent | self._silent:
                groups = json.loads(request.groups)
                queue.held_up(session, request, groups, refused, now=now)
        # After each offer the others are looked at on the fleet as it is then.
        while (turn := self._next(session, rules, line_rules, users, now)) is not None:
            request, placement = turn
            user = users[request.user_name]
            assert user is not None
            lease = queue.offer(
                session, request, placement, user.groups, rules, line_rules, now=now
            )
            if lease is None:
                # Not even in this round is anything kept from the others for it.
                held[request.id] = Refused("held-up", request.reason or "It was refused.")
                line_rules = replace(line_rules, held={**line_rules.held, **held})
        return held

    def _next(
        self, session: Session, rules: GrantRules, line_rules: queue.QueueRules,
        users: Mapping[str, HubUser | None], now: int,
    ) -> tuple[QueueRequest, Placement] | None:  # fmt: skip
        """The first in line who may start now."""
        line = queue.line(session, rules, line_rules, now=now)
        for request, outlook in zip(line.requests, line.outlooks, strict=True):
            known = users.get(request.user_name) is not None
            if outlook.placement is not None and known and not queue.rests(request, now):
                return request, outlook.placement
        return None

    def _ask_to_start(self, due: Sequence[queue.ToStart]) -> None:
        """Have the hub start what its users chose to have started; it is not waited for.

        Asked again after a failure, and by another service after this one's end: a turn is not
        lost with one answer.
        """
        if self._hub is None:
            return
        now = self._core.now()
        ids = {one.lease_id for one in due}
        self._not_before = {key: at for key, at in self._not_before.items() if key in ids}
        for one in due:
            if one.lease_id in self._starts or now < self._not_before.get(one.lease_id, 0):
                continue
            self._starts[one.lease_id] = asyncio.create_task(self._start(one))

    async def _start(self, due: queue.ToStart) -> None:
        """Ask once; what fails is tried in the next round, until the offer runs out."""
        assert self._hub is not None

        def still_wanted(session: Session, _now: int) -> bool:
            found = session.get(QueueRequest, due.request_id)
            return found is not None and (found.state, found.lease_id) == ("starting", due.lease_id)

        try:
            # This service may have slept since it made the offer; see `Broker._ask_hub`.
            if await self._core.write(still_wanted):
                await self._hub.start_server(due.user, due.server, due.options)
        except EpochLost as lost:
            log.warning("event=hub-start-skipped request=%s message=%r", due.request_id, str(lost))
        except Exception as error:  # noqa: BLE001 (whatever it is, it is tried again)
            self._core.errors.count("hub")
            log.warning("event=hub-start-failed request=%s message=%r", due.request_id, str(error))
        else:
            self._not_before[due.lease_id] = self._core.now() + _ASK_AGAIN_US
        finally:
            self._starts.pop(due.lease_id, None)

    async def _first_opens(self) -> None:
        """Note which servers that the queue started have been opened by their users."""

        def unopened(session: Session) -> list[tuple[str, str, str, int]]:
            rows = session.scalars(_UNOPENED)
            return [(row.id, row.user_name, row.server_name, row.started_us or 0) for row in rows]

        leases = await self._core.read(unopened)
        users = await self._fresh(name for _, name, _, _ in leases)
        before, self._unopened = self._unopened, {}
        for lease_id, name, server, started_us in leases:
            if name not in users:
                continue
            user, now = users[name], self._core.now()
            ready = user is not None and server in user.active_us
            active = user.active_us[server] if user is not None and ready else None
            known = before.get(lease_id)
            first = None if known is None else known.active_us
            if first is None and ready:
                first = now if active is None else active
            self._unopened[lease_id] = _Unopened(first, now)
            if active is None or first is None:
                continue
            if active >= max(started_us, first) + _OPENED_AFTER_US:
                await self._note_opened(lease_id, active)

    def spare_unseen(self, session: Session, now: int) -> None:
        """Leave more time to servers of which nobody knows whether they were opened: the hub did
        not answer for their users, or this service was away."""
        if self._hub is None:
            return
        grace_us = int(self._core.settings.timing.limit_grace_s * 1e6)
        for lease in session.scalars(_UNOPENED):
            seen = self._unopened.get(lease.id)
            if seen is None or now - seen.looked_us > grace_us:
                lease.open_before_us = max(lease.open_before_us or 0, now + 2 * grace_us)
        session.flush()

    async def _note_opened(self, lease_id: str, at_us: int) -> None:
        await self._core.write(lambda session, now: opened(session, lease_id, at_us, now=now))


def _check_options(options: Mapping[str, str]) -> None:
    """Refuse at once what the spawner would refuse when its turn has come."""
    unknown = next((key for key in options if key not in wire.SPAWN_OPTIONS), None)
    if unknown is not None:
        there_are = ", ".join(f"'{key}'" for key in wire.SPAWN_OPTIONS)
        raise Refused(
            "unknown-option", f"Unknown option {unknown[:40]!a}; the options are {there_are}.",
            status=422,
        )  # fmt: skip


_UNOPENED = (
    sa.select(Lease)
    .where(
        Lease.state.in_(LIVE_STATES), Lease.open_before_us.is_not(None),
        Lease.opened_us.is_(None), Lease.started_us.is_not(None),
    )
    .execution_options(populate_existing=True)
)  # fmt: skip


def opened(session: Session, lease_id: str, at_us: int, *, now: int) -> None:
    """From here on a server that the queue had started is its user's; never before paid time."""
    lease = lifecycle.get(session, lease_id)
    if lease.opened_us is not None or lease.open_before_us is None:
        return
    if lease.state in (LeaseState.RUNNING, LeaseState.STOPPING):
        lease.opened_us = max(min(at_us, now), lease.billed_us or 0)
        session.flush()


__all__ = [
    "ChangeRequest",
    "JoinFor",
    "JoinQueue",
    "LeaveQueue",
    "QueueDesk",
    "RequestView",
    "opened",
]
