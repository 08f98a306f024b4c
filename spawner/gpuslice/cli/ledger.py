"""``gpuslice ledger``: what the ledger itself can say, on the database of a data folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpuslice.cli.trouble import Trouble

if TYPE_CHECKING:
    from gpuslice.ledger.digest import Signer, VerifyKey

_KEY = "ledger_signing_key"


def problems(
    state: Path, config: Path | None, keys: Sequence[VerifyKey] | None = None
) -> list[str]:
    """What ``verify`` finds wrong, one line each; empty if the books are in order.

    Args:
        keys: Of those who may have signed; None: the platform's own.

    Raises:
        Trouble: the settings or the database cannot be read.
    """
    from gpuslice.broker.verify import cli_verify
    from gpuslice.ledger.database import LedgerError
    from gpuslice.service.databaseurl import database_url
    from gpuslice.service.secretfiles import SecretFileError
    from gpuslice.settings import SettingsError, load_settings

    if keys is None:
        keys = own_keys(state)
    try:
        return list(cli_verify(database_url(load_settings(config), state), keys))
    except (SettingsError, LedgerError, SecretFileError) as error:
        raise Trouble(str(error)) from None


def own_keys(state: Path) -> list[VerifyKey]:
    """The key that the platform of a data folder signs with; none if it is not there."""
    if not (state / "secrets" / _KEY).exists():
        return []
    return [_signer(state).public]


def given_keys(files: Sequence[Path]) -> list[VerifyKey]:
    """The public keys in files, as `public_key` wrote them.

    Raises:
        Trouble: a file is not there, or is none.
    """
    from gpuslice.ledger.digest import KeyFormError, VerifyKey

    found = []
    for file in files:
        try:
            found.append(VerifyKey.from_pem(file.read_bytes()))
        except OSError as error:
            raise Trouble(f"Cannot read {file}: {error.strerror}.") from None
        except KeyFormError as error:
            raise Trouble(f"{file} {error}.") from None
    return found


def public_key(state: Path) -> str:
    """The public half of the platform's key, as text to keep elsewhere.

    Raises:
        Trouble: there is no key.
    """
    return _signer(state).public.pem()


def _signer(state: Path) -> Signer:
    from gpuslice.cli.secrets import read_secret
    from gpuslice.ledger.digest import KeyFormError, Signer

    file = state / "secrets" / _KEY
    try:
        return Signer(read_secret(file.parent, _KEY))
    except OSError as error:
        raise Trouble(f"Cannot read {file}: {error.strerror}; gpuslice init makes it.") from None
    except KeyFormError as error:
        raise Trouble(f"{file} {error}.") from None
