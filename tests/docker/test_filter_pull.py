"""Pulls through the filter: what the engine is asked, how progress passes, and how a pull ends."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, NotFound

from filterworld import Filtered, PlainGate, served_filter
from gpuslice.node.docker.api import DockerApi
from gpuslice.node.docker.homes import HomeMount
from gpuslice.settings import DockerSettings, ImageSettings

DIGEST = "sha256:" + "b" * 64
REFERENCES = ("host:5000/team/a:1", "plain", f"host:5000/team/b:2@{DIGEST}")
_LIMIT_S = 60.0

Answer = Callable[["Pull"], None]


@dataclass
class Pull:
    """One call as the engine sees it, in the engine's hands."""

    request: str
    headers: dict[str, str]
    connection: socket.socket
    sent: int = 0

    def begin(self, status: str = "200 OK", headers: str = "Transfer-Encoding: chunked") -> None:
        self.connection.sendall(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode())

    def piece(self, content: bytes) -> None:
        self.connection.sendall(b"%x\r\n%s\r\n" % (len(content), content))
        self.sent += len(content)

    def line(self, **content: Any) -> None:
        self.piece(json.dumps(content).encode() + b"\r\n")

    def end(self) -> None:
        self.connection.sendall(b"0\r\n\r\n")

    def refuse(self, status: str, message: str) -> None:
        body = json.dumps({"message": message}).encode()
        self.begin(status, f"Content-Length: {len(body)}\r\nContent-Type: application/json")
        self.connection.sendall(body)


@dataclass
class Engine:
    """An engine that pulls as a test wants it to."""

    answer: Answer
    pulls: list[Pull] = field(default_factory=list)
    #: Set when a call's connection has ended, from whichever side.
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_LIMIT_S)
            read = b""
            while b"\r\n\r\n" not in read:
                read += connection.recv(65536)
            first, *rest = read.decode().split("\r\n\r\n")[0].split("\r\n")
            headers = {
                name.lower(): value for name, value in (line.split(": ", 1) for line in rest)
            }
            pull = Pull(first, headers, connection)
            self.pulls.append(pull)
            with suppress(OSError):
                self.answer(pull)
        self.ended.set()


def three_lines(pull: Pull) -> None:
    pull.begin()
    pull.line(status="Pulling from team/a", id="1")
    pull.line(status="Downloading", id="c0ffee", progressDetail={"current": 1, "total": 2})
    pull.line(status="Status: Downloaded")
    pull.end()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "engine.sock"))
    listener.listen(16)
    engine = Engine(three_lines)
    threading.Thread(target=engine.serve, args=(listener,), daemon=True).start()
    yield engine
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def filtered(tmp_path: Path, engine: Engine) -> Iterator[Filtered]:
    policy = DockerSettings(image=tuple(ImageSettings(reference=name) for name in REFERENCES))
    api = DockerApi(str(tmp_path / "engine.sock"), timeout_s=30)
    home = HomeMount("volume", "home", None, enforced=False)
    gate = PlainGate(api, policy, "node", "bridge", home)
    with served_filter(tmp_path / "f.sock", gate, api, policy) as filtered:
        yield filtered


@pytest.fixture
def hub(filtered: Filtered) -> Iterator[docker.APIClient]:
    with filtered.client() as hub:
        yield hub


@pytest.mark.parametrize(
    ("asked", "name", "tag"),
    [
        (("host:5000/team/a", "1"), "host:5000/team/a", "1"),
        (("host:5000/team/a:1", None), "host:5000/team/a", "1"),
        (("plain", None), "plain", "latest"),
        (("plain", "latest"), "plain", "latest"),
        (("host:5000/team/b", DIGEST), "host:5000/team/b", DIGEST),
        ((f"host:5000/team/b@{DIGEST}", None), "host:5000/team/b", DIGEST),
        ((f"host:5000/team/b:2@{DIGEST}", None), "host:5000/team/b", DIGEST),
    ],
)
def test_the_engine_is_asked_for_one_image_of_the_list(
    hub: docker.APIClient, engine: Engine, asked: tuple[str, str | None], name: str, tag: str
) -> None:
    lines = list(hub.pull(*asked, stream=True, decode=True))
    assert [line["status"] for line in lines][1] == "Downloading"
    assert len(lines) == 3
    (pull,) = engine.pulls
    method, target, _ = pull.request.split(" ")
    path, _, query = target.partition("?")
    assert (method, path) == ("POST", "/v1.44/images/create")
    quoted = name.replace(":", "(:|%3A)").replace("/", "(/|%2F)")
    assert re.fullmatch(f"fromImage={quoted}&tag={tag.replace(':', '(:|%3A)')}", query)


@pytest.mark.parametrize(
    "query",
    [
        "", "tag=1", "fromImage=", "fromImage=other", "fromImage=plain&tag=other",
        "fromImage=host:5000/team/a", "fromImage=host:5000/team/a&tag=",
        "fromImage=host:5000/team/a:1&tag=2", "fromImage=host:5000/team/a:1&tag=1",
        f"fromImage=plain&tag={DIGEST}", f"fromImage=host:5000/team/b@{DIGEST}&tag={DIGEST}",
        "fromImage=plain%00", "fromImage=plain%20", "fromImage=PLAIN", "fromImage=./plain",
        "fromImage=host:5000/team/../plain", "fromImage=docker.io/library/plain",
        "fromImage=plain&fromImage=plain", "fromImage=plain&tag=latest&tag=latest",
        "fromImage=plain&platform=", "fromImage=plain&fromSrc=-", "fromImage=plain&repo=x",
        "fromImage=plain&message=x", "fromImage=plain&changes=USER%200",
        "fromimage=plain", "fromImage=%FF", "fromImage=plain;tag=x",
    ],
)  # fmt: skip
def test_nothing_else_is_pulled(filtered: Filtered, engine: Engine, query: str) -> None:
    answer = filtered.raw(
        f"POST /images/create?{query} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert re.match(rb"HTTP/1\.1 (403|400) ", answer), answer
    assert engine.pulls == []


def test_of_the_headers_the_login_alone_passes(filtered: Filtered, engine: Engine) -> None:
    request = (
        "POST /images/create?fromImage=plain HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\n"
        "X-Registry-Auth: eyJ1c2VybmFtZSI6ImJvYiJ9\r\nAuthorization: evil\r\nCookie: evil=1\r\n"
        "X-Registry-Config: evil\r\nX-Evil: evil\r\nUser-Agent: evil\r\n\r\n"
    )
    with filtered.connect() as connection:
        connection.sendall(request.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    (pull,) = engine.pulls
    assert pull.headers["x-registry-auth"] == "eyJ1c2VybmFtZSI6ImJvYiJ9"
    assert "evil" not in str(pull.headers)


@pytest.mark.parametrize("auth", ["a b", "a,b", "a" * 8193, "a\x01", "ä"])
def test_a_login_is_in_dockers_form(filtered: Filtered, engine: Engine, auth: str) -> None:
    answer = filtered.raw(
        b"POST /images/create?fromImage=plain HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n"
        b"X-Registry-Auth: " + auth.encode("latin-1") + b"\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert engine.pulls == []


def test_each_line_passes_when_it_comes(hub: docker.APIClient, engine: Engine) -> None:
    go_on = threading.Event()

    def answer(pull: Pull) -> None:
        pull.begin()
        pull.line(status="first")
        assert go_on.wait(_LIMIT_S)
        # A line in two pieces is still one line.
        pull.piece(b'{"status": "sec')
        pull.piece(b'ond"}\r\n{"status": "third"}\r\n')
        pull.end()

    engine.answer = answer
    lines = hub.pull("plain", stream=True, decode=True)
    assert next(lines) == {"status": "first"}
    go_on.set()
    assert list(lines) == [{"status": "second"}, {"status": "third"}]


def test_who_goes_away_ends_the_pull(filtered: Filtered, engine: Engine) -> None:
    def answer(pull: Pull) -> None:
        pull.begin()
        pull.line(status="first")
        # Nothing more comes: only the other side can end this.
        assert pull.connection.recv(1) == b""

    engine.answer = answer
    with filtered.connect() as connection:
        connection.sendall(
            b"POST /images/create?fromImage=plain HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"
        )
        assert b"200 OK" in connection.recv(65536)
        assert not engine.ended.is_set()
    assert engine.ended.wait(_LIMIT_S)
    with filtered.client() as hub:
        engine.answer = three_lines
        assert len(list(hub.pull("plain", stream=True, decode=True))) == 3


def test_who_goes_away_before_the_engine_answers_ends_the_pull_too(
    filtered: Filtered, engine: Engine
) -> None:
    asked = threading.Event()

    def answer(pull: Pull) -> None:
        asked.set()
        assert pull.connection.recv(1) == b""

    engine.answer = answer
    with filtered.connect() as connection:
        connection.sendall(
            b"POST /images/create?fromImage=plain HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"
        )
        assert asked.wait(_LIMIT_S)
    assert engine.ended.wait(_LIMIT_S)


def test_a_slow_reader_slows_the_engine_down(filtered: Filtered, engine: Engine) -> None:
    lines, line = 2048, b'{"status": "' + b"x" * 32_000 + b'"}\r\n'

    def answer(pull: Pull) -> None:
        pull.begin()
        for _ in range(lines):
            pull.piece(line)
        pull.end()

    engine.answer = answer
    with filtered.connect() as connection:
        connection.sendall(
            b"POST /images/create?fromImage=plain HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"
        )
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        # All of it would take a fraction of this.
        assert not engine.ended.wait(3)
        assert engine.pulls[0].sent < lines * len(line) // 4
        got = 0
        while not engine.ended.is_set() and (piece := connection.recv(1 << 20)):
            got += len(piece)
    assert engine.ended.wait(_LIMIT_S)
    assert engine.pulls[0].sent == lines * len(line)
    assert got > lines * len(line) // 4


def test_a_refusal_before_the_first_line(hub: docker.APIClient, engine: Engine) -> None:
    engine.answer = lambda pull: pull.refuse("404 Not Found", "manifest unknown")
    with pytest.raises(NotFound) as refused:
        hub.pull("plain")
    assert refused.value.explanation == "manifest unknown"
    engine.answer = lambda pull: pull.refuse("500 Internal Server Error", "no such host")
    with pytest.raises(APIError) as failed:
        hub.pull("plain")
    assert failed.value.status_code == 500
    assert "no such host" in failed.value.explanation


@pytest.mark.parametrize("how", ["cut", "ended early", "endless line"])
def test_an_answer_that_breaks_off_is_told_by_its_last_line(
    hub: docker.APIClient, engine: Engine, how: str
) -> None:
    def answer(pull: Pull) -> None:
        pull.begin()
        pull.line(status="first")
        match how:
            case "cut":
                pull.piece(b'{"status": "sec')
            case "ended early":
                pull.piece(b'{"status": "sec')
                pull.end()
            case "endless line":
                for _ in range(256):
                    pull.piece(b"x" * 65536)

    engine.answer = answer
    first, *others, last = hub.pull("plain", stream=True, decode=True)
    assert first == {"status": "first"}
    assert others == []
    assert last["error"].startswith("the engine's answer broke off")
    assert last["errorDetail"] == {"message": last["error"]}
    assert engine.ended.wait(_LIMIT_S)
    # What has no end is not kept until it comes.
    assert engine.pulls[0].sent < 8 << 20


def test_many_pulls_hold_up_nobody(filtered: Filtered, engine: Engine) -> None:
    go_on = threading.Event()

    def answer(pull: Pull) -> None:
        if pull.request.startswith("GET"):
            pull.begin("200 OK", "Content-Length: 2")
            pull.connection.sendall(b"OK")
            return
        pull.begin()
        pull.line(status="first")
        assert go_on.wait(_LIMIT_S)
        pull.end()

    engine.answer = answer
    clients = [filtered.client() for _ in range(20)]
    pulls = [client.pull("plain", stream=True, decode=True) for client in clients]
    assert [next(pull)["status"] for pull in pulls] == ["first"] * 20
    with filtered.client() as other:
        assert other.ping()
    go_on.set()
    assert [list(pull) for pull in pulls] == [[]] * 20
    for client in clients:
        client.close()
