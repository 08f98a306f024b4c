"""Which names the hub's users and groups can have; others would open accounts that are nobody's."""

from __future__ import annotations


def may_be_user(name: str) -> bool:
    """Whether the hub can have a user of this name; what a closed account is called it cannot."""
    return "/" not in name


def user_name(name: str) -> str:
    """The name itself. Raises ValueError: the hub has no such user; it allows no ``/`` there."""
    if not may_be_user(name):
        raise ValueError("no name of the hub: it has a '/'")
    return group_name(name)


def group_name(name: str) -> str:
    """The name itself. Raises ValueError: the hub has no such group."""
    if name != name.strip() or not name.isprintable():
        raise ValueError("no name of the hub: it has spaces around it, or control characters")
    return name
