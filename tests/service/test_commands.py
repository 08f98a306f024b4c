"""The administrators' commands as they are typed, against a real service over a real ledger."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from service_world import ServiceThread, closed_port, make_config

from gpuslice import units
from gpuslice.broker.housekeeping import Housekeeping
from gpuslice.broker.moneyviews import EntryView, GiveCredit
from gpuslice.broker.queuedesk import JoinFor
from gpuslice.cli import main
from gpuslice.ledger.database import sqlite_url
from gpuslice.ledger.digest import Signer
from gpuslice.units import HOUR_US
from ledgerworld import World
from quotaworld import finish, passes, set_policy, spawn

SECRET = "31" * 32


class Office:
    """An administrator's machine: a data folder, a ledger with a past, and its service."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.world = World(sqlite_url(state / "ledger.sqlite"))
        self.service = ServiceThread(make_config(closed_port()))
        self.service.broker = self.world.live()  # type: ignore[assignment]
        secrets = state / "secrets"
        secrets.mkdir(mode=0o700)
        self.secret("operator_token", self.service.config.operator_token)
        self.secret("ledger_signing_key", SECRET)
        self.config = state / "gpuslice.toml"

    def secret(self, name: str, text: str) -> None:
        file = self.state / "secrets" / name
        file.touch(mode=0o600)
        file.write_text(text + "\n")

    def ended(self, user: str, hours: int) -> str:
        """A quarter of a GPU for some hours, at 0.875001 each."""
        lease_id = spawn(self.world, user, "quarter", ["lab"])
        passes(self.world, hours * HOUR_US, HOUR_US)
        self.world.stop(lease_id)
        finish(self.world, lease_id)
        return lease_id

    def open(self) -> None:
        """From here on the service has the ledger, on a thread of its own."""
        self.service.__enter__()
        self.config.write_text(f"[service]\nport = {self.service.port}\n")

    def run(self, *words: str, ok: bool = True, typed: str | None = None) -> Result:
        words = (*words, "--state", str(self.state))
        if words[:2] != ("ledger", "key"):
            words = (*words, "--config", str(self.config))
        done = CliRunner().invoke(main, words, input=typed, catch_exceptions=False)
        assert (done.exit_code == 0) is ok, done.output
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    state = tmp_path / "st ate"
    state.mkdir()
    made = Office(state)
    # The commands' clock is the ledger's.
    monkeypatch.setattr(units, "now_us", made.world.clock)
    yield made
    made.service.__exit__()
    made.world.close()
    monkeypatch.undo()
    time.tzset()


# --- prices -------------------------------------------------------------------------------------


def test_a_price_is_previewed_confirmed_and_listed(office: Office) -> None:
    lease_id = spawn(office.world, "ada", "quarter", [], "two")
    office.open()
    change = ("quarter", "2.5", "--from", "2030-01-01T08:00")
    said = office.run("price", "preview", *change).stdout
    assert "costs 0.875001 now, then 2.50 EUR per hour, from 2030-01-01 08:00:00+01:00" in said
    assert f"{lease_id}  ada/two" in said
    # Not confirmed: nothing is written.
    no = office.run("price", "set", *change, "--reason", "dearer", ok=False, typed="n\n")
    assert f"{lease_id}  ada/two" in no.stderr
    assert "2.50" not in office.run("price", "list").stdout
    yes = office.run("price", "set", *change, "--reason", "dearer", typed="y\n")
    assert "2.50  2030-01-01 08:00:00+01:00  further notice" in yes.stdout
    rows = {(row["slice"], row["rate_u_per_hour"]) for row in office.json("price", "list")}
    assert {("quarter", 875_001), ("quarter", 2_500_000), ("cpu", 50_000)} <= rows
    # What it was before a change is only listed with --all.
    office.world.now = units.from_datetime(units.to_datetime(1_900_000_000_000_000))
    assert "0.875001" not in office.run("price", "list").stdout
    assert "0.875001" in office.run("price", "list", "--all").stdout
    audit = office.world.do(office.world.live().audit(1, None))
    assert (audit[0].action, audit[0].reason) == ("price.set", "dearer")
    assert audit[0].actor.startswith("operator:")


def test_a_price_in_the_past_or_without_a_reason_is_refused(office: Office) -> None:
    office.open()
    past = ("price", "set", "quarter", "1", "--from", "2020-01-01", "--yes")
    assert "--reason" in office.run(*past, ok=False).stderr
    assert "cannot begin in the past" in office.run(*past, "--reason", "x", ok=False).stderr
    for money, moment in (("1,5", "2030-01-01"), ("-1", "2030-01-01"), ("1", "tomorrow")):
        done = office.run("price", "preview", "quarter", "--from", moment, "--", money, ok=False)
        assert done.exit_code == 2


# --- credit, usage, entries ---------------------------------------------------------------------


def test_credit_is_given_used_and_shown(office: Office) -> None:
    office.world.do(office.world.live().money.give_credit(
        GiveCredit(whose="user", name="ada", amount_u=1_000_000, reason="start"), "root"
    ))  # fmt: skip
    # Only a group that has a policy is charged.
    set_policy(office.world, "group", "lab", {"total": {"slices": 9}})
    office.ended("ada", 2)
    office.open()
    given = office.run(
        "credit", "give", "group", "lab", "12.345678", "--expires", "2030-01-01",
        "--priority", "3", "--reason", "term",
    ).stdout  # fmt: skip
    assert "group lab  12.345678  0.00  12.345678         3  2030-01-01 00:00:00+01:00" in given
    (row,) = office.json("credit", "list", "--user", "ada")["credits"]
    assert (row["amount_u"], row["used_u"]) == (1_000_000, 1_000_000)
    newest = office.run("credit", "list", "--limit", "1").stdout
    before = newest.rpartition("There is more: --before ")[2].strip()
    rest = office.json("credit", "list", "--limit", "1", "--before", before)
    assert "group lab" in newest
    assert (rest["credits"], rest["next"]) == ([row], None)
    assert "None." in office.run("credit", "list", "--user", "nobody").stdout
    both = office.run("credit", "list", "--user", "a", "--group", "b", ok=False)
    assert "not both" in both.stderr

    used = office.run("usage", "user", "ada").stdout
    assert "user ada: spent 1.750002 EUR and 0.50 GPU-hours in all" in used
    assert "0 slices now, 0.00 EUR reserved; credit left 0.00 EUR" in used
    assert office.json("usage", "group", "lab")["spent_u"] == 1_750_002


def test_entries_come_in_pages_and_are_corrected(office: Office) -> None:
    office.ended("ada", 3)
    office.open()
    first = office.run("entry", "list", "--user", "ada", "--limit", "2").stdout
    before = first.rpartition("There is more: --before ")[2].strip()
    rest = office.json("entry", "list", "--user", "ada", "--limit", "100", "--before", before)
    assert rest["next"] is None
    entry = rest["entries"][0]
    number = str(entry["entry_id"])
    made = office.run("entry", "correct", number, "refund", "0.000001", "--reason", "a coin")
    assert "refund  platform:revenue  user:ada  0.000001" in made.stdout
    too_much = ("entry", "correct", number, "refund", "99", "--reason", "x")
    assert "no more than the rest can" in office.run(*too_much, ok=False).stderr
    assert office.run("entry", "correct", number, "gift", "1", "--reason", "x", ok=False)
    assert office.world.problems() == []


# --- leases and the queue -----------------------------------------------------------------------


def test_leases_are_listed_shown_stopped_and_refunded(office: Office) -> None:
    over = office.ended("ada", 2)
    lives = spawn(office.world, "bob", "half", [])
    office.open()
    assert [row["lease_id"] for row in office.json("lease", "list")["leases"]] == [lives]
    page = office.run("lease", "list", "--all", "--limit", "1").stdout
    assert lives in page and over not in page and "There is more: --before " in page
    assert office.json("lease", "list", "--all", "--user", "ada")["leases"][0]["lease_id"] == over

    bill = office.run("lease", "show", over).stdout
    assert f"{over}: ada, quarter, ended" in bill
    assert "0.875001 EUR per hour; cost 1.750002" in bill
    assert "no such lease" in office.run("lease", "show", "0" * 32, ok=False).stderr.lower()
    assert "32 digits" in office.run("lease", "show", "../me", ok=False).stderr

    back = office.json("lease", "refund", over, "--amount", "0.5", "--reason", "sick GPU")
    assert sum(row["amount_u"] for row in back) == 500_000
    assert {(row["kind"], row["memo"]) for row in back} == {("refund", "sick GPU")}
    bill = office.run("lease", "show", over).stdout
    assert "\n  given back 0.50; the user pays 1.250002\n" in bill
    office.run("lease", "refund", over, "--reason", "all of it")
    assert office.json("usage", "user", "ada")["spent_u"] == 0
    gone = office.run("lease", "refund", over, "--reason", "again", ok=False)
    assert "not paid" in gone.stderr

    more = ("lease", "more", lives)
    assert "--until, --money" in office.run(*more, "--reason", "x", ok=False).stderr
    no = office.run(*more, "--money", "1", "--reason", "a paper", ok=False)
    assert "give time instead (--until)" in no.stderr
    set_policy(office.world, "user", "bob", {"each": {"money": [{"at_most": 9, "per": "day"}]}})
    office.run(*more, "--until", "2030-01-01", "--money", "1", "--reason", "a paper")
    assert "stopping" in office.run("lease", "stop", lives, "--reason", "maintenance").stdout
    assert "maintenance" in office.run("lease", "show", lives).stdout
    audit = office.world.do(office.world.live().audit(2, None))
    assert {row.action for row in audit} == {"lease.grant-more", "lease.stop"}
    assert office.world.problems() == []


def test_who_waits_is_listed_and_removed(office: Office) -> None:
    for server in "abc":
        spawn(office.world, "bob", "mig" if server != "c" else "cpu", [], server)
    for user in ("ada", "cleo"):
        office.world.now += 1
        body = JoinFor(user=user, slice="mig")
        office.world.do(office.world.live().queue.join(body))
    office.open()
    first, second = office.json("queue", "list")
    assert (first["user"], first["position"], second["position"]) == ("ada", 1, 2)
    shown = office.run("queue", "list").stdout.splitlines()
    assert "expected" in shown[0] and shown[1].split()[-2:] == ["unknown", "no"]
    removed = office.run("queue", "remove", first["request_id"], "--reason", "left us").stdout
    assert "left" in removed
    (left,) = office.json("queue", "list")
    assert (left["user"], left["position"]) == ("cleo", 1)
    assert "no" in office.run("queue", "remove", "f" * 32, "--reason", "x", ok=False).stderr


def test_a_device_in_quarantine_is_listed_and_cleared(office: Office) -> None:
    lease_id = spawn(office.world, "ada", "whole", [])
    office.world.node.unclean = "processes are left on it: [77]"
    finish(office.world, lease_id)
    office.open()
    (dirty,) = [one for one in office.json("device", "list") if one["state"] == "quarantined"]
    shown = office.run("device", "list").stdout
    assert "processes are left on it: [77]" in shown and "MIG-c1" in shown

    def clear(name: str, **more: Any) -> Result:
        return office.run("device", "clear", name, "--reason", "killed it", **more)

    assert "no device" in clear("GPU-z", ok=False).stderr
    assert "may be any of 3 devices" in clear("GPU", ok=False).stderr
    office.world.node.wrong[dirty["uuid"]] = "processes are on it: [77]"
    assert "stays quarantined" in clear(dirty["uuid"], ok=False).stderr
    office.world.node.wrong.clear()
    assert dirty["uuid"] in clear(dirty["uuid"]).stdout
    assert "there is nothing to clear" in clear(dirty["uuid"], ok=False).stderr
    assert {one["state"] for one in office.json("device", "list")} == {"ok"}
    (audit,) = office.world.do(office.world.live().audit(1, None))
    assert (audit.action, audit.reason) == ("device.state", "killed it")
    assert audit.actor.startswith("operator:")


def test_a_reservation_is_changed_where_it_is_named(office: Office) -> None:
    office.open()
    first = ("--first", "2030-01-01", "--last", "2030-06-30", "--weekday", "tue")
    day = ("--from", "10:00", "--til", "12:00", "--timezone", "UTC", "--notice", "15m")
    office.run("reserve", "add", "course", "quarter", "6", *first, *day, "--reason", "term")
    (before,) = office.json("reserve", "list")

    change = ("reserve", "change", "1", "--reason", "a longer lesson")
    assert "Say what is to change" in office.run(*change, ok=False).stderr
    said = office.run(*change, "--count", "4", "--til", "13:00", "--notice", "none").stdout
    assert "4 quarter for group course" in said and "10:00 to 13:00" in said
    assert "what runs goes on" in said
    (after,) = office.json("reserve", "list")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"count", "til_time", "notice_us", "version", "reason", "next"}
    assert (after["notice_us"], after["weekdays"]) == (None, ["tue"])
    office.run(*change, "--weekday", "mon", "--weekday", "wed", "--slice", "half", "--title", "L")
    (last,) = office.json("reserve", "list")
    assert (last["weekdays"], last["slice"], last["title"]) == (["mon", "wed"], "half", "L")
    assert "no such reservation" in office.run(
        "reserve", "change", "9", "--count", "1", "--reason", "x", ok=False
    ).stderr  # fmt: skip
    never = office.run(*change, "--last", "2030-01-01", ok=False).stderr
    assert "no time at which this would hold" in never
    assert office.world.problems() == []


# --- the ledger ---------------------------------------------------------------------------------


def test_the_export_is_every_entry_and_runs_in_no_spreadsheet(office: Office) -> None:
    body = GiveCredit(whose="user", name="=cmd()", amount_u=7, reason="=cmd()|' /C calc'!A0")
    office.world.do(office.world.live().money.give_credit(body, "@root"))
    since = office.world.now
    office.ended("ada", 3)
    office.open()
    text = office.run("ledger", "export").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    everything = office.json("entry", "list", "--limit", "1000")["entries"][::-1]
    assert [int(row["entry_id"]) for row in rows] == [row["entry_id"] for row in everything]
    assert rows[0]["memo"] == "'=cmd()|' /C calc'!A0"
    assert rows[0]["actor"] == "'@root"
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+-@" and cell]

    file = office.state / "rows.json"
    office.run("ledger", "export", str(file), "--form", "json", "--user", "ada")
    assert {row["debit"] for row in json.loads(file.read_text())} == {"user:ada"}
    assert list(csv.DictReader(io.StringIO(office.run(
        "ledger", "export", "--til", units.to_datetime(since).isoformat(), "--group", "lab",
    ).stdout))) == []  # fmt: skip
    later = units.to_datetime(since + 1).isoformat()
    assert office.run("ledger", "export", "--from", later).stdout.count("\n") == len(everything)


def test_an_export_that_breaks_off_is_no_file(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.ended("ada", 1)
    money = office.world.live().money
    whole = money.export

    async def breaks(*args: Any) -> AsyncIterator[Sequence[EntryView]]:
        async for chunk in whole(*args):
            yield chunk
            raise ZeroDivisionError

    office.open()
    monkeypatch.setattr(money, "export", breaks)
    file = office.state / "rows.csv"
    done = office.run("ledger", "export", str(file), ok=False)
    assert "not complete" in done.stderr
    assert list(office.state.glob("*rows.csv*")) == []
    assert "not complete" in office.run("ledger", "export", ok=False).stderr
    # The service goes on, and counts nobody as being answered.
    monkeypatch.setattr(money, "export", whole)
    assert office.run("ledger", "export", str(file)).output == ""
    assert file.read_text().count("usage") == 2


def test_verify_checks_the_days_with_a_copy_of_the_key(office: Office) -> None:
    lease_id = spawn(office.world, "ada", "quarter", [])
    passes(office.world, 40 * HOUR_US, 4 * HOUR_US)
    office.world.do(Housekeeping(office.world.live().core, Signer(SECRET)).round())
    office.world.stop(lease_id)
    finish(office.world, lease_id)
    office.open()
    pem = office.run("ledger", "key").stdout
    assert "PUBLIC KEY" in pem and SECRET not in pem
    copy = office.state / "elsewhere.pem"
    copy.write_text(pem)
    for more in ((), ("--public-key", str(copy))):
        assert office.run("ledger", "verify", *more).stdout == "The ledger is in order.\n"
    found = office.json("ledger", "digests")
    assert [row["day"] for row in found["digests"]] == ["2026-09-22", "2026-09-21"]
    assert "2026-09-21" in office.run("ledger", "digests", "--limit", "1", "--before", "2").stdout

    # Somebody takes over the machine and signs with a key of their own: the copy tells.
    office.secret("ledger_signing_key", "32" * 32)
    stranger = office.run("ledger", "verify", ok=False)
    assert "digest of 2026-09-21: signed with key" in stranger.stdout
    assert office.run("ledger", "verify", "--public-key", str(copy))
    with office.world.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER entry_no_update")
        connection.exec_driver_sql("UPDATE entry SET memo = 'x' WHERE id = 2")
    done = office.run("ledger", "verify", "--public-key", str(copy), ok=False)
    assert done.stdout.startswith("digest of 2026-09-21: its entries or their segments are not")
    assert done.exit_code == 1

    (office.state / "secrets" / "ledger_signing_key").unlink()
    assert "no key" in office.run("ledger", "verify", ok=False).stderr
    assert "gpuslice init" in office.run("ledger", "key", ok=False).stderr
    copy.write_text("x")
    assert (
        "no public key"
        in office.run("ledger", "verify", "--public-key", str(copy), ok=False).stderr
    )
    copy.unlink()
    assert (
        "Cannot read" in office.run("ledger", "verify", "--public-key", str(copy), ok=False).stderr
    )


def test_names_of_strangers_do_not_steer_the_terminal(office: Office) -> None:
    spawn(office.world, "ada\x1b[2J\nbob", "cpu", [])
    office.open()
    said = office.run("lease", "list").stdout
    assert "\x1b" not in said and len(said.splitlines()) == 2
    assert os.linesep + "bob" not in said


def test_a_service_that_is_not_there_is_one_sentence(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuslice.cli.operator._PAUSE_S", 0)
    office.open()
    office.config.write_text(f"[service]\nport = {closed_port()}\n")
    for words in (("queue", "list"), ("ledger", "export"), ("price", "list")):
        done = office.run(*words, ok=False)
        assert done.stderr.startswith("gpuslice: The service at ")
        assert done.stderr.count("\n") == 1
