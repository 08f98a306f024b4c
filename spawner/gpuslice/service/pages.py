"""What a page is before it is rendered, and the page of an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """An HTML answer: a template of the part between navigation and end, and what it shows."""

    template: str
    title: str
    context: Mapping[str, object]
    #: Our own script that keeps the page fresh, by file name; none for a page that stays.
    script: str | None = None


@dataclass(frozen=True)
class Redirect:
    """Go on at this path below the prefix (303, so with GET)."""

    path: str


@dataclass(frozen=True)
class Viewer:
    """Who looks at a page, as far as the navigation needs it."""

    name: str
    sees_admin: bool


def error_page(status: int, message: str, back: str = "") -> Page:
    """Something went wrong, in the words of a refusal; ``back`` is a path below the prefix."""
    return Page("error.html", str(status), {"message": message, "back": back})
