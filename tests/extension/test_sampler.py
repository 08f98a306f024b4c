"""The sampler: new rows only, a bounded ring, a thread that sleeps and wakes and survives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from jupyterlab_gpuslice.sampler import Sampler


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sampler(clock: Clock) -> Iterator[Sampler[int]]:
    count = itertools.count(1)
    made = Sampler(lambda: next(count), period_s=0.001, keep=5, sleep_after_s=30, clock=clock)
    yield made
    made.close()


def test_a_reader_gets_only_what_is_new_to_it(sampler: Sampler[int]) -> None:
    sampler.take()
    sampler.take()
    sampler.close()  # so that reading does not start the thread
    assert [row.value for row in sampler.since(0)] == [1, 2]
    assert [row.value for row in sampler.since(1)] == [2]
    assert sampler.since(2) == []


def test_a_number_of_an_earlier_server_gets_everything(sampler: Sampler[int]) -> None:
    sampler.take()
    sampler.close()
    assert [row.sequence for row in sampler.since(4711)] == [1]


def test_the_ring_is_bounded_and_sequences_go_on(sampler: Sampler[int]) -> None:
    for _ in range(12):
        sampler.take()
    sampler.close()
    assert [row.sequence for row in sampler.since(0)] == [8, 9, 10, 11, 12]


def test_nobody_asking_means_that_nothing_is_read(sampler: Sampler[int]) -> None:
    assert not sampler.wait(0, 0.05)


def test_it_sleeps_when_nobody_reads_and_wakes_when_somebody_does(
    sampler: Sampler[int], clock: Clock
) -> None:
    sampler.since(0)
    assert sampler.wait(0, 30)
    clock.now = 31.0
    assert sampler.asleep.wait(30)
    last = sampler.since(0)[-1].sequence
    assert sampler.wait(last, 30)


def test_a_failing_reading_does_not_end_the_thread_nor_fill_the_log(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([ZeroDivisionError(), ZeroDivisionError()])

    def read() -> int:
        for problem in outcomes:
            raise problem
        return 7

    sampler = Sampler(read, period_s=0.001, clock=clock)
    sampler.since(0)
    assert sampler.wait(0, 30)
    sampler.close()
    assert sampler.since(0)[0].value == 7
    assert len(caplog.records) == 1
