"""What spawner and node agree on about a leased container: its name, its labels, its places."""

from __future__ import annotations

from hashlib import sha256

from jupyterhub.slugs import safe_slug

#: Every container, network and volume of ours carries this one.
LABEL_LEASE = "gpuslice.lease"
LABEL_USER = "gpuslice.user"
LABEL_SERVER = "gpuslice.server"
LABEL_SLICE = "gpuslice.slice_type"
LABEL_NODE = "gpuslice.node"
#: The path under which the hub serves this notebook; the node makes the server's URL with it.
LABEL_BASE_URL = "gpuslice.base_url"
#: On a user's home volume, which outlives every lease.
LABEL_HOME = "gpuslice.home"

#: Inside the container.
NOTEBOOK_PORT = 8888
HOME = "/home/jovyan"
SHARED = "/shared"

#: The kind of our CDI devices; the device's name is the lease id.
CDI_KIND = "gpuslice.dev/slice"


def container_name(user: str, server: str, lease_id: str) -> str:
    """A name that only this lease's container can have, readable whatever the user's name is.

    With one name per server a stop followed by a start would meet the old container before its
    end is settled.
    """
    names = "--".join(str(safe_slug(name)) for name in (user, server) if name)
    return f"gpuslice-{names}-{lease_id[:12]}"


def network_name(lease_id: str) -> str:
    """The lease's own network.

    The engine takes a container's default route from the first of its networks in the order of
    their names: with one that comes last, hub and proxy keep theirs, and with it their connections.
    """
    return f"zz-gpuslice-{lease_id}"


def home_name(user: str) -> str:
    """The name of a user's home: of the volume, or of the folder. No two users share one.

    A plain name is its own; any other is told apart by 128 bits of its hash. The 32 of a slug are
    so few that who may choose a name finds one with the home of somebody else.
    """
    slug = str(safe_slug(user))
    return slug if slug == user else f"{slug}-{sha256(user.encode()).hexdigest()[8:32]}"


def home_volume(user: str) -> str:
    """The volume with a user's home."""
    return f"gpuslice-home-{home_name(user)}"


def cdi_device(lease_id: str) -> str:
    """The full name of a lease's CDI device."""
    return f"{CDI_KIND}={lease_id}"
