"""``gpuslice ledger``: what the ledger itself can say, on the database of a data folder."""

from __future__ import annotations

from pathlib import Path

from gpuslice.cli.trouble import Trouble


def problems(state: Path, config: Path | None) -> list[str]:
    """What ``verify`` finds wrong, one line each; empty if the books are in order.

    Raises:
        Trouble: the settings or the database cannot be read.
    """
    from gpuslice.broker.verify import cli_verify
    from gpuslice.ledger.database import LedgerError
    from gpuslice.settings import SettingsError, load_settings

    try:
        settings = load_settings(config)
        return list(cli_verify(database_url(settings.database.url, state)))
    except (SettingsError, LedgerError) as error:
        raise Trouble(str(error)) from None


def database_url(configured: str, state: Path) -> str:
    """The ledger's URL: what the settings say, or the SQLite file of the data folder."""
    return configured or f"sqlite:///{state / 'ledger.sqlite'}"
