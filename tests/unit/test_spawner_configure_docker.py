"""``gpuslice.configure`` for the docker engine; images among options and form; the board."""

from __future__ import annotations

import asyncio
import importlib.util
import textwrap
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from traitlets.config import Config

from gpuslice.cli.secrets import ensure_secrets
from gpuslice.spawners import LocalGpuSpawner
from gpuslice.spawners.configure import ConfigureError, configure
from gpuslice.spawners.docker import GpuDockerSpawner
from gpuslice.spawners.form import options_form
from gpuslice.spawners.options import Choice, choice, stored_options
from gpuslice.spawners.progress import ProgressBoard
from gpuslice.spawners.refusal import SpawnRefused
from gpuslice.wire import Choices

OURS = "gpuslice.spawners.docker.GpuDockerSpawner"
TOML = """\
[[docker.image]]
reference = "registry:5000/lab:1"
title = "JupyterLab"
[[docker.image]]
reference = "other@sha256:{zeros}"
""".format(zeros="0" * 64)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GPUSLICE_ENGINE", "GPUSLICE_ENGINE_SOCKET", "GPUSLICE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    ensure_secrets(tmp_path / "secrets")
    return tmp_path


def reachable() -> Config:
    """What a hub of containers has to say for itself."""
    c = Config()
    c.JupyterHub.hub_connect_url = "http://hub:8081"
    c.GpuSpawner.notebook_service_url = "http://proxy:8000/services/gpuslice/"
    return c


def test_docker_by_argument(state: Path) -> None:
    (state / "gpuslice.toml").write_text(TOML)
    c = reachable()
    configure(c, state=state, config=state / "gpuslice.toml", engine="docker")
    assert c.JupyterHub.spawner_class == OURS
    one = GpuDockerSpawner(config=c)
    assert one.node_socket == str(state / "node" / "engine.sock")
    assert dict(one.images) == {
        "registry:5000/lab:1": "JupyterLab",
        f"other@sha256:{'0' * 64}": f"other@sha256:{'0' * 64}",
    }
    assert one.notebook_service_url == "http://proxy:8000/services/gpuslice/"
    # The pull is not part of what start_timeout bounds, so it stays what the service knows.
    assert c.Spawner.start_timeout == 90
    assert c.JupyterHub.last_activity_interval == 10


def test_engine_and_socket_by_the_environment(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSLICE_ENGINE", "docker")
    monkeypatch.setenv("GPUSLICE_ENGINE_SOCKET", "/run/other/engine.sock")
    c = reachable()
    configure(c, state=state)
    assert c.JupyterHub.spawner_class == OURS
    assert GpuDockerSpawner(config=c).node_socket == "/run/other/engine.sock"
    c = reachable()
    configure(c, state=state, node_socket="/run/mine/engine.sock")
    assert GpuDockerSpawner(config=c).node_socket == "/run/mine/engine.sock"
    c = Config()
    configure(c, state=state, engine="local")
    assert c.JupyterHub.spawner_class == "gpuslice.spawners.LocalGpuSpawner"
    assert LocalGpuSpawner(config=c).node_socket == "/run/other/engine.sock"


class Mine(GpuDockerSpawner):
    """An administrator's own."""


class MineLocal(LocalGpuSpawner):
    """An administrator's own."""


@pytest.mark.parametrize("given_class", ["gpuslice-docker", OURS, GpuDockerSpawner, Mine])
def test_the_engine_is_that_of_the_spawner_class(state: Path, given_class: object) -> None:
    c = reachable()
    c.JupyterHub.spawner_class = given_class
    configure(c, state=state)
    assert c.JupyterHub.spawner_class == given_class
    assert c.GpuDockerSpawner.images


CONTRADICTIONS = [
    ("c.JupyterHub.spawner_class = 'gpuslice-local'", "not of the engine 'docker'"),
    ("c.JupyterHub.spawner_class = MineLocal", "not of the engine 'docker'"),
    ("c.JupyterHub.spawner_class = 'docker'", "brings its own"),
    ("c.JupyterHub.internal_ssl = True", "internal_ssl"),
    ("c.GpuDockerSpawner.images = {'evil': ''}", "images"),
    ("c.DockerSpawner.volumes = {'/': '/host'}", "c.DockerSpawner.volumes"),
    ("c.DockerSpawner.extra_host_config = {}", "c.DockerSpawner.extra_host_config"),
    ("c.GpuDockerSpawner.network_name = 'host'", "c.GpuDockerSpawner.network_name"),
    ("c.DockerSpawner.remove = True", "c.DockerSpawner.remove"),
    ("c.DockerSpawner.image = 'a'", "[[docker.image]]"),
    ("c.DockerSpawner.allowed_images = '*'", "[[docker.image]]"),
    ("c.Spawner.mem_limit = '4G'", "[[slice]]"),
    ("c.Spawner.ip = '127.0.0.1'", "c.Spawner.ip"),
    ("c.JupyterHub.spawner_class = Mine; c.Mine.mounts = []", "c.Mine.mounts"),
    ("del c.JupyterHub['hub_connect_url']", "hub at 127.0.0.1"),
    ("c.JupyterHub.hub_connect_url = 'http://localhost:8081'", "hub at http://localhost:8081"),
    ("del c.JupyterHub['hub_connect_url']; c.JupyterHub.hub_ip = '127.0.0.2'", "127.0.0.2"),
    ("del c.GpuSpawner['notebook_service_url']", "'http://proxy:8000/services/gpuslice/'"),
    ("c.GpuSpawner.notebook_service_url = 'http://[::1]:1/'", "http://[::1]:1/"),
]


@pytest.mark.parametrize(("lines", "words"), CONTRADICTIONS)
def test_a_contradiction_is_one_sentence(state: Path, lines: str, words: str) -> None:
    c = reachable()
    exec(textwrap.dedent(lines), {"c": c, "Mine": Mine, "MineLocal": MineLocal})
    with pytest.raises(ConfigureError) as error:
        configure(c, state=state, engine="docker")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lines",
    [
        "c.Spawner.hub_connect_url = 'http://10.0.0.1:8081'",
        "c.JupyterHub.hub_connect_ip = 'hub'",
        "c.JupyterHub.hub_ip = '0.0.0.0'",
        "c.JupyterHub.hub_bind_url = 'http://172.17.0.1:8081'",
        "c.JupyterHub.hub_ip = ''; c.Spawner.hub_connect_url = 'http://hub:1'",
    ],
)
def test_a_hub_that_containers_reach(state: Path, lines: str) -> None:
    c = reachable()
    del c.JupyterHub["hub_connect_url"]
    exec(lines, {"c": c})
    configure(c, state=state, engine="docker")


def test_what_does_not_matter_for_processes_is_not_refused(state: Path) -> None:
    c = Config()
    c.Spawner.mem_limit = "4G"
    configure(c, state=state, engine="local")


def test_an_unknown_engine(state: Path) -> None:
    with pytest.raises(ConfigureError, match=r"no engine 'podman'; there is local and docker"):
        configure(Config(), state=state, engine="podman")


def test_a_hub_without_dockerspawner_is_told_what_to_install(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "dockerspawner" else found(name)
    )
    with pytest.raises(ConfigureError, match=r"needs dockerspawner .*gpuslice\[docker\]"):
        configure(reachable(), state=state, engine="docker")
    configure(Config(), state=state, engine="local")


# --- options --------------------------------------------------------------------------------

IMAGES = {f"lab:{number}": f"Lab {number}" for number in range(7)}

HOSTILE: list[tuple[str, object]] = [
    ("unknown-image", "evil:latest"),
    ("unknown-image", "../../etc/passwd"),
    ("unknown-image", "lab:1 "),
    ("unknown-image", "LAB:1"),
    ("unknown-image", "lab:1\n"),
    ("unknown-image", "x" * 1_000_000),
    ("unknown-image", "gpu \u202e\U0001f4a9<script>"),
    ("bad-option", float("nan")),
    ("bad-option", -1),
    ("bad-option", True),
    ("bad-option", ["lab:1", "lab:2"]),
    ("bad-option", {"lab:1": 1}),
]


@pytest.mark.parametrize(("reason", "image"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_image_is_refused_in_short_words(reason: str, image: object) -> None:
    with pytest.raises(SpawnRefused) as caught:
        choice({"slice": "cpu", "image": image}, "", IMAGES)
    told = caught.value
    assert (told.reason, told.status_code) == (reason, 400)
    assert told.jupyterhub_message.isascii() and len(told.jupyterhub_message) < 300
    assert "<" not in told.jupyterhub_html_message
    if reason == "unknown-image":
        assert "there is lab:0, lab:1, lab:2, lab:3, lab:4 and 2 more" in told.jupyterhub_message


@given(st.text() | st.none() | st.integers() | st.lists(st.text()))
def test_an_image_is_one_of_the_list_or_a_refusal(image: Any) -> None:
    try:
        chosen = choice({"slice": "cpu", "image": image}, "", IMAGES).image
    except SpawnRefused as refused:
        assert refused.status_code == 400
    else:
        assert chosen in IMAGES or (chosen is None and not image)


def test_no_image_is_the_engines_first_and_an_engine_without_images_has_no_such_option() -> None:
    assert choice({"slice": "cpu"}, "", IMAGES) == Choice("cpu", None)
    assert choice({"slice": "cpu", "image": ""}, "", IMAGES) == Choice("cpu", None)
    kept = stored_options(Choice("cpu", "lab:3"))
    assert choice(kept, "", IMAGES) == Choice("cpu", "lab:3")
    with pytest.raises(
        SpawnRefused, match=r"Unknown option 'image'; the options are 'slice', 'hours'"
    ):
        choice({"slice": "cpu", "image": "lab:1"}, "", {})
    with pytest.raises(SpawnRefused, match=r"the options are 'slice', 'image', 'hours'"):
        choice({"slice": "cpu", "days": 1}, "", IMAGES)


def test_the_form_has_a_choice_of_images_only_where_there_is_one() -> None:
    offers = Choices(offers=[], leases_held=0, leases_limit=1, gpu_problem=None)
    page = BeautifulSoup(options_form(offers, "", {"a:1": "<b>A</b>", "b:1": "B"}), "html.parser")
    select = page.find("select", attrs={"name": "image"})
    assert select is not None
    label = page.find("label", attrs={"for": select["id"]})
    assert label is not None and label.get_text() == "Image"
    options = select.find_all("option")
    assert [(one["value"], one.get_text(), one.has_attr("selected")) for one in options] == [
        ("a:1", "<b>A</b>", True),
        ("b:1", "B", False),
    ]
    assert "select" not in options_form(offers, "", {"a:1": "A"})
    assert "select" not in options_form(offers, "")


# --- progress -------------------------------------------------------------------------------


def test_steps_of_one_topic_replace_each_other_and_the_bar_never_goes_back() -> None:
    async def scene() -> None:
        board = ProgressBoard()
        board.say(10, "pull 1", topic="pull")
        early = asyncio.create_task(_all(board))
        await asyncio.sleep(0)
        board.say(30, "pull 2", topic="pull")
        await asyncio.sleep(0)
        board.say(40, "pull 3", topic="pull")
        await asyncio.sleep(0)
        board.say(5, "lease")
        board.say(50, "pull again", topic="pull")
        late = asyncio.create_task(_all(board))
        await asyncio.sleep(0)
        board.close()
        told = [(event["progress"], event["message"]) for event in await early]
        assert told == [(10, "pull 1"), (30, "pull 2"), (40, "pull 3"), (40, "lease"),
                        (50, "pull again")]  # fmt: skip
        assert [event["message"] for event in await late] == ["pull 3", "lease", "pull again"]

    asyncio.run(scene())


async def _all(board: ProgressBoard) -> list[dict[str, Any]]:
    return [event async for event in board.watch()]
