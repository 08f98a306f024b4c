"""Every form of the pages, sent twice as by a double click: one effect, and the same way on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from bs4 import BeautifulSoup, Tag

from fakenode import gpu, mig
from gpuslice.ledger.tables import Audit, CreditGrant, Entry, Policy, Price, QueueRequest
from gpuslice.units import HOUR_US
from quotaworld import finish, passes, spawn
from serviceledger import NAVIGATE, ServiceLedger

ADMIN = ("custom:gpuslice:admin", "custom:gpuslice:read-all")


class Browser:
    """Somebody's browser on the pages of the service."""

    def __init__(self, ledger: ServiceLedger, name: str, *scopes: str) -> None:
        self.ledger = ledger
        self.client = ledger.browser(name, *scopes)

    def page(self, path: str) -> BeautifulSoup:
        answer = self.client.get(f"{self.ledger.at}{path}", headers=NAVIGATE)
        assert answer.status_code == 200, answer.text
        return BeautifulSoup(answer.text, "html.parser")

    def forms(self, path: str) -> list[Tag]:
        return self.page(path).select("main form[method=post]")

    def form(self, path: str, button: str) -> Tag:
        """The form that has this button."""
        (found,) = [
            one for one in self.forms(path)
            if button in {" ".join(b.get_text().split()) for b in one.find_all("button")}
        ]  # fmt: skip
        return found

    def press(self, form: Tag, **filled: str) -> httpx.Response:
        """Fill it in and send it, as a browser does."""
        fields: dict[str, str] = {}
        for one in form.find_all(["input", "textarea", "select"]):
            if one.get("type") == "checkbox":
                continue
            name = str(one["name"])
            fields[name] = one.get_text() if one.name == "textarea" else str(one.get("value", ""))
            if one.name == "select":
                fields[name] = str(one.find("option")["value"])
        assert filled.keys() <= fields.keys(), fields
        # Another browser's page has another token against forgery; all else is as in the form.
        fields["_xsrf"] = self.ledger.xsrf(self.client)
        where = httpx.URL(self.ledger.at).join(str(form["action"]))
        return self.client.post(where, data=fields | filled, headers=NAVIGATE)


@pytest.fixture
def browser(ledger: ServiceLedger) -> Iterator[Browser]:
    made = Browser(ledger, "root1", *ADMIN)
    yield made
    made.client.close()
    assert ledger.problems() == []


@pytest.fixture
def mia(ledger: ServiceLedger) -> Iterator[Browser]:
    made = Browser(ledger, "mia")
    yield made
    made.client.close()


def count(ledger: ServiceLedger, table: type[Any], *where: Any) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(*where)
    return ledger.database.read(lambda session: session.scalar(query)) or 0


def refunded(ledger: ServiceLedger) -> int:
    """Micro-units that went back; one refund may be a row for each payment."""
    query = sa.select(sa.func.sum(Entry.amount_u)).where(Entry.kind == "refund")
    return int(ledger.database.read(lambda session: session.scalar(query)) or 0)


def twice(browser: Browser, form: Tag, **filled: str) -> str:
    """Press it twice; both lead to the same place."""
    first, second = (browser.press(form, **filled) for _ in range(2))
    assert (first.status_code, second.status_code) == (303, 303), second.text
    assert first.headers["Location"] == second.headers["Location"]
    return str(first.headers["Location"])


def ended(ledger: ServiceLedger, user: str) -> str:
    """A lease of an hour that is over and paid."""
    lease = spawn(ledger, user, "whole", [])
    passes(ledger, HOUR_US, step_us=HOUR_US // 4)
    finish(ledger, lease)
    return lease


def test_a_refund_and_a_credit_are_given_once(ledger: ServiceLedger, browser: Browser) -> None:
    lease = ended(ledger, "mia")
    bill = f"leases/{lease}"
    give_back = browser.form(bill, "Give it back")
    assert twice(browser, give_back, amount="1", reason="a fault").endswith(bill)
    assert refunded(ledger) == 1_000_000
    give = browser.form(bill, "Give credit")
    twice(browser, give, amount="3", reason="sorry")
    assert count(ledger, CreditGrant) == 1
    # After a restart of the service the form is as used as before.
    ledger.put_up_again()
    again = Browser(ledger, "root1", *ADMIN)
    assert again.press(give, amount="3", reason="sorry").status_code == 303
    assert count(ledger, CreditGrant) == 1
    # The page opened again is another form: a second refund is meant.
    assert again.press(again.form(bill, "Give it back"), amount="1", reason="more").is_redirect
    assert refunded(ledger) == 2_000_000
    again.client.close()


def test_a_form_pressed_many_times_at_once_is_done_once(
    ledger: ServiceLedger, browser: Browser
) -> None:
    lease = ended(ledger, "mia")
    form = browser.form(f"leases/{lease}", "Give credit")
    answers: list[httpx.Response] = []

    def press() -> None:
        answers.append(browser.press(form, amount="3", reason="sorry"))

    threads = [threading.Thread(target=press) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {303}
    assert count(ledger, CreditGrant) == 1


def test_other_words_in_a_used_form_are_refused(ledger: ServiceLedger, browser: Browser) -> None:
    lease = ended(ledger, "mia")
    form = browser.form(f"leases/{lease}", "Give it back")
    # What was refused has used nothing up.
    assert browser.press(form, amount="1000", reason="x").status_code == 409
    assert browser.press(form, amount="1", reason="x").status_code == 303
    other = browser.press(form, amount="2", reason="x")
    assert other.status_code == 422 and "Open the page again" in other.text
    assert refunded(ledger) == 1_000_000
    # And somebody else's form of the same key is theirs.
    with contextlib.closing(Browser(ledger, "root2", *ADMIN).client) as client:
        colleague = Browser.__new__(Browser)
        colleague.ledger, colleague.client = ledger, client
        assert colleague.press(form, amount="1", reason="x").status_code == 303
    assert refunded(ledger) == 2_000_000
    form.select_one("input[name=once]")["value"] = "not a key"  # type: ignore[index]
    assert browser.press(form, amount="1", reason="x").status_code == 400


def test_everything_else_that_pages_change_is_changed_once(
    ledger: ServiceLedger, browser: Browser, mia: Browser
) -> None:
    ledger.node.devices = [gpu("GPU-a", 0), gpu("GPU-c", 1, mig_enabled=True),
                           mig("MIG-c0", "GPU-c", 2, 0)]  # fmt: skip
    audits = lambda action: count(ledger, Audit, Audit.action == action)  # noqa: E731

    form = browser.form("admin/limits", "Set")
    twice(browser, form, name="mia", value="3", reason="x")
    assert count(ledger, Policy) == 2  # everybody's from the settings, and hers
    form = browser.form("admin/policy?kind=user&name=mia", "Save from now on")
    twice(browser, form, document='{"each": {"slices": 4}}', reason="x")
    assert count(ledger, Policy) == 3
    ledger.now += HOUR_US
    form = browser.form("admin/prices?slice=cpu&rate=2", "Announce it")
    before = count(ledger, Price)
    twice(browser, form, reason="x")
    assert (count(ledger, Price), audits("price.set")) == (before + 1, 1)

    first = spawn(ledger, "ada", "whole", [])
    other = spawn(ledger, "bob", "whole", [])
    for user in ("mia", "cy"):
        ledger.ask(ledger.reader(user), "POST", "api/queue", {"slice": "whole"})
    twice(mia, mia.form("", "Start by itself"))
    twice(mia, mia.form("", "Change"), slice="half")
    changed = QueueRequest.version == 3
    assert count(ledger, QueueRequest, changed, QueueRequest.slice_type == "half") == 1
    twice(mia, mia.form("", "Leave the queue"))
    twice(browser, browser.form("admin/queue", "Remove cy from the queue"), reason="x")
    assert audits("queue.leave") == 2

    hers = spawn(ledger, "mia", "cpu", [])
    twice(mia, mia.form("", "Stop the server now"))
    twice(browser, browser.form("admin", "Stop ada's server"), reason="x")
    assert audits("lease.stop") == 2
    ledger.node.unclean = "processes are left on it: [7]"
    for lease in (first, other, hers):
        finish(ledger, lease)
    ledger.node.unclean = None
    states = audits("device.state")
    forms = [one for one in browser.forms("admin") if "/clear" in str(one["action"])]
    assert len(forms) == 2
    twice(browser, forms[0], reason="ended it")
    assert audits("device.state") == states + 1
    assert len([one for one in browser.forms("admin") if "/clear" in str(one["action"])]) == 1


def test_every_form_on_every_page_has_a_key_of_its_own(
    ledger: ServiceLedger, browser: Browser, mia: Browser
) -> None:
    for user in ("mia", "ada", "bob"):
        spawn(ledger, user, "whole" if user != "mia" else "cpu", [])
    ledger.ask(ledger.reader("mia"), "POST", "api/queue", {"slice": "half", "server": "two"})
    lease = spawn(ledger, "cy", "cpu", [])
    pages = [(browser, path) for path in (
        "admin", "admin/limits", "admin/policy", "admin/queue", "admin/prices?slice=cpu&rate=2",
        f"leases/{lease}",
    )]  # fmt: skip
    keys: list[str] = []
    for who, path in (*pages, (mia, ""), (mia, "")):
        forms = who.forms(path)
        assert forms, path
        for form in forms:
            (key,) = form.select("input[name=once]")
            keys.append(str(key["value"]))
    assert len(keys) == len(set(keys)) and min(map(len, keys)) == 32
