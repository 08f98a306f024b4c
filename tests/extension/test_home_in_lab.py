"""JupyterLab itself shows the home, and says it once when it is nearly full."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from gpuslice.units import MIB
from notebookworld import Notebook

pytestmark = pytest.mark.browser
WARNING = "Your home has reached its limit"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Notebook]:
    """JupyterLab as it is installed beside this Python, with a home of 10 MiB that has more."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "data").write_bytes(os.urandom(11 * MIB))
    environment = {"HOME": str(home), "GPUSLICE_HOME_LIMIT": str(10 * MIB)}
    server = Notebook(tmp_path / "lab", environment, python=Path(sys.executable))
    yield server
    server.stop()


@pytest.fixture
def browser() -> Iterator[BrowserContext]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)))
    flags = ["--disable-gpu", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium's own does not work for root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        context = chromium.new_context(locale="en-GB")
        context.set_default_timeout(60_000)
        yield context
        chromium.close()


def opened(browser: BrowserContext, lab: Notebook) -> Page:
    page = browser.new_page()
    page.goto(f"{lab.url}lab?token={lab.token}")
    page.wait_for_selector(".jp-LauncherCard")
    return page


def test_a_full_home_is_shown_and_said_once(lab: Notebook, browser: BrowserContext) -> None:
    page = opened(browser, lab)
    said = page.locator(".Toastify__toast", has_text=WARNING)
    expect(said).to_contain_text("of 10 MiB). Delete files that you do not need.", timeout=60_000)
    said.get_by_role("button", name="What to do").click()
    panel = page.locator("#jp-gpuslice-panel")
    expect(panel).to_contain_text("Counted at")
    expect(panel).to_contain_text("~/.local/share/Trash")
    meter = panel.get_by_role("meter", name="Home")
    expect(meter).to_have_attribute("aria-valuenow", "100")
    expect(meter).to_have_attribute("data-full", "true")
    # Another tab shows it and does not say it again.
    other = opened(browser, lab)
    other.locator(".jp-GpuSlice-status").click()
    expect(other.locator("#jp-gpuslice-panel")).to_contain_text(WARNING)
    expect(other.locator(".Toastify__toast", has_text=WARNING)).to_have_count(0)
