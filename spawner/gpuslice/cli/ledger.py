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
    from gpuslice.service.databaseurl import database_url
    from gpuslice.service.secretfiles import SecretFileError
    from gpuslice.settings import SettingsError, load_settings

    try:
        return list(cli_verify(database_url(load_settings(config), state)))
    except (SettingsError, LedgerError, SecretFileError) as error:
        raise Trouble(str(error)) from None
