"""Pulls of images: how far, why not, and one of them for however many starts wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuslice.spawners import pulls
from gpuslice.spawners.pulls import (
    Layers,
    Line,
    Progress,
    PullFailed,
    Pulls,
    progress_text,
    pull_problem,
)

MIB = 1 << 20


def line(status: str, layer: str = "", current: int = 0, total: int = 0) -> Line:
    detail = {"current": current, "total": total} if total else {}
    return {"status": status, "progressDetail": detail, **({"id": layer} if layer else {})}


def after(*lines: Line) -> Progress:
    layers, progress = Layers(), Progress()
    for one in lines:
        progress = layers.take(one)
    return progress


BEGUN = [
    line("Pulling from a/b", "latest"),
    line("Already exists", "one"),
    line("Pulling fs layer", "two"),
    line("Pulling fs layer", "three"),
    line("Waiting", "three"),
    line("Downloading", "two", 10 * MIB, 40 * MIB),
]


def test_layers_and_bytes_add_up() -> None:
    progress = after(*BEGUN)
    assert (progress.layers_done, progress.layers) == (1, 3)
    assert (progress.bytes_done, progress.bytes_total) == (10 * MIB, 40 * MIB)
    assert not progress.all_sizes_known
    more = after(
        *BEGUN,
        line("Downloading", "three", MIB, 10 * MIB),
        line("Verifying Checksum", "two"),
        line("Extracting", "two", 20 * MIB, 40 * MIB),
    )
    assert (more.bytes_done, more.bytes_total) == (41 * MIB, 50 * MIB)
    assert more.all_sizes_known
    assert progress.percent < more.percent < 100
    done = after(*BEGUN, line("Pull complete", "two"), line("Pull complete", "three"),
                 line("Digest: sha256:0"), line("Status: Downloaded newer image"))  # fmt: skip
    assert (done.layers_done, done.layers, done.percent) == (3, 3, 100)


def test_what_users_read() -> None:
    waiting = progress_text("Lab", Progress(), shared=False)
    assert waiting == "Waiting to pull the image Lab: other images are being pulled"
    assert progress_text("Lab", after({}), shared=False) == "Pulling the image Lab"
    text = "1 of 3 layers, 10 MiB of at least 40 MiB"
    assert progress_text("Lab", after(*BEGUN), shared=False) == f"Pulling the image Lab: {text}"
    shared = progress_text("Lab", after(*BEGUN), shared=True)
    assert shared == f"Waiting for another start's pull of the image Lab: {text}"
    known = after(*BEGUN, line("Downloading", "three", 0, MIB))
    assert progress_text("Lab", known, shared=False).endswith("10 MiB of 41 MiB")


ANYTHING = st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.floats()
LINES = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["Downloading", "Extracting", "Pull complete"]) | ANYTHING,
        "id": st.sampled_from(["a", "b"]) | ANYTHING,
        "progressDetail": st.dictionaries(st.sampled_from(["current", "total"]), ANYTHING)
        | ANYTHING,
    },
)


@given(st.lists(LINES, max_size=20))
def test_whatever_an_engine_says_is_a_sentence(lines: list[dict[str, Any]]) -> None:
    progress = after({}, *lines)
    assert 0 <= progress.percent <= 100
    assert progress_text("Lab", progress, shared=False).startswith("Pulling the image Lab")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("image-no-space", "write /var/lib/docker/tmp/x: no space left on device"),
        ("image-login", "unauthorized: authentication required"),
        ("image-login", "pull access denied for a/b, may require 'docker login': denied"),
        ("image-not-found", "manifest for a/b:c not found: manifest unknown"),
        ("registry-unavailable", "the engine failed: dial tcp 127.0.0.1:1: connection refused"),
        ("registry-unavailable", 'Get "https://h/v2/": dial tcp: lookup h: no such host'),
        ("registry-unavailable", "unexpected EOF"),
        ("image-pull-failed", "something new"),
    ],
)  # fmt: skip
def test_why_a_pull_failed(reason: str, said: str) -> None:
    problem = pull_problem("a/b:c", said)
    assert problem.reason == reason
    assert str(problem).startswith("The image a/b:c was not pulled: ")
    assert said.removeprefix("the engine failed: ") in str(problem)
    assert len(str(pull_problem("a", "x" * 10_000))) < 500


# --- sharing --------------------------------------------------------------------------------


class Registry:
    """Hands out pulls that go on when the test says so."""

    def __init__(self, error: str = "") -> None:
        self.begun = 0
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self._error = error

    def __call__(self) -> Generator[Line, None, None]:
        self.begun += 1
        try:
            yield line("Downloading", "one", MIB, 2 * MIB)
            assert self.go_on.wait(30)
            if self._error:
                yield {"error": self._error}
            yield line("Pull complete", "one")
        finally:
            self.ended.set()


class Start:
    """A start that waits for an image, and what it was told."""

    def __init__(self, pulls: Pulls, source: Registry, image: str = "a") -> None:
        self.told: list[tuple[Progress, bool]] = []
        self.task = asyncio.create_task(
            pulls.wait_for(image, image, source, lambda *said: self.told.append(said))
        )


async def until(true: Any) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110  (what is looked at is a thread's)
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "_TELL_FIRST_S", 0.01)
    monkeypatch.setattr(pulls, "_TELL_EVERY_S", 0.01)


def test_one_pull_for_however_many_starts() -> None:
    async def scene() -> None:
        registry, shared = Registry(), Pulls(2)
        starts = [Start(shared, registry) for _ in range(5)]
        await until(lambda: all(start.told[-1:] for start in starts))
        await until(lambda: all(start.told[-1][0].bytes_done == MIB for start in starts))
        registry.go_on.set()
        await asyncio.gather(*(start.task for start in starts))
        assert registry.begun == 1
        assert [start.told[-1][1] for start in starts] == [False, True, True, True, True]
        # The next one is a new pull.
        await Start(shared, registry).task
        assert registry.begun == 2

    asyncio.run(scene())


def test_a_start_that_is_cancelled_takes_the_pull_from_nobody() -> None:
    async def scene() -> None:
        registry, shared = Registry(), Pulls(1)
        first, second = Start(shared, registry), Start(shared, registry)
        await until(lambda: second.told)
        first.task.cancel()
        await asyncio.wait([first.task])
        assert first.task.cancelled()
        third = Start(shared, registry)
        await until(lambda: third.told)
        registry.go_on.set()
        await asyncio.gather(second.task, third.task)
        assert registry.begun == 1

    asyncio.run(scene())


def test_a_pull_that_nobody_waits_for_goes_on_and_the_next_start_finds_it() -> None:
    async def scene() -> None:
        registry, shared = Registry(), Pulls(1)
        only = Start(shared, registry)
        await until(lambda: registry.begun)
        only.task.cancel()
        await asyncio.wait([only.task])
        assert not registry.ended.is_set()
        late = Start(shared, registry)
        await until(lambda: late.told)
        registry.go_on.set()
        await late.task
        assert registry.begun == 1
        assert late.told[0][1]

    asyncio.run(scene())


def test_everybody_hears_why_it_failed_and_the_next_start_tries_again() -> None:
    async def scene() -> None:
        registry, shared = Registry("no space left on device"), Pulls(1)
        starts = [Start(shared, registry) for _ in range(3)]
        await until(lambda: all(start.told for start in starts))
        registry.go_on.set()
        for start in starts:
            with pytest.raises(PullFailed) as failed:
                await start.task
            assert failed.value.reason == "image-no-space"
        # What it had open is closed, not left to the garbage collector.
        assert registry.ended.is_set()
        good = Registry()
        good.go_on.set()
        await Start(shared, good).task

    asyncio.run(scene())


def test_different_images_wait_for_a_thread_and_say_so() -> None:
    async def scene() -> None:
        shared = Pulls(1)
        one, two = Registry(), Registry()
        first = Start(shared, one, "one")
        await until(lambda: one.begun)
        second = Start(shared, two, "two")
        await until(lambda: second.told)
        assert not second.told[-1][0].started
        assert two.begun == 0
        one.go_on.set()
        two.go_on.set()
        await asyncio.gather(first.task, second.task)

    asyncio.run(scene())


def test_nothing_is_left_of_pulls_that_ended() -> None:
    async def scene() -> None:
        shared = Pulls(4)

        def nothing() -> Generator[Line, None, None]:
            lines: Iterable[Line] = ()
            yield from lines

        await asyncio.gather(*(shared.wait_for(str(n), "x", nothing, lambda *_: None)
                               for n in range(20)))  # fmt: skip
        assert shared._running == {}

    asyncio.run(scene())
