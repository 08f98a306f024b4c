"""Version numbers, and the advisories that ``gpuslice doctor`` knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

Version: TypeAlias = tuple[int, ...]

_NUMBER = re.compile(r"(?<![\d.])\d{1,5}(?:\.\d{1,5}){1,3}(?!\d)")


def version_in(text: str | None) -> Version | None:
    """The first version number in a text, as in ``26.1.5+dfsg1``; None when there is none.

    What a packager adds (``-1``, ``+dfsg1``, ``~rc``) is left out.
    """
    found = _NUMBER.search(text or "")
    return tuple(int(part) for part in found[0].split(".")) if found else None


def shown(version: Version) -> str:
    return ".".join(str(part) for part in version)


@dataclass(frozen=True, slots=True)
class Advisory:
    """A published flaw of the NVIDIA container toolkit, and where its versions were read."""

    cve: str
    #: The first version without it.
    fixed: Version
    source: str


_BULLETIN = "https://nvidia.custhelp.com/app/answers/detail/a_id"

TOOLKIT_ADVISORIES: tuple[Advisory, ...] = (
    Advisory("CVE-2024-0132", (1, 16, 2), f"{_BULLETIN}/5582"),
    Advisory("CVE-2024-0133", (1, 16, 2), f"{_BULLETIN}/5582"),
    Advisory("CVE-2024-0134", (1, 17, 0), f"{_BULLETIN}/5585"),
    Advisory("CVE-2024-0135", (1, 17, 3), f"{_BULLETIN}/5599"),
    Advisory("CVE-2024-0136", (1, 17, 3), f"{_BULLETIN}/5599"),
    Advisory("CVE-2024-0137", (1, 17, 3), f"{_BULLETIN}/5599"),
    Advisory("CVE-2025-23359", (1, 17, 4), f"{_BULLETIN}/5616"),
    Advisory("CVE-2025-23266", (1, 17, 8), f"{_BULLETIN}/5659"),
    Advisory("CVE-2025-23267", (1, 17, 8), f"{_BULLETIN}/5659"),
    Advisory("CVE-2026-24260", (1, 19, 1), f"{_BULLETIN}/5850"),
)

#: Below it ``NVIDIA_VISIBLE_DEVICES=none`` gave a container every GPU (release notes of 1.18.2).
TOOLKIT_FLOOR: Version = (1, 18, 2)
#: The first whose hook sets memory caps per container, on drivers of branch 615 and later.
TOOLKIT_CAPS: Version = (1, 20, 1)


def open_advisories(toolkit: Version) -> tuple[Advisory, ...]:
    """What is known against this version, the oldest first."""
    return tuple(advisory for advisory in TOOLKIT_ADVISORIES if toolkit < advisory.fixed)
