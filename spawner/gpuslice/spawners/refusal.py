"""A refused spawn, worded once so that form, progress page, error page and REST say the same."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jupyterhub.spawner import SpawnException

from gpuslice.wire import Refusal


class SpawnRefused(SpawnException):
    """A spawn that policy, input or a missing part refuses: never counted as a hub failure.

    JupyterHub 6.1 renders ``message`` on its error page and in REST, but reads
    ``jupyterhub_message`` and ``jupyterhub_html_message`` on the spawn form and in the progress
    stream, and SpawnException sets neither; users would read its ``repr``.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        status_code: int = 400,
        limit: str | None = None,
        retry_after_s: int | None = None,
        alternatives: Sequence[str] = (),
    ) -> None:
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.alternatives = tuple(alternatives)
        text = refusal_text(message, limit, retry_after_s, self.alternatives)
        super().__init__(text, reason=reason, message_html=escape(text), status_code=status_code)
        # JupyterHub sends these with its answer.
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)

    @property
    def jupyterhub_message(self) -> str:
        """Plain text; the hub escapes it."""
        return str(self.message)

    @property
    def jupyterhub_html_message(self) -> str:
        """The same as HTML, escaped here because the hub inserts it as it is."""
        return str(self.message_html)

    @classmethod
    def from_refusal(cls, status_code: int, refusal: Refusal) -> SpawnRefused:
        """The service's refusal, with its own status."""
        return cls(
            refusal.message,
            reason=refusal.reason,
            status_code=status_code,
            limit=refusal.limit,
            retry_after_s=refusal.retry_after_s,
            alternatives=refusal.alternatives,
        )


def refusal_text(
    message: str, limit: str | None, retry_after_s: int | None, alternatives: Sequence[str]
) -> str:
    """What was refused, by which limit, when to try again and what can be had instead."""
    # The service words most of it itself; nothing is said twice.
    parts = [_sentence(message)]
    if limit and limit not in message:
        parts.append(_sentence(f"Limit: {limit}"))
    if retry_after_s is not None and "again" not in message:
        parts.append(f"Try again in {_duration(retry_after_s)}.")
    if not all(name in message for name in alternatives):
        parts.append(f"Free now: {', '.join(alternatives)}.")
    return " ".join(parts)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _duration(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} second{_s(seconds)}"
    minutes = -(-seconds // 60)
    if minutes < 90:
        return f"{minutes} minutes"
    return f"{-(-minutes // 60)} hours"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
