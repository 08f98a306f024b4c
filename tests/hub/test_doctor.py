"""gpuslice doctor beside a platform that runs: its parts as they really answer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from platform_world import Platform, until

from gpuslice.cli.doctor import wiring

pytestmark = pytest.mark.hub


def doctor(platform: Platform, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the worst finding of each check."""
    done = subprocess.run(
        [
            sys.executable, "-m", "gpuslice", "doctor", "--json", "--config", str(platform.config),
            "--state", str(platform.state), *words,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["engine"] == "local"
    found: dict[str, Any] = {}
    for finding in report["findings"]:
        assert "broke off" not in finding["what"], finding
        found.setdefault(finding["id"], finding)
    return done.returncode, found


def test_a_platform_that_is_well(platform: Platform) -> None:
    code, found = doctor(platform)
    wrong = [one for one in found.values() if one["level"] in ("problem", "unknown")]
    assert (code, wrong) == (0, [])
    parts = {f"wiring.{name}" for name in wiring.CHECKS}
    assert {name: found[name]["level"] for name in parts} == dict.fromkeys(parts, "ok")
    assert found["gpus.present"]["level"] == "note"
    assert "SIMULATED" in found["gpus.present"]["what"]
    ours = {"files.secrets", "files.folder", "files.sockets", "database.reachable",
            "database.schema", "database.durable", "database.permissions"}  # fmt: skip
    assert {name: found[name]["level"] for name in ours} == dict.fromkeys(ours, "ok")


def test_parts_that_are_away_are_named(platform: Platform) -> None:
    for part in ("service", "node"):
        platform.switch(part, on=False)
        try:
            code, found = doctor(platform, "--only", "wiring")
            assert code == 1
            assert found[f"wiring.{part}"]["level"] == "problem"
            assert found["wiring.hub"]["level"] == "ok"
        finally:
            platform.switch(part, on=True)
            until("all is well again", lambda: doctor(platform, "--only", "wiring")[0] == 0)


def test_the_service_says_that_it_lost_the_node(platform: Platform) -> None:
    platform.switch("node", on=False)
    try:

        def degraded() -> bool:
            return bool(
                "cannot use the node"
                in doctor(platform, "--only", "wiring")[1]["wiring.service"]["what"]
            )

        until("the service has noticed", degraded)
    finally:
        platform.switch("node", on=True)
        until("all is well again", lambda: doctor(platform, "--only", "wiring")[0] == 0)


@pytest.mark.parametrize(
    ("secret", "check"), [("service_token", "wiring.token"), ("broker_token", "wiring.offers")]
)
def test_tokens_that_the_other_side_does_not_know(
    platform: Platform, secret: str, check: str
) -> None:
    file = platform.state / "secrets" / secret
    known = file.read_text()
    try:
        file.write_text("f" * 64 + "\n")
        code, found = doctor(platform, "--only", "wiring")
    finally:
        file.write_text(known)
    assert (code, found[check]["level"]) == (1, "problem")
    assert "does not know" in found[check]["what"]
