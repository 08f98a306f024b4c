"""A digest vouches for every field of every row, and a signature for every word of the digest."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpuslice.ledger import digest
from gpuslice.ledger.digest import KeyFormError, Signer, Statement, VerifyKey
from gpuslice.ledger.tables import Entry, Segment

NUMBERS = st.integers(0, 1 << 62)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
VALUES = st.one_of(st.none(), NUMBERS, TEXTS)


def rows(columns: tuple[str, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(NUMBERS, *(VALUES for _ in columns[1:]))


PAIRS = st.tuples(rows(digest.ENTRY), st.one_of(st.none(), rows(digest.SEGMENT)))
DAYS = st.lists(PAIRS, min_size=1, max_size=4)


def hashed(day: list[Any], number: int = 1, name: str = "2026-11-21", before: str = "0") -> str:
    hasher = digest.Hasher(number, name, before)
    for entry, segment in day:
        hasher.add(entry, segment)
    return hasher.hexdigest()


@given(DAYS, st.data())
def test_any_change_of_any_field_of_any_row_changes_the_digest(day: list[Any], data: Any) -> None:
    before = hashed(day)
    assert hashed(day) == before
    at = data.draw(st.integers(0, len(day) - 1))
    entry, segment = day[at]
    in_segment = segment is not None and data.draw(st.booleans())
    row = list(segment if in_segment else entry)
    field = data.draw(st.integers(0, len(row) - 1))
    new = data.draw(NUMBERS if field == 0 else VALUES)
    assume(new != row[field])
    row[field] = new
    changed = list(day)
    changed[at] = (entry, tuple(row)) if in_segment else (tuple(row), segment)
    assert hashed(changed) != before


@given(DAYS, st.data())
def test_a_row_more_or_less_or_elsewhere_changes_the_digest(day: list[Any], data: Any) -> None:
    before = hashed(day)
    at = data.draw(st.integers(0, len(day) - 1))
    assert hashed(day[:at] + day[at + 1 :]) != before
    assert hashed([*day[: at + 1], *day[at:]]) != before
    entry, segment = day[at]
    if segment is not None:
        assert hashed([*day[:at], (entry, None), *day[at + 1 :]]) != before
    if day[::-1] != day:
        assert hashed(day[::-1]) != before


def test_a_digest_is_of_its_day_and_follows_the_one_before() -> None:
    row = [(tuple(range(len(digest.ENTRY))), None)]
    made = {
        hashed(row), hashed(row, number=2), hashed(row, name="2026-11-22"), hashed(row, before="1"),
    }  # fmt: skip
    assert len(made) == 4


def test_the_form_has_every_column() -> None:
    # Another column needs another form, beside this one: what was signed has to stay checkable.
    assert set(digest.ENTRY) == {column.key for column in Entry.__table__.columns}
    assert set(digest.SEGMENT) == {column.key for column in Segment.__table__.columns}


# --- signatures ---------------------------------------------------------------------------------

SIGNER, OTHER = Signer("11" * 32), Signer("12" * 32)
SAID = Statement(
    number=7, day="2026-11-21", first_entry=5, last_entry=9, entries=5, sha256="ab" * 32,
    previous="cd" * 32, key_id=SIGNER.public.key_id, created_us=1_790_000_000_000_000,
)  # fmt: skip


@pytest.mark.parametrize("field", list(asdict(SAID)))
def test_a_signature_fits_exactly_what_was_said(field: str) -> None:
    signature = SIGNER.sign(SAID)
    assert SIGNER.public.fits(SAID, signature)
    assert not OTHER.public.fits(SAID, signature)
    value = getattr(SAID, field)
    for other in (value + 1 if isinstance(value, int) else value[:-1] + "0", None):
        assert not SIGNER.public.fits(replace(SAID, **{field: other}), signature)


@pytest.mark.parametrize("signature", ["", "zz", "00" * 64, SIGNER.sign(SAID)[:-2]])
def test_what_is_no_signature_does_not_fit(signature: str) -> None:
    assert not SIGNER.public.fits(SAID, signature)


def test_the_public_key_alone_checks() -> None:
    copy = VerifyKey.from_pem(SIGNER.public.pem().encode())
    assert copy.key_id == SIGNER.public.key_id != OTHER.public.key_id
    assert copy.fits(SAID, SIGNER.sign(SAID))
    assert "11" * 8 not in SIGNER.public.pem()


def test_what_is_no_key_is_said() -> None:
    for secret in ("", "11" * 31, "x" * 64):
        with pytest.raises(KeyFormError, match="64 characters"):
            Signer(secret)
    with pytest.raises(KeyFormError, match="no public key"):
        VerifyKey.from_pem(b"11" * 32)
    rsa = (
        b"-----BEGIN PUBLIC KEY-----\n"
        b"MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf\n"
        b"9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==\n"
        b"-----END PUBLIC KEY-----\n"
    )
    with pytest.raises(KeyFormError, match="another kind"):
        VerifyKey.from_pem(rsa)
