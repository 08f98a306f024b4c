"""What a row of the route table is: one method on one path, who may, and what goes in and out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, TypeAdapter

from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import B, Call, Q, Stream, Text
from gpuslice.service.pages import Page, Redirect
from gpuslice.wire import LeaseId, UserName

R = TypeVar("R")

#: What may stand for a name in braces in a path; the same model checks it and documents it.
PARAMETERS: dict[str, TypeAdapter[Any]] = {
    "lease_id": TypeAdapter(LeaseId),
    "request_id": TypeAdapter(LeaseId),
    "name": TypeAdapter(UserName),
    "number": TypeAdapter(Annotated[int, Field(ge=1, le=1 << 62)]),
}
_BRACES = re.compile(r"\\{([a-z_]+)\\}")


@dataclass(frozen=True)
class Route(Generic[B, Q, R]):
    """One method on one path, relative to the service's prefix."""

    method: str
    path: str
    access: Access
    run: Callable[[Call[B, Q]], Awaitable[R]]
    body: type[B]
    query: type[Q]
    answer: type[R]
    summary: str
    status: int = 200

    @property
    def name(self) -> str:
        """Short and unique; label in metrics, operationId in OpenAPI."""
        return self.run.__name__

    @property
    def is_page(self) -> bool:
        """For eyes: answers and errors are HTML, and somebody unknown is sent to the login."""
        return self.answer in (Page, Redirect)

    @property
    def is_json(self) -> bool:
        return not self.is_page and self.answer not in (Text, Stream)

    @property
    def is_write(self) -> bool:
        """Changes something, so a caller may send it twice under one Idempotency-Key."""
        return self.method != "GET" and not self.is_page

    @property
    def has_body(self) -> bool:
        return self.body is not models.Nothing

    @property
    def is_form(self) -> bool:
        """The body is what a page's form sends; everywhere else it is JSON."""
        return self.is_page and self.has_body

    @property
    def body_may_be_empty(self) -> bool:
        fields = self.body.model_fields  # type: ignore[attr-defined]
        return not any(field.is_required() for field in fields.values())

    @property
    def pattern(self) -> str:
        """The path as a regular expression."""
        return _BRACES.sub(r"(?P<\1>[^/]+)", re.escape(self.path))

    @property
    def parameters(self) -> list[str]:
        """The names in braces, each one of `PARAMETERS`."""
        return re.findall(r"\{([a-z_]+)\}", self.path)

    def dump(self, answer: R) -> bytes:
        """The answer as JSON."""
        return TypeAdapter(self.answer).dump_json(answer)


AnyRoute = Route[Any, Any, Any]
