"""A proxy in front of the Docker engine's socket that fails as a test wants it to.

::

    with engine_proxy(tmp_path / "e.sock") as proxy:   # what is tested is given `proxy.socket`
        proxy.answer("POST", r"/containers/[^/]+/start$")       # the engine fails (status 500)
        proxy.answer("GET", r"/json", 404, "no such container", times=1)
        held = proxy.hang("POST", r"/containers/create")        # silent until held.release()
        proxy.hang("", "", 2.5)                                 # every call: 2.5 s late
        proxy.reset("DELETE", r"/containers/", after=True)      # done, but nobody hears of it
        proxy.cut("GET", r"/containers/json", 10)               # ten bytes of the answer
        proxy.down(); proxy.up()                                # no engine there at all
        proxy.clear()                                           # from now on nothing is wrong
        proxy.break_off(r"^/events")                            # ends connections that are open now

A call is named by its method (empty: any) and a regular expression that is searched for in path
and query, without the version: ``/containers/json?all=1``. The newest matching fault acts. With
``after=True`` the engine carries the call out and only its answer is lost, late or another one;
without it a call that fails never reaches the engine (one that hung and whose caller has gone
does, and the engine may give it up). ``times`` bounds how often a fault acts. A hang ends after
its seconds or by ``release()``, and then the call goes on as if nothing had been. aiohttp tries a
GET or DELETE once more when a connection breaks off: plant two of those.

Each fault counts its ``hits`` and has ``wait_hit()``, a hang also ``held``; ``proxy.calls`` is
every call as ``(method, path)``. All may be used from any thread while calls are under way.
Streams and attached connections pass. Calls under way when the proxy ends are broken off.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ENGINE = "/var/run/docker.sock"
_PIECE = 64 * 1024
_VERSION = re.compile(r"^/v[0-9]+\.[0-9]+(?=/)")


@dataclass(eq=False)
class Fault:
    """One planted fault; made by the methods of :class:`EngineProxy`."""

    kind: Literal["answer", "hang", "reset", "cut"]
    method: str
    path: re.Pattern[str]
    after: bool
    times: int | None
    status: int = 500
    message: str = ""
    seconds: float | None = None
    keep: int = 0
    hits: int = 0
    #: A call is silent now, or was: the engine has done what it does of it.
    held: bool = False
    _hit: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _go_on: threading.Event = field(default_factory=threading.Event)

    def fits(self, method: str, path: str) -> bool:
        spent = self.times is not None and self.hits >= self.times
        return not spent and self.method in ("", method) and self.path.search(path) is not None

    def hit(self) -> None:
        self.hits += 1
        self._hit.release()

    def wait_hit(self, limit_s: float = 30.0) -> None:
        """Returns when a call has run into this fault; each hit is waited for once."""
        assert self._hit.acquire(timeout=limit_s), f"no call ran into {self.path.pattern!r}"

    def release(self) -> None:
        """Ends a hang, also for calls that come later."""
        self._go_on.set()

    def hold(self) -> None:
        self.held = True
        self._go_on.wait(self.seconds)


class EngineProxy:
    """See the module's text. Made by :func:`engine_proxy`."""

    def __init__(self, path: Path, engine: str) -> None:
        self.socket = str(path)
        self.calls: list[tuple[str, str]] = []
        self._engine = engine
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._open: dict[socket.socket, str] = {}
        self._listener: socket.socket | None = None
        self._ended = False

    # --- planting ---------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, status: int = 500, message: str = "planted", *,
        after: bool = False, times: int | None = None,
    ) -> Fault:  # fmt: skip
        """The caller hears this status, with the engine's kind of body."""
        return self._plant(Fault("answer", method, re.compile(path), after, times, status, message))

    def hang(
        self, method: str, path: str, seconds: float | None = None, *,
        after: bool = False, times: int | None = None,
    ) -> Fault:  # fmt: skip
        """Silence, for so long or until ``release()``; then the call goes on."""
        fault = Fault("hang", method, re.compile(path), after, times, seconds=seconds)
        return self._plant(fault)

    def reset(
        self, method: str, path: str, *, after: bool = False, times: int | None = None
    ) -> Fault:
        """The connection ends without an answer."""
        return self._plant(Fault("reset", method, re.compile(path), after, times))

    def cut(self, method: str, path: str, keep: int, *, times: int | None = None) -> Fault:
        """The call is carried out, and the connection ends after ``keep`` bytes of the answer."""
        return self._plant(Fault("cut", method, re.compile(path), True, times, keep=keep))

    def remove(self, fault: Fault) -> None:
        with self._lock, suppress(ValueError):
            self._faults.remove(fault)
        fault.release()

    def clear(self) -> None:
        """No faults any more; what hangs goes on. Does not end :meth:`down`."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.release()

    def break_off(self, path: str = "") -> None:
        """Ends the open connections of these calls, whatever they are doing."""
        with self._lock:
            chosen = [one for one, called in self._open.items() if re.search(path, called)]
        for connection in chosen:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def down(self) -> None:
        """As if no engine ran: open connections end, new ones are refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Wakes accept(), which a plain close does not.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        Path(self.socket).unlink(missing_ok=True)
        self.break_off()

    def up(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.socket)
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def end(self) -> None:
        """Ends for good; a call that hangs does not reach the engine any more."""
        self._ended = True
        self.clear()
        self.down()

    def count(self, method: str, path: str) -> int:
        """How many such calls there were so far."""
        return sum(
            method in ("", called) and re.search(path, at) is not None for called, at in self.calls
        )

    def _plant(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    # --- passing on -------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection carries one call: whoever keeps it open is told that it closes."""
        with client, suppress(OSError):
            head, rest = _read_head(client)
            if not head:
                return
            method, path = _named(head)
            with self._lock:
                self.calls.append((method, path))
                self._open[client] = path
                fitting = [fault for fault in reversed(self._faults) if fault.fits(method, path)]
                fault = fitting[0] if fitting else None
                if fault is not None:
                    fault.hit()
            try:
                self._act(client, head, rest, fault)
            finally:
                with self._lock:
                    del self._open[client]
                # A close alone would wait for the thread that still reads what the client says.
                client.shutdown(socket.SHUT_RDWR)

    def _act(self, client: socket.socket, head: bytes, rest: bytes, fault: Fault | None) -> None:
        if fault is not None and not fault.after:
            if fault.kind == "answer":
                client.sendall(_answer(fault))
            if fault.kind != "hang":
                return
            fault.hold()
            if self._ended:
                return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            engine.connect(self._engine)
            engine.sendall(_closing(head) + rest)
            after = fault is not None and fault.after
            # The engine gives a call up when its caller goes: one that is to be carried out is not
            # told of that.
            passing = threading.Thread(
                target=_pump, args=(client, engine), kwargs={"end": not after}, daemon=True
            )
            passing.start()
            if fault is None or not after:
                _pump(engine, client)
                return
            answer = b"".join(iter(lambda: engine.recv(_PIECE), b""))
        if fault.kind == "hang":
            fault.hold()
            client.sendall(answer)
        elif fault.kind == "answer":
            client.sendall(_answer(fault))
        elif fault.kind == "cut":
            client.sendall(answer[: answer.index(b"\r\n\r\n") + 4 + fault.keep])


@contextmanager
def engine_proxy(path: Path, engine: str = ENGINE) -> Iterator[EngineProxy]:
    """A proxy on a unix socket of its own, up; ended with everything that passes through it."""
    proxy = EngineProxy(path, engine)
    proxy.up()
    try:
        yield proxy
    finally:
        proxy.end()


def _pump(source: socket.socket, target: socket.socket, *, end: bool = True) -> None:
    """Passes bytes on until the end, and then passes the end on."""
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    if end:
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """The request line and headers, and what of the body came with them."""
    read = b""
    while b"\r\n\r\n" not in read:
        piece = client.recv(_PIECE)
        if not piece:
            return b"", b""
        read += piece
    end = read.index(b"\r\n\r\n") + 4
    return read[:end], read[end:]


def _named(head: bytes) -> tuple[str, str]:
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
    return method, _VERSION.sub("", target)


def _closing(head: bytes) -> bytes:
    """The head with ``Connection: close``, so that the end of the answer is the connection's.

    Attached connections ask for an upgrade and stay as they are.
    """
    lines = head.split(b"\r\n")
    if any(line.lower().startswith(b"upgrade:") for line in lines):
        return head
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([kept[0], b"Connection: close", *kept[1:]])


def _answer(fault: Fault) -> bytes:
    body = b'{"message":"%s"}\n' % fault.message.encode()
    return (
        b"HTTP/1.1 %d Planted\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (fault.status, len(body), body)
    )
