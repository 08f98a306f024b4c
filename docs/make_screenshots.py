"""Makes the README's pictures: ``make pictures``.

A whole platform on simulated GPUs runs in a temporary folder, a browser does what a person would
do, and each page that the README shows is written to ``docs/images``. So the pictures are as true
as the program; nobody edits them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from gpuslice_starters.copies import copy_for

IMAGES = Path(__file__).resolve().parent / "images"
#: A picture in the repository is there for ever, in every clone.
MOST_BYTES = 300_000
NOTEBOOK = "image-processing"
_START_S = 120.0
_END_S = 120.0
_PAGE_MS = 90_000
#: So long the curves of the panel get, and this heading of the notebook is shown.
_CURVE_MS = 20_000
_SHOWN = "Mean filter"
_SIZE: ViewportSize = {"width": 1280, "height": 800}


@dataclass(frozen=True)
class Platform:
    """A running platform: where browsers find it, and how people log in."""

    address: str
    state: Path
    password: str
    admin_password: str

    @property
    def service(self) -> str:
        return f"{self.address}/services/gpuslice/"


def main() -> int:
    """Make all pictures; returns the exit code."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.stderr.write("Chromium is needed for the pictures: apt-get install chromium\n")
        return 1
    IMAGES.mkdir(exist_ok=True)
    # Chromium's own sandbox does not work for root.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        tempfile.TemporaryDirectory(prefix="gpuslice-pictures-") as folder,
        _platform(Path(folder)) as platform,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=flags) as browser,
    ):
        _pictures(browser, platform)
    return 0


def _pictures(browser: Browser, platform: Platform) -> None:
    copy_for(_home(platform, "ada"), NOTEBOOK)
    with _person(browser, platform, "ada", platform.password) as ada:
        _choose(ada, platform, None)
        _save(ada, "spawn-page")
        _choose(ada, platform, "quarter")
        _use(ada, platform)
        _save(ada, "lab")
        with _person(browser, platform, "grace", platform.password) as grace:
            _choose(grace, platform, "1g.10gb")
        _my_gpu(ada, platform)
        _save(ada, "my-gpu")
    with _person(browser, platform, "ada", platform.password, dark=True) as ada:
        _my_gpu(ada, platform)
        _save(ada, "my-gpu-dark")
    with _person(browser, platform, "admin", platform.admin_password) as admin:
        admin.goto(f"{platform.service}admin")
        admin.locator("#devices tbody tr").first.wait_for()
        _save(admin, "admin")


# --- what a person does ----------------------------------------------------------------------


@contextlib.contextmanager
def _person(
    browser: Browser, platform: Platform, name: str, password: str, *, dark: bool = False
) -> Iterator[Page]:
    """Somebody who has logged in, in a browser of their own."""
    context = browser.new_context(
        viewport=_SIZE, color_scheme="dark" if dark else "light", locale="en-GB"
    )
    context.set_default_timeout(_PAGE_MS)
    page = context.new_page()
    page.goto(f"{platform.address}/hub/login")
    page.fill("input[name=username]", name)
    page.fill("input[name=password]", password)
    page.click("input[type=submit], button[type=submit]")
    page.wait_for_url(lambda url: "/login" not in url)
    try:
        yield page
    finally:
        context.close()


def _choose(page: Page, platform: Platform, slice_name: str | None) -> None:
    """Open the spawn page, and start a slice of this name unless it is only to be looked at."""
    page.goto(f"{platform.address}/hub/spawn")
    cards = page.locator("fieldset.gpuslice-offers input[name=slice]")
    cards.first.wait_for()
    if slice_name is None:
        page.locator("input[name=slice]:enabled").first.check()
        return
    names = [card.get_attribute("value") or "" for card in cards.all()]
    wanted = next(name for name in names if name.startswith(slice_name))
    page.locator(f"input[name=slice][value='{wanted}']").check()
    page.locator("form[action*=spawn] input[type=submit], form[action*=spawn] button").click()
    page.wait_for_url(re.compile("/user/"), timeout=_PAGE_MS)


def _use(page: Page, platform: Platform) -> None:
    """Open the notebook with the panel beside it, run it, and show it where pictures are."""
    page.goto(f"{platform.address}/user/ada/lab/tree/{NOTEBOOK}.ipynb?reset")
    page.locator(".jp-Notebook").wait_for()
    news = page.get_by_role("button", name="No", exact=True)
    page.add_locator_handler(news, lambda: news.click())  # JupyterLab asks about its news
    page.locator(".jp-SideBar.jp-mod-left [data-id=filebrowser]").click()  # closes it
    page.locator(".jp-SideBar.jp-mod-right [data-id=jp-gpuslice-panel]").click()
    _run_all(page)
    page.wait_for_timeout(_CURVE_MS)
    _run_all(page)
    # Only the cells that are in sight are in the page, so scroll until it comes.
    scroller = page.locator(".jp-WindowedPanel-outer").first
    scroller.evaluate("element => { element.scrollTop = 0; }")
    heading = page.locator(".jp-MarkdownOutput h2").filter(has_text=_SHOWN)
    while not heading.is_visible():
        scroller.evaluate("element => { element.scrollTop += 300; }")
        page.wait_for_timeout(300)
    heading.evaluate("element => element.scrollIntoView()")
    page.wait_for_timeout(1_000)


def _run_all(page: Page) -> None:
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    idle.wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=busy]").wait_for()
    idle.wait_for()


def _my_gpu(page: Page, platform: Platform) -> None:
    """Open *My GPU* and wait until it shows a number that was measured."""
    page.goto(platform.service)
    number = page.locator("#live [data-field=memory]").first
    _until(lambda: "iB" in number.inner_text(), "the live numbers")


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PAGE_MS / 1000
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come")
        time.sleep(0.2)


def _home(platform: Platform, user: str) -> Path:
    home = platform.state / "homes" / user
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


def _save(page: Page, name: str) -> None:
    """A picture of what is in the window, with 256 colours, which halves it and shows nowhere."""
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    path = IMAGES / f"{name}.png"
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path.name} has {size} bytes; at most {MOST_BYTES} are kept")
    sys.stdout.write(f"{path.name}: {size // 1000} kB\n")


# --- the platform -----------------------------------------------------------------------------


@contextlib.contextmanager
def _platform(folder: Path) -> Iterator[Platform]:
    """``gpuslice up`` with simulated GPUs on ports that nobody uses, ended in order."""
    public, proxy_api, hub, service = _free_ports(4)
    config = folder / "gpuslice.toml"
    config.write_text(
        f'[service]\nport = {service}\n[hub]\napi_url = "http://127.0.0.1:{hub}/hub/api"\n'
        "[timing]\nreconcile_s = 1\nheartbeat_s = 2\n"
    )
    state = folder / "state"
    log = folder / "up.log"
    command = [
        sys.executable, "-m", "gpuslice", "up", "--simulated", "--state", str(state),
        "--config", str(config), "--port", str(public), "--proxy-api-port", str(proxy_api),
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_S
        while "gpuslice runs." not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"gpuslice up did not start:\n{log.read_text()}")
            time.sleep(0.2)
        secrets = state / "secrets"
        yield Platform(
            address=f"http://127.0.0.1:{public}",
            state=state,
            password=(secrets / "demo_password").read_text().strip(),
            admin_password=(secrets / "admin_password").read_text().strip(),
        )
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    sys.exit(main())
