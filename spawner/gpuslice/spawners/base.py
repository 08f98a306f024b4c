"""The life of one leased server as the hub sees it; an engine fills in four calls.

The flow is the same for every engine: ask the service for a lease, start exactly that, hand it
back on the way out. Correctness never depends on the way out being taken: the service's
reconciler ends what a dead hub leaves behind.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from jupyterhub.spawner import Spawner
from jupyterhub.utils import maybe_future
from tornado.web import HTTPError
from traitlets import Float, Unicode, default

from gpuslice.spawners import hubview
from gpuslice.spawners.builders import SERVER_TOKEN_SCOPES, grant_text
from gpuslice.spawners.client import ServiceClient
from gpuslice.spawners.errors import (
    EngineRefused,
    EngineUnavailable,
    ServiceRefused,
    ServiceUnavailable,
)
from gpuslice.spawners.form import options_form, unavailable_form
from gpuslice.spawners.options import Choice, choice, flatten, stored_options
from gpuslice.spawners.progress import ProgressBoard
from gpuslice.spawners.refusal import SpawnRefused
from gpuslice.spawners.words import (
    SERVICE_SILENT,
    as_refusal,
    error_words,
    exited_text,
    in_line,
)
from gpuslice.units import now_us
from gpuslice.wire import (
    JoinFor,
    LeaseGrant,
    LeaseRequest,
    LeaseState,
    LeaseView,
    ServerReport,
    ServerState,
)

#: The lease is over: no server can run in it any more.
_OVER = (LeaseState.SETTLED, LeaseState.ENDED, LeaseState.CANCELLED)
#: Refusals that are about this very server's earlier lease.
_IN_THE_WAY = ("already-leased", "previous-session-ending")
#: Refusals that waiting in line answers.
_NOTHING_FREE = ("gpu-full", "host-cpu-full", "host-ram-full", "reserved", "others-wait")
#: The hub waits this long between cancelling a start and stopping the server itself.
_HUB_WAITS_AFTER_CANCEL_S = 1.0
#: Our own time limit of a start ends so much before the hub's ``start_timeout``.
_BEFORE_THE_HUB_S = 3.0
_LOOK_AGAIN_S = 0.2
_ANSWER_LIMIT_S = 5.0
_LOG_LINES_SHOWN = 5
_LOG_CHARS_SHOWN = 600


class GpuSpawner(Spawner):
    """Base of the spawners that start servers in leased GPU slices.

    An engine fills in :meth:`engine_start`, :meth:`engine_report`, :meth:`engine_stop` and
    :meth:`engine_log_tail`, and where it needs them :meth:`engine_prepare` and
    :meth:`image_titles`.
    """

    service_url = Unicode(
        help="""
        URL of the gpuslice service as the hub reaches it, for example
        ``http://127.0.0.1:8085/services/gpuslice/``. Set by ``gpuslice.configure``.

        Not through the proxy: leases must be found while the hub and its proxy are starting.
        """
    ).tag(config=True)

    notebook_service_url = Unicode(
        help="""
        URL of the gpuslice service as notebook servers reach it, given to them as
        ``GPUSLICE_SERVICE_URL``. Default: the same as ``service_url``.
        """
    ).tag(config=True)

    broker_token_file = Unicode(
        help="""
        File with the token that the spawner shows to the service, readable by the hub only.
        Set by ``gpuslice.configure``. It is read at every call, so a new token needs no restart.
        """
    ).tag(config=True)

    default_slice = Unicode(
        help="""
        Name of the slice that a start without options gets, for example ``cpu``.

        Empty (the default): such a start is refused with the list of slices, so that nobody pays
        for a slice that they did not choose. The spawn page chooses this slice beforehand.
        """
    ).tag(config=True)

    service_timeout_s = Float(
        5.0, help="How many seconds one call to the gpuslice service may take."
    ).tag(config=True)

    stop_grace_s = Float(
        10.0,
        help="How many seconds a server has between being asked to end and being killed.",
    ).tag(config=True)

    settle_wait_s = Float(
        10.0,
        help="""
        How many seconds a stop waits for the lease to be settled, so that a start right after it
        finds the slice free. When it is over the lease is settled in the background.
        """,
    ).tag(config=True)

    patience_s = Float(
        300.0,
        help="""
        How many seconds a stop, or the search for a server after a crash of the hub, goes on
        while nobody who could know answers. Meanwhile the server is never taken for stopped;
        the hub and everybody else's servers do not wait for it.

        A hub that starts waits as long for a server that the engine says runs and that does not
        answer; while the engine cannot be asked, it waits without a limit.
        """,
    ).tag(config=True)

    lease_id: str | None = None
    slice_name: str = ""
    #: The image that was asked for by name; None: the engine's first, or it has none.
    image_chosen: str | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._board = ProgressBoard()
        self._starting = False
        self._lease_asked = False
        self._cleanup: asyncio.Task[None] | None = None
        self._refused_options: SpawnRefused | None = None
        self._chosen = Choice("")

    # --- what an engine fills in ------------------------------------------------------------

    def image_titles(self) -> Mapping[str, str]:
        """The images that a server may be started from, with what users read; the first is taken.

        Empty: this engine has no images.
        """
        return {}

    async def engine_prepare(self) -> None:
        """Whatever may take long and needs no slice, such as pulling an image.

        Called before a lease is asked for, so that nobody pays for it or waits for a slice that
        is held meanwhile. The hub's ``start_timeout`` does not bound it: do that yourself.

        Raises:
            EngineUnavailable, EngineRefused, SpawnRefused
        """

    @abstractmethod
    async def engine_start(self, grant: LeaseGrant) -> None:
        """Start the server in the granted slice; from then on the engine's reports have its URL.

        Raises:
            EngineUnavailable, EngineRefused
        """

    @abstractmethod
    async def engine_report(self, lease_id: str) -> ServerReport | None:
        """What the engine says of the lease's server; None if it positively has none.

        Raises:
            EngineUnavailable: it could not be asked; that says nothing about the server.
        """

    @abstractmethod
    async def engine_stop(self, lease_id: str, grace_s: float) -> None:
        """Ask the lease's server to end, and kill it after ``grace_s``; returns at once.

        Raises:
            EngineUnavailable, EngineRefused
        """

    @abstractmethod
    async def engine_log_tail(self, lease_id: str) -> list[str]:
        """The last lines that the lease's server wrote; empty if that cannot be told."""

    # --- options ----------------------------------------------------------------------------

    @default("options_form")
    def _default_options_form(self) -> Callable[[Any], Awaitable[str]]:
        return type(self).offers_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
        return self.read_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Callable[[Any, dict[str, Any]], None]:
        return type(self).take_options

    @default("server_token_scopes")
    def _default_server_token_scopes(self) -> list[str]:
        return list(SERVER_TOKEN_SCOPES)

    async def offers_form(self) -> str:
        """The spawn page's form: what the service offers this user now."""
        try:
            choices = await self.service().choices(
                self.user.name, hubview.user_groups(self), self.name
            )
        except (ServiceUnavailable, ServiceRefused) as error:
            self.log.warning("gpuslice: no offers for %s: %s", self._log_name, error)
            return unavailable_form()
        return options_form(choices, self.default_slice, self.image_titles())

    def read_form(self, form: dict[str, list[Any]]) -> dict[str, Any]:
        """Form or query to options; a bad one is refused before the hub keeps it."""
        options = flatten(form)
        choice(options, self.default_slice, self.image_titles())
        return options

    def options_from_query(self, query: dict[str, list[Any]]) -> dict[str, Any]:
        """Options of a link to a spawn. A page of another site must not spend a user's money."""
        if hubview.came_from_elsewhere(self):
            raise SpawnRefused(
                "A link on another site cannot start a server; choose a slice here",
                reason="cross-site",
                status_code=403,
            )
        return self.read_form(query)

    def take_options(self, options: dict[str, Any]) -> None:
        """Validate and keep what was asked for, whichever way it came.

        A refusal is kept for :meth:`run_pre_spawn_hook`: whatever is raised in here the hub logs
        with a traceback, and a mistyped name is no fault of the hub.
        """
        self._refused_options = None
        try:
            self._choose(options)
        except SpawnRefused as refused:
            self._refused_options = refused
            hubview.keep_options(self, {})
        else:
            hubview.keep_options(self, stored_options(self._chosen))

    def _choose(self, options: Mapping[str, Any]) -> None:
        self._chosen = choice(options, self.default_slice, self.image_titles())
        self.slice_name, self.image_chosen = self._chosen.slice, self._chosen.image

    def run_pre_spawn_hook(self) -> Any:
        """The administrator's hook, unless the options were refused; then what may take long.

        Here and not in :meth:`start`, because ``start_timeout`` is about a server that has its
        image and its lease: a pull of many minutes would need a limit that is useless for that.
        """
        return self._before_start()

    async def _before_start(self) -> None:
        self._board = ProgressBoard()
        try:
            if self._refused_options is not None:
                await self._refuse_options(self._refused_options)
            await maybe_future(super().run_pre_spawn_hook())
            if not self.slice_name:
                # Somebody configured an apply_user_options of their own.
                self._choose(self.user_options)
            await self.engine_prepare()
        except BaseException as error:
            self._board.close()
            refused = as_refusal(error)
            if refused is None:
                raise
            raise refused from error

    async def _refuse_options(self, refused: SpawnRefused) -> None:
        if refused.reason in ("no-slice", "unknown-slice"):
            raise await self._with_alternatives(refused)
        raise refused

    async def _with_alternatives(self, refused: SpawnRefused) -> SpawnRefused:
        """The refusal with the names of the slices that are free, if they can be had."""
        try:
            offers = await self.service().offers(self.user.name)
        except (ServiceUnavailable, ServiceRefused):
            return refused
        return SpawnRefused(
            str(refused.message),
            reason=refused.reason,
            status_code=refused.status_code,
            alternatives=[offer.slice for offer in offers if offer.free > 0],
        )

    # --- start ------------------------------------------------------------------------------

    async def start(self) -> str:
        """Lease a slice, start the server in it, wait until it answers; return its URL."""
        self._starting, self._lease_asked, self._cleanup = True, False, None
        try:
            return await self._start_in_time()
        except BaseException as error:
            # BaseException: the Stop button and the start timeout arrive as CancelledError.
            await self._give_back(error)
            refused = as_refusal(error)
            if refused is None:
                raise
            raise refused from error
        finally:
            self._starting = False
            self._board.close()

    async def _start_in_time(self) -> str:
        """Give up before the hub does: its own timeout has no words for the user."""
        try:
            async with asyncio.timeout(max(1.0, self.start_timeout - _BEFORE_THE_HUB_S)):
                return await self._start()
        except TimeoutError:
            raise await self._too_late() from None

    async def _too_late(self) -> SpawnRefused:
        text = "The server did not get ready in time"
        if self.lease_id is not None:
            text += await self._last_words(self.lease_id)
        return SpawnRefused(text, reason="start-timeout", status_code=504)

    async def _start(self) -> str:
        self._board.say(5, f"Asking for a {self.slice_name} slice")
        grant = await self._lease()
        self._board.say(20, grant_text(grant))
        await self._start_server(grant)
        self._board.say(40, "Starting the notebook server")
        url = await self._until_it_answers(grant.lease_id)
        self._board.say(95, "The notebook server answers")
        return url

    async def _start_server(self, grant: LeaseGrant) -> None:
        try:
            await self.engine_start(grant)
        except EngineRefused:
            # A server that ends at once may be settled before it was told of: then that refuses
            # the start, and what became of the server is the reason.
            report = await self._started(grant.lease_id)
            if report is not None and report.state is ServerState.EXITED:
                raise await self._exited(report) from None
            raise

    async def _lease(self) -> LeaseGrant:
        # One attempt id for all tries of this start: a lost answer cannot lease twice.
        request = LeaseRequest(
            attempt=uuid.uuid4().hex,
            user=self.user.name,
            server=self.name,
            slice=self.slice_name,
            groups=hubview.user_groups(self),
            group=self._chosen.charge,
            declared_us=self._chosen.declared_us,
        )
        self._lease_asked = True
        try:
            try:
                grant = await self.service().lease(request)
            except ServiceRefused as error:
                if error.refusal.reason not in _IN_THE_WAY:
                    raise
                await self._end_previous(error)
                grant = await self.service().lease(request)
        except ServiceRefused as error:
            self._lease_asked = False
            if error.refusal.reason in _NOTHING_FREE and self._chosen.queue != "no":
                raise await self._wait_in_line(error) from error
            raise
        self.lease_id = grant.lease_id
        self.log.info("gpuslice: %s got lease %s", self._log_name, grant.lease_id)
        return grant

    async def _wait_in_line(self, error: ServiceRefused) -> SpawnRefused:
        """Join the queue, as the user chose; the start is refused with the place in line.

        Raises:
            ServiceRefused: there is no waiting for it either, and why.
        """
        place = await self.service().join_queue(
            JoinFor(
                user=self.user.name,
                server=self.name,
                slice=self.slice_name,
                groups=hubview.user_groups(self),
                group=self._chosen.charge,
                declared_us=self._chosen.declared_us,
                auto_start=self._chosen.queue == "start",
                options={
                    key: text
                    for key, text in stored_options(self._chosen).items()
                    if key not in ("profile", "charge")
                },
            )
        )
        self.log.info("gpuslice: %s waits in line for %s", self._log_name, self.slice_name)
        return in_line(place, error.refusal, now_us())

    async def _end_previous(self, error: ServiceRefused) -> None:
        """End what is left of this server, which the hub says does not run: it lost track of it."""
        self._board.say(10, "Ending the previous session of this server")
        lease = await self.service().current(self.user.name, self.name)
        if lease is None:
            return
        self.log.warning("gpuslice: %s: %s", self._log_name, error)
        if lease.stop_requested_us is None:
            await self._end(lease.lease_id, "replaced by a new start", self.stop_grace_s)
        await self._settle(lease.lease_id)

    async def _until_it_answers(self, lease_id: str) -> str:
        """Wait for the server to listen, and say where; the hub's start timeout bounds it."""
        told = False
        while True:
            match await self._started(lease_id):
                case ServerReport(state=ServerState.EXITED) as report:
                    raise await self._exited(report)
                case ServerReport(state=ServerState.RUNNING, url=url):
                    if url and await _listens(url):
                        return url
                    if not told:
                        self._board.say(60, "The server's process runs; waiting for it to answer")
                        told = True
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _started(self, lease_id: str) -> ServerReport | None:
        """What became of a server that was started; None while that is not known.

        Raises:
            SpawnRefused: it has ended, and so thoroughly that the engine has forgotten it.
        """
        try:
            report = await self.engine_report(lease_id)
            lease = None if report is not None else await self.service().get(lease_id)
        except (EngineUnavailable, ServiceUnavailable, ServiceRefused):
            return None
        if lease is not None and lease.state in _OVER:
            text = f"The server ended while starting: {lease.end_reason or 'nobody knows why'}"
            raise SpawnRefused(text, reason="server-exited", status_code=500)
        return report

    async def _exited(self, report: ServerReport) -> SpawnRefused:
        """Why a server ended before it was ready, in words for its user."""
        text = exited_text(report) + await self._last_words(report.lease_id)
        return SpawnRefused(text, reason="server-exited", status_code=500)

    async def _last_words(self, lease_id: str) -> str:
        lines = (await self.engine_log_tail(lease_id))[-_LOG_LINES_SHOWN:]
        return f". It wrote last: {' / '.join(lines)[-_LOG_CHARS_SHOWN:]}" if lines else ""

    # --- giving a lease back after a start that failed ----------------------------------------

    async def _give_back(self, error: BaseException) -> None:
        """End what a failed start has leased, even if nobody waits for it any more."""
        if not self._lease_asked:
            return
        cancelled = isinstance(error, asyncio.CancelledError)
        reason = (
            "start cancelled or timed out" if cancelled else f"start failed: {error_words(error)}"
        )
        # A task of its own: cancelling the start again does not cancel this.
        self._cleanup = asyncio.create_task(self._clean_up(reason[:500]))
        # The hub soon calls stop(), which waits for the rest of it. Waiting longer here would
        # take the reason from the user: the hub's own time limit has no words.
        limit_s = _HUB_WAITS_AFTER_CANCEL_S if cancelled else _BEFORE_THE_HUB_S
        await asyncio.wait([self._cleanup], timeout=limit_s / 2)

    async def _clean_up(self, reason: str) -> None:
        try:
            lease_id = self.lease_id or await self._unanswered_lease()
            if lease_id is not None:
                await self._end(lease_id, reason, grace_s=0.0)
                await self._settle(lease_id)
        finally:
            self.lease_id = None

    async def _unanswered_lease(self) -> str | None:
        """The lease of a request whose answer was lost: granted to this server and not started."""
        try:
            lease = await self.service().current(self.user.name, self.name)
        except (ServiceUnavailable, ServiceRefused):
            return None
        return lease.lease_id if lease and lease.state is LeaseState.GRANTED else None

    # --- stop -------------------------------------------------------------------------------

    async def stop(self, now: bool = False) -> None:
        """Commit the stop at the service, stop the server, wait for its end."""
        if self._cleanup is not None:
            # The start failed, and this ends what it leased; the reconciler sees to the rest.
            await asyncio.wait([self._cleanup])
            return
        if self.lease_id is None:
            lease = await self._current_lease()
            self.lease_id = lease.lease_id if lease else None
        if self.lease_id is None:
            return
        reason = "hub" if hubview.is_waiting_for_server(self) else "user"
        grace_s = 0.0 if now else self.stop_grace_s
        await self._end(self.lease_id, reason, grace_s)
        await self._until_it_ended(self.lease_id, grace_s + self.settle_wait_s)

    def run_post_stop_hook(self) -> Any:
        """After every end that the hub notices: a fast path to free the slice, no more."""
        return self._settle_then_hook()

    async def _settle_then_hook(self) -> None:
        if self.lease_id is not None:
            await self._settle(self.lease_id)
        await maybe_future(super().run_post_stop_hook())

    async def _end(self, lease_id: str, reason: str, grace_s: float) -> None:
        """Get the end of a lease under way; returns when service or node has taken it on.

        The stop is committed first, so that a crash from here on does not forget it. When the
        service does not answer the node is asked all the same, and the lease is settled later.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            committed = await self._commit_stop(lease_id, reason)
            asked = await self._ask_engine_to_stop(lease_id, grace_s)
            if committed or asked or time.monotonic() > deadline:
                return
            # Returning now would make the hub forget a server that goes on.
            await asyncio.sleep(_LOOK_AGAIN_S * 5)

    async def _commit_stop(self, lease_id: str, reason: str) -> bool:
        try:
            await self.service().stop(lease_id, reason, actor="hub")
        except (ServiceUnavailable, ServiceRefused) as error:
            self.log.warning("gpuslice: stop of lease %s not committed: %s", lease_id, error)
            return False
        return True

    async def _ask_engine_to_stop(self, lease_id: str, grace_s: float) -> bool:
        try:
            await self.engine_stop(lease_id, grace_s)
        except (EngineUnavailable, EngineRefused) as error:
            self.log.info("gpuslice: server of lease %s not stopped here: %s", lease_id, error)
            return False
        return True

    async def _until_it_ended(self, lease_id: str, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if await self._status(lease_id) is not None:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
        self.log.warning("gpuslice: lease %s goes on ending in the background", lease_id)

    async def _settle(self, lease_id: str) -> None:
        try:
            await self.service().settle(lease_id, self.settle_wait_s)
        except (ServiceUnavailable, ServiceRefused) as error:
            self.log.info("gpuslice: lease %s will be settled later: %s", lease_id, error)

    # --- is it running? ---------------------------------------------------------------------

    async def poll(self) -> int | None:
        """None while the server runs or nobody can tell; its exit code once it has ended."""
        if self._starting or (self._cleanup is not None and not self._cleanup.done()):
            return None
        if self.lease_id is None:
            return await self._adopt() if self._may_adopt else 0
        return await self._status(self.lease_id)

    async def _status(self, lease_id: str) -> int | None:
        try:
            report = await self.engine_report(lease_id)
        except EngineUnavailable:
            return None
        if report is not None:
            return _exit_status(report)
        # The engine has no such server: the lease may be over, or its end is being noticed.
        return await self._settled_status(lease_id)

    async def _settled_status(self, lease_id: str) -> int | None:
        """The exit code if the service says that the lease is over, else None."""
        try:
            lease = await self.service().get(lease_id)
        except (ServiceUnavailable, ServiceRefused):
            return None
        if lease is None:
            return 0
        return (lease.exit_code or 0) if lease.state in _OVER else None

    async def _adopt(self) -> int | None:
        """Find a server that a hub before this one started and had no time to write down."""
        try:
            lease = await self._current_lease()
        except ServiceUnavailable:
            return None
        if lease is None:
            return 0
        try:
            report = await self.engine_report(lease.lease_id)
        except EngineUnavailable:
            self.lease_id = lease.lease_id
            return None
        unstarted = report is None or report.state is ServerState.CREATED
        if unstarted and lease.state is LeaseState.GRANTED:
            # The start that asked for it died with the hub: nobody will finish it.
            await self._end(lease.lease_id, "the hub restarted during the start", grace_s=0.0)
            return 0
        self.lease_id, self.slice_name = lease.lease_id, lease.slice
        self.log.info("gpuslice: %s adopted with lease %s", self._log_name, lease.lease_id)
        return None if report is None else _exit_status(report)

    async def _current_lease(self) -> LeaseView | None:
        """The live lease of this server, asked for patiently: the hub may start before the service.

        Raises:
            ServiceUnavailable: it did not answer in all that time.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return await self.service().current(self.user.name, self.name)
            except (ServiceUnavailable, ServiceRefused) as error:
                if time.monotonic() > deadline:
                    raise ServiceUnavailable(str(error)) from error
            await asyncio.sleep(_LOOK_AGAIN_S * 5)

    async def get_url(self) -> str:
        """Where the server is; waits until it answers there or is over, or ``patience_s``.

        A hub that starts asks this about every server that runs, gives it ``http_timeout`` seconds
        to answer there, and **stops it** if it does not. Yet a notebook may be busy for longer, and
        a hub's new container is put into the server's network only after it has started: until
        then one attempt to connect alone takes as long as all of ``http_timeout``.
        """
        url = str(self.server.url)
        deadline = time.monotonic() + self.patience_s
        while self.lease_id is not None:
            over = False
            try:
                report = await self.engine_report(self.lease_id)
            except EngineUnavailable:
                # Nor can a new hub be put into any network: that is no fault of the server.
                deadline = time.monotonic() + self.patience_s
                report = None
            if report is not None:
                url, over = report.url or url, report.state is ServerState.EXITED
            if over or await _answers(url) or await self._settled_status(self.lease_id) is not None:
                break
            if time.monotonic() > deadline:
                self.log.warning("gpuslice: %s does not answer at %s", self._log_name, url)
                break
            await asyncio.sleep(_LOOK_AGAIN_S * 5)
        return url

    # --- the hub's record of it -------------------------------------------------------------

    def load_state(self, state: dict[str, Any]) -> None:
        """Called for every spawner object; an empty state may also mean a crash in ``start()``."""
        super().load_state(state)
        self.lease_id = state.get("lease_id") or None
        self.slice_name = state.get("slice", "")
        self._may_adopt = self.lease_id is None

    def get_state(self) -> dict[str, Any]:
        """What the hub keeps: only where to look. The service has the rest."""
        state: dict[str, Any] = super().get_state()
        if self.lease_id is not None:
            state["lease_id"] = self.lease_id
            state["slice"] = self.slice_name
        return state

    def clear_state(self) -> None:
        """Called before each start and after each end: from here on there is nothing to adopt."""
        super().clear_state()
        self.lease_id = None
        self.slice_name, self.image_chosen = "", None
        self._chosen = Choice("")
        self._may_adopt = False

    _may_adopt = False

    async def rename(self, old_name: str, new_name: str) -> None:
        """A lease carries the server's name, so it has to be over before the name changes."""
        try:
            lease = await self.service().current(self.user.name, old_name)
        except (ServiceUnavailable, ServiceRefused) as error:
            raise HTTPError(503, f"Not renamed: {SERVICE_SILENT}") from error
        if lease is not None:
            raise HTTPError(409, "Not renamed: the server's lease is still being settled")
        await super().rename(old_name, new_name)

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """What the start is doing, for the spawn-pending page."""
        async for event in self._board.watch():
            yield event

    # --- helpers ----------------------------------------------------------------------------

    def service(self) -> ServiceClient:
        """Calls to the gpuslice service."""
        return ServiceClient(
            self.service_url, Path(self.broker_token_file), timeout_s=self.service_timeout_s
        )


def _exit_status(report: ServerReport) -> int | None:
    return (report.exit_code or 0) if report.state is ServerState.EXITED else None


async def _answers(url: str) -> bool:
    """Whether a notebook server answers there in a few seconds, whatever it says."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER_LIMIT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}/api", allow_redirects=False) as answer,
        ):
            return answer.status < 500
    except (OSError, TimeoutError, aiohttp.ClientError):
        return False


async def _listens(url: str) -> bool:
    """Whether something accepts connections there; whether it is the server the hub asks itself."""
    parts = urlsplit(url)
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(parts.hostname, parts.port), timeout=2.0
        )
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
