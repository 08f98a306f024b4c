"""The ``docker`` engine: one container per lease, made by the node through its filtered API.

DockerSpawner's template methods send what is asked for; everything that decides what a container
may do is the node's (``[docker]`` in gpuslice.toml).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from docker.errors import NotFound
from dockerspawner import DockerSpawner
from traitlets import Dict, Float, Unicode

from gpuslice.containers import NOTEBOOK_PORT, container_name
from gpuslice.spawners.builders import container_body, container_env, notebook_env
from gpuslice.spawners.engineapi import EngineApi, engine_api, engine_errors
from gpuslice.spawners.errors import EngineFailed, EngineRefused, EngineSilent
from gpuslice.spawners.misplaced import misplaced_values
from gpuslice.spawners.nodeengine import NodeSpawner
from gpuslice.spawners.pools import DaemonPool
from gpuslice.spawners.pulls import Line, Progress, PullFailed, Pulls, progress_text, pull_problem
from gpuslice.spawners.refusal import SpawnRefused
from gpuslice.wire import LeaseGrant

#: Calls of all users' starts at a time. Each is a wait for the engine, not work of this machine.
_CALLS = DaemonPool(32, "gpuslice-engine")
#: A pull has its own threads, so that it holds up nobody whose image is here.
_PULLS = Pulls(4)
#: These change something: the node gives the engine a minute, and so longer than that.
_CHANGES = ("create_container_from_config", "start")
_CHANGE_LIMIT_S = 75.0
#: A call that its thread did not end in time is given up so much later.
_OVERDUE_S = 1.0
#: A pull is at most here on the bar, per cent; the start itself is the rest.
_PULL_PERCENT = 50


class GpuDockerSpawner(NodeSpawner, DockerSpawner):
    """Starts notebook servers in containers, each with exactly the GPU slice that was leased.

    Of DockerSpawner's own options those that say what a container is (volumes, limits, network,
    names, images and so on) are refused: gpuslice.toml has them, and the node keeps to it.
    """

    images = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="""
        The images that may be started, reference to title; the first is chosen beforehand.
        Set by ``gpuslice.configure`` from ``[[docker.image]]`` of gpuslice.toml.
        """,
    ).tag(config=True)

    engine_timeout_s = Float(
        4.0,
        help="""
        How many seconds a look at the engine may take before a start is refused with the reason
        ``runtime-unavailable``.
        """,
    ).tag(config=True)

    pull_timeout_s = Float(
        1800.0,
        help="""
        How many seconds a start waits for its image. The pull itself goes on after that, and
        the next start finds it further on. The hub's ``start_timeout`` begins when it is over.
        """,
    ).tag(config=True)

    pull_silence_s = Float(
        300.0,
        help="""
        After how many seconds without any news from the engine a pull is given up, so that a
        registry that hangs does not keep others from pulling. Unpacking one large layer may take
        a while.
        """,
    ).tag(config=True)

    #: The hub throws the server's token away with the server: no container is started twice.
    will_resume = False

    _grant: LeaseGrant
    _image_command: list[str]

    # --- before the lease -------------------------------------------------------------------

    def image_titles(self) -> Mapping[str, str]:
        """The images of gpuslice.toml."""
        titles: dict[str, str] = self.images
        return titles

    async def engine_prepare(self) -> None:
        """Have the image here, pulling it if it is not."""
        wrong = misplaced_values(self)
        if wrong:
            raise SpawnRefused(wrong[0], reason="misconfigured", status_code=500)
        self.image = self.image_chosen or next(iter(self.images), "")
        found = await self._find_image()
        if found is None:
            await self._pull()
            found = await self._find_image()
        if found is None:
            raise EngineRefused(f"the image {self.image} is gone again")
        self._image_command = list((found.get("Config") or {}).get("Cmd") or [])

    async def _find_image(self) -> dict[str, Any] | None:
        with engine_errors():
            try:
                found: dict[str, Any] = await self.docker("inspect_image", self.image)
            except NotFound:
                return None
        return found

    async def _pull(self) -> None:
        title = self.images.get(self.image) or self.image

        def tell(progress: Progress, shared: bool) -> None:
            percent = progress.percent * _PULL_PERCENT // 100
            self._board.say(percent, progress_text(title, progress, shared=shared), topic="pull")

        key = f"{self.node_socket} {self.image}"
        self.log.info("gpuslice: %s needs the image %s", self._log_name, self.image)
        try:
            async with asyncio.timeout(self.pull_timeout_s):
                pull = partial(self._pull_lines, self.image)
                await _PULLS.wait_for(key, self.image, pull, tell)
        except PullFailed as failed:
            raise SpawnRefused(str(failed), reason=failed.reason, status_code=503) from failed
        except TimeoutError:
            raise SpawnRefused(
                f"The image {title} is still being pulled; the pull goes on without you",
                reason="image-pulling",
                status_code=503,
                retry_after_s=300,
            ) from None

    def _pull_lines(self, image: str) -> Generator[Line, None, None]:
        """The engine's lines of a pull; in a thread."""
        try:
            with engine_errors(), engine_api(Path(self.node_socket), self.pull_silence_s) as api:
                yield from api.pull(image, stream=True, decode=True)
        except EngineSilent as error:
            text = f"there was no news of it for {self.pull_silence_s:g} seconds"
            raise pull_problem(image, f"timeout: {text}") from error
        except (EngineFailed, EngineRefused) as error:
            raise pull_problem(image, str(error)) from error

    # --- the container ----------------------------------------------------------------------

    async def engine_start(self, grant: LeaseGrant) -> None:
        """Create the lease's container and start it, once."""
        self._grant = grant
        self.ip, self.port = "0.0.0.0", NOTEBOOK_PORT
        self.object_name = container_name(self.user.name, self.name, grant.lease_id)
        with engine_errors():
            created = await self.create_object()
            self.object_id = created[self.object_id_key]
            await self.start_object()

    async def create_object(self) -> dict[str, Any]:
        """Ask for the container: four fields, everything else is the node's."""
        env = notebook_env(
            self.get_env(), self._grant, self.notebook_service_url or self.service_url
        )
        body = container_body(
            self._grant.lease_id,
            self.image,
            await self.get_command(),
            container_env(env),
            self.server.base_url,
        )
        created: dict[str, Any] = await self.docker(
            "create_container_from_config", body, name=self.object_name
        )
        return created

    async def get_command(self) -> list[str]:
        """The configured command, else the image's own, with the arguments."""
        return [*(self.cmd or self._image_command), *self.get_args()]

    # --- the gate to the engine -------------------------------------------------------------

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of docker-py in a thread, within a time limit that counts the wait too.

        Raises:
            TimeoutError: it took too long; it may still happen.
        """
        limit_s = _CHANGE_LIMIT_S if method in _CHANGES else self.engine_timeout_s
        call = _CALLS.submit(self._docker, method, limit_s, args, kwargs)
        return await asyncio.wait_for(asyncio.wrap_future(call), limit_s + _OVERDUE_S)

    def _docker(
        self, method: str, limit_s: float, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with engine_api(Path(self.node_socket), limit_s) as api:
            return getattr(api, method)(*args, **kwargs)

    @property
    def client(self) -> EngineApi:
        """DockerSpawner's client for the whole process: there is none, see :meth:`docker`."""
        raise AttributeError("gpuslice makes a client of the engine per call; use docker()")

    async def move_certs(self, paths: dict[str, str]) -> dict[str, str]:
        """Internal SSL needs a volume of certificates that the node does not give."""
        raise SpawnRefused(
            "JupyterHub.internal_ssl is on, which gpuslice's containers do not support",
            reason="misconfigured",
            status_code=500,
        )

    # --- the hub's record of it -------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Only the lease: it names the container, and an id of its own could contradict it."""
        state: dict[str, Any] = super().get_state()
        return {key: value for key, value in state.items() if key not in _DOCKERS_OWN}

    def clear_state(self) -> None:
        """Before each start and after each end."""
        super().clear_state()
        self.object_id = ""


#: What DockerSpawner keeps in the hub's database.
_DOCKERS_OWN = ("object_id", "object_name")
