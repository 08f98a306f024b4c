"""The hub side's pure functions, compared as plain values, and ``configure`` on plain Config."""

from __future__ import annotations

import asyncio
import math
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from jupyterhub.objects import Hub
from pydantic import TypeAdapter, ValidationError
from traitlets.config import Config

import gpuslice
from gpuslice.cli import parts, ports
from gpuslice.cli.secrets import SECRETS, ensure_secrets
from gpuslice.cli.state import Running, State
from gpuslice.cli.trouble import Trouble
from gpuslice.settings import load_settings
from gpuslice.spawners import LocalGpuSpawner, builders
from gpuslice.spawners.configure import ConfigureError, configure
from gpuslice.spawners.errors import EngineUnavailable, ServiceRefused, ServiceUnavailable
from gpuslice.spawners.form import options_form, unavailable_form
from gpuslice.spawners.options import Choice, choice, flatten, stored_options
from gpuslice.spawners.progress import ProgressBoard
from gpuslice.spawners.refusal import SpawnRefused
from gpuslice.spawners.words import as_refusal, in_line
from gpuslice.units import HOUR_US, MINUTE_US
from gpuslice.wire import (
    Choices,
    Enforcement,
    JoinFor,
    LeaseGrant,
    LeaseRequest,
    LeaseState,
    Offer,
    Refusal,
    RequestView,
    SliceKind,
    SliceName,
    SliceTerms,
)

LEASE = "0123456789abcdef" * 2


def grant(**changes: Any) -> LeaseGrant:
    values: dict[str, Any] = {
        "lease_id": LEASE,
        "slice": "quarter",
        "title": "A quarter",
        "kind": SliceKind.SHARED,
        "node_id": "local",
        "device_uuid": "GPU-1",
        "device_model": "NVIDIA L4",
        "memory_bytes": 5 << 30,
        "share_milli": 250,
        "enforcement": Enforcement.ADVISORY,
        "simulated": True,
        "rate_u_per_hour": 875_000,
        "currency": "EUR",
        "state": LeaseState.GRANTED,
        "start_before_us": 1,
    }
    return LeaseGrant(**(values | changes))


def offer(**changes: Any) -> Offer:
    values: dict[str, Any] = {
        "slice": "quarter",
        "title": "A quarter",
        "kind": SliceKind.SHARED,
        "device_model": "NVIDIA L4",
        "memory_bytes": 5 << 30,
        "share_milli": 250,
        "enforcement": Enforcement.ADVISORY,
        "simulated": False,
        "rate_u_per_hour": 875_000,
        "currency": "EUR",
        "free": 3,
        "total": 4,
    }
    return Offer(**(values | changes))


# --- what is sent ---------------------------------------------------------------------------


def test_the_core_imports_nothing_of_the_hub() -> None:
    code = "import sys, gpuslice, gpuslice.wire, gpuslice.units; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"jupyterhub", "tornado", "sqlalchemy", "aiohttp", "click"}


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom gpuslice.cli import main\n"
        "try: main(['up', '--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"jupyterhub", "sqlalchemy", "aiohttp", "pynvml"}


def test_start_server_is_a_plain_body() -> None:
    body = builders.start_server(
        grant(), ["run", "it"], {"A": "b"}, Path("/homes/ann"), "http://127.0.0.1:1/user/ann/"
    )
    assert body.model_dump() == {
        "lease_id": LEASE,
        "argv": ["run", "it"],
        "env": {"A": "b"},
        "cwd": "/homes/ann",
        "url": "http://127.0.0.1:1/user/ann/",
    }


def test_notebook_env_adds_to_the_hubs() -> None:
    env = builders.notebook_env({"PATH": "/bin", "GPUSLICE_LEASE": "mine"}, grant(), "http://s/")
    assert env == {
        "PATH": "/bin",
        "GPUSLICE_SERVICE_URL": "http://s/",
        "GPUSLICE_LEASE": LEASE,
        "GPUSLICE_SLICE": "quarter",
        "GPUSLICE_SIMULATED": "1",
    }


def test_local_env_and_argv() -> None:
    env = builders.local_env({"HOME": "/root"}, Path("/h"))
    assert env["HOME"] == "/h"
    assert all(value.startswith("/h") for key, value in env.items() if key.startswith("JUPYTER_"))
    assert builders.local_argv(["lab"], ["--x"], as_root=False) == ["lab", "--x"]
    assert builders.local_argv(["lab"], ["--x"], as_root=True) == ["lab", "--x", "--allow-root"]
    assert builders.local_argv(["lab"], ["--allow-root"], as_root=True) == ["lab", "--allow-root"]


@given(st.text(min_size=1, max_size=255), st.text(min_size=1, max_size=255))
def test_homes_are_below_their_folder_and_of_one_user_each(one: str, other: str) -> None:
    homes = Path("/state/homes")
    home = builders.home_folder(homes, one)
    assert home.parent == homes
    assert re.fullmatch(r"[a-z0-9-]{1,64}", home.name)
    assert (home == builders.home_folder(homes, other)) == (one == other)


def test_grant_text() -> None:
    assert builders.grant_text(grant()) == (
        "Got A quarter, 5 GiB on NVIDIA L4 (SIMULATED) at 0.88 EUR per hour"
    )


# --- options --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


KEYS = st.sampled_from(["slice", "profile", "hours", "charge", "queue"])


@given(st.dictionaries(st.text() | KEYS, JSON))
def test_whatever_comes_is_a_slice_name_or_a_short_clear_400(options: dict[str, Any]) -> None:
    try:
        name = choice(options, "", {}).slice
    except SpawnRefused as refused:
        assert refused.status_code == 400
        assert len(refused.jupyterhub_message) < 400
        assert refused.jupyterhub_message.isascii() and refused.jupyterhub_message.isprintable()
        assert "<" not in refused.jupyterhub_html_message
    else:
        TypeAdapter(SliceName).validate_python(name)


@given(st.text(alphabet="aA0._+-/ \n", max_size=70))
def test_the_pattern_is_the_wires(name: str) -> None:
    try:
        TypeAdapter(SliceName).validate_python(name)
        valid = True
    except ValidationError:
        valid = False
    try:
        ours = choice({"slice": name}, "", {}).slice == name
    except SpawnRefused:
        ours = False
    assert ours == valid


def test_default_and_stored_options() -> None:
    assert choice({}, "cpu", {}) == Choice("cpu")
    assert choice({"slice": ""}, "cpu", {}) == Choice("cpu")
    assert choice(stored_options(Choice("quarter")), "", {}) == Choice("quarter")
    with pytest.raises(SpawnRefused, match="a number"):
        choice({"slice": math.nan}, "cpu", {})


@pytest.mark.parametrize(
    ("hours", "us"),
    [("2", 2 * HOUR_US), (2, 2 * HOUR_US), (1.5, 3 * HOUR_US // 2), (" 0.000001 ", 3600),
     ("8784", 8784 * HOUR_US), ("", None), (None, None)],
)  # fmt: skip
def test_hours_come_alike_from_form_and_rest(hours: Any, us: int | None) -> None:
    chosen = choice({"slice": "cpu", "hours": hours}, "", {})
    assert chosen.declared_us == us
    # What the hub keeps and hands back means the same.
    assert choice(stored_options(chosen), "", {}) == chosen


@pytest.mark.parametrize(
    "hours", [0, "0.0", -1, "2,5", "1e3", "8785", "nan", math.inf, True, [2], {"h": 2}, "२"]
)
def test_what_is_no_number_of_hours_is_refused(hours: Any) -> None:
    with pytest.raises(SpawnRefused, match="number of hours") as caught:
        choice({"slice": "cpu", "hours": hours}, "", {})
    assert caught.value.status_code == 400


def test_who_pays_is_kept_and_whether_to_wait_is_not() -> None:
    chosen = choice({"slice": "cpu", "charge": "course é", "queue": "start"}, "", {})
    assert (chosen.charge, chosen.queue) == ("course é", "start")
    kept = stored_options(chosen)
    assert kept == {"slice": "cpu", "profile": "cpu", "charge": "course é"}
    assert choice(kept, "", {}).queue == "no"
    for wrong in ({"queue": "yes"}, {"queue": True}, {"charge": 3}, {"charge": "x" * 256}):
        with pytest.raises(SpawnRefused, match=r"no, tell or start|group"):
            choice({"slice": "cpu", **wrong}, "", {})


def test_flatten() -> None:
    assert flatten({"slice": ["cpu"], "_xsrf": ["x"], "two": ["a", "b"]}) == {
        "slice": "cpu",
        "two": ["a", "b"],
    }


# --- refusals and form ----------------------------------------------------------------------


def test_a_refusal_says_everything_once_and_escapes() -> None:
    refused = SpawnRefused.from_refusal(
        503,
        Refusal(
            reason="full",
            message="All <b>halves</b> are taken",
            limit="2 per user",
            retry_after_s=120,
            alternatives=["quarter", "cpu"],
        ),
    )
    assert refused.jupyterhub_message == (
        "All <b>halves</b> are taken. Limit: 2 per user. Try again in 2 minutes. "
        "Free now: quarter, cpu."
    )
    assert "<b>" not in refused.jupyterhub_html_message
    assert (refused.status_code, refused.reason) == (503, "full")
    assert refused.headers == {"Retry-After": "120"}
    again = SpawnRefused("Try again in a minute; free: cpu", reason="x", retry_after_s=60,
                         alternatives=["cpu"])  # fmt: skip
    assert again.jupyterhub_message == "Try again in a minute; free: cpu."


def test_silence_is_a_refusal_with_503() -> None:
    for error in (ServiceUnavailable("x"), EngineUnavailable("x")):
        refused = as_refusal(error)
        assert refused is not None
        assert refused.status_code == 503
        assert "x" not in refused.jupyterhub_message.split()
    assert as_refusal(asyncio.CancelledError()) is None


def choices(*offers: Offer, **more: Any) -> Choices:
    fields: dict[str, Any] = {"leases_held": 0, "leases_limit": 1, "gpu_problem": None}
    return Choices(offers=list(offers), **(fields | more))


def test_the_form_is_accessible_and_escaped() -> None:
    page = options_form(
        choices(
            offer(),
            offer(slice="cpu", title="<script>", device_model=None, memory_bytes=None,
                  share_milli=None, rate_u_per_hour=0),
            offer(slice="whole", free=0, total=0, unavailable="all are & were taken",
                  simulated=True),
        ),
        default="cpu",
    )  # fmt: skip
    soup = BeautifulSoup(page, "html.parser")
    assert soup.find("script") is None
    slices = soup.find_all("input", attrs={"name": "slice", "type": "radio"})
    radios = {str(one["value"]): one for one in slices}
    assert list(radios) == ["quarter", "cpu", "whole"]
    for radio in radios.values():
        assert radio["name"] == "slice" and radio.has_attr("required")
        card = soup.find("label", attrs={"for": radio["id"]})
        assert card is not None and radio in card.find_all("input")
    assert radios["cpu"].has_attr("checked")
    assert radios["whole"].has_attr("disabled")
    text = soup.get_text(" ", strip=True)
    for words in ("0.8750 EUR per hour", "free of charge", "3 of 4 free", "25 % of a GPU",
                  "all are & were taken", "SIMULATED", "no real money",
                  "You hold 0 slices now and may hold 1 at a time: 1 left.",
                  "Closing the tab does not stop it", "your files stay"):  # fmt: skip
        assert words in text
    assert "SIMULATED" not in options_form(choices(offer()), "")
    assert "does not answer" in unavailable_form()


def test_the_form_says_what_is_left_and_what_is_wrong_with_the_gpus() -> None:
    def text(**more: Any) -> str:
        page = options_form(choices(offer(), **more), "")
        return BeautifulSoup(page, "html.parser").get_text(" ", strip=True)

    assert "stop one of your servers" in text(leases_held=1)
    assert "You hold 1 slice now; there is no limit." in text(leases_held=1, leases_limit=None)
    problem = "The GPU driver was updated; restart the node."
    assert f"No GPU can be leased now: {problem}" in text(gpu_problem=problem)


def test_the_form_says_what_is_reserved() -> None:
    note = "Reserved: 6 quarter for <i>Lab</i>, Tue 2026-12-01 10:00 to 12:00 (CET)"
    page = options_form(choices(offer(reserved=6, reserved_note=note), offer(slice="half")), "")
    soup = BeautifulSoup(page, "html.parser")
    cards = {str(card["for"]): card.get_text(" ", strip=True) for card in soup.find_all("label")}
    assert note in cards["slice-quarter"] and "Reserved" not in cards["slice-half"]


def request(**changes: Any) -> RequestView:
    values: dict[str, Any] = {
        "request_id": LEASE, "user": "ann", "server": "", "slice": "whole", "auto_start": False,
        "state": "waiting", "position": 2, "waiting": 5, "start_by_us": None, "expected_us": None,
        "offer_til_us": None, "lease_id": None, "reason": None, "created_us": 1, "version": 1,
    }  # fmt: skip
    return RequestView(**(values | changes))


def terms(name: str, **changes: Any) -> SliceTerms:
    values = {"slice": name, "refused": None, "forbidden": False, "waiting": 0}
    return SliceTerms(**(values | changes))


def form(*offers: Offer, default: str = "", **more: Any) -> BeautifulSoup:
    return BeautifulSoup(options_form(choices(*offers, **more), default), "html.parser")


def test_what_is_taken_can_be_waited_for_and_what_a_limit_refuses_cannot_be_chosen() -> None:
    soup = form(
        offer(slice="whole", free=0, total=1, unavailable="All are in use."),
        offer(slice="quarter"),
        terms=[terms("whole", waiting=2),
               terms("quarter", refused="You may not take <quarters>.", forbidden=True)],
        default="quarter",
    )  # fmt: skip
    whole, quarter = (one["id"] for one in soup.find_all("input", attrs={"name": "slice"}))
    assert not soup.find(id=whole).has_attr("disabled")  # type: ignore[union-attr]
    assert soup.find(id=quarter).has_attr("disabled")  # type: ignore[union-attr]
    assert not soup.find_all("input", attrs={"name": "slice"}, checked=True)
    words = soup.get_text(" ", strip=True)
    assert "All are in use; 2 wait for one" in words
    assert "You may not take <quarters>." in words
    waits = soup.find_all("input", attrs={"name": "queue"})
    assert [one["value"] for one in waits] == ["tell", "start", "no"]
    some = form(offer(free=3, total=4), terms=[terms("quarter", waiting=1)])
    assert "3 of 4 free; 1 waits for one" in some.get_text(" ", strip=True)
    # Where something of everything is free there is nothing to wait for.
    assert not form(offer()).find_all("input", attrs={"name": "queue"})


def test_hours_and_groups_are_asked_for_where_they_matter() -> None:
    plain = form(offer())
    hours = plain.find("input", attrs={"name": "hours"})
    assert hours is not None and not hours.has_attr("required") and not hours.has_attr("max")
    assert plain.find("select", attrs={"name": "charge"}) is None
    assert form(offer(), charges=["one"]).find("select", attrs={"name": "charge"}) is None

    asked = form(offer(), charges=["one", "<two>"], hours_needed=True,
                 longest_us=9 * HOUR_US // 2,
                 limits=["16 of 20 GPU-hours a week left (group <two> in total)."])  # fmt: skip
    hours = asked.find("input", attrs={"name": "hours"})
    assert hours is not None and hours.has_attr("required") and hours["max"] == "4.5"
    groups = asked.find("select", attrs={"name": "charge"})
    assert groups is not None
    assert [one["value"] for one in groups.find_all("option")] == ["", "one", "<two>"]
    assert "16 of 20 GPU-hours a week left" in asked.get_text()


def test_the_form_shows_a_place_in_line_and_chooses_what_is_reserved() -> None:
    waits = form(offer(slice="whole", free=0, total=1), request=request())
    assert "number 2 of 5 in line" in waits.get_text()
    assert "Nobody can know yet" in waits.get_text()

    mine = form(
        offer(slice="quarter"), offer(slice="whole", title="A whole GPU", free=0, total=1),
        # The reservation itself is what fills the limit.
        terms=[terms("whole", refused="You may hold 1 slice at a time.")],
        request=request(state="offered", position=None, offer_til_us=1_790_000_000_000_000),
        default="quarter",
    )  # fmt: skip
    (checked,) = mine.find_all("input", attrs={"name": "slice"}, checked=True)
    assert checked["value"] == "whole" and not checked.has_attr("disabled")
    assert "A whole GPU is reserved for you until 14:13 UTC" in mine.get_text()


def test_a_refused_start_says_the_place_in_line_the_wait_and_what_is_free() -> None:
    refusal = Refusal(reason="gpu-full", message="full", alternatives=["cpu"])

    def said(**changes: Any) -> str:
        refused = in_line(request(**changes), refusal, now=0)
        assert (refused.reason, refused.status_code) == ("in-line", 503)
        return refused.jupyterhub_message

    unknown = said()
    assert "You are number 2 of 5 in line for a slice whole." in unknown
    assert "Nobody can know yet" in unknown and "Free now: cpu." in unknown
    assert "You are told when it is your turn" in unknown
    guess = said(expected_us=25 * MINUTE_US, auto_start=True)
    assert "Your turn is expected in about 25 minutes." in guess
    assert "starts by itself" in guess
    taken = refusal.model_copy(update={"reason": "others-wait"})
    waits = in_line(request(), taken, now=0).jupyterhub_message
    assert "Others wait. You are number 2 of 5" in waits and "Nothing is free" not in waits
    sure = said(expected_us=MINUTE_US // 2, start_by_us=3 * HOUR_US)
    assert "is expected in about 1 minute and comes in 3 hours at the latest." in sure


def test_every_watcher_of_a_start_sees_all_of_it() -> None:
    async def scene() -> None:
        board = ProgressBoard()
        board.say(1, "one")
        early = asyncio.create_task(_all(board))
        await asyncio.sleep(0)
        board.say(2, "two")
        late = asyncio.create_task(_all(board))
        await asyncio.sleep(0)
        board.close()
        assert [event["message"] for event in await early] == ["one", "two"]
        assert await early == await late

    asyncio.run(scene())


async def _all(board: ProgressBoard) -> list[dict[str, Any]]:
    return [event async for event in board.watch()]


def test_every_option_is_documented() -> None:
    for name, trait in LocalGpuSpawner.class_traits(config=True).items():
        if trait.this_class.__module__.startswith("gpuslice."):
            assert trait.help.strip(), name


# --- configure ------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    ensure_secrets(tmp_path / "secrets")
    return tmp_path


def test_configure_fills_an_empty_config(state: Path) -> None:
    c = Config()
    configure(c, state=state)
    hub = c.JupyterHub
    assert hub.spawner_class == "gpuslice.spawners.LocalGpuSpawner"
    assert (hub.cleanup_servers, hub.oauth_require_pkce) == (False, True)
    assert hub.extra_user_scopes == {
        "access:services!service=gpuslice",
        "custom:gpuslice:lease!user",
        "custom:gpuslice:stop!user",
    }
    (service,) = hub.services
    token = (state / "secrets" / "service_token").read_text().strip()
    assert service == {
        "name": "gpuslice",
        "url": "http://127.0.0.1:8085",
        "api_token": token,
        "display": False,
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": [
            "custom:gpuslice:admin",
            "custom:gpuslice:read-all",
            "custom:gpuslice:lease!user",
            "admin-ui",
        ],
    }
    roles = {role["name"]: role for role in hub.load_roles}
    assert roles["gpuslice-service"]["scopes"] == [
        "list:users", "read:users:groups", "read:servers", "delete:servers", "start:servers",
    ]  # fmt: skip
    assert "users" not in roles["gpuslice-admin"]
    assert c.GpuSpawner.service_url == "http://127.0.0.1:8085/services/gpuslice/"
    assert token not in str(c.GpuSpawner)


def test_configure_adds_to_what_is_there(state: Path) -> None:
    c = Config()
    c.JupyterHub.services = [{"name": "culler"}]
    c.JupyterHub.load_roles.append({"name": "mine", "scopes": []})
    c.JupyterHub.extra_user_scopes.add("read:hub")
    c.JupyterHub.custom_scopes = {"custom:mine": {"description": "x"}}
    c.JupyterHub.cleanup_servers = False
    c.JupyterHub.template_paths = ["/mine"]
    c.Authenticator.admin_users = {"root"}
    c.GenericOAuthenticator.admin_users.add("boss")
    c.Spawner.start_timeout = 300
    configure(c, state=state, admins=["ada"], admin_groups=["ops"])
    hub = c.JupyterHub
    assert [one["name"] for one in hub.services] == ["culler", "gpuslice"]
    assert hub.template_paths[0] == "/mine" and len(hub.template_paths) == 2
    assert [one["name"] for one in hub.load_roles] == ["mine", "gpuslice-service", "gpuslice-admin"]
    assert hub.load_roles[2]["users"] == ["ada", "boss", "root"]
    assert hub.load_roles[2]["groups"] == ["ops"]
    assert "read:hub" in hub.extra_user_scopes and len(hub.extra_user_scopes) == 4
    assert "custom:mine" in hub.custom_scopes and "custom:gpuslice:admin" in hub.custom_scopes
    assert c.Spawner.start_timeout == 300


def test_a_subclass_of_our_spawner_is_welcome(state: Path) -> None:
    class Mine(LocalGpuSpawner):
        pass

    c = Config()
    c.JupyterHub.spawner_class = Mine
    configure(c, state=state)
    assert c.JupyterHub.spawner_class is Mine


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("c.JupyterHub.cleanup_servers = True", "cleanup_servers"),
        ("c.JupyterHub.oauth_require_pkce = False", "oauth_require_pkce"),
        ("c.JupyterHub.spawner_class = 'simple'", "spawner_class"),
        ("c.JupyterHub.services = [{'name': 'gpuslice'}]", "services"),
        ("c.JupyterHub.load_roles = [{'name': 'gpuslice-admin'}]", "load_roles"),
        ("c.JupyterHub.custom_scopes = {'custom:gpuslice:lease': {}}", "custom_scopes"),
        ("c.JupyterHub.base_url = '/hub1'", "/hub1/services/gpuslice/"),
    ],
)
def test_a_contradiction_is_one_sentence(state: Path, lines: str, words: str) -> None:
    c = Config()
    exec(textwrap.dedent(lines), {"c": c})
    with pytest.raises(ConfigureError) as error:
        configure(c, state=state)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUSLICE_STATE", raising=False)
    with pytest.raises(ConfigureError, match="GPUSLICE_STATE"):
        gpuslice.configure(Config())
    with pytest.raises(ConfigureError, match=r"service_token.*gpuslice init"):
        gpuslice.configure(Config(), state=tmp_path)
    ensure_secrets(tmp_path / "secrets")
    bad = tmp_path / "gpuslice.toml"
    bad.write_text("curency = 'EUR'\n")
    with pytest.raises(ConfigureError, match=r"gpuslice.toml.*curency"):
        gpuslice.configure(Config(), state=tmp_path, config=bad)


# --- the command's own parts ----------------------------------------------------------------


def test_secrets_are_private_made_once_and_all_different(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    ensure_secrets(folder)
    first = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(first) == set(SECRETS)
    assert len(set(first.values())) == len(first)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    (folder / "node_token").unlink()
    ensure_secrets(folder)
    second = {path.name: path.read_text() for path in folder.iterdir()}
    assert {name for name in first if first[name] != second[name]} == {"node_token"}
    (folder / "node_token").chmod(0o644)
    with pytest.raises(Trouble, match="chmod 600"):
        ensure_secrets(folder)


def plan(root: Path, **changes: Any) -> parts.Plan:
    settings = load_settings(None)
    values: dict[str, Any] = {
        "state": State(root),
        "settings": settings,
        "config": None,
        "ports": ports.choose(settings, 8000, 8001),
        "hub_config": Path("/hub.py"),
        "proxy_command": ["node", "proxy"],
        "node_gpus": ["--demo", "/fleet", "--nvml", "/lib"],
    }
    return parts.Plan(**(values | changes))


def test_parts_are_plain_values_without_secrets(tmp_path: Path) -> None:
    ensure_secrets(tmp_path / "secrets")
    made = parts.parts(plan(tmp_path))
    assert list(made) == ["proxy", "node", "service", "hub", "supervisord"]
    assert made["proxy"].secret_env == {"CONFIGPROXY_AUTH_TOKEN": "proxy_token"}
    assert made["node"].argv[-4:] == ["--demo", "/fleet", "--nvml", "/lib"]
    assert "http://127.0.0.1:8085/services/gpuslice/" in made["node"].argv
    State(tmp_path).prepare()
    parts.write_parts(State(tmp_path), made)
    parts.write_supervisor_conf(State(tmp_path), tmp_path / "run" / "supervisor.sock")
    written = State(tmp_path).parts.read_text() + State(tmp_path).supervisor_conf.read_text()
    for path in (tmp_path / "secrets").iterdir():
        assert path.read_text().strip() not in written
    assert str(tmp_path) not in State(tmp_path).supervisor_conf.read_text()


def test_only_one_up_per_folder(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.prepare()
    first = Running(state)
    first.claim(address="http://127.0.0.1:8000")
    with pytest.raises(Trouble, match=r"already runs.*http://127.0.0.1:8000"):
        Running(state).claim(address="http://127.0.0.1:9000")


def test_a_data_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Trouble, match="--state"):
        State(tmp_path / "file").prepare()


class StubService:
    """A service that refuses every lease for one reason; remembers who joined the queue."""

    def __init__(self, reason: str) -> None:
        self.refusal = Refusal(reason=reason, message="no", alternatives=["cpu"])
        self.joined: list[JoinFor] = []

    async def lease(self, body: LeaseRequest) -> LeaseGrant:
        raise ServiceRefused(503, self.refusal)

    async def join_queue(self, body: JoinFor) -> RequestView:
        self.joined.append(body)
        return request()


@pytest.mark.parametrize(
    ("reason", "queue", "joins"),
    [("gpu-full", "tell", 1), ("others-wait", "start", 1), ("others-wait", "no", 0),
     ("leases-limit", "tell", 0)],
)  # fmt: skip
def test_what_waiting_answers_is_waited_for_as_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, reason: str, queue: str, joins: int
) -> None:
    service = StubService(reason)
    spawner = LocalGpuSpawner(
        user=SimpleNamespace(name="mia", url="/user/mia/", escaped_name="mia", groups=[]),
        hub=Hub(base_url="/hub/", connect_url="http://hub:8081/hub/"),
        api_token="t", oauth_client_id="jupyterhub-user",
    )  # fmt: skip
    monkeypatch.setattr(spawner, "service", lambda: service)
    spawner.take_options({"slice": "whole", "queue": queue})
    with pytest.raises((SpawnRefused, ServiceRefused)) as refused:
        asyncio.run(spawner._lease())
    assert len(service.joined) == joins
    if joins:
        assert service.joined[0].auto_start == (queue == "start")
        assert "You are number 2 of 5 in line" in refused.value.jupyterhub_message
