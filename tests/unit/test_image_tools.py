"""What `make images` and `make base-image` tell Docker, without Docker; the images' programs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

import nvmlsim.build

ROOT = Path(__file__).resolve().parents[2]


def _load(path: str) -> ModuleType:
    name = f"tested_{Path(path).parent.name}_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


images = _load("tools/images.py")
baseimage = _load("tools/baseimage.py")


def _build(**differences: object) -> object:
    values: dict[str, object] = {
        "base": "debian:bookworm-slim",
        "variant": "cpu",
        "tag": "latest",
        "version": "1.2",
        "revision": "abc",
        "epoch": "1700000000",
        "secrets": {},
        "torch": "",
        "wheels": None,
    }
    return images.Build(**(values | differences))


# ------------------------------------------------------------------------------------ make images


@pytest.mark.parametrize(
    ("image", "tag", "variant", "names"),
    [
        ("hub", "latest", "cpu", ["gpuslice/hub:latest"]),
        ("hub", "1.2", "cuda", ["gpuslice/hub:1.2"]),
        ("notebook", "latest", "cpu", ["gpuslice/notebook:latest", "gpuslice/notebook:cpu"]),
        ("notebook", "latest", "cuda", ["gpuslice/notebook:latest", "gpuslice/notebook:cuda"]),
        ("notebook", "1.2", "cuda", ["gpuslice/notebook:1.2", "gpuslice/notebook:1.2-cuda"]),
    ],
)
def test_an_images_names(image: str, tag: str, variant: str, names: list[str]) -> None:
    assert images.tags(images.IMAGES[image], _build(tag=tag, variant=variant)) == names


def test_there_is_an_image_for_each_folder_with_a_dockerfile() -> None:
    used = {image.dockerfile for image in images.IMAGES.values()}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "images").glob("*/Dockerfile")}
    assert used == there


def test_only_the_notebook_is_told_of_variant_and_torch(tmp_path: Path) -> None:
    build = _build(variant="cuda", torch="2.13.0", wheels=tmp_path)
    assert "VARIANT=cuda" in images.command(images.IMAGES["notebook"], build)
    assert f"wheels={tmp_path}" in images.command(images.IMAGES["notebook"], build)
    line = " ".join(images.command(images.IMAGES["node"], build))
    assert "VARIANT" not in line and "TORCH" not in line and "wheels=" not in line
    assert "--target node" in line


def test_secrets_and_proxies_are_named_to_docker_and_never_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = tmp_path / "ca.pem"
    certificates.write_text("-----")
    index = "https://ada:hunter2@index.example/simple"
    registry = "https://ada:hunter3@npm.example"
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setenv("YARN_NPM_REGISTRY_SERVER", registry)
    monkeypatch.setenv("https_proxy", "http://ada:hunter4@proxy.example")
    secrets = images.secrets(certificates, tmp_path)
    assert {name: path.read_text() for name, path in secrets.items()} == {
        "ca": "-----",
        "pip_index_url": index,
        "npm_registry": registry,
    }
    line = images.command(images.IMAGES["hub"], _build(secrets=secrets))
    assert "hunter" not in " ".join(line)
    assert f"id=pip_index_url,src={tmp_path / 'pip_index_url'}" in line
    assert line[line.index("https_proxy") - 1] == "--build-arg"


def test_certificates_are_this_machines_unless_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    for path in (own, other):
        path.touch()
    for name in ("PIP_INDEX_URL", "YARN_NPM_REGISTRY_SERVER", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert images.secrets(None, tmp_path) == {"ca": own}
    assert images.secrets(other, tmp_path) == {"ca": other}
    with pytest.raises(images.BuildFailed, match=r"missing\.pem is not there"):
        images.secrets(tmp_path / "missing.pem", tmp_path)


def test_torch_goes_in_alone_and_in_the_locked_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "WORK", tmp_path / "work")
    with pytest.raises(images.BuildFailed, match="no wheel of torch"):
        images.torch_wheel(tmp_path)
    lock = (ROOT / "requirements" / "torch.txt").read_text()
    version = lock.partition("torch==")[2].split()[0]
    for name in (f"torch-{version}-cp311-cp311-linux.whl", "torch-1.0-cp311.whl", "big.bin"):
        (tmp_path / name).touch()
    found, alone = images.torch_wheel(tmp_path)
    assert found == version
    assert [path.name for path in alone.iterdir()] == [f"torch-{version}-cp311-cp311-linux.whl"]


def test_wheels_are_the_same_bytes_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("one", "two"):
        monkeypatch.setattr(images, "WORK", tmp_path / name)
        images.make_wheels("1700000000")
        files = sorted((tmp_path / name / "dist").iterdir())
        made.append({path.name: path.read_bytes() for path in files})
    assert made[0] == made[1]
    assert [name.partition("-")[0] for name in made[0]] == [
        "gpuslice",
        "gpuslice_starters",
        "jupyterlab_gpuslice",
    ]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the `docker` on PATH with a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(script: str) -> None:
        (folder / "docker").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "docker").chmod(0o755)

    return make


def test_what_is_missing_is_said_in_a_sentence(
    engine: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert images.main([*arguments]) == 1
        return capsys.readouterr().err

    assert "docker is needed and not installed" in said("hub")
    engine("echo cannot reach the engine >&2; exit 1")
    assert said("hub") == "gpuslice: cannot reach the engine\n"
    engine('[ "$1" != buildx ]')
    assert "docker-buildx" in said("hub")
    engine('case "$1" in image | pull) exit 1 ;; esac')
    assert "`make base-image`" in said("hub")
    assert "there is no image example/base" in said("hub", "--base", "example/base:1")
    assert "there is no image 'hob'" in said("hob")


# --------------------------------------------------------------------------------- make base-image

ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [signed-by=/x.gpg arch=amd64] http://mirror.example/debian bookworm main contrib
deb http://mirror.example/debian-security bookworm-security main
deb-src http://sources.example/debian bookworm main
"""
DEB822 = """\
Types: deb deb-src
# URIs: http://snapshot.example
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.example/next
Suites: trixie
Components: main
"""


@pytest.mark.parametrize(
    ("text", "updates"), [(ONE_LINE, {}), (DEB822, {"bookworm-updates": "debian"})]
)
def test_the_base_image_comes_from_this_machines_mirrors(
    text: str, updates: dict[str, str]
) -> None:
    parts = {"bookworm": "debian", **updates, "bookworm-security": "debian-security"}
    found = baseimage.mirrors(["deb http://other.example/x stable main\n", text])
    assert found == {suite: f"http://mirror.example/{part}" for suite, part in parts.items()}


def test_a_machine_of_another_system_takes_debians_own_mirrors() -> None:
    found = baseimage.mirrors(["deb http://archive.example/ubuntu noble main\n"])
    assert set(found) == {"bookworm", "bookworm-updates", "bookworm-security"}
    assert {address.split("/")[2] for address in found.values()} == {"deb.debian.org"}
    assert found["bookworm-security"].endswith("/debian-security")


def test_a_slim_debian_keeps_licences_and_loses_what_nobody_reads(tmp_path: Path) -> None:
    for name in (
        "usr/share/doc/bash/copyright",
        "usr/share/doc/bash/README",
        "usr/share/man/man1/ls.1",
        "usr/share/locale/locale.alias",
        "var/lib/apt/lists/index",
        "var/cache/apt/archives/x.deb",
        "var/log/dpkg.log",
        "etc/resolv.conf",
        "etc/apt/apt.conf.d/x",
        "etc/dpkg/dpkg.cfg.d/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    baseimage.slim(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "usr/share/doc/bash/copyright",
        "usr/share/locale/locale.alias",
        "etc/apt/apt.conf.d/x",
        "etc/apt/apt.conf.d/container",
        "etc/dpkg/dpkg.cfg.d/x",
        "etc/dpkg/dpkg.cfg.d/container",
    }
    assert not (tmp_path / "usr/share/man/man1").exists()
    # apt wants its folders.
    assert (tmp_path / "var/cache/apt/archives").is_dir()


def test_a_base_image_that_is_here_is_left_alone(
    engine: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine("exit 0")
    baseimage.make(None)
    assert "is here already" in capsys.readouterr().out
    engine("exit 1")
    with pytest.raises(baseimage.NoBaseImage, match="debootstrap is needed"):
        baseimage.make(None)


# ---------------------------------------------------------------------------------- the library


def test_a_package_with_a_library_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the node's image, where the library lies beside its source."""
    package = tmp_path / "package"
    package.mkdir()
    source = package / "nvmlsim.c"
    shutil.copyfile(nvmlsim.build.SOURCE, source)
    made = nvmlsim.build.build_library(package)
    monkeypatch.setattr(nvmlsim.build, "SOURCE", source)
    monkeypatch.setenv("CC", "/bin/false")
    copied = nvmlsim.build.build_library(tmp_path / "state")
    assert copied == tmp_path / "state" / made.name
    assert copied.read_bytes() == made.read_bytes()
    # Of other sources it is not taken.
    source.write_bytes(source.read_bytes() + b"\n")
    with pytest.raises(nvmlsim.build.BuildError):
        nvmlsim.build.build_library(tmp_path / "another")


# -------------------------------------------------------------------------------- health checks


class _Server(HTTPServer):
    """Answers every GET with the status in its path."""

    def __init__(self, address: object, family: int = socket.AF_INET) -> None:
        self.address_family = family
        super().__init__(address, _Answer)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        # HTTPServer's looks up a name for the address.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "here", 0


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.rpartition("/")[2]))
        self.end_headers()

    def address_string(self) -> str:
        return "a test"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[HTTPServer], None]]:
    running: list[HTTPServer] = []

    def start(server: HTTPServer) -> None:
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def _healthy(url: str) -> subprocess.CompletedProcess[str]:
    program = ROOT / "images" / "platform" / "healthy.py"
    return subprocess.run(
        [sys.executable, "-I", str(program)],
        env=os.environ | {"HEALTH_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_server_is_healthy_when_it_says_200(
    kind: str, tmp_path: Path, serve: Callable[[HTTPServer], None]
) -> None:
    if kind == "tcp":
        server = _Server(("127.0.0.1", 0))
        before = f"http://127.0.0.1:{server.server_address[1]}"
    else:
        server = _Server(str(tmp_path / "s"), socket.AF_UNIX)
        before = f"unix:{tmp_path / 's'}:"
    serve(server)
    assert _healthy(f"{before}/hub/200").returncode == 0
    assert "answers 503" in _healthy(f"{before}/503").stdout
    assert [_healthy(f"{before}/{code}").returncode for code in (302, 404, 503)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "HEALTH_URL is not set"),
        ("http://127.0.0.1:1/x", "does not answer"),
        ("unix:/nonexistent:/x", "does not answer"),
    ],
)
def test_a_server_that_is_not_there_is_not_healthy(url: str, reason: str) -> None:
    done = _healthy(url)
    assert done.returncode == 1 and reason in done.stdout and done.stderr == ""


def test_a_server_that_hangs_is_not_healthy(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        done = _healthy(f"unix:{tmp_path / 's'}:/x")
    assert done.returncode == 1 and "timed out" in done.stdout
