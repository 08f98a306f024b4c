"""What a user meets in the notebook image, and what a user cannot break in it."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import docker
import pytest

from imageworld import Images, images, inside, until_healthy
from nvmlsim import demo_fleet

pytestmark = pytest.mark.docker

HOME = "/home/jovyan"
LIBRARY = "/opt/gpuslice/lib/python3.11/site-packages/nvmlsim/libnvidia-ml.so.1"
LAB = ["jupyter", "lab", "--ip=127.0.0.1"]
#: Answers whatever a single-user server asks of its hub when it starts.
HUB_STAND_IN = """
import http.server

class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
    do_POST = do_GET

http.server.HTTPServer(("127.0.0.1", 8081), Hub).serve_forever()
"""
HUBS_VARIABLES = {
    "JUPYTERHUB_API_TOKEN": "a test's",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-ada",
    "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
    "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:8888/user/ada/",
    "JUPYTERHUB_USER": "ada",
}


@pytest.fixture
def world(client: docker.DockerClient) -> Iterator[Images]:
    with images(client) as world:
        yield world


@pytest.fixture
def home(world: Images) -> dict[str, dict[str, str]]:
    """A new user's home, a fresh volume."""
    return {world.volume(): {"bind": HOME, "mode": "rw"}}


def _wheel(folder: Path, name: str, source: str) -> Path:
    """A wheel of one module."""
    path = folder / f"{name}-1-py3-none-any.whl"
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    folder.chmod(0o755)
    return path


def test_a_new_home_is_the_users_and_all_else_is_closed(world: Images, home: dict) -> None:
    script = """
        stat -c %U:%G:%a . && touch here /tmp/there && pwd && echo $HOME
        for path in / /etc /usr/local/lib/python3.11/dist-packages /usr/local/share/jupyter; do
            if [ -w $path ]; then echo open: $path; fi
        done
    """
    # Also where the root file system is not closed by the engine.
    for read_only in (True, False):
        said = world.say("notebook", ["sh", "-ec", script], volumes=home, read_only=read_only)
        assert (said.code, said.text.split()) == (0, ["jovyan:users:755", HOME, HOME])


def test_what_a_user_installs_stays_and_kernels_have_it_but_not_the_server(
    world: Images, home: dict, tmp_path: Path
) -> None:
    _wheel(tmp_path, "tidy", "VALUE = 42\n")
    mounts = {**home, str(tmp_path): {"bind": "/wheels", "mode": "ro"}}
    for flag in ([], ["--user"]):
        install = ["pip", "install", "--no-index", "--force-reinstall", *flag]
        said = world.say("notebook", [*install, "/wheels/tidy-1-py3-none-any.whl"], volumes=mounts)
        assert said.code == 0, said.text
    # Another container, the same home.
    kernel = dedent("""
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel()
        client.execute_interactive("import tidy; print(tidy.VALUE)")
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        try:
            import tidy
        except ImportError:
            print("not here")
    """)
    # As the server is started.
    said = world.say("notebook", ["/usr/bin/python3", "-s", "-P", "-c", kernel], volumes=home)
    assert (said.code, said.text.splitlines()[-2:]) == (0, ["42", "not here"])


def test_the_server_starts_whatever_is_in_the_home(world: Images, home: dict) -> None:
    """As the image is started, with a hub beside it: healthy, and not when it hangs."""
    broken = """
        site=.local/lib/python3.11/site-packages
        mkdir -p $site/tornado .jupyter
        echo 'raise SystemExit("broken by pip install")' | tee $site/tornado/__init__.py logging.py
    """
    assert world.say("notebook", ["sh", "-ec", broken], volumes=home).code == 0
    hub = world.start("notebook", ["python3", "-c", HUB_STAND_IN], working_dir="/tmp")
    server = world.start(
        "notebook",
        network_mode=f"container:{hub.id}",
        environment=HUBS_VARIABLES,
        volumes=home,
    )
    until_healthy(server)
    assert inside(server, "/usr/local/bin/healthy").text == (
        "http://127.0.0.1:8888/user/ada/api answers 200"
    )
    assert inside(server, "cat", "/proc/1/comm").text == "tini"
    pid = inside(server, "cat", "/proc/1/task/1/children").text
    line = inside(server, "cat", f"/proc/{pid}/cmdline").text.split("\0")
    assert line[:5] == ["/usr/bin/python3", "-s", "-P", "-m", "jupyterhub.singleuser"]
    inside(server, "kill", "-STOP", pid)
    assert inside(server, "/usr/local/bin/healthy").code == 1
    inside(server, "kill", "-CONT", pid)
    server.stop(timeout=60)
    server.reload()
    assert server.attrs["State"]["ExitCode"] == 0


def test_lab_starts_by_hand_and_its_kernels_answer_before_and_after_a_restart(
    world: Images, home: dict
) -> None:
    server = world.start("notebook", [*LAB, "--ServerApp.token=t"], volumes=home)
    until_healthy(server)
    program = dedent("""
        import json, urllib.request
        from jupyter_client import BlockingKernelClient
        def post(path):
            url = f"http://127.0.0.1:8888/api/kernels{path}?token=t"
            request = urllib.request.Request(url, method="POST", data=b"{}")
            return json.load(urllib.request.urlopen(request, timeout=60))
        kernel = post("")["id"]
        for turn in ("", f"/{kernel}/restart"):
            if turn:
                post(turn)
            client = BlockingKernelClient(
                connection_file=f"/tmp/jupyter-runtime/kernel-{kernel}.json"
            )
            client.load_connection_file()
            client.start_channels()
            client.wait_for_ready(timeout=60)
            client.execute_interactive("import os; print(os.getcwd())", timeout=60)
            client.stop_channels()
            print(client.transport)
    """)
    said = inside(server, "python3", "-c", program)
    assert (said.code, said.text.splitlines()) == (0, [HOME, "ipc"] * 2)
    assert "WARNING" not in server.logs().decode()


def test_lab_has_our_panel_and_asks_nobody_for_news(world: Images, home: dict) -> None:
    server = world.start("notebook", [*LAB, "--ServerApp.token=t"], volumes=home)
    until_healthy(server)
    page = inside(server, "curl", "-fsS", "http://127.0.0.1:8888/lab?token=t").text
    settings = re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert settings
    told = json.loads(settings[1])
    assert "@jupyterlab/apputils-extension:announcements" in told["disabledExtensions"]
    assert "jupyterlab-gpuslice" in [e["name"] for e in told["federated_extensions"]]
    route = "http://127.0.0.1:8888/gpuslice/api/starters?token=t"
    assert '"image-processing"' in inside(server, "curl", "-fsS", route).text


def test_hub_and_notebook_have_one_version_of_jupyterhub(world: Images) -> None:
    hub = world.say("hub", ["jupyterhub", "--version"])
    singleuser = world.say("notebook", ["python3", "-m", "jupyterhub.singleuser", "--version"])
    by_name = world.say("notebook", ["jupyterhub-singleuser", "--version"])
    assert hub.code == singleuser.code == by_name.code == 0
    assert hub.text.count(".") == 2
    assert hub.text == singleuser.text == by_name.text


def test_a_starter_runs_without_network_in_a_closed_image(world: Images, home: dict) -> None:
    program = dedent("""
        import nbformat
        from nbclient import NotebookClient
        from gpuslice_starters import copy_for, starters
        print([s.name for s in starters()])
        path = copy_for("/home/jovyan", "image-processing")
        book = nbformat.read(path, as_version=4)
        NotebookClient(book, timeout=300, kernel_name="python3").execute()
        outputs = [out for cell in book.cells for out in cell.get("outputs", [])]
        print(sum("image/png" in out.get("data", {}) for out in outputs))
        print([out.text for out in outputs if out.get("name") == "stderr"])
    """)
    said = world.say("notebook", ["python3", "-c", program], volumes=home)
    assert said.code == 0, said.text
    names, pictures, errors = said.text.splitlines()[-3:]
    assert "image-processing" in names
    assert int(pictures) >= 5
    assert errors == "[]"


def test_its_label_says_whether_pytorch_is_in_it(world: Images) -> None:
    script = "import importlib.metadata as m; print(m.version('torch'))"
    said = world.say("notebook", ["python3", "-c", script])
    found = said.text if said.code == 0 else ""
    assert world.config("notebook")["Labels"]["gpuslice.torch"] == found


def test_a_simulated_gpu_is_seen_through_the_nodes_library(
    world: Images, home: dict, tmp_path: Path
) -> None:
    """The library that the node's image was built with, in the place where the node puts it."""
    node = world.start("node", ["sleep", "1000"])
    stream, _ = node.get_archive(LIBRARY)
    archive = tmp_path / "library.tar"
    archive.write_bytes(b"".join(stream))
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    name = Path(LIBRARY).name
    fleet = tmp_path / "fleet"
    with demo_fleet(fleet) as made:
        gpu = made.gpus()[0].uuid
    fleet.chmod(0o644)
    script = dedent("""
        import pynvml
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetCount() == 1
        print(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))
    """)
    said = world.say(
        "notebook",
        ["python3", "-c", script],
        volumes={
            **home,
            str(tmp_path / name): {"bind": f"/usr/lib/{name}", "mode": "ro"},
            str(fleet): {"bind": "/run/nvmlsim", "mode": "ro"},
        },
        environment={
            "NVMLSIM_STATE": "/run/nvmlsim",
            "NVMLSIM_VIEW": "shared-container",
            "NVMLSIM_VISIBLE": gpu,
        },
    )
    assert (said.code, said.text) == (0, gpu)


def test_drawing_needs_no_search_for_fonts(world: Images, home: dict) -> None:
    script = "import logging; logging.basicConfig(level='INFO'); import matplotlib.pyplot"
    said = world.say("notebook", ["python3", "-c", script], volumes=home)
    assert said.code == 0 and "font cache" not in said.text, said.text
    said = world.say("notebook", ["sh", "-c", 'rm -r ~/.cache; exec python3 -c "$1"', "-", script])
    assert "generated new fontManager" in said.text
