"""From the login to the bill, as a person goes it; each number seen is compared with its source."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from people import Person, Samples, micro
from platform_world import Platform, until
from truth import Moment, Truth

from gpuslice.units import GIB, MIB, SECOND_US, cost_u, format_memory, now_us
from jupyterlab_gpuslice.sampler import SLEEP_AFTER_S

pytestmark = [pytest.mark.hub, pytest.mark.browser]

#: The slowest clock of a page: how often the status bar and *My GPU* ask.
PAGE_REFRESH_US = 5 * SECOND_US
#: Four decimals are shown while a slice runs.
SHOWN_TO_U = 50
#: The panel draws a longer pause between two rows as a gap.
CURVE_BREAKS_US = 4 * SECOND_US


def test_from_login_to_the_bill(
    platform: Platform, person: Callable[[str], Person], truth: Callable[[str], Truth]
) -> None:
    # On the same card: what it uses must appear nowhere.
    neighbour = truth(platform.spawn("neighbour", "quarter")["lease_id"])
    ada = person("ada")
    follow_the_system(platform, "ada")

    # The spawn page says what it is, before the choice.
    ada.page.goto("/hub/spawn")
    card = ada.card("L4, quarter").inner_text()
    for words in ("SIMULATED", "5.5 GiB GPU memory", "3.60 EUR per hour", "3 of 4 free"):
        assert words in card
    assert "no real money is charged" in ada.text()
    assert re.search(r"Closing the tab does\s+not\s+stop it", ada.text())
    ada.picture("spawn")

    # The server starts, and Lab opens by itself.
    samples = Samples(ada.page)
    ada.choose("L4, quarter")
    ada.wait_for_lab()
    lease = platform.lease("ada")
    assert lease is not None
    seen = truth(lease["lease_id"])

    # The launcher's image starter, as a copy of one's own.
    ada.page.get_by_role("button", name="Image processing").click()
    ada.page.get_by_role("tab", name="image-processing.ipynb").wait_for()
    ada.wait_for_kernel("idle")
    ada.status.click()
    ada.panel.wait_for()
    ada.until("the slice is measured", lambda: samples.rows)
    before = seen.now()
    ada.run_all()
    ada.until("some seconds are measured", lambda: len(samples.rows) > 15)
    after = seen.now()
    assert_ran_without_error(ada)

    # Memory, utilisation and cost have moved, and as the devices and the ledger did.
    assert after.memory - before.memory > 50 * MIB
    assert neighbour.now().memory > 50 * MIB
    assert max(row[3] or 0 for row in samples.rows) > 20
    assert_rows_are_true(samples, seen, lease)
    assert_status_is_true(ada, samples, lease)
    assert_panel_is_true(ada, samples)
    for surface in (ada.status, ada.panel):
        assert "SIMULATED" in surface.inner_text()
    ada.picture("lab")

    # My GPU says the same, and stops it.
    ada.open()
    assert_my_gpu_is_true(ada, samples, seen, lease)
    ada.picture("my-gpu")
    ada.stop_mine()
    ada.sees("You hold no slice now")
    ended = platform.wait_over(lease["lease_id"])

    # The bill.
    ada.page.get_by_role("link", name="Bill of L4, quarter").click()
    ada.page.get_by_role("heading", name="What is billed").wait_for()
    assert_bill_is_exact(ada, platform, ended)
    ada.picture("bill")


HIDE = """hidden => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    Object.defineProperty(document, "visibilityState", {
        configurable: true, get: () => (hidden ? "hidden" : "visible"),
    });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.mark.parametrize(
    "seconds", [15, pytest.param(60, marks=pytest.mark.long)], ids=lambda seconds: f"{seconds}s"
)
def test_a_hidden_tab_asks_nothing_and_misses_nothing(
    platform: Platform, person: Callable[[str], Person], seconds: int
) -> None:
    """A headless Chromium never hides a page, not even behind another tab of its window; so the
    page is told that it is hidden in the two ways in which pages ask for it."""
    grace = person("grace")
    samples = Samples(grace.page)
    grace.choose("L4, quarter")
    grace.wait_for_lab()
    grace.status.click()
    grace.until("the panel has some rows", lambda: len(samples.rows) > 4)

    grace.page.evaluate(HIDE, True)
    asked = len(samples.asked)
    grace.page.wait_for_timeout(seconds * 1000)  # the one thing that can only be waited for
    assert samples.asked[asked:] == []

    line = grace.panel.locator("path.jp-GpuSlicePanel-line").first
    drawn = line.get_attribute("d") or ""
    shown_us = now_us()
    grace.page.evaluate(HIDE, False)
    grace.until("a row of after the hidden time", lambda: samples.rows[-1][1] > shown_us)
    sequences = [row[0] for row in samples.rows]
    assert sequences == list(range(sequences[0], sequences[-1] + 1))
    times = [row[1] for row in samples.rows]
    most = max(later - earlier for earlier, later in itertools.pairwise(times))
    until("the curve is drawn anew", lambda: line.get_attribute("d") != drawn)
    if seconds < SLEEP_AFTER_S:
        assert most < CURVE_BREAKS_US
        assert (line.get_attribute("d") or "").count("M") == 1
    else:
        # The notebook server slept meanwhile, and the curve invents nothing.
        until("the gap is drawn", lambda: (line.get_attribute("d") or "").count("M") == 2)


def follow_the_system(platform: Platform, user: str) -> None:
    """Somebody whose Lab is dark when their system is; for the pictures."""
    settings = platform.state / "homes" / user / ".jupyter/lab/user-settings"
    theme = settings / "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    theme.parent.mkdir(parents=True)
    (platform.state / "homes" / user).chmod(0o700)
    theme.write_text('{"adaptive-theme": true}')


# --- what is compared with what ---------------------------------------------------------------


def assert_ran_without_error(who: Person) -> None:
    """Saves the notebook as a person would, and reads the copy in the home."""
    path = who.platform.state / "homes" / who.name / "image-processing.ipynb"

    def saved() -> list[dict[str, Any]]:
        try:
            whole = json.loads(path.read_text())
        except ValueError:
            return []  # it is just being written
        cells = [cell for cell in whole["cells"] if cell["cell_type"] == "code"]
        failed = any(o["output_type"] == "error" for cell in cells for o in cell["outputs"])
        if failed or all(cell["execution_count"] for cell in cells):
            return cells
        who.page.keyboard.press("Control+s")  # the kernel is idle between two cells, too
        return []

    cells = until("the notebook is saved as it ran", saved)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert all(cell["execution_count"] for cell in cells)
    checks = [cell for cell in cells if "check" in cell["metadata"].get("tags", ())]
    passed = [c for c in checks if any("✓" in "".join(o.get("text", "")) for o in c["outputs"])]
    assert len(checks) >= 10 and len(passed) == len(checks)


def assert_rows_are_true(samples: Samples, seen: Truth, lease: dict[str, Any]) -> None:
    """Every second that Lab was told, against nvmlsim and against the price."""
    compared = 0
    for _, us, memory, percent, cost in samples.rows:
        true = seen.around(us)
        if len(true) < 5 or memory is None or percent is None:
            continue  # before the recording, or before the first measurement
        compared += 1
        assert_within(memory, true, percent, lease)
        if cost is not None:
            assert_cost(cost, us, us, lease)
    assert compared > 10
    costs = [row[4] for row in samples.rows if row[4] is not None]
    assert costs[-1] > costs[0]


def assert_within(memory: int, true: list[Moment], percent: float, lease: dict[str, Any]) -> None:
    memories = [moment.memory for moment in true]
    assert min(memories) <= memory <= max(memories)
    # NVML tells each process in whole percent of the card.
    step = max(moment.processes for moment in true) * 1000 / lease["share_milli"]
    percents = [moment.percent for moment in true]
    assert min(percents) - step <= percent <= max(percents) + step


def assert_cost(shown_u: int, before_us: int, after_us: int, lease: dict[str, Any]) -> None:
    """Never more than is due, and at most one refresh behind."""
    rate, started = lease["rate_u_per_hour"], lease["started_us"]
    least = cost_u(rate, max(0, before_us - PAGE_REFRESH_US - started))
    assert least - SHOWN_TO_U <= shown_u <= cost_u(rate, after_us - started) + SHOWN_TO_U


def assert_status_is_true(who: Person, samples: Samples, lease: dict[str, Any]) -> None:
    def newest() -> str | None:
        text = who.status.inner_text()
        return text if any(as_status(row) <= words(text) for row in samples.rows[-2:]) else None

    text = who.until("the status bar shows the newest row", newest)
    assert text is not None and "3.60 EUR per hour" in text
    before = now_us()
    shown = micro(who.status.inner_text().split("GiB")[1])
    assert_cost(shown, before, now_us(), lease)
    # The same as the ledger, which is behind by what the meter has not yet covered.
    booked = who.platform.lease_by_id(lease["lease_id"])
    covered = booked["covered_us"] - booked["started_us"]
    assert booked["cost_u"] == cost_u(booked["rate_u_per_hour"], covered)


def words(text: str) -> set[str]:
    return {part.strip() for part in re.split(r"[\n\t]+|(?<=GiB) |(?<=%) ", text)}


def as_status(row: tuple[int, int, int | None, float | None, int | None]) -> set[str]:
    _, _, memory, percent, _ = row
    assert memory is not None and percent is not None
    return {f"{memory / GIB:.1f} of 5.5 GiB", f"{int(percent + 0.5)}%"}


def assert_panel_is_true(who: Person, samples: Samples) -> None:
    """The curve says in words what it draws: its last value is the newest row's."""

    def newest() -> bool:
        said = who.panel.get_by_role("img", name=re.compile("^Memory in the last"))
        text = said.get_attribute("aria-label") or ""
        return any(f"last {as_curve(row[2])}" in text for row in samples.rows[-2:])

    who.until("the panel's curve ends in the newest row", newest)


def as_curve(memory: int | None) -> str:
    assert memory is not None
    if memory >= GIB:
        return f"{memory / GIB:.1f} GiB"
    mib = memory / MIB
    return f"{int(mib + 0.5)} MiB" if mib >= 100 else f"{mib:.1f} MiB"


def assert_my_gpu_is_true(
    who: Person, samples: Samples, seen: Truth, lease: dict[str, Any]
) -> None:
    card = who.page.get_by_role("region", name="L4, quarter, default server")
    assert "SIMULATED" in card.inner_text() and "no real money" in card.inner_text()
    memory = card.locator("[data-field=memory]").first
    samples.leases.clear()

    def newest() -> dict[str, Any] | None:
        shown = memory.inner_text()
        for told in samples.leases[-2:]:
            used = told["use"] and told["use"]["memory_used_bytes"]
            if used and format_memory(used) == shown:
                return told  # type: ignore[no-any-return]
        return None

    told = who.until("My GPU shows the newest answer", newest)
    assert told is not None
    use = told["use"]
    assert_within(
        use["memory_used_bytes"], seen.around(use["sampled_us"]), use["utilisation_percent"], lease
    )
    before = now_us()
    shown = micro(card.locator("[data-field=cost]").inner_text())
    assert_cost(shown, before, now_us(), lease)


def assert_bill_is_exact(who: Person, platform: Platform, ended: dict[str, Any]) -> None:
    facts = who.facts()
    assert "SIMULATED" in who.text() and "no real money" in facts["You pay"]
    lines = bill_lines(who)
    mine = sum(line["Amount"] for line in lines if line["Paid by"] == "you")
    theirs = sum(line["Amount"] for line in lines if line["Paid by"] != "you")
    assert mine == micro(facts["You pay"]) == ended["cost_u"] > 0
    assert theirs == ended["writeoff_u"]
    # Until the stop was asked for, not until it was done.
    billed = min(ended["stop_requested_us"], ended["finished_us"]) - ended["started_us"]
    assert mine == cost_u(ended["rate_u_per_hour"], billed)
    entries = booked(platform.state / "ledger.sqlite")
    for line in lines:
        assert entries[int(line["Entry"])] == line["Amount"]


def bill_lines(who: Person) -> list[dict[str, Any]]:
    table = who.page.get_by_role("table", name="What is billed")
    heads = [head.strip() for head in table.get_by_role("columnheader").all_inner_texts()]
    lines: list[dict[str, Any]] = []
    for row in table.locator("tbody tr").all():
        line: dict[str, Any] = dict(zip(heads, row.locator("td").all_inner_texts(), strict=True))
        lines.append(line | {"Amount": micro(line["Amount"])})
    return lines


def booked(ledger: Path) -> dict[int, int]:
    """Every entry's amount, from the ledger's own file."""
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT id, amount_u FROM entry"))
    finally:
        connection.close()
