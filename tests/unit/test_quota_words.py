"""Quotas in words: what a refusal says, and what the options of `gpuslice quota set` say."""

from __future__ import annotations

import io
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gpuslice.cli.quotatext import changed_document
from gpuslice.cli.trouble import Trouble
from gpuslice.quotas.rules import Rule
from gpuslice.quotas.words import refusal_text

MEMBER = "each member of group students"
TOTAL = "group students in total"


def refusal(rule: Rule, held: int = 0) -> str:
    return refusal_text(rule, rule.limit, 0, held, 1, None, "whole", ZoneInfo("UTC"), "EUR")


_OWN = "hold as many already; stop one of the servers first, or ask an administrator for more."
_OTHERS = "and that many are held; wait until one is free, or ask an administrator for more."


@pytest.mark.parametrize(
    ("source", "limit", "slice_type", "said"),
    [
        (MEMBER, 2, None, f"You may hold 2 slices at a time ({{}}) and {_OWN}"),
        (MEMBER, 0, None, "You may hold no slice ({}); ask an administrator."),
        ("user ada", 0, "whole", "You may hold no slice of whole ({}); ask an administrator."),
        (TOTAL, 3, None, f"All together may hold 3 slices at a time ({{}}), {_OTHERS}"),
        (TOTAL, 1, "whole", f"All together may hold 1 slice of whole at a time ({{}}), {_OTHERS}"),
        (TOTAL, 0, "whole", "All together may hold no slice of whole ({}); ask an administrator."),
    ],
)  # fmt: skip
def test_a_number_of_slices(source: str, limit: int, slice_type: str | None, said: str) -> None:
    kind = "slices" if slice_type is None else "slices-of-type"
    rule = Rule(kind, 1, limit, source, slice_type=slice_type)  # type: ignore[arg-type]
    assert refusal(rule, held=limit) == said.format(source)


def test_slice_types() -> None:
    some = Rule("slice-types", 1, None, MEMBER, allowed=("quarter", "cpu"))
    assert refusal(some) == (
        f"You may not take slices of type whole ({MEMBER}); you may take: quarter, cpu."
    )
    none = Rule("slice-types", 1, None, MEMBER, allowed=())
    assert refusal(none) == (
        f"You may not take slices of type whole ({MEMBER}): no slice type is allowed."
    )


#: What the command gives where an option is not there.
_NOTHING: dict[str, Any] = {
    "slices": None, "slices_of": (), "gpu_hours": (), "prepaid": None, "priority": None,
    "clear": (), "source": None,
}  # fmt: skip


def test_a_file_is_the_whole_policy() -> None:
    document = {"each": {"slices": 1}}

    def from_file(**more: Any) -> Any:
        file = io.BytesIO(b'{"each": {"slices": 1}}')
        return changed_document({"each": {"priority": 3}}, _NOTHING | more | {"source": file})

    assert from_file() == document
    for beside in ({"slices": "2"}, {"gpu_hours": ("20/week",)}, {"prepaid": False},
                   {"priority": 0}, {"clear": ("slices",)}):  # fmt: skip
        with pytest.raises(Trouble, match=r"^--file is the whole policy: give no other option"):
            from_file(**beside)
