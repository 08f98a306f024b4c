"""Two people and one GPU: the second waits in line, sees the place, is told, and starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from people import Person
from platform_world import Platform, until

pytestmark = [pytest.mark.hub, pytest.mark.browser]


def test_who_finds_nothing_free_waits_and_has_the_next_turn(
    platform: Platform, person: Callable[[str], Person]
) -> None:
    first = platform.spawn("first", "whole")
    second = person("second")

    # The card of what is taken can be chosen, and the page offers to wait.
    second.page.goto("/hub/spawn")
    second.page.get_by_label("Wait in line, and tell me when it is my turn").check()
    second.picture("spawn-nothing-free")
    second.choose("H100, whole")
    told = second.sees("You are number 1 of 1 in line")
    assert "Nobody can know yet" in told.inner_text()
    assert "quarter" in told.inner_text()  # what is free instead
    # On a slow machine that was the page of a failed start; the form knows in any case.
    second.page.goto("/hub/spawn")
    second.sees("This server waits for H100, whole: number 1 of 1 in line.")
    second.picture("spawn-in-line")

    second.open()
    line = second.page.get_by_role("region", name="In line for H100, whole")
    line.wait_for()
    assert "You are number 1 of 1 in line." in line.inner_text()
    second.picture("my-gpu-in-line")

    admin = person("admin")
    admin.open("admin/queue")
    row = admin.page.get_by_role("row").filter(has_text="second")
    assert "whole" in row.inner_text()
    admin.picture("admin-queue")

    # The page follows by itself when the first one stops.
    platform.stop_server("first")
    platform.wait_over(first["lease_id"])
    second.sees("The slice is reserved for you until")
    second.page.get_by_role("region", name="Your turn: H100, whole").wait_for()
    second.picture("my-gpu-turn")

    # The spawn page has chosen it already.
    second.page.goto("/hub/spawn")
    second.sees("It is your turn: H100, whole is reserved for you until")
    assert second.card("H100, whole").get_by_role("radio").is_checked()
    assert "one is set aside for you" in second.card("H100, whole").inner_text()
    second.picture("spawn-turn")
    second.page.get_by_role("button", name="Start").click()
    second.wait_for_lab()
    lease = until("the second one has it", lambda: platform.lease("second"))
    assert (lease["slice"], lease["state"]) == ("whole", "running")
    second.open()
    until("nobody waits", lambda: second.page.get_by_text("Your turn:").count() == 0)


def test_an_administrator_reads_and_changes_what_holds(
    platform: Platform, person: Callable[[str], Person]
) -> None:
    admin = person("admin")
    admin.open("admin/policies")
    admin.page.get_by_label("Name", exact=True).fill("students")
    admin.page.get_by_role("button", name="Write it…").click()
    editor = admin.page.get_by_label("The whole policy, as JSON")
    editor.fill('{"each": {"slices": 1, "gpu_hours": [{"at_most": "20", "per": "week"}]}}')
    admin.page.get_by_label("Why?").fill("the winter term")
    admin.picture("policy-editor")
    admin.page.get_by_role("button", name="Save from now on").click()
    admin.sees("each: GPU hours 20 per week")
    admin.open("admin/policies")
    admin.sees("the winter term")
    admin.picture("policies")

    admin.open("admin/prices")
    admin.page.get_by_label("Slice").select_option("quarter")
    admin.page.get_by_label("EUR per hour").fill("4.5")
    admin.page.get_by_label("From, UTC").fill("2099-01-31T08:00")
    admin.page.get_by_role("button", name="Look at it first…").click()
    admin.sees("Announce 4.50 EUR per hour for quarter?")
    admin.picture("price-preview")
    admin.page.get_by_label("Why?").fill("power costs more")
    admin.page.get_by_role("button", name="Announce it").click()
    row = admin.page.get_by_role("row").filter(has_text="4.50 EUR per hour")
    row.wait_for()
    assert "announced" in row.inner_text()
    admin.picture("prices")
