"""What gpuslice.toml may say, and that whatever it may not say is named with file, key, reason."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pytest
from pydantic import ValidationError

from gpuslice.settings import (
    NO_FILE,
    Settings,
    SettingsError,
    environment_settings,
    load_settings,
    settings_reference,
)
from gpuslice.units import GIB, MIB
from gpuslice.wire import Enforcement, SliceKind


@pytest.fixture
def load(tmp_path: Path):
    def write_and_load(text: str, overrides: dict | None = None) -> Settings:
        path = tmp_path / "gpuslice.toml"
        path.write_text(text, encoding="utf-8")
        return load_settings(path, overrides)

    return write_and_load


def a_slice(extra: str = "", *, name: str = "quarter", kind: str = "shared") -> str:
    share = "share = 0.25\n" if kind == "shared" and "share" not in extra else ""
    return f'[[slice]]\nname = "{name}"\nkind = "{kind}"\n{share}{extra}\n'


def test_no_file_means_the_defaults() -> None:
    settings = load_settings(None)
    assert settings.currency == "EUR"
    assert settings.zone is UTC
    assert settings.database.url == ""
    assert (settings.service.host, settings.service.port) == ("127.0.0.1", 8085)
    assert settings.service.public_prefix == "/services/gpuslice/"
    assert settings.limits.leases_per_user == 1
    assert settings.fleet.minimum_enforcement is Enforcement.WATCHDOG
    assert settings.fleet.reserve_memory == 512 * MIB
    assert settings.fleet.host_reserve_ram == GIB
    assert settings.slice == ()
    assert settings.source == NO_FILE


def test_a_full_slice_table(load) -> None:
    entry = load(
        a_slice('title = "A quarter"\nmodel = "H100"\nmemory = "20 GiB"\ncpu = 2.5\n'
                'ram = "8GiB"\nprice = 0.1\nminimum_enforcement = "cgroup"')
    ).slice[0]  # fmt: skip
    assert entry.kind is SliceKind.SHARED
    assert (entry.memory, entry.share, entry.cpu, entry.ram) == (20 * GIB, 250, 2500, 8 * GIB)
    assert entry.price == 100_000
    assert entry.minimum_enforcement is Enforcement.CGROUP


@pytest.mark.parametrize(
    ("written", "micro"),
    [
        ("0.1", 100_000),
        ("2", 2_000_000),
        ('"2.75"', 2_750_000),
        ("0", 0),
        ("1e-6", 1),
        # As a float this is 123456789.123456791...: the text must be what counts.
        ("123456789.123456", 123_456_789_123_456),
        ("1_000.5", 1_000_500_000),
    ],
)
def test_a_price_is_exactly_what_is_written(load, written: str, micro: int) -> None:
    assert load(a_slice(f"price = {written}")).slice[0].price == micro


@pytest.mark.parametrize(
    ("written", "milli"), [("0.25", 250), ('"1/4"', 250), ('"1/3"', 333), ("1", 1000), ("0.001", 1)]
)
def test_a_share_is_a_number_or_a_fraction(load, written: str, milli: int) -> None:
    assert load(a_slice(f"share = {written}")).slice[0].share == milli


def test_unlimited_leases(load) -> None:
    assert load('[limits]\nleases_per_user = "unlimited"').limits.leases_per_user is None


def test_a_time_zone_of_the_machine(load) -> None:
    assert str(load('timezone = "Europe/Berlin"').zone) == "Europe/Berlin"


def test_overrides_lie_over_the_file_key_by_key(load) -> None:
    settings = load('[service]\nhost = "::1"\nport = 1234', {"service": {"port": 9000}})
    assert (settings.service.host, settings.service.port) == ("::1", 9000)


def test_settings_cannot_be_changed(load) -> None:
    settings = load(a_slice())
    with pytest.raises(ValidationError):
        settings.service.port = 1
    assert isinstance(settings.slice, tuple)


BAD = [
    # text, key, part of the reason
    ("curency = 'EUR'", "curency", "unknown key; did you mean 'currency'?"),
    ("port = 80", "port", "did you mean [service] port?"),
    ("[service]\nprot = 80", "service.prot", "did you mean 'port'?"),
    ("[servce]\nport = 80", "servce", "did you mean 'service'?"),
    ("[service]\nzzz = 1", "service.zzz", "known are host, port, url, public_prefix"),
    (a_slice("prise = 1"), "slice[quarter].prise", "did you mean 'price'?"),
    ("currency = 'eur'", "currency", "not 'eur'"),
    ("timezone = 'Mars/Olympus'", "timezone", "no time zone known"),
    ("timezone = '../etc/passwd'", "timezone", "no time zone known"),
    ("timezone = ''", "timezone", "no time zone known"),
    ("[service]\nport = '80'", "service.port", "valid integer, not '80'"),
    ("[service]\nport = true", "service.port", "valid integer, not True"),
    ("[service]\nport = 70000", "service.port", "65535"),
    ("[service]\npublic_prefix = 'services'", "service.public_prefix", "not 'services'"),
    ("[hub]\napi_url = 'hub'", "hub.api_url", "not 'hub'"),
    ("[node]\nid = 'a b'", "node.id", "not 'a b'"),
    ("[limits]\nleases_per_user = 0", "limits.leases_per_user", "greater than or equal to 1"),
    ("[limits]\nleases_per_user = -1", "limits.leases_per_user", "not -1"),
    ("[timing]\nreconcile_s = nan", "timing.reconcile_s", "finite"),
    ("[timing]\nreconcile_s = inf", "timing.reconcile_s", "finite"),
    ("[timing]\nreconcile_s = 0", "timing.reconcile_s", "greater than 0"),
    ("[timing]\nreconcile_s = -1.5", "timing.reconcile_s", "greater than 0, not -1.5"),
    ("[timing]\nstop_grace_s = 1e9", "timing.stop_grace_s", "600"),
    ("[timing]\nhold_horizon_s = 19", "timing.hold_horizon_s", "less than twice heartbeat_s"),
    ("[fleet]\nminimum_enforcement = 'watchdg'", "fleet.minimum_enforcement", "mean 'watchdog'"),
    ("[fleet]\nminimum_enforcement = 1", "fleet.minimum_enforcement", "1 is none of advisory"),
    ("[fleet]\nreserve_memory = 'lots'", "fleet.reserve_memory", "'lots' is not a size of memory"),
    ("service = 1", "service", "is a table; write it as [service]"),
    ("slice = 1", "slice", "is a table; write it as [[slice]]"),
    ("[slice]\nname = 'x'", "slice", "is a table; write it as [[slice]]"),
    (a_slice("price = -1"), "slice[quarter].price", "-1 is negative"),
    (a_slice("price = nan"), "slice[quarter].price", "not a finite amount"),
    (a_slice("price = inf"), "slice[quarter].price", "not a finite amount"),
    (a_slice("price = 0.0000001"), "slice[quarter].price", "finer than a millionth"),
    (a_slice("price = 1e300"), "slice[quarter].price", "larger than"),
    (a_slice("price = '2,75'"), "slice[quarter].price", "'2,75' is not an amount of money"),
    (a_slice("price = true"), "slice[quarter].price", "not an amount of money"),
    (a_slice("price = [1]"), "slice[quarter].price", "not an amount of money"),
    (a_slice("memory = 10"), "slice[quarter].memory", "is the unit missing?"),
    (a_slice("memory = '-1 GiB'"), "slice[quarter].memory", "not a size of memory"),
    (a_slice("memory = 1.5"), "slice[quarter].memory", "not a size of memory"),
    (a_slice("ram = '9999999 GiB'"), "slice[quarter].ram", "larger than"),
    (a_slice("share = 0"), "slice[quarter].share", "more than 0 and at most 1"),
    (a_slice("share = 1.01"), "slice[quarter].share", "more than 0 and at most 1"),
    (a_slice("share = nan"), "slice[quarter].share", "not a finite number"),
    (a_slice("share = '3/2'"), "slice[quarter].share", "more than 0 and at most 1"),
    (a_slice("share = '1/0'"), "slice[quarter].share", "more than 0 and at most 1"),
    (a_slice("share = 0.0001"), "slice[quarter].share", "less than a thousandth"),
    (a_slice("cpu = -1"), "slice[quarter].cpu", "not between 0 and 4096"),
    (a_slice("cpu = 0.0005"), "slice[quarter].cpu", "finer than a thousandth"),
    (a_slice("cpu = 'two'"), "slice[quarter].cpu", "not a number of cores"),
    (a_slice("title = 5"), "slice[quarter].title", "valid string, not 5"),
    (a_slice(kind="sharde"), "slice[quarter].kind", "did you mean 'shared'?"),
    (a_slice(name="Bad Name"), "slice[#1].name", "not 'Bad Name'"),
    ("[[slice]]\nkind = 'cpu'", "slice[#1].name", "is missing"),
    ("[[slice]]\nname = 'a'", "slice[a].kind", "is missing"),
    (
        a_slice() + a_slice(),
        "slice[quarter].name",
        "used twice, by [[slice]] number 1 and number 2",
    ),
    (a_slice(kind="mig"), "slice[quarter].mig_profile", "is missing"),
    (a_slice("mig_profile = 'big'", kind="mig"), "slice[quarter].mig_profile", "not 'big'"),
    ("[[slice]]\nname='a'\nkind='shared'", "slice[a].memory", "needs 'memory' or 'share'"),
    (a_slice("memory = '1GiB'", kind="exclusive"), "slice[quarter].memory", "does nothing"),
    (a_slice("share = 0.5", kind="cpu"), "slice[quarter].share", "does nothing"),
    (a_slice("model = 'H100'", kind="cpu"), "slice[quarter].model", "does nothing"),
    (a_slice("mig_profile = '1g.5gb'"), "slice[quarter].mig_profile", "does nothing"),
    (
        a_slice("minimum_enforcement = 'advisory'", kind="exclusive"),
        "slice[quarter].minimum_enforcement",
        "does nothing",
    ),
]


@pytest.mark.parametrize(("text", "key", "reason"), BAD, ids=[f"{k}: {r[:30]}" for _, k, r in BAD])
def test_what_is_wrong_is_named(load, tmp_path: Path, text: str, key: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(text)
    error = caught.value
    assert error.key == key
    assert reason in error.reason
    assert str(error).startswith(f"{tmp_path / 'gpuslice.toml'}: {key}: ")
    assert len(str(error).splitlines()) == 1


def test_a_database_password_is_not_repeated(load) -> None:
    with pytest.raises(SettingsError, match="does not start with one of sqlite") as caught:
        load('[database]\nurl = "mysql://me:secret@host/db"')
    assert "secret" not in str(caught.value)


def test_every_problem_is_listed_up_to_a_bound(load) -> None:
    with pytest.raises(SettingsError) as caught:
        load("a = 1\nb = 2\n")
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(SettingsError) as caught:
        load("\n".join(f"key{n} = 1" for n in range(50)))
    assert str(caught.value).splitlines()[-1].endswith("and 42 more problems")


def test_an_error_is_short_and_clean_whatever_the_file_says(load) -> None:
    with pytest.raises(SettingsError) as caught:
        load('"a\\u001b[31m\\nb" = 1\ncurrency = "' + "x" * 10_000 + '"')
    assert "\x1b" not in str(caught.value)
    assert all(len(line) < 400 for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[service\nport = 1", "line 1"),
        (b"a = 1\na = 2", "line 2"),
        (b"a = 1\n# \xff", "line 2 is not UTF-8"),
        (b"a = " + b"[" * 50_000, "not valid TOML"),
        (b"#" * ((1 << 20) + 1), "larger than 1 MiB"),
    ],
    ids=["syntax", "duplicate key", "not text", "deep", "huge"],
)
def test_a_file_that_is_no_toml(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "gpuslice.toml"
    path.write_bytes(raw)
    with pytest.raises(SettingsError, match=reason) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(tmp_path / "missing.toml")
    with pytest.raises(SettingsError, match="directory"):
        load_settings(tmp_path)


def test_the_reference_names_every_key() -> None:
    text = settings_reference()
    for key in ("currency", "[[slice]]", "minimum_enforcement", "hold_horizon_s", "mig_profile"):
        assert key in text
    assert '`"512MiB"`' in text
    assert "None" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert all(line.count("|") == 4 and not line.endswith("|  |") for line in rows), rows


# --- the environment ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("NODE__ID", "gpu2", {"node": {"id": "gpu2"}}),
        ("NODE__ID", '"1234"', {"node": {"id": "1234"}}),
        ("SERVICE__PORT", "9000", {"service": {"port": 9000}}),
        ("DOCKER__INTERNET", "false", {"docker": {"internet": False}}),
        ("DOCKER__GATES", '["a:hub", "b:proxy"]', {"docker": {"gates": ["a:hub", "b:proxy"]}}),
        ("DOCKER__HOST_DIR", "/data/a b", {"docker": {"host_dir": "/data/a b"}}),
        ("CURRENCY", "USD", {"currency": "USD"}),
        ("CURRENCY", "1\nservice.port = 2", {"currency": "1\nservice.port = 2"}),
        ("CURRENCY", "[" * 50_000, {"currency": "[" * 50_000}),
        ("CURRENCY", "", {}),
    ],
)
def test_a_variable_is_read_like_the_file(variable: str, text: str, value: dict) -> None:
    assert environment_settings({f"GPUSLICE__{variable}": text, "GPUSLICE_PORT": "1"}) == value


def test_the_environment_wins_over_the_file_key_by_key(
    load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSLICE__SERVICE__PORT", "9000")
    monkeypatch.setenv("GPUSLICE__NODE__ID", "other")
    settings = load('[service]\nhost = "::1"\nport = 1234', {"node": {"id": "mine"}})
    assert (settings.service.host, settings.service.port) == ("::1", 9000)
    assert settings.node.id == "mine"


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("GPUSLICE__SERVICE__PROT", "1", "service.prot (GPUSLICE__SERVICE__PROT): unknown key"),
        ("GPUSLICE__SERVICE__PORT", "x", "service.port (GPUSLICE__SERVICE__PORT): should be"),
        ("GPUSLICE__NOED", "1", "noed (GPUSLICE__NOED): unknown key; did you mean 'node'?"),
        ("GPUSLICE__DOCKER__NETWORK_POOL", "1.2.3.4/5", "(GPUSLICE__DOCKER__NETWORK_POOL): '1.2.3"),
    ],
)
def test_a_wrong_variable_is_named(
    load, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, said: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as caught:
        load("[service]\nhost = '::1'")
    assert said in str(caught.value)


def test_what_the_file_says_wrong_is_not_blamed_on_a_variable(
    load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSLICE__SERVICE__PORT", "9000")
    with pytest.raises(SettingsError) as caught:
        load("[service]\nhots = '::1'")
    assert "service.hots: unknown key" in str(caught.value)


def test_a_password_file_needs_a_database_that_has_passwords(load) -> None:
    url = 'url = "postgresql://gpuslice@postgres/gpuslice"'
    file = 'password_file = "/run/secret"'
    assert load(f"[database]\n{url}\n{file}").database.password_file == "/run/secret"
    for text in (file, f'url = "sqlite:////a.sqlite"\n{file}', f'{url}\npassword_file = "x"'):
        with pytest.raises(SettingsError, match=r"database\.password_file"):
            load(f"[database]\n{text}")
