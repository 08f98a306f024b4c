"""One start per lease, and none after a fence: whoever takes the marker first wins for ever."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuslice.node.launch import Launcher
from gpuslice.node.leasedir import LeaseDir
from gpuslice.nodeclient import NodeRefused
from gpuslice.wire import ServerState
from realnode import FakeService, Node, call, cpu_slice, lives, until

PROOF = "from pathlib import Path; Path('it ran').touch(); import time; time.sleep(600)"


def ran(node: Node, lease: str) -> bool:
    return (node.folder / f"home of {lease}" / "it ran").exists()


def start_refused(node: Node, lease: str) -> str:
    with pytest.raises(NodeRefused) as refused:
        call(node.client.start(node.spec(lease, PROOF)))
    assert refused.value.status == 409
    return refused.value.reason


def test_a_start_needs_a_prepared_slice(node: Node) -> None:
    assert start_refused(node, uuid.uuid4().hex) == "not-prepared"


def test_preparing_again_changes_nothing_and_other_contents_are_refused(node: Node) -> None:
    lease = node.prepare()
    call(node.client.prepare(cpu_slice(lease)))
    with pytest.raises(NodeRefused) as refused:
        call(node.client.prepare(cpu_slice(lease, user="eve")))
    assert refused.value.reason == "different-slice"


def test_after_a_fence_nothing_starts_not_even_after_a_restart(node: Node) -> None:
    lease = node.prepare()
    call(node.client.fence(lease))
    call(node.client.fence(lease))
    for _ in range(2):
        assert start_refused(node, lease) == "ended"
        with pytest.raises(NodeRefused):
            call(node.client.prepare(cpu_slice(lease)))
        listing = call(node.client.listing())
        assert (listing.servers, listing.slices) == ([], [])
        node.restart()
    assert call(node.client.release(lease)).clean


def test_a_delayed_prepare_cannot_revive_a_lease_that_was_fenced_before_it(node: Node) -> None:
    lease = uuid.uuid4().hex
    call(node.client.fence(lease))
    with pytest.raises(NodeRefused) as refused:
        call(node.client.prepare(cpu_slice(lease)))
    assert refused.value.reason == "ended"


def test_a_fence_catches_a_supervisor_that_waits_for_the_service(
    node: Node, service: FakeService
) -> None:
    service.hold = threading.Event()
    lease = node.prepare()
    call(node.client.start(node.spec(lease, PROOF)))
    assert node.server(lease).state is ServerState.CREATED
    until(lambda: service.asked, "the supervisor asks")
    supervisor = node.dir(lease).read_record().supervisor_pid

    call(node.client.fence(lease))
    assert not lives(supervisor)
    service.hold.set()
    ended = node.server(lease)
    assert ended.state is ServerState.EXITED
    assert (ended.started_us, ended.finished_us) == (None, None)
    assert start_refused(node, lease) == "fenced"
    node.restart()
    assert start_refused(node, lease) == "fenced"
    assert call(node.client.release(lease)).clean
    assert not ran(node, lease)


def test_the_marker_stops_a_supervisor_that_the_service_has_already_allowed(
    node: Node, service: FakeService
) -> None:
    """The fence in a node that dies before it kills anything: the rename alone must do."""
    service.hold = threading.Event()
    lease = node.prepare()
    call(node.client.start(node.spec(lease, PROOF)))
    until(lambda: service.asked, "the supervisor asks")
    node.kill()
    assert node.dir(lease).fence()
    service.hold.set()
    supervisor = node.dir(lease).read_record().supervisor_pid
    until(lambda: not lives(supervisor), "the supervisor gives up")
    assert node.dir(lease).read_record().state == "refused"
    assert not ran(node, lease)
    node.start()
    ended = node.server(lease)
    assert (ended.state, ended.started_us) == (ServerState.EXITED, None)
    assert "taken back" in (ended.message or "")


def test_a_fence_between_launch_and_claim_wins(node: Node, service: FakeService) -> None:
    """A supervisor that was launched late, by a node that is gone, finds the marker taken."""
    lease = node.prepare()
    node.kill()
    folder = node.dir(lease)
    folder.write_json("spec.json", node.spec(lease, PROOF).model_dump(mode="json"))
    assert folder.fence()
    Launcher(node.service_url, node.token, 3).launch(folder)
    until(lambda: folder.read_record().state == "refused", "the supervisor refuses")
    assert not ran(node, lease)
    # Not even asked: the service would take the lease for running.
    assert service.asked == []
    node.start()
    assert start_refused(node, lease) == "fenced"
    assert call(node.client.release(lease)).clean


def test_a_fence_lets_a_running_server_go_on(node: Node) -> None:
    lease = node.run("print('up')\n" + PROOF)
    node.said(lease, "up")
    call(node.client.fence(lease))
    assert node.server(lease).state is ServerState.RUNNING
    assert start_refused(node, lease) == "already-started"


def test_a_stop_before_the_start_is_final(node: Node, service: FakeService) -> None:
    service.hold = threading.Event()
    lease = node.prepare()
    call(node.client.start(node.spec(lease, PROOF)))
    until(lambda: service.asked, "the supervisor asks")
    call(node.client.stop_server(lease))
    service.hold.set()
    assert node.wait(lease, ServerState.EXITED).started_us is None
    assert not ran(node, lease)


def test_a_second_start_before_the_first_has_claimed_finds_the_spec(tmp_path: Path) -> None:
    folder = LeaseDir(tmp_path)
    folder.write_json("spec.json", {"first": 1}, exclusive=True)
    with pytest.raises(FileExistsError):
        folder.write_json("spec.json", {"second": 2}, exclusive=True)
    assert folder.read_json("spec.json") == {"first": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_of_many_starts_at_once_one_succeeds(node: Node, service: FakeService) -> None:
    lease = node.prepare()
    spec = node.spec(lease, "open('runs', 'a').write('x'); import time; time.sleep(600)")

    async def all_at_once() -> list[BaseException | None]:
        starts = (node.client.start(spec) for _ in range(8))
        return await asyncio.gather(*starts, return_exceptions=True)

    results = asyncio.run(all_at_once())
    assert results.count(None) == 1
    refused = [r for r in results if isinstance(r, NodeRefused)]
    assert {r.reason for r in refused} == {"already-started"}
    assert len(refused) == 7
    runs = node.folder / f"home of {lease}" / "runs"
    until(lambda: runs.exists() and runs.read_text(), "the server runs")
    assert runs.read_text() == "x"
    assert len(service.asked) == 1


def test_the_services_no_is_final_and_its_reason_is_told(node: Node, service: FakeService) -> None:
    service.body = {"reason": "revoked", "message": "taken back by Ada"}
    for asked, status in enumerate([302, 401, 403, 404, 409], start=1):
        service.status = status
        lease = node.run(PROOF)
        ended = node.wait(lease, ServerState.EXITED)
        assert ended.message == "the service refused the start: taken back by Ada"
        assert (ended.started_us, ended.finished_us, ended.exit_code) == (None, None, None)
        assert len(service.asked) == asked
        assert not ran(node, lease)
        assert start_refused(node, lease) == "already-started"
        assert call(node.client.release(lease)).clean


def test_a_failing_service_is_asked_the_same_question_again(
    node: Node, service: FakeService
) -> None:
    """It may have said yes and died: the repeated question must be recognisable as the same."""
    service.status = 503
    lease = node.run(PROOF)
    until(lambda: len(service.asked) >= 3, "asked again")
    service.status = 200
    running = node.wait(lease, ServerState.RUNNING)
    assert {sent["started_us"] for _, _, sent in service.asked} == {running.started_us}


def test_without_the_service_nothing_starts(
    make_node: Callable[..., Node], service: FakeService, tmp_path: Path
) -> None:
    service.url = "http://127.0.0.1:9"  # nobody listens on the discard port
    node = make_node()
    lease = node.run(PROOF)
    ended = node.wait(lease, ServerState.EXITED)
    assert "cannot be reached" in (ended.message or "")
    assert not ran(node, lease)


def test_a_service_that_hangs_starts_nothing(node: Node, service: FakeService) -> None:
    service.hold = threading.Event()
    lease = node.run(PROOF)
    ended = node.wait(lease, ServerState.EXITED)
    assert "did not answer" in (ended.message or "")
    service.hold.set()
    assert not ran(node, lease)
