"""Where the ledger is: the URL of the settings, with the password that a private file holds."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from gpuslice.service.secretfiles import read_secret
from gpuslice.settings import Settings


def database_url(settings: Settings, state: Path) -> str:
    """What the settings say, or the SQLite file of the data folder ``state``.

    Raises:
        SettingsError: the URL cannot be read, or has a password although a file has it too.
        SecretFileError: the password's file is missing or not private.
    """
    database = settings.database
    if not database.url:
        return f"sqlite:///{state / 'ledger.sqlite'}"
    if not database.password_file:
        return database.url
    try:
        url = make_url(database.url)
    except (ArgumentError, ValueError):
        raise settings.error("database.url", "cannot be read as a URL") from None
    if url.password is not None:
        raise settings.error("database.url", "has a password, and so has database.password_file")
    password = read_secret(Path(database.password_file))
    return url.set(password=password).render_as_string(hide_password=False)
