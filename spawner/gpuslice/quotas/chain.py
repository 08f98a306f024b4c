"""Which accounts a lease counts for: its user's, one group's, and those above that group.

A user of several groups is charged to one of them at a time: the one that was chosen, else the
first (by name) that admits. So a student of a course who is also in a lab has what either gives,
and nothing is counted twice. A group without a policy of its own or above it limits nothing and
is charged nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.errors import Refused
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import Account, AccountName
from gpuslice.quotas import policies
from gpuslice.quotas.policies import Stored

#: Groups above groups, at most; a limit that stops a loop made by hand.
MAX_DEPTH = 8


@dataclass(frozen=True)
class Link:
    """One account of a chain with its policy, if it has one; ``name`` is for people."""

    account_id: int
    name: str
    policy: Stored | None


@dataclass(frozen=True)
class Chain:
    """A user's account, and the groups that one lease counts for, from the nearest up."""

    user: Link
    groups: tuple[Link, ...]
    everyone: Stored | None

    @property
    def account_ids(self) -> list[int]:
        return [self.user.account_id, *(link.account_id for link in self.groups)]

    @property
    def group(self) -> Link | None:
        """The group that is charged."""
        return self.groups[0] if self.groups else None


def candidates(
    session: Session, account_id: int, user: str, groups: Sequence[str], chosen: str | None = None
) -> list[Chain]:
    """The chains that a lease of this user may be charged to, in the order they are tried.

    Raises:
        Refused: ``not-in-group``, the group that was chosen is not one of the user's;
            ``group-not-charged``, nothing can be charged to it, although another of the user's
            groups has limits.
    """
    if chosen is not None and chosen not in groups:
        mine = f"; yours are {', '.join(sorted(groups)[:20])}" if groups else ""
        raise Refused(
            "not-in-group", f"You are not in the group {chosen[:64]!r}{mine}.", status=403
        )
    names = sorted(set(groups))
    upwards = _upwards(session, names)
    held = policies.some(
        session,
        {policies.EVERYONE, f"user:{account_id}"}
        | {f"group:{one}" for links in upwards for one, _ in links},
    )
    everyone = held.get(policies.EVERYONE)
    own = Link(account_id, user, held.get(f"user:{account_id}"))
    found = {}
    for name, accounts_up in zip(names, upwards, strict=True):
        links = tuple(Link(one, label, held.get(f"group:{one}")) for one, label in accounts_up)
        if any(link.policy is not None for link in links):
            found[name] = Chain(own, links, everyone)
    # A group that limits nothing must not be a way around those that do.
    if chosen is not None and found and chosen not in found:
        raise Refused(
            "group-not-charged",
            f"The group {chosen[:64]!r} has no limits of its own, so nothing is charged to it; "
            f"choose {' or '.join(list(found)[:20])}, or none.",
            status=403,
        )
    chains = [chain for name, chain in found.items() if chosen in (None, name)]
    return chains or [Chain(own, (), everyone)]


_OF_NAMES = sa.select(AccountName.name, AccountName.account_id).where(
    AccountName.source == accounts.HUB_GROUP,
    AccountName.name.in_(sa.bindparam("names", expanding=True)),
    AccountName.valid_til_us.is_(None),
)
_PARENTS = sa.select(Account.id, Account.label, Account.parent_id).where(
    Account.id.in_(sa.bindparam("ids", expanding=True))
)


def _upwards(session: Session, names: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Each group with the groups above it, by number and label, as far as they have accounts."""
    if not names:
        return []
    rows = session.execute(_OF_NAMES, {"names": list(names)})
    of_name = dict(rows.all())
    known: dict[int, tuple[str, int | None]] = {}
    missing = set(of_name.values())
    for _ in range(MAX_DEPTH):
        if not missing:
            break
        found = session.execute(_PARENTS, {"ids": sorted(missing)})
        known |= {one: (label, parent) for one, label, parent in found}
        missing = {parent for _, parent in known.values() if parent is not None} - known.keys()
    return [_up(of_name.get(name), known) for name in names]


def _up(
    account_id: int | None, known: Mapping[int, tuple[str, int | None]]
) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    while account_id is not None and len(found) < MAX_DEPTH:
        label, parent = known[account_id]
        found.append((account_id, label))
        account_id = parent
    return found
