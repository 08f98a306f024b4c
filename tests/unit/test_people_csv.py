"""Lists of people: any bytes are a complete plan or mistakes with their lines, never a crash."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpuslice.broker.peopleviews import ImportPeople
from gpuslice.cli.peoplecsv import COLUMNS, MAX_BYTES, BadList, read_people
from gpuslice.cli.peopletext import account_lines, parts
from gpuslice.service.parse import MAX_BODY


def problems(raw: bytes | str) -> list[str]:
    with pytest.raises(BadList) as bad:
        read_people(raw.encode() if isinstance(raw, str) else raw)
    return list(bad.value.problems)


def rows(text: str) -> list[dict[str, object]]:
    return [
        person.row.model_dump(mode="json", exclude_unset=True)
        for person in read_people(text.encode())
    ]


def test_a_whole_list() -> None:
    text = (
        "\ufeffName,group,slices,types,gpu_hours,money,session_hours,prepaid,priority,credit\r\n"
        'ada,students; /lab,1,"quarter,cpu",20/week;5/day,50.5/month,1.5,yes,-3,12.5\r\n'
        "\r\n"
        " bob ,,unlimited,unlimited,unlimited/week,,unlimited,NO,,\r\n"
    )
    assert rows(text) == [
        {
            "user": "ada", "groups": ["students", "/lab"], "credit_u": 12_500_000,
            "each": {
                "slices": 1, "slice_types": ["quarter", "cpu"], "prepaid": True, "priority": -3,
                "gpu_hours": [{"at_most": "20", "per": "week"}, {"at_most": "5", "per": "day"}],
                "money": [{"at_most": "50.5", "per": "month"}], "session_hours": "1.5",
            },
        },
        {
            "user": "bob", "groups": [], "credit_u": None,
            "each": {
                "slices": "unlimited", "slice_types": "unlimited", "prepaid": False,
                "priority": None, "gpu_hours": [{"at_most": "unlimited", "per": "week"}],
                "money": [], "session_hours": "unlimited",
            },
        },
    ]  # fmt: skip


def test_what_has_no_column_is_not_said() -> None:
    assert rows("name,slices\nada,\n") == [
        {"user": "ada", "groups": [], "each": {"slices": None}, "credit_u": None}
    ]
    assert rows("name\nada\n")[0]["each"] == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the first line has to name the columns"),
        ("slices\n1\n", "one of them 'name'"),
        ("name;slices\nada;1\n", "separated by semicolons"),
        ("name,slice\nada,1\n", "line 1: there is no column 'slice'; there are name, group"),
        ("name,name\nada,ada\n", "line 1: the column 'name' is there twice"),
        ("name\n", "there is nobody in it"),
        ("name,slices\nada\n", "line 2: it has 1 cells, the first line 2"),
        ("name,types\nada,quarter,cpu\n", "line 2: it has 3 cells, the first line 2; put a cell"),
        ("name\nada\n\nada\n", "line 4: ada is on line 2 already"),
        ("name\nAda\n", "line 2: name: the hub writes names small: 'ada'"),
        ("name,slices\n,1\n", "line 2: name: is empty"),
        ("name\na/b\n", "line 2: name: no name of the hub"),
        ("name\na\x07b\n", "line 2: name: no name of the hub"),
        (f"name\n{'a' * 256}\n", "line 2: name: String should have at most 255 characters"),
        ("name,group\nada,a\x07b\n", "line 2: group: no name of the hub"),
        ("name,slices\nada,two\n", "line 2: slices: 'two' is not a number of slices"),
        ("name,slices\nada,-1\n", "line 2: slices: '-1' is not a number"),
        ("name,slices\nada," + "9" * 501 + "\n", "line 2: slices: longer than 500 characters"),
        ("name,types\nada,Quarter\n", "line 2: types: String should match pattern"),
        ("name,types\nada,;\n", "line 2: types: holds only separators"),
        ('name,types\nada," , ;"\n', "line 2: types: holds only separators"),
        ("name,money\nada,; ;\n", "line 2: money: holds only separators"),
        ("name,gpu_hours\nada,20\n", "line 2: gpu_hours: '20': write N/PERIOD"),
        ("name,gpu_hours\nada,x/week\n", "line 2: gpu_hours: 'x' is not a number of hours"),
        ("name,gpu_hours\nada,1/fortnight\n", "line 2: gpu_hours: 'fortnight' is no period"),
        ("name,money\nada,1/day;2/day\n", "there are two limits per day"),
        ("name,money\nada,1e999999/day\n", "line 2: money: '1e999999' is larger than"),
        ("name,session_hours\nada,long\n", "line 2: session_hours: 'long' is not a number"),
        ("name,prepaid\nada,maybe\n", "line 2: prepaid: 'maybe' is neither yes nor no"),
        ("name,priority\nada,high\n", "line 2: priority: Input should be a valid integer"),
        ("name,credit\nada,0\n", "line 2: credit: give more than nothing"),
        ("name,credit\nada,-5\n", "line 2: credit: '-5' is negative"),
        ('name\n"ada\n', "line 2: this is not CSV"),
        ("name\nada\0\n", "line 2: there is a null character"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, said: str) -> None:
    (problem,) = problems(text)
    assert said in problem


def test_all_mistakes_are_named_at_once() -> None:
    found = problems('name,slices\nada,x\nbob,1\nBob,1\nbob,2\n"cleo\n')
    assert [re.match(r"line (\d+):", one)[1] for one in found] == ["2", "4", "5", "6"]  # type: ignore[index]


def test_what_is_no_text_is_told() -> None:
    assert problems("name\nzoë\n".encode("latin-1")) == [
        "line 2: this is not UTF-8 text; save it as CSV UTF-8"
    ]
    assert "null character" in problems("name\nada\n".encode("utf-16-be"))[0]
    assert "larger than" in problems(b"x" * (MAX_BYTES + 1))[0]


def test_names_with_capitals_are_taken_where_that_is_wanted() -> None:
    (person,) = read_people(b"name\nAda\n", keep_case=True)
    assert person.row.user == "Ada"


SIGNS = 'azÄß09.+-eE/;, "\n\r\t\ufeff\u2028\0'
NUMBERS = ["", "0", "1", "-1", "2.5", "1e9", "1e999999", "nan", "0.0000001", "unlimited"]
CELLS = st.one_of(
    st.text(SIGNS, max_size=6),
    st.sampled_from([*NUMBERS, "quarter;cpu", "yes", "ada"]),
    st.builds("{}/{}".format, st.sampled_from(NUMBERS), st.sampled_from(["day", "7d", "x", ""])),
)


@st.composite
def lists(draw: st.DrawFn) -> bytes:
    """Lists that are nearly right, so that the reader gets far."""
    columns = draw(st.lists(st.sampled_from(COLUMNS), unique=True).map(lambda c: ["name", *c]))
    columns = list(dict.fromkeys(columns))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])))
    writer.writerow(columns)
    for number in range(draw(st.integers(0, 5))):
        cells = [draw(CELLS) for _ in columns]
        if draw(st.booleans()):
            cells[0] = f"user{number}"
        writer.writerow(cells)
    return out.getvalue().encode("utf-8", "surrogatepass")


def plan_or_mistakes(raw: bytes) -> None:
    try:
        people = read_people(raw)
    except BadList as bad:
        assert bad.problems and all(one and "\n" not in one for one in bad.problems)
        return
    assert people
    sent = list(parts(people))
    # What is sent is what was read, and the service takes it.
    assert [row["user"] for part in sent for row in part] == [one.row.user for one in people]
    for part in sent:
        body = {"rows": part, "reason": "x", "credit_name": "winter-2026"}
        read = ImportPeople.model_validate_json(json.dumps(body))
        again = [row.model_dump(mode="json", exclude_unset=True) for row in read.rows]
        assert again == part
        assert len(json.dumps(body)) < MAX_BODY


@given(st.binary(max_size=200))
@example(b"name\n\r\r\n")
@example(b'name\n"\r"\n')
def test_any_bytes(raw: bytes) -> None:
    plan_or_mistakes(raw)


# On a busy machine the making of such lists is not quick, and that is not what is tested.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(lists())
def test_any_list(raw: bytes) -> None:
    plan_or_mistakes(raw)


def test_a_long_list_is_sent_in_parts_that_the_service_reads() -> None:
    names = [f"{'ü' * 200}{n}" for n in range(450)]
    text = "name,group\n" + "".join(f"{name},{'ß' * 200};{'é' * 200}\n" for name in names)
    people = read_people(text.encode())
    sent = list(parts(people))
    assert [row["user"] for part in sent for row in part] == names
    for part in sent:
        assert len(json.dumps({"rows": part, "reason": "x" * 500})) < MAX_BODY
        ImportPeople.model_validate({"rows": part, "reason": "x"})


@pytest.mark.parametrize(
    ("live", "said"), [(0, "0 live leases"), (1, "1 live lease"), (2, "2 live leases")]
)
def test_an_account_in_lines(live: int, said: str) -> None:
    account = {
        "account_id": 7, "kind": "user", "name": "ada", "parent": None, "missing_since_us": None,
        "closed_us": None, "names": [], "spent_u": 0, "gpu_us": 0, "credit_u": 0,
        "live_leases": live, "waiting": 0, "held_u": 0,
    }  # fmt: skip
    assert list(account_lines(account, "EUR"))[-1].strip().startswith(f"{said}, 0 waiting")
