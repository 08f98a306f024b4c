"""``GpuDockerSpawner`` against a socket that records: what it sends, and what it makes of a no."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dockerspawner import DockerSpawner
from jupyterhub.objects import Hub, Server

from enginestub import EngineStub, engine_stub
from gpuslice.spawners import builders, pulls
from gpuslice.spawners.docker import GpuDockerSpawner
from gpuslice.spawners.errors import EngineFailed, EngineRefused, EngineUnavailable
from gpuslice.spawners.misplaced import MISPLACED, misplaced_values
from gpuslice.spawners.refusal import SpawnRefused
from gpuslice.spawners.words import as_refusal
from gpuslice.wire import (
    Enforcement,
    LeaseGrant,
    LeaseState,
    ServerReport,
    ServerState,
    SliceKind,
)

LEASE = "0123456789abcdef" * 2
IMAGES = {"test/one:1": "The first", "test/two:2": "The second"}
PRESENT = {"Id": "sha256:0", "Config": {"Cmd": ["python3", "-m", "jupyterhub.singleuser"]}}
_numbers = itertools.count()


def grant(lease_id: str = LEASE) -> LeaseGrant:
    return LeaseGrant(
        lease_id=lease_id, slice="quarter", title="A quarter", kind=SliceKind.SHARED,
        node_id="local", device_uuid="GPU-1", device_model="NVIDIA L4", memory_bytes=5 << 30,
        share_milli=250, enforcement=Enforcement.WATCHDOG, simulated=True,
        rate_u_per_hour=1, currency="EUR", state=LeaseState.GRANTED, start_before_us=1,
    )  # fmt: skip


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[EngineStub]:
    with engine_stub(tmp_path / "engine.sock") as stub:
        stub.answer("GET", r"^/images/.*/json$", 200, PRESENT)
        stub.answer("POST", r"^/containers/create", 201, {"Id": "f" * 64, "Warnings": []})
        stub.answer("POST", r"^/containers/[0-9a-f]{64}/start$", 204)
        yield stub


def spawner(stub: EngineStub, user: str = "ann", name: str = "", **traits: Any) -> GpuDockerSpawner:
    """A spawner as the hub makes one, without a hub."""
    who = SimpleNamespace(name=user, url=f"/user/{user}/", escaped_name=user, groups=[])
    one = GpuDockerSpawner(
        user=who,
        hub=Hub(base_url="/hub/", connect_url="http://hub:8081/hub/"),
        api_token="the-servers-token",
        oauth_client_id="jupyterhub-user",
        service_url="http://127.0.0.1:8085/services/gpuslice/",
        notebook_service_url="http://proxy:8000/services/gpuslice/",
        node_socket=str(stub.socket),
        images=IMAGES,
        engine_timeout_s=traits.pop("engine_timeout_s", 10.0),
        **traits,
    )
    one.orm_spawner = None
    one._server = Server(base_url=f"/user/{user}/")
    one._spawner_name = name
    return one


async def prepared(one: GpuDockerSpawner) -> None:
    one._choose({"slice": "quarter"})
    await one.engine_prepare()


def refused(act: Any) -> SpawnRefused:
    with pytest.raises(SpawnRefused) as caught:
        asyncio.run(act)
    return caught.value


# --- what is sent ---------------------------------------------------------------------------


def test_the_body_is_four_fields() -> None:
    body = builders.container_body(LEASE, "a:1", ["run"], {"B": "2", "A": "1"}, "/user/ann/")
    assert body == {
        "Image": "a:1",
        "Cmd": ["run"],
        "Env": ["A=1", "B=2"],
        "Labels": {"gpuslice.lease": LEASE, "gpuslice.base_url": "/user/ann/"},
    }
    assert "Cmd" not in builders.container_body(LEASE, "a:1", [], {}, "/")


def test_what_reaches_the_node_through_docker_py(stub: EngineStub) -> None:
    one = spawner(stub, args=["--debug"], environment={"MINE": "x=y", "NOT_SET": None})

    async def scene() -> None:
        await prepared(one)
        await one.engine_start(grant())

    asyncio.run(scene())
    assert [(call.method, call.path.partition("?")[0]) for call in stub.calls] == [
        ("GET", "/images/test/one:1/json"),
        ("POST", "/containers/create"),
        ("POST", f"/containers/{'f' * 64}/start"),
    ]
    create = stub.calls[1]
    assert create.path == f"/containers/create?name=gpuslice-ann-{LEASE[:12]}"
    assert set(create.body) == {"Image", "Cmd", "Env", "Labels"}
    assert create.body["Image"] == "test/one:1"
    assert create.body["Cmd"] == [*PRESENT["Config"]["Cmd"], "--debug"]  # type: ignore[index]
    assert create.body["Labels"] == {"gpuslice.lease": LEASE, "gpuslice.base_url": "/user/ann/"}
    env = dict(entry.split("=", 1) for entry in create.body["Env"])
    wanted = {
        "HOME": "/home/jovyan",
        "MINE": "x=y",
        "JUPYTERHUB_API_TOKEN": "the-servers-token",
        "JUPYTERHUB_API_URL": "http://hub:8081/hub/api",
        "JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/user/ann/",
        "JUPYTER_IMAGE_SPEC": "test/one:1",
        "GPUSLICE_LEASE": LEASE,
        "GPUSLICE_SERVICE_URL": "http://proxy:8000/services/gpuslice/",
        "GPUSLICE_SLICE": "quarter",
        "GPUSLICE_SIMULATED": "1",
    }
    assert {name: env.get(name) for name in wanted} == wanted
    # Nothing of the hub's own environment, and nothing that was set to nothing.
    assert not {"PATH", "NOT_SET", "CONFIGPROXY_AUTH_TOKEN"} & env.keys()
    assert stub.calls[2].body is None


def test_a_configured_command_is_sent_instead_of_the_images(stub: EngineStub) -> None:
    one = spawner(stub, cmd=["start-notebook"])

    async def scene() -> None:
        await prepared(one)
        await one.engine_start(grant())

    asyncio.run(scene())
    assert stub.asked("POST", "/create")[0].body["Cmd"] == ["start-notebook"]


@pytest.mark.parametrize("folder", ["a b#c?d;e%20f@g", "x" * 60 + "/" + "y" * 60])
def test_a_socket_of_any_path(tmp_path: Path, folder: str) -> None:
    with engine_stub(tmp_path / folder / "engine.sock") as stub:
        stub.answer("GET", r"^/images/", 200, PRESENT)
        asyncio.run(prepared(spawner(stub)))
        assert len(stub.calls) == 1


def test_no_proxy_and_no_netrc_of_the_hubs_user(
    stub: EngineStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine localhost login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    asyncio.run(prepared(spawner(stub)))
    assert "Authorization" not in stub.calls[0].headers


AWKWARD = ["Ünal/../ø", "a b", "UPPER.lower", "-", "..", "名", "x" * 200, "a--b", "o'neil", "$(id)"]


@pytest.mark.parametrize("user", AWKWARD)
def test_any_user_has_a_container_name_that_the_engine_takes(stub: EngineStub, user: str) -> None:
    one = spawner(stub, user, "named")

    async def scene() -> None:
        await prepared(one)
        await one.engine_start(grant())

    asyncio.run(scene())
    path = stub.asked("POST", "/create")[0].path
    name = path.partition("?name=")[2]
    assert name == one.object_name
    assert name.replace("-", "").isalnum() and name.isascii() and len(name) < 200
    assert name.startswith("gpuslice-") and name.endswith(LEASE[:12])


# --- its pools and limits -------------------------------------------------------------------


def test_a_call_that_hangs_holds_up_nobody(stub: EngineStub) -> None:
    held = stub.hold("GET", r"/images/test/two:2/json", 200, PRESENT)

    async def scene() -> None:
        slow, quick = spawner(stub), spawner(stub)
        slow._choose({"slice": "quarter", "image": "test/two:2"})
        waiting = [asyncio.create_task(slow.engine_prepare()) for _ in range(8)]
        await until(lambda: len(stub.asked("GET", "two:2")) == 8)
        await prepared(quick)
        assert not any(task.done() for task in waiting)
        held.set()
        await asyncio.gather(*waiting)

    asyncio.run(scene())


def test_a_silent_node_is_given_up(stub: EngineStub) -> None:
    held = stub.hold("GET", r"/images/", 200, PRESENT)
    with pytest.raises(EngineUnavailable) as caught:
        asyncio.run(prepared(spawner(stub, engine_timeout_s=0.3)))
    held.set()
    told = as_refusal(caught.value)
    assert told is not None
    assert (told.reason, told.status_code) == ("runtime-unavailable", 503)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110  (what is looked at is a thread's)
            await asyncio.sleep(0.01)


# --- no -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (403, EngineRefused, "HostConfig.Binds is not for the hub to set"),
        (409, EngineRefused, "one container ever"),
        (500, EngineFailed, "OCI runtime create failed: nvidia-container-cli"),
        (503, EngineUnavailable, None),
    ],
)
@pytest.mark.parametrize("call", [r"/create", r"/start$"])
def test_what_the_node_says_about_a_start_reaches_its_user(
    stub: EngineStub, status: int, kind: type[Exception], shown: str | None, call: str
) -> None:
    stub.answer("POST", call, status, {"message": shown or "at /some/socket"})
    one = spawner(stub)

    async def scene() -> None:
        await prepared(one)
        await one.engine_start(grant())

    with pytest.raises(kind) as caught:
        asyncio.run(scene())
    told = as_refusal(caught.value)
    assert told is not None
    assert told.status_code == 503
    if shown is None:
        assert "does not answer" in told.jupyterhub_message
        assert "/some/socket" not in told.jupyterhub_message
    else:
        assert shown in told.jupyterhub_message


def test_of_a_server_that_ends_at_once_its_end_is_told_not_that_its_lease_is_over(
    stub: EngineStub,
) -> None:
    stub.answer("POST", r"/start$", 409, {"message": "This lease is settled."})
    ended = ServerReport(
        lease_id=LEASE, state=ServerState.EXITED, user="ann", server="", boot_id="b",
        started_us=1, finished_us=2, exit_code=3, message="oom: more than its 4 GiB",
    )  # fmt: skip
    one = spawner(stub)

    async def scene(report: ServerReport) -> None:
        stub.answer("GET", rf"^/servers/{LEASE}$", 200, report.model_dump(mode="json"))
        stub.answer("GET", rf"^/servers/{LEASE}/log", 200, "no space in my home")
        await prepared(one)
        await one._start_server(grant())

    told = refused(scene(ended)).jupyterhub_message
    assert "with exit code 3: more than its 4 GiB. It wrote last: " in told
    assert "no space in my home" in told
    assert "This lease is settled" not in told
    told = refused(scene(ended.model_copy(update={"oom": True}))).jupyterhub_message
    assert "ran out of memory while starting: more than its 4 GiB" in told
    with pytest.raises(EngineRefused, match="This lease is settled"):
        asyncio.run(scene(ended.model_copy(update={"state": ServerState.CREATED})))


def test_a_node_that_is_away_is_no_missing_image(tmp_path: Path) -> None:
    gone = EngineStub(tmp_path / "gone.sock")
    with pytest.raises(EngineUnavailable):
        asyncio.run(prepared(spawner(gone)))


# --- images ---------------------------------------------------------------------------------

MISSING = {"message": "No such image: test/one:1"}


def test_an_image_that_is_here_is_not_pulled(stub: EngineStub) -> None:
    asyncio.run(prepared(spawner(stub)))
    assert stub.asked("POST", "/images/create") == []


def test_a_missing_image_is_pulled_with_progress_before_anything_else(
    stub: EngineStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "_TELL_EVERY_S", 0.05)
    more, pulled = threading.Event(), threading.Event()
    stub.answer("GET", r"^/images/test/one", 404, MISSING)
    stub.stream(
        "POST",
        r"^/images/create",
        [
            {"status": "Pulling from test/one", "id": "1"},
            {"status": "Pulling fs layer", "id": "x", "progressDetail": {}},
            more,
            {"status": "Downloading", "id": "x", "progressDetail": {"current": 1 << 20,
                                                                    "total": 4 << 20}},
            pulled,
            {"status": "Pull complete", "id": "x", "progressDetail": {}},
        ],
    )  # fmt: skip
    one = spawner(stub)

    async def scene() -> list[dict[str, Any]]:
        start = asyncio.create_task(prepared(one))
        told: list[dict[str, Any]] = []

        async def watch() -> None:
            async for event in one.progress():
                told.append(event)

        watching = asyncio.create_task(watch())
        await until(lambda: told and told[-1]["message"].endswith("0 of 1 layers"))
        more.set()
        await until(lambda: told and "1 MiB of 4 MiB" in told[-1]["message"])
        stub.answer("GET", r"^/images/test/one", 200, PRESENT)
        pulled.set()
        await start
        watching.cancel()
        return told

    told = asyncio.run(scene())
    assert [call.path for call in stub.asked("POST", "")] == [
        "/images/create?tag=1&fromImage=test%2Fone"
    ]
    text = "Pulling the image The first: 0 of 1 layers, 1 MiB of 4 MiB"
    assert text in [event["message"] for event in told]
    # Who opens the page late reads the last step of it, not all of them.
    assert len(one._board._events) == 1
    assert 0 < told[-1]["progress"] <= 50


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (404, "manifest for test/one:1 not found: manifest unknown", "image-not-found"),
        (500, "the engine failed: dial tcp: connection refused", "registry-unavailable"),
        (404, "pull access denied, may require 'docker login'", "image-login"),
        (403, "test/one:1 is not among the images that servers are started from",
         "image-pull-failed"),
    ],
)  # fmt: skip
def test_a_pull_that_fails_at_once_is_a_refusal_in_words(
    stub: EngineStub, status: int, message: str, reason: str
) -> None:
    stub.answer("GET", r"^/images/test/one", 404, MISSING)
    stub.answer("POST", r"^/images/create", status, {"message": message})
    told = refused(prepared(spawner(stub)))
    assert (told.reason, told.status_code) == (reason, 503)
    assert "test/one:1" in told.jupyterhub_message
    assert message.removeprefix("the engine failed: ") in told.jupyterhub_message


def test_a_pull_that_fails_half_way(stub: EngineStub) -> None:
    stub.answer("GET", r"^/images/test/one", 404, MISSING)
    error = "write /tmp/GetImageBlob1: no space left on device"
    stub.stream("POST", r"^/images/create", [{"status": "Pulling"}, {"error": error}])
    assert refused(prepared(spawner(stub))).reason == "image-no-space"


@pytest.mark.parametrize("begun", [True, False])
def test_a_registry_that_falls_silent_is_given_up(stub: EngineStub, begun: bool) -> None:
    stub.answer("GET", r"^/images/test/one", 404, MISSING)
    never = threading.Event()
    stub.stream("POST", r"^/images/create", [{"status": "Pulling"}] * begun + [never])
    told = refused(prepared(spawner(stub, pull_silence_s=0.3)))
    never.set()
    assert told.reason == "registry-unavailable"
    assert "no news of it for 0.3 seconds" in told.jupyterhub_message


def test_a_start_waits_for_its_image_so_long_and_the_pull_goes_on(stub: EngineStub) -> None:
    stub.answer("GET", r"^/images/test/one", 404, MISSING)
    pulled = threading.Event()
    stub.stream("POST", r"^/images/create", [{"status": "Pulling"}, pulled, {"status": "x"}])

    async def scene() -> None:
        with pytest.raises(SpawnRefused) as told:
            await prepared(spawner(stub, pull_timeout_s=0.3))
        assert told.value.reason == "image-pulling"
        assert "The first" in told.value.jupyterhub_message
        assert told.value.headers["Retry-After"]
        other = spawner(stub)
        late = asyncio.create_task(prepared(other))
        # It waits for the pull, which is not over.
        await until(lambda: other._board._events)
        stub.answer("GET", r"^/images/test/one", 200, PRESENT)
        pulled.set()
        await late

    asyncio.run(scene())
    assert len(stub.asked("POST", "/images/create")) == 1


def test_pulls_hold_up_no_other_call(stub: EngineStub) -> None:
    stub.answer("GET", r"^/images/slow", 404, MISSING)
    pulled = threading.Event()
    stub.stream("POST", r"^/images/create", [{"status": "Pulling"}, pulled])
    names = {f"slow/{number}:1": "" for number in range(8)}

    async def scene() -> None:
        waiting = []
        for name in names:
            one = spawner(stub)
            one.images = names
            one._choose({"slice": "quarter", "image": name})
            waiting.append(asyncio.create_task(one.engine_prepare()))
        # So many go on at a time, and the others wait for these.
        await until(lambda: len(stub.asked("POST", "/images/create")) == 4)
        quick = spawner(stub)
        await prepared(quick)
        await quick.engine_start(grant())
        assert not any(task.done() for task in waiting)
        stub.answer("GET", r"^/images/slow", 200, PRESENT)
        pulled.set()
        await asyncio.gather(*waiting)

    asyncio.run(scene())


def test_the_chosen_image_is_the_one(stub: EngineStub) -> None:
    one = spawner(stub)
    one.take_options({"slice": "quarter", "image": "test/two:2"})
    assert one.user_options == {"slice": "quarter", "profile": "quarter", "image": "test/two:2"}

    async def scene() -> None:
        await one.engine_prepare()
        await one.engine_start(grant())

    asyncio.run(scene())
    assert stub.asked("POST", "/create")[0].body["Image"] == "test/two:2"
    # The next start without a word about it takes the first again.
    one.clear_state()
    one.take_options({"slice": "quarter"})
    assert one.user_options == {"slice": "quarter", "profile": "quarter"}
    asyncio.run(one.engine_prepare())
    assert one.image == "test/one:1"


# --- the order of a start -------------------------------------------------------------------


def test_refused_options_come_first_then_the_administrators_hook_then_the_image(
    stub: EngineStub,
) -> None:
    seen: list[object] = []
    one = spawner(stub, pre_spawn_hook=lambda _: seen.append(list(stub.calls)))
    # What REST sent the hub has stored already.
    one.user_options = {"slice": "quarter", "image": "../../etc/passwd"}
    one.take_options(one.user_options)
    assert one.user_options == {}
    told = refused(one.run_pre_spawn_hook())
    assert (told.status_code, told.reason) == (400, "unknown-image")
    assert "test/one:1, test/two:2" in told.jupyterhub_message
    assert seen == [] and stub.calls == []

    one.take_options({"slice": "quarter"})
    asyncio.run(one.run_pre_spawn_hook())
    assert seen == [[]]
    assert len(stub.calls) == 1


def test_an_engine_that_fails_while_looking_is_a_refusal_with_its_reason(stub: EngineStub) -> None:
    stub.answer("GET", r"^/images/", 503, {"message": "the Docker engine does not answer"})
    one = spawner(stub)
    one.take_options({"slice": "quarter"})
    told = refused(one.run_pre_spawn_hook())
    assert (told.reason, told.status_code) == ("runtime-unavailable", 503)
    assert one.lease_id is None and not one._lease_asked


# --- DockerSpawner's own --------------------------------------------------------------------


def test_every_option_of_dockerspawner_is_refused() -> None:
    own = {
        name
        for name, trait in DockerSpawner.class_traits(config=True).items()
        if trait.this_class is DockerSpawner
    }
    assert own <= MISPLACED.keys()
    assert MISPLACED.keys() <= set(GpuDockerSpawner.class_trait_names())
    assert all(why and not why.endswith(".") for why in MISPLACED.values())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mem_limit", "4G"),
        ("volumes", {"/": "/host"}),
        ("extra_host_config", {"privileged": True}),
        ("remove", True),
        ("network_name", "host"),
        ("post_start_cmd", "id"),
        ("allowed_images", "*"),
    ],
)
def test_an_option_set_by_another_way_stops_the_start(
    stub: EngineStub, option: str, value: object
) -> None:
    one = spawner(stub)
    assert misplaced_values(one) == []
    setattr(one, option, value)
    told = refused(prepared(one))
    assert told.reason == "misconfigured"
    assert f"GpuDockerSpawner.{option} is set" in told.jupyterhub_message
    assert stub.calls == []


def test_the_hub_keeps_the_lease_and_nothing_of_dockerspawners(stub: EngineStub) -> None:
    one = spawner(stub)

    async def scene() -> None:
        await prepared(one)
        one.lease_id = LEASE
        await one.engine_start(grant())

    asyncio.run(scene())
    assert one.get_state() == {"lease_id": LEASE, "slice": "quarter"}
    json.dumps(one.get_state())
    later = spawner(stub)
    later.load_state({"lease_id": LEASE, "slice": "quarter", "object_id": "old",
                      "object_name": "jupyter-ann"})  # fmt: skip
    assert later.lease_id == LEASE
    assert later.get_state() == {"lease_id": LEASE, "slice": "quarter"}
    one.clear_state()
    assert (one.lease_id, one.object_id) == (None, "")


def test_the_token_of_an_ended_server_is_thrown_away(stub: EngineStub) -> None:
    # DockerSpawner says that it will resume unless it removes containers itself.
    assert not spawner(stub).will_resume


def test_internal_ssl_is_refused(stub: EngineStub) -> None:
    assert refused(spawner(stub).move_certs({})).reason == "misconfigured"


def test_every_option_is_documented() -> None:
    for name, trait in GpuDockerSpawner.class_traits(config=True).items():
        if trait.this_class.__module__.startswith("gpuslice."):
            assert trait.help.strip(), name
