"""Structured logs: one JSON object per line, every field bounded and clean, never a secret."""

from __future__ import annotations

import json
import logging
import sys
from typing import TextIO

from gpuslice.units import now_us, to_datetime

_MAX_FIELD = 200
_MAX_MESSAGE = 2_000
_MAX_TRACEBACK = 8_000


def event(logger: logging.Logger, level: int, name: str, **fields: object) -> None:
    """Log one event with its fields; None is left out."""
    logger.log(level, name, extra={"fields": {k: v for k, v in fields.items() if v is not None}})


def clean(value: object, limit: int = _MAX_FIELD) -> object:
    """A value as it may stand in a log: short, one line, printable."""
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    cut = text[:limit]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
    return shown if len(text) <= limit else shown + "…"


class JsonLines(logging.Formatter):
    """Formats a record, with the fields of :func:`event` if it has any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": to_datetime(now_us()).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": clean(record.getMessage(), _MAX_MESSAGE),
        }
        fields = getattr(record, "fields", {})
        line.update((key, clean(value)) for key, value in fields.items())
        if record.exc_info:
            # A traceback is many lines of text; as a JSON string it stays one line of log.
            line["traceback"] = self.formatException(record.exc_info)[-_MAX_TRACEBACK:]
        return json.dumps(line, ensure_ascii=False)


def configure_logging(stream: TextIO = sys.stderr) -> None:
    """Send all logs of this process to ``stream``."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # The hub's auth classes log session ids and user models through this one below WARNING.
    logging.getLogger("tornado.application").setLevel(logging.WARNING)
