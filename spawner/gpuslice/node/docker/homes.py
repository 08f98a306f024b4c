"""Where users' files are: a volume or a folder per user, made once and never removed by us.

Both start empty, belong to ``docker.user`` and can be read by nobody else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from gpuslice import containers
from gpuslice.errors import Refused
from gpuslice.node.docker.api import DockerApi, EngineSaysNo, Json
from gpuslice.node.worker import Worker
from gpuslice.settings import DockerSettings

T = TypeVar("T")

#: A network file system that does not answer in this time is taken to be away.
LIMIT_S = 10.0
#: Only to be named by: root itself may be allowed nothing more on a network file system.
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PRIVATE = 0o700

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HomeMount:
    """What to mount as a user's home.

    Attributes:
        kind: The mount's type in a create body. A ``volume`` needs ``NoCopy``: the engine would
            else give it the owner that the image's folder has.
        source: The volume's name, or the folder as the host names it.
        limit_bytes: How large the home may become, as far as somebody said so.
        enforced: Whether the file system itself stops there.
    """

    kind: Literal["volume", "bind"]
    source: str
    limit_bytes: int | None
    enforced: bool


class Homes:
    """The homes of this node's users.

    Raises Refused, and what :class:`DockerApi` raises: then nothing is known.
    """

    def __init__(self, policy: DockerSettings, api: DockerApi) -> None:
        self._policy = policy
        self._api = api
        user, _, group = policy.user.partition(":")
        self._owner = Owner(int(user), int(group))
        # A file system that hangs holds this thread and no other.
        self._files = Worker("gpuslice-homes")
        self._volumes_take_size = True
        self._lock = asyncio.Lock()

    async def ensure(self, user: str) -> HomeMount:
        """The home of this user, there and usable now. It is never made anew.

        The folder that all share is looked at, too: without it the engine refuses the container.
        """
        if self._policy.shared is not None:
            await self._in_files(self._look_at_shared, self._policy.shared)
        if self._policy.home == "volume":
            return await self._volume(user)
        source = str(PurePosixPath(self._policy.home) / containers.home_name(user))
        size = await self._in_files(
            lambda: self._prepare_folder(self._policy.home, containers.home_name(user)), source
        )
        return self._mount("bind", source, size)

    # --- volumes ----------------------------------------------------------------------------

    async def _volume(self, user: str) -> HomeMount:
        name = containers.home_volume(user)
        # Two servers of one user may begin at the same time; the engine would take both.
        async with self._lock:
            found = await self._api.volume(name) or await self._create_volume(name, user)
        if (found.get("Labels") or {}).get(containers.LABEL_HOME) != user:
            raise Refused(
                "home-taken",
                f"The volume {name} is not labelled as this user's home "
                f"({containers.LABEL_HOME}=<user name>). An administrator has to look at it.",
            )
        where = str(found.get("Mountpoint") or "")
        if found.get("Driver") != "local" or not where.startswith("/"):
            return self._mount("volume", name, None)
        size = await self._in_files(lambda: self._prepare_volume(where), name)
        return self._mount("volume", name, size)

    async def _create_volume(self, name: str, user: str) -> Json:
        body: Json = {"Name": name, "Driver": "local", "Labels": {containers.LABEL_HOME: user}}
        limit = self._policy.home_size
        if limit is not None and self._volumes_take_size:
            try:
                return await self._api.create_volume({**body, "DriverOpts": {"size": str(limit)}})
            except EngineSaysNo as no:
                if "quota" not in no.message:
                    raise _not_made(name, no) from no
                self._volumes_take_size = False
                _LOG.warning(
                    "docker.home_size is not enforced, users are warned only: the engine's folder "
                    "for volumes is not on XFS with project quotas (%s)",
                    no.message,
                )
        try:
            return await self._api.create_volume(body)
        except EngineSaysNo as no:
            raise _not_made(name, no) from no

    # --- files, in the thread for them ------------------------------------------------------

    async def _in_files(self, function: Callable[[], T], what: str) -> T:
        try:
            return await self._files.call(function, LIMIT_S)
        except TimeoutError:
            text = f"The file system of {what} does not answer."
            raise Refused("files-unavailable", text, status=503, retry_after_s=30) from None

    def _prepare_volume(self, where: str) -> int:
        with open_below(self._policy.host_root, where) as folder:
            give(folder, self._owner, where)
            return _size(folder)

    def _prepare_folder(self, base: str, name: str) -> int:
        path = f"{base.rstrip('/')}/{name}"
        with open_below(self._policy.host_root, base) as above:
            if os.fstat(above).st_mode & stat.S_IWOTH:
                raise Refused(
                    "home-open",
                    f"Everybody can write to the folder {base} of docker.home, so no home in it "
                    "is safe: run chmod o-w on it.",
                )
            try:
                os.mkdir(name, _PRIVATE, dir_fd=above)
            except FileExistsError:
                pass
            except OSError as problem:
                raise _by_hand(path, self._owner, problem) from problem
            with _opened(name, path, above) as folder:
                give(folder, self._owner, path)
                return _size(folder)

    def _look_at_shared(self) -> None:
        assert self._policy.shared is not None
        with open_below(self._policy.host_root, self._policy.shared):
            pass

    # --- inside -----------------------------------------------------------------------------

    def _mount(self, kind: Literal["volume", "bind"], source: str, size: int | None) -> HomeMount:
        limit = self._policy.home_size
        # A file system that holds a limit for this folder says so by its size.
        if limit is not None and size is not None and size <= limit:
            return HomeMount(kind, source, size, enforced=True)
        return HomeMount(kind, source, limit, enforced=False)


# --- folders ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom homes belong to."""

    user: int
    group: int

    def __str__(self) -> str:
        return f"{self.user}:{self.group}"


@contextmanager
def open_below(root: str, path: str) -> Iterator[int]:
    """A descriptor of a folder of the host, whose root folder is ``root`` here.

    No symbolic link on the way is followed: in a container it would lead to another place than on
    the host.
    """
    with ExitStack() as opened:
        folder = os.open(root, _FOLDER)
        opened.callback(os.close, folder)
        for part in PurePosixPath(path).parts[1:]:
            if part == "..":
                raise Refused("bad-path", f"The path {path} must not contain '..'.")
            folder = opened.enter_context(_opened(part, path, folder))
        yield folder


@contextmanager
def _opened(name: str, path: str, above: int) -> Iterator[int]:
    """A descriptor of the folder ``name`` in ``above``; ``path`` is for people."""
    try:
        folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
    except OSError as problem:
        if problem.errno == errno.ENOENT:
            raise Refused(
                "no-folder", f"The folder {path} does not exist on this machine.", status=503
            ) from problem
        if problem.errno in (errno.ELOOP, errno.ENOTDIR):
            raise Refused(
                "not-a-folder",
                f"The path {path} leads through something that is not a folder, or through a "
                "symbolic link: give the path that it leads to.",
                status=503,
            ) from problem
        text = f"The folder {path} cannot be opened: {problem.strerror}."
        raise Refused("no-folder", text, status=503) from problem
    try:
        yield folder
    finally:
        os.close(folder)


def give(folder: int, owner: Owner, path: str) -> None:
    """Makes a fresh home its owner's. One that is somebody else's already is refused."""
    found = os.fstat(folder)
    if found.st_uid == owner.user:
        return
    # A descriptor that is only for naming can be changed by its name alone.
    here = Path(f"/proc/self/fd/{folder}")
    try:
        if found.st_uid != 0 or any(entry.name != "lost+found" for entry in here.iterdir()):
            raise Refused(
                "home-owner",
                f"The home {path} belongs to user {found.st_uid}, and notebooks run as {owner}. "
                f"If it is the right one, run: chown -R {owner} {path}",
                status=503,
            )
        here.chmod(_PRIVATE)
        os.chown(here, owner.user, owner.group)
    except OSError as problem:
        raise _by_hand(path, owner, problem) from problem


def _size(folder: int) -> int:
    """Bytes that the file system can hold, as it states them for this folder."""
    stated = os.fstatvfs(folder)
    return stated.f_blocks * stated.f_frsize


def _by_hand(path: str, owner: Owner, problem: OSError) -> Refused:
    return Refused(
        "home-not-made",
        f"The home {path} could not be made and given to {owner} ({problem.strerror}). On a "
        "network file system the node's root may not be allowed to (root_squash): then make the "
        f"folder on its server: install -d -m 700 -o {owner.user} -g {owner.group} {path}",
        status=503,
    )


def _not_made(name: str, no: EngineSaysNo) -> Refused:
    return Refused("home-not-made", f"The engine made no volume {name}: {no.message}", status=503)
