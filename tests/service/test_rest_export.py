"""The ledger's rows as CSV and JSON over HTTP: cells that execute nothing, any number of rows."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rest_calls import furnish

from quotaworld import spawn
from serviceledger import ServiceLedger

EVIL = ("=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(1)", "\t=1", '"=1"', "a,b\nc", "=1;2")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_no_cell_is_a_formula_and_json_has_the_words_as_they_were(ledger: ServiceLedger) -> None:
    root = ledger.config.operator_token
    for words in EVIL:
        # As a name, too, where the hub can have such a one.
        named = "ada" if "/" in words or not words.isprintable() else words
        body = {"whose": "user", "name": named, "amount_u": 7, "reason": words}
        ledger.ask(root, "POST", "api/admin/credits", body)
    path = "api/admin/entries/export"
    answer = ledger.call(root, "GET", path)
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="entries.csv"'
    rows = rows_of(answer.text)
    assert len(rows) == len(EVIL)
    for row in rows:
        for cell in row.values():
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")), row
    exact = json.loads(ledger.call(root, "GET", path, query={"form": "json"}).content)
    assert [entry["memo"] for entry in exact] == [*EVIL]
    # And nothing else was changed: without the quote in front it is what was written.
    assert [row["memo"].removeprefix("'") for row in rows] == [*EVIL]


def test_the_export_has_exactly_the_rows_of_its_span(ledger: ServiceLedger) -> None:
    furnish(ledger)
    root, ada = ledger.config.operator_token, ledger.reader("ada")
    every = ledger.ask(root, "GET", "api/admin/entries", query={"limit": 1000})["entries"][::-1]
    assert (
        json.loads(
            ledger.call(root, "GET", "api/admin/entries/export", query={"form": "json"}).content
        )
        == every
    )
    moments = sorted({entry["at_us"] for entry in every})
    assert len(moments) > 2
    span = {"from_us": moments[1], "til_us": moments[-1], "form": "json"}
    some = json.loads(ledger.call(root, "GET", "api/admin/entries/export", query=span).content)
    assert some == [one for one in every if moments[1] <= one["at_us"] < moments[-1]]
    mine = json.loads(ledger.call(ada, "GET", "api/entries/export", query={"form": "json"}).content)
    assert mine == [one for one in every if "user:ada" in (one["debit"], one["credit"])]
    nothing = {"from_us": moments[-1] + 1}
    empty = ledger.call(root, "GET", "api/admin/entries/export", query=nothing)
    assert rows_of(empty.text) == [] and empty.text.startswith("entry_id,")
    nobody = {"whose": "user", "name": "nobody", "form": "json"}
    assert ledger.ask(root, "GET", "api/admin/entries/export", query=nobody) == []


def test_who_goes_away_in_the_middle_leaves_the_service_well(ledger: ServiceLedger) -> None:
    import httpx

    spawn(ledger, "ada", "cpu", [])
    furnish(ledger)
    headers = {"Authorization": f"token {ledger.config.operator_token}"}
    for _ in range(3):
        with httpx.stream(
            "GET", f"{ledger.at}api/admin/entries/export", headers=headers, trust_env=False,
            verify=False,
        ) as answer:  # fmt: skip
            next(answer.iter_raw(1))
    assert ledger.ask(None, "GET", "api/health")["status"] == "ok"


#: A service of its own, with so many entries, and what its memory was at most.
_LARGE = """
import sys
from pathlib import Path
import httpx, sqlalchemy as sa
from ledgerworld import sqlite_ledger
from serviceledger import ServiceLedger

world = ServiceLedger(sqlite_ledger(Path(sys.argv[1]) / "large.sqlite"))
count = int(sys.argv[2])
root = world.config.operator_token
body = {"whose": "user", "name": "=cmd()", "amount_u": 7, "reason": "=cmd()"}
world.ask(root, "POST", "api/admin/credits", body)
more = '''
    WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
    INSERT INTO entry (idem_key, kind, debit_id, credit_id, amount_u, leg, actor, memo, created_us)
    SELECT 'k' || i, kind, debit_id, credit_id, i, 0, '=cmd()', '=cmd()', created_us
    FROM n JOIN entry ON entry.id = 1
'''
world.database.write(lambda s: s.execute(sa.text(more), {"count": count}))
lines = bad = 0
rest = b""
with httpx.stream(
    "GET", world.at + "api/admin/entries/export", headers={"Authorization": "token " + root},
    trust_env=False, verify=False, timeout=600,
) as answer:
    for piece in answer.iter_raw():
        *whole, rest = (rest + piece).split(b"\\r\\n")
        lines += len(whole)
        bad += sum(b",=" in line for line in whole)
# Of this program alone: getrusage's maximum counts what the one had that started it.
status = Path("/proc/self/status").read_text()
print(lines - 1, bad, int(status.split("VmHWM:")[1].split()[0]) // 1024)
world.close()
"""


def export_large(folder: Path, count: int) -> tuple[int, int, int]:
    """Rows, cells that are formulas, and the most memory in MiB."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(folder), str(count)],
        env={"PYTHONPATH": f"{root / 'spawner'}:{root / 'tests' / 'lib'}", "PATH": ""},
        capture_output=True, text=True, check=False, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows, bad, most = map(int, done.stdout.split()[-3:])
    return rows, bad, most


def test_an_export_is_streamed(tmp_path: Path) -> None:
    rows, bad, most = export_large(tmp_path, 20_000)
    assert (rows, bad) == (20_000, 0)
    assert most < 200


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_a_million_entries_fit_into_200_mib(tmp_path: Path) -> None:
    rows, bad, most = export_large(tmp_path, 1_000_000)
    assert (rows, bad) == (1_000_000, 0)
    assert most < 200
