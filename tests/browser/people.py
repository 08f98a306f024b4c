"""A person at a browser: what people do on the platform's pages, by what they see there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from platform_world import until
from playwright.sync_api import Browser, Locator, Page, Response, WebSocket
from playwright.sync_api import Error as PlaywrightError

from gpuslice.cli.secrets import read_secret

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
PATIENCE_MS = 180_000
T = TypeVar("T")
#: JupyterLab loads its themes; the other pages have no such mark.
LAB_FOLLOWS = "light => [undefined, String(light)].includes(document.body.dataset.jpThemeLight)"
WIDE, NARROW = (1280, 900), (420, 900)
SERVICE = "/services/gpuslice/"


class Place(Protocol):
    """A platform as people know it."""

    url: str
    #: Where it keeps its files, ``secrets/`` among them.
    state: Path


class Person:
    """Somebody with a browser of their own.

    Args:
        password: Default: the demo's or the administrator's, from the platform's own file.
    """

    def __init__(
        self, platform: Place, chromium: Browser, name: str, password: str | None = None
    ) -> None:
        self.platform, self.name, self._password = platform, name, password
        self.console: list[str] = []
        self._context = chromium.new_context(
            base_url=platform.url,
            viewport={"width": WIDE[0], "height": WIDE[1]},
            locale="en-GB",
            color_scheme="light",
        )
        self._context.set_default_timeout(PATIENCE_MS)
        self.page = self._context.new_page()
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self._kernel_answered = False
        self.page.on("websocket", self._listen)
        self.page.on("pageerror", lambda error: self._note("exception", str(error)))

    def _note(self, kind: str, text: str) -> None:
        self.console.append(f"{kind}: {text}")

    def _listen(self, socket: WebSocket) -> None:
        """Lab shows a kernel as idle before it has answered, and loses what is run by then."""

        def hear(frame: str | bytes) -> None:
            text = frame if isinstance(frame, bytes) else frame.encode()
            self._kernel_answered |= b"kernel_info_reply" in text

        if "/api/kernels/" in socket.url:
            socket.on("framereceived", hear)

    def close(self) -> None:
        self._context.close()

    def leave_traces(self, name: str) -> None:
        """The page as it is, and what it said."""
        self.page.screenshot(path=ARTIFACTS / f"failed-{name}.png")
        (ARTIFACTS / f"failed-{name}.txt").write_text(
            "\n".join([self.page.url, *self.console, "", self.text()])
        )

    def picture(self, name: str) -> None:
        """The page light and dark, wide and narrow, for people to look at."""
        ARTIFACTS.mkdir(exist_ok=True)
        for size, (width, height) in {"wide": WIDE, "narrow": NARROW}.items():
            self.page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                # Without motion there is no colour halfway between the two.
                self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
                self.page.wait_for_function(LAB_FOLLOWS, arg=scheme == "light")
                self.page.screenshot(
                    path=ARTIFACTS / f"{name}-{size}-{scheme}.png",
                    full_page=True,
                    animations="disabled",
                )
        self.page.emulate_media(color_scheme="light")
        self.page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})

    def text(self) -> str:
        return self.page.locator("body").inner_text()

    def sees(self, text: str | re.Pattern[str]) -> Locator:
        """Wait until it is on the page."""
        found = self.page.get_by_text(text).first
        found.wait_for()
        return found

    def until(self, what: str, look: Callable[[], T]) -> T:
        """Look until the answer is true; between looks the browser's events are taken."""

        def pumped() -> T:
            self.page.evaluate("0")
            return look()

        return until(what, pumped)

    # --- the hub ------------------------------------------------------------------------------

    def log_in(self) -> None:
        secret = "admin_password" if self.name == "admin" else "demo_password"
        self.page.goto("/hub/login?next=/hub/home")
        self.page.get_by_label("Username").fill(self.name)
        password = self._password or read_secret(self.platform.state / "secrets", secret)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/hub/home")

    def card(self, title: str) -> Locator:
        """A card of the spawn page."""
        cards = self.page.get_by_role("group", name="Choose a GPU slice").locator("label")
        return cards.filter(has_text=title)

    def choose(self, title: str, server: str = "") -> None:
        """Choose a slice on the spawn page and start."""
        if "/hub/spawn" not in self.page.url:
            self.page.goto(f"/hub/spawn/{self.name}/{server}" if server else "/hub/spawn")
        self.card(title).click()
        self.page.get_by_role("button", name="Start").click()

    def wait_for_lab(self) -> None:
        self.page.wait_for_url("**/lab**")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")
        # It may appear at any time, and covers what lies under it.
        news = self.page.get_by_text("official Jupyter news")
        self.page.add_locator_handler(
            news, lambda: self.page.get_by_role("button", name="No", exact=True).click()
        )

    # --- JupyterLab -------------------------------------------------------------------------

    @property
    def status(self) -> Locator:
        """The item in the status bar."""
        return self.page.get_by_role("button", name=re.compile("GPU memory: .*Utilisation: ", re.S))

    @property
    def panel(self) -> Locator:
        return self.page.get_by_role("region", name="GPU slice")

    def wait_for_kernel(self, status: str) -> None:
        self.page.locator(f".jp-Notebook-ExecutionIndicator[data-status={status}]").wait_for()

    def run_all(self) -> None:
        """Run the open notebook and wait until its kernel has nothing more to do."""
        self.until("the kernel has answered", lambda: self._kernel_answered)
        self.wait_for_kernel("idle")
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.wait_for_kernel("busy")
        self.wait_for_kernel("idle")

    # --- the service's pages --------------------------------------------------------------------

    def open(self, path: str = "") -> Response:
        answer = self.page.goto(SERVICE + path)
        assert answer is not None
        return answer

    def stop_mine(self) -> None:
        """Stop the only live server on *My GPU*."""
        self.page.get_by_text("Stop…", exact=True).click()
        self.page.get_by_role("button", name="Stop the server now").click()

    def facts(self) -> dict[str, str]:
        """The terms of the page's lists and what they are."""
        found = {}
        for term in self.page.get_by_role("main").locator("dt").all():
            found[term.inner_text()] = term.locator("xpath=following-sibling::dd[1]").inner_text()
        return found


class Samples:
    """What the page was answered by the extension's and the service's live routes, in order."""

    def __init__(self, page: Page) -> None:
        #: The slice's rows: sequence, moment, memory, utilisation, cost.
        self.rows: list[tuple[int, int, int | None, float | None, int | None]] = []
        #: Leases as the service told them.
        self.leases: list[dict[str, Any]] = []
        #: Requests to any of our routes, by their path.
        self.asked: list[str] = []
        page.on("requestfinished", lambda request: self._take(request.response()))
        page.on("request", lambda request: self._ask(request.url))

    def _ask(self, url: str) -> None:
        if "gpuslice" in url:
            self.asked.append(url)

    def _take(self, answer: Response | None) -> None:
        if answer is None or not answer.ok:
            return
        try:
            if "/gpuslice/api/sample" in answer.url:
                self.rows += [tuple(row) for row in json.loads(answer.text())["rows"]]
            elif answer.url.endswith("/gpuslice/api/me"):
                self.leases += json.loads(answer.text())["leases"]
        except PlaywrightError:
            pass  # the page went away before its answer was read


def micro(text: str) -> int:
    """The first amount in a text, exactly."""
    found = re.search(r"(\d[\d,]*)\.(\d{1,6})", text)
    assert found, text
    return int(found[1].replace(",", "")) * 10**6 + int(found[2].ljust(6, "0"))
