"""Why somebody would be admitted or refused: every limit in words, by the code that decides."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from gpuslice.quotas.chain import candidates
from gpuslice.quotas.rules import effective


def most_slices(session: Session, account_id: int, user: str, groups: Sequence[str]) -> int | None:
    """How many slices a user may hold at a time, by the most generous group; None: unlimited."""
    found: list[int | None] = []
    for chain in candidates(session, account_id, user, groups):
        rules = effective(chain, "", "UTC").rules
        own = [
            rule.limit for rule in rules if (rule.kind, rule.account_id) == ("slices", account_id)
        ]
        found.append(own[0] if own else None)
    return None if None in found else max(number for number in found if number is not None)
