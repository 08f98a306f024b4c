"""Two people at two browsers on the compose deployment, from the login to the end of everything.

Both run the image starter, each on a slice of their own; the hub is killed while they work; at the
end the bills are compared with what the engine says of the two containers.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import NotFound
from docker.models.containers import Container
from playwright.sync_api import Browser, sync_playwright

from composeworld import Deployment, lease_of, micros, until
from dockerworld import CDI_DIR, cdi_file
from gpuslice.containers import LABEL_NODE

# The people of the browser's tests; with importlib mode pytest does not put them on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from people import ARTIFACTS, Person, Samples

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.timeout(900)]

NOTEBOOK = "image-processing.ipynb"


@pytest.fixture
def world(client: docker.DockerClient, tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(client, tmp_path)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None
    flags = ["--disable-gpu", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium's own does not work for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


class Ends:
    """What the engine says of each of our containers when it has just ended.

    The node removes them soon after, so somebody has to listen.
    """

    def __init__(self, client: docker.DockerClient, node_id: str) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self._client = client
        self._events = client.events(
            decode=True, filters={"event": "die", "label": f"{LABEL_NODE}={node_id}"}
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for event in self._events:
            with suppress(NotFound):
                inspected = self._client.api.inspect_container(event["id"])
                self.states[event["id"]] = inspected["State"]

    def close(self) -> None:
        self._events.close()
        self._thread.join(10)


@pytest.fixture
def ends(client: docker.DockerClient, world: Deployment) -> Iterator[Ends]:
    listener = Ends(client, world.node_id)
    yield listener
    listener.close()


def test_two_people_from_the_login_to_the_end(
    world: Deployment, chromium: Browser, ends: Ends
) -> None:
    password = world.secret("hub", "demo_password")
    before = world.left_over()
    ada, bob = (Person(world, chromium, world.new_user(name), password) for name in ("ada", "bob"))
    try:
        work_and_end(world, ends, ada, bob, before)
    except BaseException:
        ARTIFACTS.mkdir(exist_ok=True)
        for who in (ada, bob):
            who.leave_traces(f"two-people-{who.name}")
        (ARTIFACTS / "failed-two-people-parts.txt").write_text(world.logs())
        raise
    finally:
        ada.close()
        bob.close()


def work_and_end(
    world: Deployment, ends: Ends, ada: Person, bob: Person, before: list[str]
) -> None:
    slices = {ada.name: "quarter", bob.name: "1g.10gb"}
    samples = {}
    for who, title in ((ada, "H100 80GB HBM3, quarter"), (bob, "MIG 1g.10gb")):
        who.log_in()
        samples[who.name] = Samples(who.page)
        who.choose(title)
    containers = {}
    for who in (ada, bob):
        who.page.wait_for_url("**/lab**")
    for who in (ada, bob):
        # These browsers are on the engine's own machine: the other's new network has broken off
        # what they were loading (ERR_NETWORK_CHANGED).
        who.page.reload()
        who.wait_for_lab()
        containers[who.name] = world.container_of(who.name)
    leases = {name: world.lease(lease_of(one)) for name, one in containers.items()}
    assert {name: lease["slice"] for name, lease in leases.items()} == slices
    assert len({lease["device_uuid"] for lease in leases.values()}) == 2

    # Both run the image starter, and each is shown their own slice's numbers and price.
    for who in (ada, bob):
        who.page.get_by_role("button", name="Image processing").click()
        who.page.get_by_role("tab", name=NOTEBOOK).wait_for()
        who.run_all()
        assert_ran(world, who, containers[who.name])
        rows = samples[who.name].rows
        who.until("memory and cost are measured", lambda rows=rows: _moved(rows))
        told = {lease["lease_id"] for lease in samples[who.name].leases}
        assert told <= {leases[who.name]["lease_id"]}
        assert "SIMULATED" in who.status.inner_text()
    ARTIFACTS.mkdir(exist_ok=True)
    ada.page.screenshot(path=ARTIFACTS / "docker-lab.png")

    # Nobody gets in at the other's.
    answer = bob.page.request.get(f"/user/{ada.name}/api/contents/{NOTEBOOK}")
    assert answer.status in (403, 404)

    # The hub dies; both go on with their kernels.
    world.container("hub").kill()
    until("the hub has ended", lambda: world.container("hub").status == "exited")
    for who in (ada, bob):
        contents = who.page.request.get(f"/user/{who.name}/api/contents/{NOTEBOOK}")
        assert contents.ok, contents.status
        costs = len(samples[who.name].rows)
        who.until("the meter goes on", lambda who=who, n=costs: len(samples[who.name].rows) > n)
    world.container("hub").start()
    world.wait_healthy("hub")
    for who in (ada, bob):
        until("the server is known again", lambda who=who: _ready(world, who.name))
        assert world.container_of(who.name).id == containers[who.name].id

    # Both stop on their own page, and read their bills.
    for who in (ada, bob):
        who.open()
        who.stop_mine()
        who.sees("You hold no slice now")
    for name, lease in leases.items():
        lease_id = lease["lease_id"]
        until("the lease is over", lambda i=lease_id: world.lease(i)["state"] == "ended")
        assert_billed_as_the_engine_says(world, lease_id, ends.states[containers[name].id])
    assert world.verify() == "The ledger is in order.\n"

    # Nothing of the two is left but their homes.
    until("all is as before", lambda: world.left_over() == before)
    for lease in leases.values():
        assert not cdi_file(lease["lease_id"]).exists()
    assert not list(CDI_DIR.glob(".*gpuslice*"))


def assert_ran(world: Deployment, who: Person, container: Container) -> None:
    """The notebook as it was saved in the home: every cell ran, and its checks passed."""

    def saved() -> list[dict[str, Any]]:
        who.page.keyboard.press("Control+s")
        text = world.run_in(container, "cat", f"/home/jovyan/{NOTEBOOK}")
        try:
            notebook = json.loads(text)
        except json.JSONDecodeError:
            return []  # it is just being written
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        failed = any(o["output_type"] == "error" for cell in cells for o in cell["outputs"])
        return cells if failed or all(cell["execution_count"] for cell in cells) else []

    cells = who.until("the notebook is saved as it ran", saved)
    errors = [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    assert errors == []
    checks = [cell for cell in cells if "check" in cell["metadata"].get("tags", ())]
    passed = [c for c in checks if any("✓" in "".join(o.get("text", "")) for o in c["outputs"])]
    assert len(checks) >= 10 and len(passed) == len(checks)


def assert_billed_as_the_engine_says(
    world: Deployment, lease_id: str, state: dict[str, Any]
) -> None:
    """The lines of the bill tile exactly the engine's StartedAt to FinishedAt."""
    bill = world.bill(lease_id)
    lines = bill["lines"]
    assert [lines[0]["from_us"], lines[-1]["til_us"]] == [
        micros(state["StartedAt"]),
        micros(state["FinishedAt"]),
    ]
    for line, following in itertools.pairwise(lines):
        assert line["til_us"] == following["from_us"]
    # What comes after the stop was asked for is the platform's to pay.
    assert {line["payer"] for line in lines} == {"user", "writeoff"}
    assert lines[-1]["payer"] == "writeoff"


def _moved(rows: list[tuple[int, int, int | None, float | None, int | None]]) -> bool:
    """Memory is used, and the cost has grown."""
    costs = [row[4] for row in rows if row[4] is not None]
    return any(row[2] for row in rows) and len(costs) > 2 and costs[-1] > costs[0]


def _ready(world: Deployment, user: str) -> bool:
    return bool((world.server(user) or {}).get("ready"))
