"""The few places where a spawner touches the hub's own objects.

JupyterHub means to take its database out of spawners' hands (jupyterhub/roadmap#7); what will
have to change then is here.
"""

from __future__ import annotations

from typing import Any

_MAX_GROUPS = 1000


def user_groups(spawner: Any) -> list[str]:
    """Names of the groups that the spawner's user is in now."""
    return sorted(group.name for group in spawner.user.groups)[:_MAX_GROUPS]


def keep_options(spawner: Any, options: dict[str, str]) -> None:
    """Make ``options`` what the hub shows for this server and uses when none are given.

    The hub stores whatever REST sent before anyone has looked at it, and would offer it again.
    """
    spawner.user_options = options
    if spawner.orm_spawner is not None:
        spawner.orm_spawner.user_options = options


def came_from_elsewhere(spawner: Any) -> bool:
    """Whether the request that asks for a start was made by a page of another site."""
    handler = spawner.handler
    if handler is None:
        return False
    site = handler.request.headers.get("Sec-Fetch-Site", "none")
    return site not in ("none", "same-origin")


def is_waiting_for_server(spawner: Any) -> bool:
    """Whether the hub, not a person, is the one who gives up: the server never answered it."""
    return bool(getattr(spawner, "_waiting_for_response", False))
