"""Writes that are done once, whatever is sent again: a key is claimed with the effect it names.

The claim is a row in the transaction of the effect, so there is never one without the other. The
answer is added afterwards; a service that dies in between leaves a key without an answer, and
whoever asks again is told that it was done. Keys are kept for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger.tables import IdempotencyKey


@dataclass
class Claim:
    """A key that a request came with; ``taken`` once its effect is committed."""

    caller: str
    key: str
    fingerprint: str
    taken: bool = False


@dataclass(frozen=True)
class Done:
    """What was answered the first time; status 0: the answer was lost."""

    fingerprint: str
    status: int
    answer: str


class AlreadyDone(Exception):
    """Another request with this key was first."""


def find(session: Session, caller: str, key: str) -> Done | None:
    """What a key has done, if anything."""
    row = session.get(IdempotencyKey, (caller, key), populate_existing=True)
    return None if row is None else Done(row.fingerprint, row.status, row.answer)


def claim(session: Session, wanted: Claim, now: int) -> None:
    """Take the key in the transaction of its effect.

    Raises:
        AlreadyDone: it is taken.
    """
    if find(session, wanted.caller, wanted.key) is not None:
        raise AlreadyDone(wanted.key)
    session.add(
        IdempotencyKey(
            caller=wanted.caller, key=wanted.key, fingerprint=wanted.fingerprint, status=0,
            answer="", created_us=now,
        )
    )  # fmt: skip
    session.flush()


def answer(session: Session, taken: Claim, status: int, text: str) -> None:
    """Keep what was answered, for whoever asks again."""
    session.execute(
        sa.update(IdempotencyKey)
        .where(
            IdempotencyKey.caller == taken.caller,
            IdempotencyKey.key == taken.key,
            IdempotencyKey.status == 0,
        )
        .values(status=status, answer=text)
        .execution_options(synchronize_session=False)
    )
