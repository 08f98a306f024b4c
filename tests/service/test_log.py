"""Logs are one JSON object per line, bounded and clean, whatever is logged."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from gpuslice.service.log import configure_logging, event


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(stream)
    yield stream
    root.handlers[:], root.level = handlers, level


def test_one_line_bounded_and_clean(stream: io.StringIO) -> None:
    log = logging.getLogger("gpuslice.test")
    event(
        log, logging.INFO, "request", path="a\nb\x1b[31m\u202e" + "x" * 9999, status=200, none=None
    )
    log.warning("long %s", "y" * 99_999)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    first, second, third = map(json.loads, lines)
    assert (first["event"], first["status"], first["level"]) == ("request", 200, "info")
    assert "none" not in first
    assert first["path"].startswith("a\ufffdb\ufffd[31m\ufffdxxx")
    assert max(map(len, lines)) < 10_000
    assert len(second["event"]) < 3000
    assert "ValueError: first\nsecond" in third["traceback"]


def test_what_the_hubs_classes_say_of_sessions_is_not_logged(stream: io.StringIO) -> None:
    logging.getLogger("tornado.application").info("Setting new xsrf cookie for %r", "session")
    assert stream.getvalue() == ""
