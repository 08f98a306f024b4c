"""Homes of users: made once, their owner's alone, never taken for somebody else's."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import docker
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyterhub.slugs import safe_slug

from engineproxy import EngineProxy
from gpuslice.containers import LABEL_HOME, LABEL_NODE, home_name, home_volume
from gpuslice.errors import Refused
from gpuslice.node.docker import homes as module
from gpuslice.node.docker.api import DockerApi, EngineDown, Json
from gpuslice.node.docker.homes import HomeMount, Homes
from gpuslice.settings import DockerSettings
from gpuslice.units import GIB, MIB

on_engine = pytest.mark.docker
T = TypeVar("T")


def call(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


# ------------------------------------------------------------------------------------------ names

#: Anything, and names that differ in little.
user_names = st.one_of(
    st.text(min_size=1, max_size=300),
    st.text(alphabet="aA-_. /\\\0\n@é😀", min_size=1, max_size=12),
    st.sampled_from(["..", ".", "/", "-", "a/../b", "home", "con", "a" * 1000, "a" * 29 + "-b"]),
)


@given(user_names)
def test_every_users_home_has_a_harmless_name(user: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", home_name(user))
    assert len(home_volume(user)) < 100
    # What the engine takes as a volume's name.
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", home_volume(user))


@given(user_names, user_names)
def test_two_users_have_two_homes(one: str, two: str) -> None:
    assert (home_name(one) == home_name(two)) == (one == two)


def test_who_may_choose_a_name_finds_nobody_elses_home() -> None:
    """Slugs meet after some 100,000 tries; homes do not."""
    seen: dict[str, str] = {}
    for number in range(1_000_000):
        name = "ada" + f"{number:024b}".translate({48: ".", 49: "_"}) + "b"
        other = seen.setdefault(str(safe_slug(name)), name)
        if other != name:
            break
    else:
        pytest.fail("no two slugs met; the test proves nothing")
    assert home_name(name) != home_name(other)


# ---------------------------------------------------------------------------------------- volumes


@pytest.fixture
def in_volumes(policy: DockerSettings) -> Callable[..., Homes]:
    def make(**changes: Any) -> Homes:
        changed = policy.model_copy(update={"home": "volume", **changes})
        return Homes(changed, DockerApi(changed.socket, timeout_s=30))

    return make


def mountpoint(client: docker.DockerClient, user: str) -> Path:
    return Path(client.volumes.get(home_volume(user)).attrs["Mountpoint"])


@on_engine
def test_a_volume_is_made_once_and_is_its_owners(
    client: docker.DockerClient, in_volumes: Callable[..., Homes], user: str
) -> None:
    async def often() -> list[HomeMount]:
        made = in_volumes(user="1234:567")
        return await asyncio.gather(*(made.ensure(user) for _ in range(6)))

    expected = HomeMount("volume", home_volume(user), None, enforced=False)
    assert call(often()) == [expected] * 6
    assert client.volumes.get(home_volume(user)).attrs["Labels"] == {LABEL_HOME: user}
    there = mountpoint(client, user)
    stat = there.stat()
    assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (1234, 567, 0o700)
    # What somebody keeps there stays, and so does what they made of the folder.
    (there / "work.txt").write_text("years")
    there.chmod(0o755)
    assert call(in_volumes(user="1234:567").ensure(user)) == expected
    assert (there / "work.txt").read_text() == "years"
    assert there.stat().st_mode & 0o777 == 0o755


@on_engine
def test_a_home_stays_empty_of_what_the_image_has_there(
    client: docker.DockerClient,
    in_volumes: Callable[..., Homes],
    user: str,
    tiny: str,
    node_id: str,
) -> None:
    """The mount as it is meant: with NoCopy the image's folder gives it neither files nor owner."""
    home = call(in_volumes().ensure(user))
    mount = docker.types.Mount("/home/jovyan", home.source, type=home.kind, no_copy=True)
    client.containers.run(
        tiny, ["/tiny", "exit", "0"], mounts=[mount], network_mode="none",
        labels={LABEL_NODE: node_id},
    )  # fmt: skip
    assert mountpoint(client, user).stat().st_uid == 1000


@on_engine
@pytest.mark.parametrize("labels", [{}, {LABEL_HOME: "somebody else"}])
def test_a_volume_of_somebody_else_is_not_given_away(
    client: docker.DockerClient,
    in_volumes: Callable[..., Homes],
    user: str,
    labels: dict[str, str],
) -> None:
    client.volumes.create(home_volume(user), labels=labels)
    with pytest.raises(Refused, match=home_volume(user)):
        call(in_volumes().ensure(user))
    assert mountpoint(client, user).stat().st_uid == 0


@on_engine
def test_where_the_engine_cannot_limit_it_is_said_once_and_goes_on(
    in_volumes: Callable[..., Homes],
    client: docker.DockerClient,
    user: str,
    proxy: EngineProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusal = "create x: quota size requested but no quota support"
    planted = proxy.answer("POST", "^/volumes/create", 400, refusal, times=1)
    made = in_volumes(home_size=5 * GIB)

    async def twice() -> HomeMount:
        await made.ensure(user)
        volume = client.volumes.get(home_volume(user))
        assert not volume.attrs["Options"]
        volume.remove()
        return await made.ensure(user)

    assert call(twice()) == HomeMount("volume", home_volume(user), 5 * GIB, enforced=False)
    assert planted.hits == 1
    assert proxy.count("POST", "^/volumes/create") == 3  # the second home without asking again
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "not enforced" in said[0]
    assert refusal in said[0]


@on_engine
def test_other_refusals_of_the_engine_are_told(
    in_volumes: Callable[..., Homes], user: str, proxy: EngineProxy
) -> None:
    for limit in (None, GIB):
        proxy.answer("POST", "^/volumes/create", 400, "the disk is odd", times=1)
        with pytest.raises(Refused, match="the disk is odd"):
            call(in_volumes(home_size=limit).ensure(user))
    proxy.answer("GET", "^/volumes/", 500)
    with pytest.raises(EngineDown):
        call(in_volumes().ensure(user))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB, as a folder with a quota looks to those in it."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "none", str(place)]
    subprocess.run(command, check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class EngineWithQuotas(DockerApi):
    """An engine whose volumes are on a file system that takes a size; made here, they are this."""

    def __init__(self, place: Path) -> None:
        super().__init__("/nowhere")
        self.place, self.made = place, list[Json]()

    async def volume(self, name: str) -> Json | None:
        return next(({**body, "Mountpoint": str(self.place)} for body in self.made), None)

    async def create_volume(self, body: Json) -> Json:
        self.made.append(body)
        return {**body, "Mountpoint": str(self.place)}


@on_engine
@pytest.mark.parametrize(
    ("limit", "expected"), [(64 * MIB, (64 * MIB, True)), (GIB, (64 * MIB, True)),
                            (MIB, (MIB, False)), (None, (None, False))],
)  # fmt: skip
def test_what_the_file_system_states_is_the_limit(
    policy: DockerSettings, small_disk: Path, limit: int | None, expected: tuple[int | None, bool]
) -> None:
    engine = EngineWithQuotas(small_disk)
    made = Homes(policy.model_copy(update={"home": "volume", "home_size": limit}), engine)
    home = call(made.ensure("ada"))
    assert (home.limit_bytes, home.enforced) == expected
    assert [body.get("DriverOpts") for body in engine.made] == [
        {"size": str(limit)} if limit else None
    ]


# ---------------------------------------------------------------------------------------- folders


@pytest.fixture
def base(policy: DockerSettings) -> Path:
    return Path(policy.home)


@pytest.fixture
def in_folders(policy: DockerSettings) -> Callable[..., Homes]:
    def make(**changes: Any) -> Homes:
        return Homes(policy.model_copy(update=changes), DockerApi(policy.socket))

    return make


@on_engine
def test_a_folder_is_made_once_and_is_its_owners(
    in_folders: Callable[..., Homes], base: Path
) -> None:
    umask = os.umask(0)
    try:
        home = call(in_folders(home_size=GIB, user="1234:567").ensure("Ada L."))
    finally:
        os.umask(umask)
    there = base / home_name("Ada L.")
    assert home == HomeMount("bind", str(there), GIB, enforced=False)
    stat = there.stat()
    assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (1234, 567, 0o700)
    (there / "work.txt").write_text("years")
    there.chmod(0o755)
    for _ in range(2):
        call(in_folders(user="1234:567").ensure("Ada L."))
    assert (there / "work.txt").read_text() == "years"
    assert there.stat().st_mode & 0o777 == 0o755
    assert [entry.name for entry in base.iterdir()] == [there.name]


@on_engine
def test_a_folder_with_a_quota_of_its_own_is_enforced(
    in_folders: Callable[..., Homes], base: Path, small_disk: Path
) -> None:
    """As with project quotas, or one data set per user."""
    (small_disk / "lost+found").mkdir()
    there = base / home_name("ada")
    there.mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(there)], check=True)
    try:
        home = call(in_folders(home_size=GIB).ensure("ada"))
    finally:
        subprocess.run(["umount", "-l", str(there)], check=True)
    assert home == HomeMount("bind", str(there), 64 * MIB, enforced=True)
    assert small_disk.stat().st_uid == 1000  # a fresh file system is a fresh home


@on_engine
def test_a_link_in_the_place_of_a_home_is_not_followed(
    in_folders: Callable[..., Homes], base: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    there = base / home_name("ada")
    for target in (victim, tmp_path / "nowhere"):
        there.symlink_to(target)
        with pytest.raises(Refused, match="symbolic link"):
            call(in_folders().ensure("ada"))
        there.unlink()
    there.write_text("a file")
    with pytest.raises(Refused, match="not a folder"):
        call(in_folders().ensure("ada"))
    assert victim.stat().st_uid == 0
    assert not (tmp_path / "nowhere").exists()


@on_engine
def test_the_folder_of_all_homes_must_be_a_safe_one(
    in_folders: Callable[..., Homes], base: Path, tmp_path: Path
) -> None:
    (tmp_path / "linked").symlink_to(base)
    base.chmod(0o1777)
    for home, why in {
        str(base): "chmod o-w",
        str(tmp_path / "linked"): "symbolic link",
        str(tmp_path / "linked" / "below"): "symbolic link",
        str(tmp_path / "gone"): "does not exist",
        f"{base}/../homes": "must not contain",
    }.items():
        with pytest.raises(Refused, match=why) as no:
            call(in_folders(home=home).ensure("ada"))
        assert str(home) in str(no.value)
    assert not list(base.iterdir())


@on_engine
def test_a_home_that_is_somebody_elses_is_refused_with_what_to_do(
    in_folders: Callable[..., Homes], base: Path
) -> None:
    there = base / home_name("ada")
    there.mkdir()
    os.chown(there, 4321, 100)
    with pytest.raises(Refused, match=f"chown -R 1000:100 {there}"):
        call(in_folders().ensure("ada"))
    # Root's, but not fresh: a backup that was put back, say.
    os.chown(there, 0, 0)
    (there / "work.txt").touch()
    with pytest.raises(Refused, match=f"chown -R 1000:100 {there}"):
        call(in_folders().ensure("ada"))
    assert there.stat().st_uid == 0


@on_engine
def test_where_root_may_not_the_administrator_is_told_what_to_do(
    in_folders: Callable[..., Homes], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = base / home_name("ada")

    def squashed(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    words = f"root_squash.*install -d -m 700 -o 1000 -g 100 {there}"
    for name in ("mkdir", "chown"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, squashed)
            with pytest.raises(Refused, match=words) as no:
                call(in_folders().ensure("ada"))
            assert no.value.status == 503


_AS_SQUASHED_ROOT = """
import asyncio, sys
from gpuslice.node.docker.api import DockerApi
from gpuslice.node.docker.homes import Homes
from gpuslice.settings import DockerSettings
homes = Homes(DockerSettings(home=sys.argv[1]), DockerApi("/nowhere"))
print(asyncio.run(homes.ensure("ada")).source)
"""


@on_engine
def test_a_home_made_on_the_file_server_is_good_though_root_may_nothing_there(
    base: Path,
) -> None:
    there = base / home_name("ada")
    there.mkdir(0o700)
    os.chown(there, 1000, 100)
    squashed = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-chown,-fowner"]
    done = subprocess.run(
        [*squashed, sys.executable, "-c", _AS_SQUASHED_ROOT, str(base)],
        check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(there)


@on_engine
def test_in_a_container_the_hosts_folder_is_meant(
    in_folders: Callable[..., Homes], tmp_path: Path
) -> None:
    root = tmp_path / "host root"
    (root / "srv/homes").mkdir(parents=True)
    made = in_folders(home="/srv/homes", host_root=str(root), shared="/srv/homes")
    assert call(made.ensure("ada")).source == f"/srv/homes/{home_name('ada')}"
    assert (root / "srv/homes" / home_name("ada")).stat().st_uid == 1000
    # A link of the host would lead into the container instead.
    (root / "home").symlink_to("/srv/homes")
    with pytest.raises(Refused, match="symbolic link"):
        call(in_folders(home="/home", host_root=str(root)).ensure("ada"))


@on_engine
def test_the_shared_folder_must_be_there(
    in_folders: Callable[..., Homes], in_volumes: Callable[..., Homes], tmp_path: Path, base: Path
) -> None:
    missing = str(tmp_path / "data")
    for make in (in_folders, in_volumes):
        with pytest.raises(Refused, match=missing):
            call(make(shared=missing).ensure("ada"))
    assert not list(base.iterdir())
    Path(missing).mkdir()
    assert call(in_folders(shared=missing).ensure("ada")).kind == "bind"


@on_engine
def test_a_file_system_that_hangs_holds_nobody_else(
    in_folders: Callable[..., Homes], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hanging(*_: object) -> None:
        released.wait()

    monkeypatch.setattr(module, "LIMIT_S", 0.1)
    monkeypatch.setattr(module, "open_below", hanging)
    made = in_folders()
    try:
        for _ in range(2):
            with pytest.raises(Refused, match="does not answer") as no:
                call(made.ensure("ada"))
            assert no.value.status == 503
    finally:
        released.set()
