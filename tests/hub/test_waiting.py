"""Waiting in line from a spawn over REST, on a real hub: words and turns are those of the page."""

from __future__ import annotations

from typing import Any

import pytest
from platform_world import Platform, until

pytestmark = pytest.mark.hub


def requests_of(platform: Platform, user: str) -> dict[str, Any] | None:
    """What a user's default server waits for."""
    answer = platform.broker("POST", "choices", json={"user": user})
    assert answer.ok, answer.text
    found: dict[str, Any] | None = answer.json()["request"]
    return found


def test_a_spawn_over_rest_waits_in_line_and_has_the_next_turn(platform: Platform) -> None:
    platform.spawn("holder", "whole")
    platform.add_user("waiter")
    options = {"slice": "whole", "hours": 1, "queue": "tell"}
    refused = platform.ask_to_spawn("waiter", options)
    assert refused.status_code == 503
    said = refused.json()["message"]
    assert "You are number 1 of 1 in line for a slice whole." in said
    assert "Nobody can know yet" in said and "Free now: " in said and "quarter" in said
    place = requests_of(platform, "waiter")
    assert place is not None and place["position"] == 1

    # Asked again, and without waiting: the place is the same.
    assert "number 1 of 1" in platform.ask_to_spawn("waiter", options).json()["message"]
    assert platform.ask_to_spawn("waiter", {"slice": "whole"}).status_code == 503
    again = requests_of(platform, "waiter")
    assert again is not None and again["request_id"] == place["request_id"]

    platform.stop_server("holder")
    until("its turn comes", lambda: (requests_of(platform, "waiter") or {})["state"] == "offered")
    # Nobody else gets what is reserved.
    platform.add_user("rival")
    assert platform.ask_to_spawn("rival", {"slice": "whole"}).status_code == 503
    lease = platform.spawn("waiter", "whole")
    assert lease["slice"] == "whole"
    until("the request is over", lambda: requests_of(platform, "waiter") is None)
    platform.stop_server("waiter")


def test_a_server_starts_by_itself_when_its_user_chose_so(platform: Platform) -> None:
    platform.spawn("holder", "whole")
    platform.add_user("sleeper")
    refused = platform.ask_to_spawn("sleeper", {"slice": "whole", "queue": "start"})
    assert "Your server starts by itself then" in refused.json()["message"]
    platform.stop_server("holder")
    platform.wait_ready("sleeper")
    server = platform.server("sleeper")
    assert server is not None
    assert server["user_options"] == {"slice": "whole", "profile": "whole"}
    platform.stop_server("sleeper")


def test_waiting_for_what_may_never_be_had_is_refused(platform: Platform) -> None:
    platform.spawn("holder", "whole")
    platform.add_user("other")
    answer = platform.ask_to_spawn(
        "other", {"slice": "whole", "queue": "tell", "charge": "no-group-of-mine"}
    )
    assert answer.status_code == 403
    assert "You are not in the group 'no-group-of-mine'" in answer.json()["message"]
    assert requests_of(platform, "other") is None
    platform.stop_server("holder")
