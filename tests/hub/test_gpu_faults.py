"""GPUs that fail under a running platform: the hub goes on and says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bs4 import BeautifulSoup
from platform_world import Platform, until

from nvmlsim import Fleet

pytestmark = pytest.mark.hub


@pytest.fixture
def fleet(platform: Platform) -> Iterator[Fleet]:
    """The simulated GPUs under the platform; healed at the end."""
    with Fleet.open(platform.state / "nvmlsim" / "fleet") as found:
        yield found
        found.fail_init(0)
        found.heal()
        for gpu in found.gpus():
            gpu.recover()
    until("all GPUs are offered again", lambda: _free(platform) == {"cpu", "quarter", "whole"})


def _free(platform: Platform) -> set[str]:
    """The slice types of which one could be had now."""
    answer = platform.broker("GET", "offers")
    return {offer["slice"] for offer in answer.json() if offer["free"]} if answer.ok else set()


def spawn_page(platform: Platform) -> str:
    page = platform.login("gina").get("/hub/spawn")
    assert page.status_code == 200
    return BeautifulSoup(page.text, "html.parser").get_text(" ", strip=True)


def test_a_lost_gpu_is_not_granted_and_the_reason_is_told(platform: Platform, fleet: Fleet) -> None:
    platform.add_user("gina")
    fleet.gpu(0).lose()
    until("the lost GPU is not offered", lambda: "whole" not in _free(platform))
    answer = platform.ask_to_spawn("gina", {"slice": "whole"})
    assert 400 <= answer.status_code < 600 and answer.status_code != 500
    assert "Free instead" in answer.json()["message"], answer.text
    assert platform.lease("gina") is None
    lease = platform.spawn("gina", "quarter")
    assert lease["state"] == "running"
    platform.stop_server("gina")


def test_a_driver_that_does_not_fit_its_library_is_said_and_cpu_goes_on(
    platform: Platform, fleet: Fleet
) -> None:
    """As after an update of the driver: NVML answers 18 until the machine is restarted."""
    platform.add_user("gina")
    fleet.fail_init(18)
    platform.kill("node")
    until("only CPU is offered", lambda: _free(platform) == {"cpu"})
    assert "The GPU driver was updated" in spawn_page(platform)
    platform.spawn("gina", "cpu")
    platform.stop_server("gina")
