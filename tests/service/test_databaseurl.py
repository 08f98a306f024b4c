"""Where the ledger is, and that its password is in a private file and in no message."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from gpuslice.service.databaseurl import database_url
from gpuslice.service.secretfiles import SecretFileError
from gpuslice.settings import Settings, SettingsError, load_settings

PASSWORD = "a/b@c:d%e#f" + "0" * 30


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "database_password"
    file.touch(0o600)
    file.write_text(f"{PASSWORD}\n")
    return file


def settings(url: str = "", password_file: Path | None = None) -> Settings:
    file = str(password_file) if password_file else ""
    return load_settings(None, {"database": {"url": url, "password_file": file}})


def test_without_a_url_it_is_a_file_of_the_data_folder(tmp_path: Path) -> None:
    assert database_url(settings(), tmp_path) == f"sqlite:///{tmp_path}/ledger.sqlite"


def test_a_url_is_taken_as_it_is(tmp_path: Path) -> None:
    url = "postgresql://me:secret@db/ledger"
    assert database_url(settings(url), tmp_path) == url


def test_the_file_s_password_is_put_in_whatever_its_characters(password_file: Path) -> None:
    found = database_url(settings("postgresql://me@db:5433/ledger", password_file), Path("/none"))
    parsed = make_url(found)
    assert parsed.password == PASSWORD
    assert (parsed.username, parsed.host, parsed.port) == ("me", "db", 5433)
    assert parsed.database == "ledger"


def test_two_passwords_are_one_too_many(password_file: Path) -> None:
    with pytest.raises(SettingsError, match=r"database\.url") as caught:
        database_url(settings("postgresql://me:hunter2@db/ledger", password_file), Path("/none"))
    assert "hunter2" not in str(caught.value)


def test_a_url_that_is_none_is_named_without_being_repeated(password_file: Path) -> None:
    with pytest.raises(SettingsError, match=r"database\.url") as caught:
        database_url(settings("postgresql://me:hunter2@db:port/x", password_file), Path("/none"))
    assert "hunter2" not in str(caught.value)


def test_a_password_that_others_can_read_is_refused(password_file: Path) -> None:
    password_file.chmod(0o644)
    with pytest.raises(SecretFileError, match="chmod 600"):
        database_url(settings("postgresql://me@db/ledger", password_file), Path("/none"))
