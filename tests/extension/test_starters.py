"""The starter notebooks in a real Jupyter server: a copy among one's own files, and no damage."""

from __future__ import annotations

import errno
import http.cookiejar
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuslice.errors import Refused
from gpuslice_starters import notebook as file_of
from gpuslice_starters import starters
from jupyterlab_gpuslice.routes import NAMESPACE
from jupyterlab_gpuslice.starters import copy_below, not_copied
from notebookworld import ROOT, Notebook

Start = Callable[[dict[str, str]], Notebook]
PATH = f"{NAMESPACE}/starters"
ONE = "image-processing"


def _copy(server: Notebook, name: object) -> tuple[int, Any]:
    return server.ask(PATH, method="POST", body=json.dumps({"name": name}).encode())


def _files(server: Notebook) -> dict[str, bytes]:
    """Everything among the person's files, and what a path that leaves them could have made."""
    found = [*server.files.rglob("*"), *server.files.parent.glob("*.ipynb")]
    return {
        os.path.relpath(path, server.files): path.read_bytes() for path in found if path.is_file()
    }


def test_the_list_is_in_the_order_of_the_cards_and_each_can_be_copied(notebook: Start) -> None:
    server = notebook({})
    status, said = server.ask(PATH)
    assert status == 200 and said["reason"] is None
    assert [one["name"] for one in said["starters"]] == [s.name for s in starters()]
    assert said["starters"][0]["title"] == "Start here"
    for one in said["starters"]:
        assert one["title"] and one["description"]
        assert _copy(server, one["name"]) == (201, {"path": f"{one['name']}.ipynb"})


def test_a_copy_is_made_and_never_overwritten(notebook: Start) -> None:
    server = notebook({})
    first = f"{ONE}.ipynb"
    assert _copy(server, ONE) == (201, {"path": first})
    assert _files(server) == {first: file_of(ONE)}
    # The server itself finds it where it says.
    status, said = server.ask(f"api/contents/{first}?content=0")
    assert (status, said["type"], said["writable"]) == (200, "notebook", True)
    # Unchanged, it is the one to open; changed, it is the person's, and there is another.
    assert _copy(server, ONE) == (201, {"path": first})
    (server.files / first).write_bytes(b"mine")
    second = f"{ONE}-2.ipynb"
    assert _copy(server, ONE) == (201, {"path": second})
    assert _copy(server, ONE) == (201, {"path": second})
    assert _files(server) == {first: b"mine", second: file_of(ONE)}


def test_without_a_login_there_is_nothing_and_a_cookie_needs_xsrf(notebook: Start) -> None:
    server = notebook({})
    body = json.dumps({"name": ONE}).encode()
    for method in ("GET", "POST"):
        for headers in ({}, {"Authorization": "token wrong"}):
            assert server.ask(PATH, method=method, headers=headers, body=body)[0] == 403
    assert _files(server) == {}
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{server.url}?token={server.token}", timeout=30).close()
    names = {cookie.name: cookie.value for cookie in jar}
    request = urllib.request.Request(server.url + PATH, data=body, method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        browser.open(request, timeout=30)
    assert refused.value.code == 403 and _files(server) == {}
    request.add_header("X-XSRFToken", str(names["_xsrf"]))
    with browser.open(request, timeout=30) as answer:
        assert answer.status == 201


def test_a_name_of_no_starter_makes_no_file(notebook: Start) -> None:
    server = notebook({})
    (server.files / "notes").mkdir()
    hostile = [
        "../x", f"../{ONE}", f"notes/../../{ONE}", f"/{ONE}", f"{ONE}.ipynb", f"{ONE}\0", "",
        ".", "..", "~", "%2e%2e%2fx", f"{ONE}/", "..\\x", str(server.files / ONE), "x" * 400,
    ]  # fmt: skip
    for name in hostile:
        status, said = _copy(server, name)
        assert (status, said["reason"]) == (404, "unknown-starter"), name[:50]
        assert said["message"] == "There is no such starter notebook."
    for name in (None, 1, [ONE], {"name": ONE}):
        assert _copy(server, name)[0] == 400, name
    for body in (b"", b"[]", b'"x"', b"{}", b"{", b"\xff", b"[" * 100_000):
        assert server.ask(PATH, method="POST", body=body)[0] == 400, body
    assert _files(server) == {}
    assert "Traceback" not in server.log.read_text()


def test_where_the_person_starts_is_where_it_goes(notebook: Start, tmp_path: Path) -> None:
    # A server that shows every file: the copy belongs into the home, not into the root.
    config = tmp_path / "its config"
    config.mkdir()
    (config / "jupyter_server_config.json").write_text(
        json.dumps({"FileContentsManager": {"preferred_dir": "a home"}})
    )
    files = tmp_path / "notebook 0" / "work"
    (files / "a home").mkdir(parents=True)
    server = notebook({"JUPYTER_CONFIG_DIR": str(config)})
    assert _copy(server, ONE) == (201, {"path": f"a home/{ONE}.ipynb"})
    assert _files(server) == {f"a home/{ONE}.ipynb": file_of(ONE)}


def test_too_many_copies_and_a_lost_folder_are_a_sentence(notebook: Start) -> None:
    server = notebook({})
    for number in range(1, 1001):
        end = "" if number == 1 else f"-{number}"
        (server.files / f"{ONE}{end}.ipynb").write_bytes(b"mine")
    status, said = _copy(server, ONE)
    assert (status, said["reason"]) == (409, "no-free-name")
    assert set(_files(server).values()) == {b"mine"}
    shutil.rmtree(server.files)
    status, said = _copy(server, ONE)
    assert (status, said["reason"]) == (409, "no-folder")
    assert "Traceback" not in server.log.read_text()


def test_without_the_package_the_list_is_empty_and_says_why(
    notebook: Start, tmp_path: Path
) -> None:
    absent = tmp_path / "absent" / "gpuslice_starters"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ModuleNotFoundError(__name__)\n")
    path = os.pathsep.join(map(str, (absent.parent, ROOT / "extensions", ROOT / "spawner")))
    server = notebook({"PYTHONPATH": path})
    status, said = server.ask(PATH)
    assert status == 200 and said["starters"] == []
    assert said["reason"].startswith("No starter notebooks are installed here")
    status, said = _copy(server, ONE)
    assert (status, said["reason"]) == (404, "no-starters")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EROFS, "read-only"),
        (errno.EACCES, "read-only"),
        (errno.ENOSPC, "no-space"),
        (errno.EDQUOT, "no-space"),
        (errno.EIO, "not-copied"),
    ],
)
def test_a_disk_that_does_not_take_it_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, reason: str
) -> None:
    def failing(*_: object) -> Path:
        raise OSError(code, os.strerror(code), str(tmp_path / "secret"))

    monkeypatch.setattr("gpuslice_starters.copy_for", failing)
    with pytest.raises(Refused) as refused:
        copy_below(tmp_path, "", ONE)
    said = refused.value.refusal
    assert said.reason == reason and said.message.endswith(".")
    assert str(tmp_path) not in said.message


def test_a_disk_that_says_nothing_is_a_sentence_too() -> None:
    assert not_copied(OSError()).refusal.message.endswith("the disk did not say why.")


def test_no_folder_outside_the_servers_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    for start in ("..", "out", "x/../..", "/../"):
        with pytest.raises(Refused) as refused:
            copy_below(root, start, ONE)
        assert refused.value.refusal.reason == "outside"
    # A root that is itself a link, and an absolute start, which is meant from the root.
    link = tmp_path / "link"
    link.symlink_to(root)
    assert copy_below(link, "/", ONE) == f"{ONE}.ipynb"
    assert [path.name for path in tmp_path.glob("**/*.ipynb")] == [f"{ONE}.ipynb"]
