"""A day's digest: the one form of its rows, the hash over them, and the signature on it.

Pure: rows come in as values and no database is asked; `gpuslice.ledger.closing` does that. The
form is written down here and not taken from the tables, so that what was signed years ago can
still be checked after the tables have got more columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

#: Columns of an entry and of the segment that it pays, in the order in which they are hashed.
ENTRY = (
    "id", "idem_key", "kind", "debit_id", "credit_id", "amount_u", "segment_id", "leg",
    "corrects_id", "actor", "memo", "created_us", "grant_id",
)  # fmt: skip
SEGMENT = (
    "id", "lease_id", "from_us", "til_us", "price_id", "payer", "amount_u", "created_us",
)  # fmt: skip
_FORM = 1
#: What the first digest says was before it.
NOTHING_BEFORE = "0" * 64

Value = int | str | None


class KeyFormError(Exception):
    """A text that should be a key is none; it says what it should be."""


class Hasher:
    """The hash of one digest, fed with its entries in the order of their numbers."""

    def __init__(self, number: int, day: str, previous: str) -> None:
        self._hash = hashlib.sha256()
        self.entries = 0
        self.first: int | None = None
        self.last: int | None = None
        self._line([_FORM, number, day, previous, ENTRY, SEGMENT])

    def add(self, entry: Sequence[Value], segment: Sequence[Value] | None) -> None:
        """One entry (the columns of `ENTRY`) and the segment that it pays, if any."""
        number = entry[0]
        assert isinstance(number, int)
        self.first = number if self.first is None else self.first
        self.last = number
        self.entries += 1
        self._line([entry, segment])

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _line(self, value: object) -> None:
        # JSON on one line: no two different rows give the same bytes.
        self._hash.update(_canonical(value) + b"\n")


_FORM_OF_JSON = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=True)


def _canonical(value: object) -> bytes:
    return _FORM_OF_JSON.encode(value).encode()


@dataclass(frozen=True)
class Statement:
    """What a signature vouches for: everything that a digest says."""

    number: int
    day: str
    first_entry: int | None
    last_entry: int | None
    entries: int
    sha256: str
    previous: str
    key_id: str
    created_us: int

    def text(self) -> bytes:
        """The bytes that are signed."""
        return b"gpuslice ledger digest\n" + _canonical(asdict(self))


class VerifyKey:
    """The public half of a signing key: checks, and can make nothing."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        #: Names the key in each digest.
        self.key_id = hashlib.sha256(raw).hexdigest()[:16]

    @classmethod
    def from_pem(cls, text: bytes) -> Self:
        """The key that `pem` wrote.

        Raises:
            KeyFormError: it is something else.
        """
        try:
            key = load_pem_public_key(text)
        except ValueError:
            raise KeyFormError("is no public key in PEM form") from None
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFormError("is a public key of another kind than Ed25519")
        return cls(key)

    def pem(self) -> str:
        """The key as text, as ``openssl`` reads it, too."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def fits(self, statement: Statement, signature: str) -> bool:
        """Whether this key's other half signed exactly this."""
        try:
            self._key.verify(bytes.fromhex(signature), statement.text())
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """The private half, from the secret that ``gpuslice init`` makes.

    Raises:
        KeyFormError: the text is not 32 bytes in hexadecimal.
    """

    def __init__(self, secret: str) -> None:
        try:
            self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
        except ValueError:
            raise KeyFormError("must hold 32 bytes in hexadecimal, 64 characters") from None
        self.public = VerifyKey(self._key.public_key())

    def sign(self, statement: Statement) -> str:
        """The signature in hexadecimal."""
        return self._key.sign(statement.text()).hex()
