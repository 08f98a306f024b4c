"""What a row of the route table is: one method on one path, who may, and what goes in and out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

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
    "node_id": TypeAdapter(Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]),
    "device": TypeAdapter(Annotated[str, Field(min_length=1, max_length=96)]),
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
    #: False: it only looks, whatever its method; a question may be too long for a URL.
    changes: bool = True
    #: What each row of a `Stream` is.
    rows: type[BaseModel] | None = None

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
        return self.method != "GET" and self.changes and not self.is_page

    @property
    def refusals(self) -> list[int]:
        """Every status with which it may be refused; the document names each."""
        found = {400}  # at least an argument that it does not know
        if self.access is not Access.PUBLIC:
            found.add(401)
            found.add(503)
        if self.access.by_hub:
            found.add(403)
        if self.has_body:
            found |= {413, 415}
        # What it is about may not be there, or not yours; be it named in path, query or body.
        if self.parameters or self.has_body or self.query is not models.Nothing:
            found.add(404)
        if self.method != "GET":
            # Stale, over, or against a limit: by its state, by what it is, by what was said of it.
            found |= {403, 409, 422}
        return sorted(found)

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

    def load(self, text: str) -> R:
        """The inverse of `dump`."""
        return TypeAdapter(self.answer).validate_json(text)


AnyRoute = Route[Any, Any, Any]
