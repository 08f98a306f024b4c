"""The service client: asked seldom, honest when away, and what the cost is between two answers."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.units import HOUR_US, SECOND_US, now_us
from jupyterlab_gpuslice import service as client
from jupyterlab_gpuslice.budget import FRESH_US, bill_of
from jupyterlab_gpuslice.service import Service
from notebookworld import a_lease, a_me


class Far:
    """The other end: says what the test wants, counts."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.now = 0.0
        self.wall = now_us()

    async def fetch(self, request: HTTPRequest) -> HTTPResponse:
        path = request.url.removeprefix("http://far/x/")
        self.asked.append(path)
        assert request.headers["Authorization"] == "token secret"
        assert not request.follow_redirects
        said = self.answer(path)
        if isinstance(said, Exception):
            raise said
        return HTTPResponse(request, 200, buffer=BytesIO(said))

    def service(self) -> Service:
        return Service(
            "http://far/x", "secret", fetch=self.fetch, clock=lambda: self.now,
            wall=lambda: self.wall,
        )  # fmt: skip


async def _heard(service: Service) -> Service:
    task = service.refresh()
    if task is not None:
        await task
    return service


def _run(work: Awaitable[Any]) -> Any:
    async def whole() -> Any:
        return await work

    return asyncio.run(whole())


def _me(*leases: wire.LeaseView, **changes: Any) -> bytes:
    return a_me(*leases, **changes).model_dump_json().encode()


def _error(code: int, body: bytes = b"") -> HTTPClientError:
    request = HTTPRequest("http://far/x/")
    return HTTPClientError(
        code, response=HTTPResponse(request, code, buffer=BytesIO(body)) if body else None
    )


def test_a_workstation_has_no_service() -> None:
    assert Service.from_environment({}) is None
    assert Service.from_environment({"GPUSLICE_SERVICE_URL": "http://x"}) is None


def test_an_answer_is_kept_and_asked_for_again_when_it_is_old() -> None:
    far = Far(lambda path: _me(a_lease()))

    async def scene() -> None:
        service = far.service()
        assert service.bill is None and service.problem is None
        await _heard(service)
        await _heard(service)
        assert far.asked == ["api/me"]
        far.now += client.KEEP_S
        await _heard(service)
        assert far.asked == ["api/me"] * 2

    _run(scene())


def test_two_tabs_at_once_ask_once() -> None:
    far = Far(lambda path: _me(a_lease()))

    async def scene() -> None:
        service = far.service()
        first, second = service.refresh(), service.refresh()
        assert first is second is not None
        await first

    _run(scene())
    assert far.asked == ["api/me"]


def test_a_shares_numbers_are_asked_for_more_often() -> None:
    far = Far(lambda path: _me(a_lease(share_milli=250)))

    async def scene() -> None:
        service = await _heard(far.service())
        far.now += client.KEEP_SHORT_S
        await _heard(service)

    _run(scene())
    assert len(far.asked) == 2


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (ConnectionRefusedError(), client.AWAY),
        (_error(599), client.AWAY),
        (_error(302), client.AWAY),
        (_error(502, b"<html>"), client.AWAY),
        (_error(401), client.NOT_ACCEPTED),
        (_error(403), client.NOT_ACCEPTED),
        (_error(503, b'{"reason": "hub-unavailable", "message": "The hub is away."}'),
         "The hub is away."),
        (b"<html>", client.NOT_UNDERSTOOD),
        (b"{}", client.NOT_UNDERSTOOD),
        (_me(server=None), client.NOT_ONE_SERVER),
        (_me(), client.NO_LEASE),
    ],
    # The same in every worker: the time is not.
    ids=lambda value: str(value).split('"now_us"')[0],
)  # fmt: skip
def test_whatever_is_wrong_is_one_sentence(said: Any, sentence: str) -> None:
    far = Far(lambda path: said)
    service = _run(_heard(far.service()))
    assert service.problem == sentence
    assert service.bill is None


def test_a_newer_service_may_say_more() -> None:
    said = json.loads(_me(a_lease()))
    said["shoe_size"] = 43
    said["leases"][0]["colour"] = {"name": "red"}
    service = _run(_heard(Far(lambda path: json.dumps(said).encode()).service()))
    assert service.problem is None
    assert service.bill is not None


def test_a_service_that_is_away_is_tried_less_and_less_often_and_its_last_word_stays() -> None:
    answers: list[Any] = [_me(a_lease())]
    far = Far(lambda path: answers.pop(0) if answers else ConnectionRefusedError())

    async def scene() -> list[float]:
        service = await _heard(far.service())
        tries = []
        for _ in range(600):
            far.now += 1
            before = len(far.asked)
            await _heard(service)
            if len(far.asked) > before:
                tries.append(far.now)
        assert service.bill is not None
        assert service.problem == client.AWAY
        return tries

    tries = _run(scene())
    waits = [b - a for a, b in itertools.pairwise(tries)]
    assert waits[:4] == [5, 10, 20, 40]
    assert set(waits[4:]) == {60}


def test_notices_are_fetched_once_for_all_tabs() -> None:
    notices = [
        wire.Notice(
            id=number, lease_id=None, kind="x", severity="info", message="m", created_us=1
        ).model_dump()
        for number in (3, 4)
    ]

    def answer(path: str) -> bytes:
        since = int(path.partition("since=")[2])
        return json.dumps([n for n in notices if n["id"] > since]).encode()

    far = Far(answer)

    async def scene() -> None:
        service = far.service()
        assert [n.id for n in await service.notices(0)] == [3, 4]
        assert [n.id for n in await service.notices(3)] == [4]
        assert await service.notices(4) == []
        far.now += client.KEEP_S
        assert [n.id for n in await service.notices(3)] == [4]

    _run(scene())
    assert far.asked == ["api/me/notices?since=0", "api/me/notices?since=4"]


def test_notices_of_a_service_that_is_away_are_refused_with_its_sentence() -> None:
    far = Far(lambda path: ConnectionRefusedError())
    with pytest.raises(Refused, match="does not answer"):
        _run(far.service().notices(0))


# ------------------------------------------------------------------------------------ the cost


def _bill(**changes: Any) -> Any:
    lease = a_lease(started_us=1_000, covered_us=HOUR_US, cost_u=10, **changes)
    return bill_of(a_me(lease, now_us=HOUR_US + 5 * SECOND_US), heard_us=2 * HOUR_US)


def test_cost_goes_on_by_the_rate_in_this_machines_time() -> None:
    bill = _bill(rate_u_per_hour=3_600)
    # The service's clock is an hour less five seconds behind ours.
    assert bill.as_of_us == 2 * HOUR_US - 5 * SECOND_US
    assert bill.ticking(2 * HOUR_US)
    assert bill.cost_at(2 * HOUR_US) == 10 + 5
    assert bill.cost_at(2 * HOUR_US + 10 * SECOND_US) == 10 + 15


def test_cost_is_not_guessed_long_after_the_last_answer() -> None:
    bill = _bill()
    late = bill.heard_us + FRESH_US + 1
    assert not bill.ticking(late)
    assert bill.cost_at(late) is None


def test_nothing_is_paid_after_a_stop_was_asked_for() -> None:
    bill = _bill(rate_u_per_hour=3_600, stop_requested_us=HOUR_US + 2 * SECOND_US)
    assert not bill.ticking(bill.heard_us)
    assert bill.cost_at(bill.heard_us) == bill.cost_at(bill.heard_us + SECOND_US) == 12


def test_a_lease_that_has_not_started_costs_nothing() -> None:
    lease = a_lease(state=wire.LeaseState.GRANTED, started_us=None, covered_us=None, cost_u=0)
    bill = bill_of(a_me(lease), heard_us=now_us())
    assert bill is not None
    assert bill.cost_at(bill.heard_us + 10 * SECOND_US) == 0


def test_the_deadline_is_told_in_this_machines_time() -> None:
    bill = _bill(deadline_us=2 * HOUR_US, deadline_reason="20 GPU-hours a week are used up")
    # The service's clock is an hour less five seconds behind ours.
    assert bill.deadline_us == 3 * HOUR_US - 5 * SECOND_US
    assert bill.deadline_reason == "20 GPU-hours a week are used up"
    assert _bill().deadline_us is None
