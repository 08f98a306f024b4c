"""Private files are read only when they are private."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuslice.service.config import ServiceConfig
from gpuslice.service.secretfiles import SecretFileError, read_secret

GOOD = "0123456789abcdef" * 4


def make(path: Path, content: bytes = GOOD.encode() + b"\n", mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_reads_a_private_file(tmp_path: Path, mode: int) -> None:
    assert read_secret(make(tmp_path / "token", mode=mode)) == GOOD


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777, 0o610])
def test_refuses_what_others_can_read_and_names_the_fix(tmp_path: Path, mode: int) -> None:
    path = make(tmp_path / "to ken", mode=mode)
    with pytest.raises(SecretFileError) as error:
        read_secret(path)
    assert f"chmod 600 '{path}'" in str(error.value)
    assert GOOD not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"short", GOOD.encode() + b" two words", b"\xff" * 64, b"a" * 5000,
                GOOD.encode() + b"\n" + GOOD.encode()],
)  # fmt: skip
def test_refuses_what_is_no_secret(tmp_path: Path, content: bytes) -> None:
    path = make(tmp_path / "token", content)
    with pytest.raises(SecretFileError, match="token"):
        read_secret(path)


def test_refuses_what_is_no_file_of_its_own(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(make(tmp_path / "token"))
    assert read_secret(link) == GOOD
    (tmp_path / "token").chmod(0o644)  # what counts is the file that is read
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (link, fifo, tmp_path, tmp_path / "missing"):
        with pytest.raises(SecretFileError):
            read_secret(path)


def test_the_configuration_hides_its_secrets_and_wants_them_different() -> None:
    tokens = {
        "service_token": "s" * 32,
        "broker_token": "b" * 32,
        "node_token": "n" * 32,
        "operator_token": "o" * 32,
    }
    fields = {"prefix": "/x/", "hub_prefix": "/hub/", "hub_api_url": "http://127.0.0.1/hub/api"}
    config = ServiceConfig(**fields, **tokens, cookie_secret=b"c" * 32)
    assert not any(secret in repr(config) for secret in [*tokens.values(), "c" * 32])
    with pytest.raises(ValueError, match="differ"):
        ServiceConfig(**fields, **(tokens | {"node_token": "b" * 32}), cookie_secret=b"c" * 32)
    with pytest.raises(ValueError, match="prefix"):
        ServiceConfig(**(fields | {"prefix": "x"}), **tokens, cookie_secret=b"c" * 32)
