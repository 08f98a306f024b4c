"""Users and groups in the hub, made with an administrator's token; nothing there is removed.

The service may not do this: its own token has no such scope. This one needs ``admin:users`` and
``groups`` (and ``admin:groups`` where a group has to be made first), and is only read by the
command that it is given to.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from gpuslice.cli.peoplecsv import Person
from gpuslice.cli.trouble import Trouble
from gpuslice.service.hubclient import HubClient, HubUnavailable
from gpuslice.service.secretfiles import SecretFileError, read_secret

T = TypeVar("T")
#: So many users are made, or put into a group, by one call.
_AT_ONCE = 100


@dataclass(frozen=True)
class Lacking:
    """What the hub has not of a list: users, groups, and members by group."""

    users: tuple[str, ...]
    groups: tuple[str, ...]
    members: dict[str, tuple[str, ...]]

    def __bool__(self) -> bool:
        return bool(self.users or self.groups or self.members)

    def lines(self) -> Iterator[str]:
        """For people, one thing to do each."""
        if self.users:
            yield f"hub: make {_some(self.users)}"
        yield from (f"hub: make the group {name}" for name in self.groups)
        yield from (f"hub: put into {group}: {_some(names)}" for group, names in
                    self.members.items())  # fmt: skip


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


class HubPeople:
    """A hub's users and groups. Every method raises Trouble: refused, or not reached."""

    def __init__(self, api_url: str, token_file: Path) -> None:
        try:
            self._token = read_secret(token_file)
        except SecretFileError as error:
            raise Trouble(f"--hub-token-file: {error}") from None
        self._api_url = api_url

    def lacking(self, people: Sequence[Person]) -> Lacking:
        """What of this list the hub has not."""
        return self._with(lambda hub: _lacking(hub, people))

    def add(self, lacking: Lacking) -> None:
        """Make what is lacking: users, then groups, then who is in them."""
        self._with(lambda hub: _add(hub, lacking))

    def _with(self, work: Callable[[_Client], Awaitable[T]]) -> T:
        async def run() -> T:
            client = _Client(self._api_url, self._token)
            try:
                return await work(client)
            finally:
                await client.close()

        try:
            return asyncio.run(run())
        except HubUnavailable as error:
            raise Trouble(
                f"The hub at {self._api_url}: {error}. No limit was set. (The token needs "
                "admin:users and groups, and admin:groups where a group has to be made.)"
            ) from None


class _Client(HubClient):
    """The hub's API as far as an administrator's token reaches."""

    async def groups(self) -> set[str]:
        return {str(group["name"]) for group in await self._all("/groups")}

    async def make_users(self, names: Sequence[str]) -> None:
        answer = await self._do("/users", {"usernames": list(names)})
        made = {str(user["name"]) for user in answer}
        if made != set(names):
            others = sorted(made - set(names))
            raise HubUnavailable(
                f"it calls users by other names than the list: {', '.join(others[:5])}; it has "
                "made them. Change the list"
            )

    async def make_group(self, name: str) -> None:
        await self._do(f"/groups/{quote(name, safe='')}", None)

    async def put_into(self, group: str, names: Sequence[str]) -> None:
        await self._do(f"/groups/{quote(group, safe='')}/users", {"users": list(names)})

    async def _do(self, path: str, body: object) -> Any:
        status, answer = await self._call("POST", path, body)
        if status in (200, 201):
            return answer
        said = answer.get("message") if isinstance(answer, dict) else None
        raise HubUnavailable(f"it answered {status} to {path}: {str(said or '')[:300]}")


async def _lacking(hub: _Client, people: Sequence[Person]) -> Lacking:
    there = {user.name: set(user.groups) for user in await hub.users()}
    groups = await hub.groups()
    wanted = {person.row.user: person.row.groups for person in people}
    members: dict[str, list[str]] = defaultdict(list)
    for name, its in wanted.items():
        for group in its:
            if group not in there.get(name, set()):
                members[group].append(name)
    return Lacking(
        users=tuple(name for name in wanted if name not in there),
        groups=tuple(sorted(group for group in members if group not in groups)),
        members={group: tuple(names) for group, names in sorted(members.items())},
    )


async def _add(hub: _Client, lacking: Lacking) -> None:
    for names in _parts(lacking.users):
        await hub.make_users(names)
    for group in lacking.groups:
        await hub.make_group(group)
    for group, members in lacking.members.items():
        for names in _parts(members):
            await hub.put_into(group, names)


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
