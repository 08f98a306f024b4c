"""Accounts and lists of people, from the command line to a real hub and a real ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from service_world import HubWorld

from gpuslice.broker import people
from gpuslice.cli.app import main
from gpuslice.ledger.verify import verify
from gpuslice.service import hubclient
from gpuslice.service.hubclient import HubClient
from ledgerworld import World, sqlite_ledger

pytestmark = pytest.mark.hub


class Platform:
    """A hub, the service with the real broker on a ledger of its own, and the command line."""

    def __init__(self, folder: Path) -> None:
        self.hub = HubWorld(folder / "hub")
        (folder / "hub").mkdir()
        self.client = HubClient(self.hub.config.hub_api_url, self.hub.config.service_token)
        self.ledger = World(sqlite_ledger(folder / "ledger.sqlite"), hub=self.client)
        self.hub.service.broker = self.ledger.live()  # type: ignore[assignment]
        self.state = folder / "state"
        self.secret("state/secrets/operator_token", self.hub.config.operator_token)
        self.config = folder / "gpuslice.toml"
        self.config.write_text(
            f'[service]\nport = {self.hub.service_port}\n'
            f'public_prefix = "{self.hub.config.prefix}"\n'
            f'[hub]\napi_url = "{self.hub.config.hub_api_url}"\n'
        )  # fmt: skip
        self.hub_token = self.secret("hub_token", self.hub.tests_token)

    def secret(self, name: str, text: str) -> Path:
        path = self.hub.folder.parent / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def command(self, *words: str | Path, fails: bool = False) -> str:
        where = ["--state", self.state, "--config", self.config]
        done = CliRunner().invoke(main, [str(word) for word in (*words, *where)])
        assert done.exit_code == (1 if fails else 0), (done.output, done.exception)
        return done.output

    def import_(self, text: str, *words: str | Path, fails: bool = False) -> str:
        path = self.hub.folder.parent / "students.csv"
        path.write_text(text)
        return self.command("user", "import", path, *words, fails=fails)

    def on_loop(self, job: Any) -> Any:
        """Run something where the service runs."""
        return asyncio.run_coroutine_threadsafe(job, self.hub.service._loop).result(60)

    def follow(self) -> people.Followed:
        return self.on_loop(self.ledger.live().people.follow())

    def hub_user(self, name: str) -> dict[str, Any] | None:
        answer = self.hub.api("GET", f"users/{name}")
        return answer.json() if answer.status_code == 200 else None


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("people"))
    with made.hub:
        yield made
        made.on_loop(made.client.close())
    assert made.ledger.database.read(verify) == []
    made.ledger.close()


LIST = """name,group,slices,types,gpu_hours,credit
ada,course,1,quarter;cpu,20/week,10
bob,course;/lab,2,,,
"""
WINTER = ("--credit-name", "winter-2026")


def test_a_list_from_nothing_to_users_with_limits(platform: Platform) -> None:
    hub_token = ("--hub-token-file", platform.hub_token)
    dry = platform.import_(LIST, *WINTER, "--dry-run")
    assert dry.splitlines() == [
        "+ ada: slices 1, GPU hours 20 per week, slice types quarter, cpu",
        "+ ada: credit 10.00 EUR (winter-2026)",
        "+ bob: slices 2",
        "the hub has no user ada (for course)",
        "the hub has no user bob (for course, /lab)",
        "2 users: limits of 2 created, 0 changed, 0 removed, 0 unchanged; credit for 1.",
        "Nothing was done: it was a dry run.",
    ]
    dry = platform.import_(LIST, *WINTER, *hub_token, "--dry-run")
    assert "hub: make ada, bob\n" in dry
    assert "hub: make the group /lab\nhub: make the group course\n" in dry
    assert "hub: put into /lab: bob\nhub: put into course: ada, bob\n" in dry
    assert platform.hub_user("ada") is None
    assert "no open account of user 'ada'" in platform.command("user", "show", "ada", fails=True)

    platform.import_(LIST, *WINTER, *hub_token, "--reason", "winter term")
    for name, groups in (("ada", {"course"}), ("bob", {"course", "/lab"})):
        user = platform.hub_user(name)
        assert user is not None and set(user["groups"]) == groups
    shown = platform.command("user", "show", "ada")
    assert "called ada from" in shown and "credit left 10.00 EUR" in shown
    assert "slices 1" in platform.command("quota", "show", "user", "ada")

    again = platform.import_(LIST, *WINTER, *hub_token)
    assert again.splitlines() == [
        "2 users: limits of 0 created, 0 changed, 0 removed, 2 unchanged; credit for 0."
    ]
    changed = LIST.replace("ada,course,1", "ada,/lab,3").replace("10\n", "\n")
    said = platform.import_(changed, *hub_token)
    assert "hub: put into /lab: ada\n" in said
    assert "~ ada: slices 3" in said and "(was slices 1" in said
    assert "credit left 10.00 EUR" in platform.command("user", "show", "ada")


def test_a_list_with_mistakes_does_nothing(platform: Platform) -> None:
    text = "name,slices\ncleo,1\nDan,1\neve,x\n"
    said = platform.import_(text, "--hub-token-file", platform.hub_token, fails=True)
    assert "students.csv: line 3: name: the hub writes names small" in said
    assert "students.csv: line 4: slices: 'x' is not a number" in said
    assert "Nothing was done: students.csv has 2 mistakes." in said
    assert platform.hub_user("cleo") is None
    platform.command("user", "show", "cleo", fails=True)
    said = platform.import_("name,credit\ncleo,5\n", fails=True)
    assert "needs --credit-name" in said
    platform.import_("name,credit\ncleo,5\n", *WINTER)
    said = platform.import_("name,slices,credit\ncleo,1,6\n", *WINTER, fails=True)
    assert "another amount was given before to cleo" in said
    platform.command("quota", "show", "user", "cleo", fails=True)


def test_a_hub_token_that_may_not_stops_it_before_any_limit(platform: Platform) -> None:
    weak = platform.secret("weak_token", platform.hub.config.service_token)
    said = platform.import_("name,slices\nfay,1\n", "--hub-token-file", weak, fails=True)
    # The service's own token: it reads users, and makes none.
    assert "The hub at" in said and "403" in said and "needs admin:users" in said
    assert platform.hub_user("fay") is None
    platform.command("user", "show", "fay", fails=True)
    weak.chmod(0o644)
    said = platform.import_("name\nfay\n", "--hub-token-file", weak, fails=True)
    assert "--hub-token-file" in said and "chmod 600" in said


def test_the_life_of_an_account_by_command(platform: Platform) -> None:
    platform.import_("name,slices\ngil,1\n")
    why = ("--reason", "a test")
    number = platform.command("user", "rename", "gil", "hal", *why).split()[1]
    assert f"{number} user     hal" in platform.command("user", "list", "gil")
    assert platform.command("user", "close", "hal", *why) == (
        f"Account {number} is closed; hal is free.\n"
    )
    assert "hal" not in platform.command("user", "list")
    assert f"hal/{number}" in platform.command("user", "list", "--state-of", "closed")
    shown = platform.command("user", "show", f"#{number}")
    assert "called gil from" in shown and "called hal from" in shown
    platform.command("user", "rename", "hal", "gil", *why, fails=True)

    said = platform.command("group", "parent", "course", "faculty", fails=True)
    assert "--reason" in said
    platform.command("group", "parent", "course", "faculty", *why)
    assert platform.command("group", "parent", "course") == "faculty\n"
    said = platform.command("group", "parent", "faculty", "course", *why, fails=True)
    assert "cannot be above it" in said
    platform.command("group", "parent", "course", "--none", *why)
    assert platform.command("group", "parent", "course") == "none\n"


def test_the_real_hub_lists_all_its_users_page_by_page(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubclient, "_PAGE", 2)
    names = [f"page{n}" for n in range(5)]
    assert platform.hub.api("POST", "users", json={"usernames": names}).status_code == 201
    listed = platform.on_loop(platform.client.users())
    everybody = platform.hub.api("GET", "users").json()
    assert [user.name for user in listed] == [user["name"] for user in everybody]
    assert set(names) <= {user.name for user in listed}
    # The service's own scopes show no moment of making; an administrator's token does.
    assert {user.created_us for user in listed} == {None}
    admin = HubClient(platform.hub.config.hub_api_url, platform.hub.tests_token)

    async def by_admin() -> list[people.HubUser]:
        try:
            return await admin.users()
        finally:
            await admin.close()

    before = {user.name: user.created_us for user in platform.on_loop(by_admin())}
    assert None not in before.values()
    # A rename keeps it; somebody else of the same name has another.
    answer = platform.hub.api("PATCH", "users/page1", json={"name": "renamed"})
    assert answer.status_code == 200, answer.text
    assert platform.hub.api("DELETE", "users/page2").status_code == 204
    assert platform.hub.api("POST", "users", json={"usernames": ["page2"]}).status_code == 201
    after = {user.name: user.created_us for user in platform.on_loop(by_admin())}
    assert after["renamed"] == before["page1"]
    assert after["page2"] != before["page2"]


def test_who_is_deleted_in_the_real_hub_is_closed_in_time(platform: Platform) -> None:
    names = [f"gone{n}" for n in range(20)]
    platform.hub.api("POST", "users", json={"usernames": names})
    platform.import_("name,slices\n" + "".join(f"{name},1\n" for name in names))
    platform.follow()
    assert platform.hub.api("DELETE", "users/gone7").status_code == 204
    assert platform.follow().closed == []
    assert "gone7 (the hub lacks it since" in platform.command(
        "user", "list", "--state-of", "missing"
    )
    platform.ledger.now += int(platform.ledger.settings.timing.user_gone_s * 1e6)
    said = platform.command(
        "user", "close-missing", "--count", "9", "--reason", "a test", fails=True
    )
    assert "not 9" in said
    assert platform.follow().closed == ["gone7"]
    platform.command("user", "show", "gone7", fails=True)
