"""The contract of each image, on images that `make images` built."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from imageworld import Images, images, inside, until_healthy

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]
ALL = ("hub", "node", "postgres", "notebook")
WITH_TINI = ("hub", "node", "notebook")
USERS = {"hub": "10001:10001", "node": "0:0", "postgres": "999:999", "notebook": "1000:100"}
HUB_STAND_IN = """
import http.server

class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.end_headers()
        self.wfile.write(b"{}")
    do_POST = do_GET

http.server.HTTPServer(("127.0.0.1", 8081), Hub).serve_forever()
"""


@pytest.fixture
def world(client: docker.DockerClient) -> Iterator[Images]:
    with images(client) as world:
        yield world


def _as_root(world: Images, image: str, script: str) -> list[str]:
    """The lines that a shell says which may read every file of the image."""
    said = world.say(image, ["-c", script], user="0:0", entrypoint=["/bin/sh"], cap_drop=[])
    assert said.code == 0, said.text
    return said.text.splitlines()


# ------------------------------------------------------------------------------------ every image


@pytest.mark.parametrize("image", ALL)
def test_it_runs_as_its_user(world: Images, image: str) -> None:
    said = world.say(image, ["-c", "echo $(id -u):$(id -g)"], entrypoint=["/bin/sh"])
    assert (said.code, said.text) == (0, USERS[image])


@pytest.mark.parametrize("image", ALL)
def test_nothing_in_it_raises_anybodys_rights(world: Images, image: str) -> None:
    script = "find / -xdev -type f -perm /6000; command -v sudo doas pkexec; getcap -r / 2>&1 || :"
    found = _as_root(world, image, script)
    assert [line for line in found if "getcap: not found" not in line] == []


@pytest.mark.parametrize("image", ALL)
def test_it_says_what_it_is(world: Images, image: str) -> None:
    labels = world.config(image)["Labels"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {name.rpartition(".")[2]: value for name, value in labels.items()}
    assert said["title"] == f"gpuslice {image}"
    assert said["version"] == project["version"]
    assert said["licenses"] == project["license"]
    assert said["revision"] and said["description"]


@pytest.mark.parametrize("image", ALL)
def test_no_image_asks_for_all_gpus(world: Images, image: str) -> None:
    environment = dict(entry.split("=", 1) for entry in world.config(image)["Env"])
    assert "CUDA_VERSION" not in environment
    visible = {value for name, value in environment.items() if name == "NVIDIA_VISIBLE_DEVICES"}
    assert visible == ({"void"} if image == "notebook" else set())


@pytest.mark.parametrize("image", WITH_TINI)
def test_tini_is_process_1_and_reaps(world: Images, image: str) -> None:
    container = world.start(image, ["/bin/sh", "-c", "(sleep 0 &) ; exec sleep 1000"])
    assert inside(container, "cat", "/proc/1/comm").text == "tini"
    assert "-g" in inside(container, "cat", "/proc/1/cmdline").text.split("\0")
    states = inside(container, "sh", "-c", "cat /proc/[0-9]*/stat").text
    assert ") Z " not in states


@pytest.mark.parametrize("image", ALL)
def test_its_making_left_no_address_and_no_secret(world: Images, image: str) -> None:
    history = world.client.images.get(world.name(image)).history()
    told = "\n".join(str(layer["CreatedBy"]) for layer in history)
    ours = "http://127.0.0.1:8081/hub/health"
    assert "://" not in told.replace(ours, "")
    names = {entry.split("=", 1)[0].lower() for entry in world.config(image)["Env"]}
    assert not {n for n in names if n.startswith(("pip_", "npm_", "yarn_")) or "proxy" in n}
    places = (
        "/run/secrets /run/network /dist /opt/pip /opt/gpuslice/proxy/.yarn* /etc/pip.conf "
        "/root/.cache /root/.config /root/.pip /root/.npmrc /root/.yarn* "
        "/usr/local/share/ca-certificates/* /var/lib/apt/lists/*"
    )
    files = "find / -xdev -name pip.conf -o -xdev -name '*.whl' -not -path '*/ensurepip/*'"
    left = _as_root(world, image, f"ls -d {places} 2>/dev/null; {files}")
    assert left == []


@pytest.mark.parametrize("image", ALL)
def test_it_trusts_debians_certificates_and_no_others(world: Images, image: str) -> None:
    """Those of the machine that built it came as a secret and went."""
    debians = _blocks(_as_root(world, image, "cat /usr/share/ca-certificates/*/*.crt || :"))
    trusted = _blocks(_as_root(world, image, "cat /etc/ssl/certs/ca-certificates.crt || :"))
    assert trusted == debians
    assert bool(debians) == (image != "postgres")
    # Packages bring bundles and test keys of their own.
    script = (
        "grep -rIl --exclude-dir=site-packages --exclude-dir=dist-packages --exclude-dir=certs "
        "-e 'BEGIN CERTIFICATE-----' -e 'PRIVATE KEY-----' "
        "/etc /home /opt /root /run /srv /tmp /usr/local /var || :"
    )
    assert _as_root(world, image, script) == []


def _blocks(lines: list[str]) -> set[str]:
    """The certificates in the text of some .crt files."""
    found = re.findall(r"-----BEGIN CERTIFICATE-----(.*?)-----END", "".join(lines))
    return set(found)


# ----------------------------------------------------------------------------------- hub and node


def test_the_hub_image_runs_hub_proxy_and_service(world: Images) -> None:
    script = "jupyterhub --version; configurable-http-proxy --version; gpuslice service --help"
    said = world.say("hub", ["sh", "-ec", script])
    hub, proxy, *usage = said.text.splitlines()
    assert said.code == 0, said.text
    locks = (ROOT / "requirements" / "image-hub.txt", ROOT / "yarn.lock")
    assert f"jupyterhub=={hub} " in locks[0].read_text()
    assert f"configurable-http-proxy@npm:{proxy}" in locks[1].read_text()
    assert "--config" in " ".join(usage)


@pytest.mark.parametrize("tool", ["pg_dump", "pg_restore"])
def test_the_service_saves_the_ledger_with_the_tools_of_its_server(
    world: Images, tool: str
) -> None:
    ours = world.say("hub", [tool, "--version"])
    theirs = world.say("postgres", ["--version"], entrypoint=[f"/usr/lib/postgresql/15/bin/{tool}"])
    assert (ours.code, ours.text) == (0, theirs.text)
    assert ours.text.startswith(f"{tool} (PostgreSQL) 15.")


@pytest.mark.parametrize("image", ["hub", "node", "notebook"])
def test_its_packages_fit_together(world: Images, image: str) -> None:
    said = world.say(image, ["pip", "--no-cache-dir", "check"])
    assert (said.code, said.text) == (0, "No broken requirements found.")


def test_a_fresh_volume_for_the_state_is_the_hubs(world: Images) -> None:
    volume = {world.volume(): {"bind": "/var/lib/gpuslice", "mode": "rw"}}
    script = "touch state && stat -c %u:%g:%a . && ! touch /opt/gpuslice/x 2>/dev/null"
    said = world.say("hub", ["sh", "-ec", script], volumes=volume)
    assert (said.code, said.text) == (0, "10001:10001:750")


def test_a_proxy_becomes_healthy_by_its_own_address(world: Images) -> None:
    container = world.start(
        "hub",
        ["configurable-http-proxy", "--ip=127.0.0.1", "--api-ip=127.0.0.1"],
        environment={
            "HEALTH_URL": "http://127.0.0.1:8000/_chp_healthz",
            "CONFIGPROXY_AUTH_TOKEN": "a test's",
        },
    )
    until_healthy(container)
    # A server that hangs is not well.
    assert inside(container, "sh", "-c", "kill -STOP $(cat /proc/1/task/1/children)").code == 0
    assert inside(container, "/opt/gpuslice/bin/healthy").code == 1


def test_the_node_has_what_it_needs_and_no_compiler(world: Images) -> None:
    script = (
        "import shutil, nvmlsim, ctypes;"
        "made = nvmlsim.build_library('made'); print(made);"
        "ctypes.CDLL(str(made)).nvmlsimVersion;"
        "print([n for n in ('cc', 'gcc', 'clang', 'node', 'npm') if shutil.which(n)])"
    )
    state = {world.volume(): {"bind": "/var/lib/gpuslice", "mode": "rw"}}
    said = world.say("node", ["python", "-c", script], volumes=state, cap_add=["DAC_OVERRIDE"])
    assert said.text.splitlines() == ["/var/lib/gpuslice/made/libnvidia-ml.so.1", "[]"]
    said = world.say("node", ["sh", "-ec", "nsenter --version && gpuslice node --help"])
    assert said.code == 0 and said.text.startswith("nsenter from util-linux"), said.text
