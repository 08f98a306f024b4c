"""What is refused, what administrators do, and who sees whose pages."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from people import SERVICE, Person
from platform_world import Platform, alive, until

pytestmark = [pytest.mark.hub, pytest.mark.browser]


def test_whoever_comes_second_is_told_why_and_what_is_free(
    platform: Platform, person: Callable[[str], Person]
) -> None:
    second = person("second")
    second.page.goto("/hub/spawn")
    assert "1 of 1 free" in second.card("H100, whole").inner_text()
    platform.spawn("first", "whole")  # while the page is open

    second.choose("H100, whole")

    alert = second.page.locator(".text-danger, .alert-danger").first
    alert.wait_for()
    told = alert.inner_text()
    assert "H100, whole" in told or "whole" in told
    assert "quarter" in told and "first" not in told
    assert platform.lease("second") is None
    # The page is fresh, too: what is taken can only be waited for.
    taken = second.card("H100, whole")
    assert "in use" in taken.inner_text()
    second.page.get_by_role("group", name="If nothing is free").wait_for()
    second.picture("refused")
    second.choose("L4, quarter")
    second.wait_for_lab()


def test_an_administrator_stops_a_lease_and_changes_a_limit(
    platform: Platform, person: Callable[[str], Person]
) -> None:
    lease = platform.spawn("carol", "quarter")
    admin, carol = person("admin"), person("carol")
    admin.page.goto("/hub/home")
    admin.page.get_by_role("link", name="GPU admin").click()
    leases = admin.page.get_by_role("table", name="Live leases")
    row = leases.get_by_role("row").filter(has_text="carol")
    row.wait_for()
    assert "SIMULATED" in row.inner_text()
    admin.picture("admin")

    # A stop needs a reason, and its user reads it.
    row.get_by_text("Stop…", exact=True).click()
    row.get_by_role("button", name="Stop carol's server").click()
    assert platform.lease_by_id(lease["lease_id"])["stop_requested_us"] is None
    row.get_by_label("Why?").fill("Maintenance at <noon> & after")
    row.get_by_role("button", name="Stop carol's server").click()
    ended = platform.wait_over(lease["lease_id"])
    assert ended["stop_reason"] == "Maintenance at <noon> & after"
    carol.open()
    past = carol.page.get_by_role("row").filter(has_text="L4, quarter").last
    until("carol is told why", lambda: "Maintenance at <noon> & after" in past.inner_text())

    # A limit in place; the spawn page follows at once.
    admin.open("admin/limits")
    set_limit_of_everybody(admin, "3", "1")
    carol.page.goto("/hub/spawn")
    carol.sees("may hold 1 at a time")
    set_limit_of_everybody(admin, "1", "3")

    # Both are on record.
    admin.open("admin/audit")
    rows = admin.page.get_by_role("table").get_by_role("row").all_inner_texts()
    limit = "each: slices 3 → each: slices 1"
    assert any("Exam week: 1" in t and "set a policy" in t and limit in t for t in rows)
    assert any("Maintenance at <noon>" in t and "stopped a lease" in t for t in rows)
    admin.picture("audit")


def set_limit_of_everybody(admin: Person, before: str, after: str) -> None:
    table = admin.page.get_by_role("table", name="Leases per user")
    row = table.get_by_role("row").filter(has_text="Everybody")
    shown = row.locator("td").first
    assert shown.inner_text().strip() == before
    row.get_by_text("Change…").click()
    row.get_by_label("Leases at a time").fill(after)
    row.get_by_label("Why?").fill(f"Exam week: {after}")
    row.get_by_role("button", name="Save").click()
    until(f"the limit is {after}", lambda: shown.inner_text().strip() == after)


def test_nobody_reads_what_is_not_theirs(
    platform: Platform, person: Callable[[str], Person]
) -> None:
    lease = platform.spawn("owner", "cpu")["lease_id"]
    nosy = person("nosy")
    assert nosy.page.get_by_role("link", name="My GPU").is_visible()
    assert nosy.page.get_by_role("link", name="GPU admin").count() == 0
    nosy.open()  # the login at the service
    nosy.page.wait_for_url(f"**{SERVICE}")
    for path in ("admin", "admin/limits", "admin/audit"):
        assert nosy.open(path).status in (403, 404)
        assert "owner" not in nosy.text()
    unknown = nosy.open(f"leases/{'0' * 32}")
    words = nosy.text()
    mine = nosy.open(f"leases/{lease}")
    # Not even whether it exists.
    assert (mine.status, nosy.text()) == (unknown.status, words)
    assert mine.status in (403, 404)

    owner = person("owner")
    owner.open()
    owner.page.get_by_role("link", name="Bill so far").click()
    owner.page.get_by_role("heading", name="What is billed").wait_for()
    assert lease in owner.text()


def test_stop_on_the_pending_page_stops_the_server_that_is_starting(
    platform: Platform, person: Callable[[str], Person]
) -> None:
    going_on = platform.spawn("dora", "cpu")
    dora = person("dora")
    dora.choose("L4, quarter", server="slow")
    dora.page.wait_for_url("**/hub/spawn-pending/dora/slow*")
    lease = until("the slow server has a lease", lambda: platform.lease("dora", "slow"))
    assert lease is not None
    # A server that hangs while it starts.
    pid = platform.server_pid(lease["lease_id"])
    os.kill(pid, signal.SIGSTOP)
    dora.sees("waiting for it to answer")
    log = dora.page.locator("#progress-log").text_content() or ""
    assert "3.60 EUR per hour" in log and "SIMULATED" in log
    dora.picture("pending")

    dora.page.get_by_role("button", name="Stop Server").click()

    ended = platform.wait_over(lease["lease_id"])
    assert "cancelled" in ended["stop_reason"]
    assert not alive(pid)
    assert platform.lease_by_id(going_on["lease_id"])["state"] == "running"
    assert platform.server("dora") is not None
    until("the hub has let go of it", lambda: platform.server("dora", "slow") is None)
