"""The one exception with which the platform says no: it carries the refusal that people read."""

from __future__ import annotations

from collections.abc import Sequence

from gpuslice.wire import Refusal


class Refused(Exception):
    """Something was refused, for a reason that programs can act on and in words for people.

    ``status`` is the HTTP status that says the same; every surface renders ``refusal``.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        status: int = 409,
        limit: str | None = None,
        retry_after_s: int | None = None,
        alternatives: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.refusal = Refusal(
            reason=reason,
            message=message,
            limit=limit,
            retry_after_s=retry_after_s,
            alternatives=list(alternatives),
        )

    def __repr__(self) -> str:
        return f"Refused({self.refusal.reason!r}, {self.refusal.message!r}, status={self.status})"
