"""Login through a real OpenID provider, with the configuration of hub_config/oauth."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from bs4 import BeautifulSoup
from platform_world import HERE, Platform, free_ports

from gpuslice.cli.proxy import proxy_command

ROOT = HERE.parents[1]

pytestmark = pytest.mark.hub


class OidcPlatform(Platform):
    """The platform, but with the administrator's OIDC configuration as its hub."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, real_notebooks=True)
        self._hub_config = ROOT / "hub_config" / "oauth" / "jupyterhub_config.py"


class Provider:
    """panva's oidc-provider as a process."""

    def __init__(self, redirect: str, secret: str) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = os.environ | {
            "OP_PORT": str(self.port),
            "CLIENT_ID": "hub",
            "CLIENT_SECRET": secret,
            "REDIRECT_URI": redirect,
        }
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [proxy_command()[0], str(HERE / "oidc" / "provider.mjs")],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "listening"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OidcPlatform, Provider]]:
    folder = tmp_path_factory.mktemp("gpu slice oidc")
    platform = OidcPlatform(folder)
    secret = secrets.token_hex(16)
    callback = f"{platform.url}/hub/oauth_callback"
    provider = Provider(callback, secret)
    (folder / "client_secret").write_text(secret)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "OIDC_AUTHORIZE_URL": f"{provider.url}/auth",
            "OIDC_TOKEN_URL": f"{provider.url}/token",
            "OIDC_USERDATA_URL": f"{provider.url}/me",
            "OIDC_CLIENT_ID": "hub",
            "OIDC_CLIENT_SECRET_FILE": str(folder / "client_secret"),
            "OIDC_CALLBACK_URL": callback,
            "OIDC_ALLOWED_GROUPS": "students, teachers",
            "OIDC_ADMIN_GROUPS": "teachers",
            "OIDC_LOGIN_SERVICE": "Example University",
        }.items():
            patch.setenv(name, value)
        try:
            platform.start()
            yield platform, provider
            platform.stop()
        finally:
            platform.kill_everything()
            provider.stop()


class Browser:
    """Follows redirects and fills in the provider's forms, as a person would."""

    def __init__(self, hub: str) -> None:
        self.hub = hub
        self.client = httpx.Client(timeout=30, headers={"Sec-Fetch-Mode": "navigate"})

    def get(self, url: str) -> httpx.Response:
        return self._follow(self.client.get(url))

    def _follow(self, answer: httpx.Response) -> httpx.Response:
        for _ in range(20):
            if not answer.is_redirect:
                return answer
            answer = self.client.get(urljoin(str(answer.url), answer.headers["location"]))
        raise AssertionError(f"redirected in circles: {answer.url}")

    def login(self, user: str) -> httpx.Response:
        """From the hub's button to wherever it ends."""
        answer = self.get(f"{self.hub}/hub/oauth_login")
        for _ in range(4):
            form = BeautifulSoup(answer.text, "html.parser").find("form")
            if str(answer.url).startswith(self.hub) or form is None:
                return answer
            fields = {
                field["name"]: field.get("value", "")
                for field in form.find_all("input")
                if field.get("name")
            }
            fields |= {"login": user, "password": "any"} if "login" in fields else {}
            target = urljoin(str(answer.url), str(form.get("action") or answer.url))
            answer = self._follow(self.client.post(target, data=fields))
        return answer

    def home(self) -> httpx.Response:
        return self.get(f"{self.hub}/hub/home")


def test_the_login_page_names_the_provider(world: tuple[OidcPlatform, Provider]) -> None:
    page = httpx.get(f"{world[0].url}/hub/login")
    assert "Example University" in page.text
    assert 'type="password"' not in page.text


def test_a_student_logs_in_and_sees_the_slices(world: tuple[OidcPlatform, Provider]) -> None:
    browser = Browser(world[0].url)
    answer = browser.login("stud1")
    assert answer.status_code == 200, BeautifulSoup(answer.text, "html.parser").get_text()
    home = browser.home().text
    assert "stud1" in home
    assert 'href="/hub/admin"' not in home
    assert "My GPU" in home and "GPU admin" not in home
    assert browser.get(f"{world[0].url}/services/gpuslice/admin").status_code == 403
    assert "quarter" in browser.get(f"{world[0].url}/hub/spawn").text
    assert "stud1" in browser.get(f"{world[0].url}/services/gpuslice/").text


def test_a_teacher_is_an_administrator(world: tuple[OidcPlatform, Provider]) -> None:
    browser = Browser(world[0].url)
    browser.login("prof1")
    assert 'href="/hub/admin"' in browser.home().text
    assert "GPU admin" in browser.home().text
    assert browser.get(f"{world[0].url}/services/gpuslice/admin").status_code == 200


def test_somebody_of_no_allowed_group_is_refused(world: tuple[OidcPlatform, Provider]) -> None:
    browser = Browser(world[0].url)
    assert browser.login("guest1").status_code == 403
    assert browser.home().url.path != "/hub/home"


def test_with_the_provider_away_the_hub_goes_on(world: tuple[OidcPlatform, Provider]) -> None:
    platform, provider = world
    inside = Browser(platform.url)
    inside.login("stud2")
    provider.stop()
    try:
        assert "stud2" in inside.home().text
        with pytest.raises(httpx.ConnectError):
            Browser(platform.url).login("stud3")
        assert httpx.get(f"{platform.url}/hub/login").status_code == 200
    finally:
        provider.start()
    assert Browser(platform.url).login("stud3").status_code == 200


def test_a_forgotten_setting_stops_the_hub_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "a hub"
    folder.mkdir()
    platform = OidcPlatform(folder)
    unset = {name: value for name, value in os.environ.items() if not name.startswith("OIDC_")}
    hub = subprocess.run(
        platform.command(), capture_output=True, text=True, timeout=200, check=False, env=unset
    )
    assert hub.returncode != 0
    assert "OIDC_AUTHORIZE_URL" in hub.stdout + hub.stderr
    assert "Traceback" not in hub.stdout + hub.stderr
