"""Fixtures of the browser's tests: one platform per module, and people with browsers of their own.

The browser is the machine's Chromium. After a failure ``test-artifacts`` has each person's page as
a picture and what it said on its console.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

# The helpers here and the platform of the hub's tests; with importlib mode pytest does not put
# them on the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from people import ARTIFACTS, Person
from platform_world import Platform
from truth import Truth

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        item.stash[_FAILED] = report.failed


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with the notebook servers that people get; its books are verified at the end."""
    world = Platform(tmp_path_factory.mktemp("gpu slice"), real_notebooks=True)
    # A real notebook server takes seconds to start, on a busy machine many.
    settings = world.config.read_text()
    assert "start_timeout_s = 20" in settings
    world.config.write_text(settings.replace("start_timeout_s = 20", "start_timeout_s = 90"))
    try:
        world.start()
        yield world
        world.stop()
        assert world.verify() == []
    finally:
        world.kill_everything()


@pytest.fixture(scope="module")
def chromium(platform: Platform) -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    path = path or shutil.which("google-chrome")
    assert path is not None
    flags = ["--disable-gpu", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium's own does not work for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def person(
    request: pytest.FixtureRequest, platform: Platform, chromium: Browser
) -> Iterator[Callable[[str], Person]]:
    """Somebody who has logged in; what they started ends with the test."""
    everybody: list[Person] = []

    def make(name: str) -> Person:
        everybody.append(Person(platform, chromium, name))
        everybody[-1].log_in()
        return everybody[-1]

    yield make
    if request.node.stash.get(_FAILED, False):
        ARTIFACTS.mkdir(exist_ok=True)
        for one in everybody:
            one.leave_traces(f"{request.node.name}-{one.name}")
    for one in everybody:
        one.close()


@pytest.fixture(autouse=True)
def _servers_end(platform: Platform) -> Iterator[None]:
    """Each test finds every slice free."""
    yield
    for user in platform.rest("GET", "users").json():
        for server in user["servers"] or {}:
            platform.stop_server(user["name"], server)


@pytest.fixture
def truth(platform: Platform) -> Iterator[Callable[[str], Truth]]:
    """What nvmlsim shows of a lease, recorded from now on."""
    running: list[Truth] = []

    def make(lease_id: str) -> Truth:
        running.append(Truth(platform, lease_id))
        return running[-1]

    yield make
    for one in running:
        one.stop()
