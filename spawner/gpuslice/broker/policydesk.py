"""Policies as administrators read and change them, and why somebody would be refused."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker.core import Core, Hub
from gpuslice.broker.grant import GrantRules, ask_of, slice_type_of
from gpuslice.errors import Refused
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import Account
from gpuslice.quotas import admission, policies
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.quotas.views import (
    CheckView,
    ExplainRequest,
    Explanation,
    PolicyKind,
    PolicyView,
    VerdictView,
)
from gpuslice.quotas.words import amount, plain

log = logging.getLogger(__name__)

#: An account that nobody has: what a user without one has used is nothing.
_NOBODY = 0


class PolicyDesk:
    """Reads and changes policies, each change one transaction with its audit row."""

    def __init__(
        self, core: Core, rules: Callable[[], GrantRules], hub: Hub | None,
        changed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._core = core
        self._rules = rules
        self._hub = hub
        self._changed = changed

    async def page(
        self, find: str | None, after: int | None, limit: int
    ) -> tuple[list[PolicyView], int | None]:
        """Policies that hold now, everyone's first, and the ``after`` of the next page; ``find``:
        only of those with this in their names."""

        def work(session: Session) -> tuple[list[PolicyView], int | None]:
            start = -1 if after is None else after
            found = policies.some_current(session, start, limit + 1, find=find)
            more = len(found) > limit
            shown = found[:limit]
            following = (shown[-1].account_id or 0) if more else None
            return [_view(session, stored) for stored in shown], following

        return await self._core.serve_read(work)

    async def one(self, kind: PolicyKind, name: str | None) -> PolicyView:
        """The policy that holds for somebody now.

        Raises:
            Refused: ``no-such-policy``.
        """

        def work(session: Session) -> PolicyView:
            stored = policies.current(session, _subject(session, kind, name))
            if stored is None:
                raise no_such_policy(kind, name)
            return _view(session, stored)

        return await self._core.serve_read(work)

    async def history(
        self, kind: PolicyKind, name: str | None, before: int | None, limit: int
    ) -> tuple[list[PolicyView], int | None]:
        """Versions, newest first, and the ``before`` of the next page; none if there never was
        one."""

        def work(session: Session) -> tuple[list[PolicyView], int | None]:
            subject = _subject(session, kind, name)
            found = policies.history(session, subject, before=before, limit=limit + 1)
            following = found[limit - 1].version if len(found) > limit else None
            return [_view(session, stored) for stored in found[:limit]], following

        return await self._core.serve_read(work)

    async def set(
        self, kind: PolicyKind, name: str | None, document: PolicyDocument | None,
        version: int | None, reason: str, actor: str,
    ) -> PolicyView | None:  # fmt: skip
        """Replace a policy from now on, or remove it (``document`` None).

        Raises:
            Refused: changed in the meantime, or it says what its subject cannot have.
        """

        def work(session: Session, now: int) -> PolicyView | None:
            account_id = None
            if kind != "everyone":
                account_id = policies.account_of(session, kind, name or "", now)
            stored = policies.set_policy(
                session, policies.subject_of(kind, account_id), account_id, document,
                expected=version, actor=actor, reason=reason, now=now,
                name=f"policy of {kind}{f' {name}' if name else ''}",
            )  # fmt: skip
            return None if stored is None else _view(session, stored)

        found = await self._core.serve_write(work)
        await self._changed()
        return found

    async def explain(self, body: ExplainRequest) -> Explanation:
        """What admission would say now; the same code, and nothing is changed.

        Raises:
            Refused: there is no such slice type, the group is not the user's, or the hub does not
                say which groups are.
        """
        rules = self._rules()
        wanted = slice_type_of(body.slice, rules.catalogue)
        groups = await self._groups(body.user) if body.groups is None else body.groups
        request = wire.LeaseRequest(
            attempt="0" * 32, user=body.user, slice=body.slice, groups=groups,
            group=body.group, declared_us=body.declared_us,
        )  # fmt: skip
        ask = ask_of(request, wanted, rules)

        def work(session: Session) -> Explanation:
            now = self._core.now()
            account_id = accounts.find(session, accounts.HUB_USER, body.user) or _NOBODY
            verdicts = admission.decide(session, account_id, ask, now=now)
            ok = any(verdict.ok for verdict in verdicts)
            refusal = None if ok else str(admission.refuse(verdicts[0], ask, now))
            return Explanation(
                user=body.user, slice=body.slice, ok=ok, refusal=refusal,
                verdicts=[_verdict(verdict, rules.currency) for verdict in verdicts],
            )  # fmt: skip

        return await self._core.serve_read(work)

    async def _groups(self, user: str) -> list[str]:
        """The groups that the hub has a user in now; none for somebody it does not have."""
        if self._hub is None:
            return []
        try:
            found = await self._hub.user(user)
        except Exception as error:  # noqa: BLE001 (whatever it is, nobody knows the groups)
            self._core.errors.count("hub")
            log.warning("event=hub-user-failed message=%r", str(error))
            raise Refused(
                "hub-unavailable",
                "The hub does not answer, so nobody knows the user's groups; name them.",
                status=503, retry_after_s=60,
            ) from None  # fmt: skip
        return [] if found is None else list(found.groups)


def no_such_policy(kind: str, name: str | None) -> Refused:
    whom = f"{kind} {name}" if name else kind
    return Refused("no-such-policy", f"There is no policy of {whom[:300]}.", status=404)


def _subject(session: Session, kind: PolicyKind, name: str | None) -> str:
    """What a policy is kept under; a name that nobody has finds nothing."""
    if kind == "everyone":
        return policies.EVERYONE
    source = accounts.HUB_USER if kind == "user" else accounts.HUB_GROUP
    account_id = accounts.find(session, source, name or "")
    return f"{kind}:{account_id if account_id is not None else _NOBODY}"


def _view(session: Session, stored: policies.Stored) -> PolicyView:
    label = None
    if stored.account_id is not None:
        label = session.scalar(sa.select(Account.label).where(Account.id == stored.account_id))
    return PolicyView.model_validate(
        {
            "kind": stored.subject.partition(":")[0], "name": label, "version": stored.version,
            "document": stored.document, "since_us": stored.valid_from_us,
            "til_us": stored.valid_til_us, "actor": stored.actor, "reason": stored.reason,
        }
    )  # fmt: skip


def _verdict(verdict: admission.Verdict, currency: str) -> VerdictView:
    chain = verdict.chain
    names = {link.account_id: link.name for link in (chain.user, *chain.groups)}
    return VerdictView(
        group=chain.group.name if chain.group else None,
        accounts=[chain.user.name, *(link.name for link in chain.groups)], ok=verdict.ok,
        checks=[_check(check, names[check.rule.account_id], currency) for check in verdict.checks],
        hold_u=verdict.hold_u, hold_kind=verdict.hold_kind, price_list=verdict.price_list,
        session_us=verdict.session_us, priority=verdict.effective.priority,
    )  # fmt: skip


def _check(check: admission.Check, account: str, currency: str) -> CheckView:
    rule = check.rule
    text = (
        f"{amount(rule, check.limit, currency)} ({rule.source}): {plain(rule, check.used)} used, "
        f"{plain(rule, check.held)} held, {plain(rule, check.asked)} asked"
    )
    return CheckView(
        kind=rule.kind, source=rule.source, account=account,
        period=str(rule.period), slice=rule.slice_type, limit=check.limit, used=check.used,
        held=check.held, asked=check.asked, ok=check.ok, again_us=check.again_us, text=text,
    )  # fmt: skip
