"""One log line per event: ``event=server-lost lease=… pids=…``, bounded and clean."""

from __future__ import annotations

import json
import logging

_LONGEST = 500


def log_event(log: logging.Logger, event: str, level: int = logging.INFO, **fields: object) -> None:
    """Logs an event; values with blanks, quotes or control characters are written as JSON."""
    pairs = "".join(f" {name}={_clean(value)}" for name, value in fields.items())
    log.log(level, "event=%s%s", event, pairs)


def _clean(value: object) -> str:
    text = str(value)[:_LONGEST]
    if text and text.isprintable() and not set(text) & set(" =\"'\\"):
        return text
    return json.dumps(text)
