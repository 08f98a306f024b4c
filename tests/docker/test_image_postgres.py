"""The PostgreSQL image: its data, its password, its end, and what it refuses in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from imageworld import Images, images, inside, until, until_healthy

pytestmark = pytest.mark.docker

ROOT = "/var/lib/postgresql"
DATA = f"{ROOT}/15/data"
PASSWORD = "correct horse"


@pytest.fixture
def world(client: docker.DockerClient) -> Iterator[Images]:
    with images(client) as world:
        yield world


@pytest.fixture
def options(world: Images, tmp_path: Path) -> dict[str, Any]:
    return _options(world, tmp_path)


def _options(world: Images, folder: Path) -> dict[str, Any]:
    """A new volume for the data, and the file with the password."""
    secret = folder / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o444)
    return {
        "volumes": {
            world.volume(): {"bind": ROOT, "mode": "rw"},
            str(secret): {"bind": "/run/secrets/postgres_password", "mode": "ro"},
        }
    }


@pytest.fixture(scope="module")
def server(
    client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A server with two databases, in a network, for the tests that only ask."""
    with images(client) as world, world.network() as network:
        options = _options(world, tmp_path_factory.mktemp("postgres"))
        names = {"POSTGRES_DATABASES": "gpuslice hub"}
        server = world.start("postgres", network_mode=network, environment=names, **options)
        until_healthy(server)
        yield server


def _ask(server: Container, question: str, *where: str, password: str = PASSWORD) -> str:
    """What psql says; `where` are its options."""
    command = ["psql", "--no-psqlrc", "-qAt", "-U", "gpuslice", *where, "-c", question]
    return inside(server, *command, environment={"PGPASSWORD": password}).text


def test_it_keeps_its_data_over_a_stop_and_in_a_new_container(
    world: Images, options: dict[str, Any]
) -> None:
    first = world.start("postgres", **options)
    until_healthy(first)
    assert _ask(first, "CREATE TABLE kept AS SELECT 42 AS answer", "gpuslice") == ""
    first.restart(timeout=60)
    until_healthy(first)
    assert _ask(first, "SELECT answer FROM kept", "gpuslice") == "42"
    # A session that goes on keeps nobody waiting.
    asleep = ["psql", "-U", "gpuslice", "-c", "SELECT pg_sleep(1000)", "gpuslice"]
    first.exec_run(asleep, environment={"PGPASSWORD": PASSWORD}, detach=True)
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
    until(lambda: _ask(first, sleeping, "gpuslice") == "1", lambda: first.logs().decode())
    first.stop(timeout=60)
    first.reload()
    said = first.logs().decode()
    assert first.attrs["State"]["ExitCode"] == 0
    assert said.rstrip().endswith("LOG:  database system is shut down")
    assert "was not properly shut down" not in said
    second = world.start("postgres", **options)
    until_healthy(second)
    assert _ask(second, "SELECT answer FROM kept", "gpuslice") == "42"
    # The password's file is needed once.
    assert "initdb" not in second.logs().decode()


def test_nobody_gets_in_without_the_password(server: Container) -> None:
    for where in ("127.0.0.1", "/tmp"):
        for wrong in ("", "correct mule"):
            said = _ask(server, "SELECT 1", "-h", where, "gpuslice", password=wrong)
            assert "no password supplied" in said or "password authentication failed" in said
        assert _ask(server, "SELECT 1", "-h", where, "gpuslice") == "1"
    assert _ask(server, "SHOW password_encryption", "gpuslice") == "scram-sha-256"
    methods = "SELECT DISTINCT auth_method FROM pg_hba_file_rules"
    assert _ask(server, methods, "gpuslice") == "scram-sha-256"
    users = "SELECT rolname FROM pg_roles WHERE rolcanlogin"
    assert _ask(server, users, "gpuslice") == "gpuslice"


def test_another_container_of_its_network_reaches_it(world: Images, server: Container) -> None:
    server.reload()
    [(network, end)] = server.attrs["NetworkSettings"]["Networks"].items()
    for password, answer in ((PASSWORD, "gpuslice"), ("correct mule", "authentication failed")):
        asked = world.say(
            "postgres",
            ["-qAt", "-h", end["IPAddress"], "-U", "gpuslice", "-c", "SELECT user", "gpuslice"],
            entrypoint=["/usr/lib/postgresql/15/bin/psql"],
            environment={"PGPASSWORD": password},
            network_mode=network,
        )
        assert answer in asked.text


def test_it_has_the_databases_that_were_asked_for(server: Container) -> None:
    found = _ask(server, "SELECT datname FROM pg_database ORDER BY oid", "hub").split()
    theirs = {"postgres", "template0", "template1"}
    assert [name for name in found if name not in theirs] == ["gpuslice", "hub"]


def test_what_an_interrupted_start_left_is_not_taken_for_data(
    world: Images, options: dict[str, Any]
) -> None:
    left = f"mkdir -p {ROOT}/15/unfinished && echo 15 >{ROOT}/15/unfinished/PG_VERSION"
    left += f" && chown -R 999:999 {ROOT}/15"
    assert _in_volume(world, options, left).code == 0
    server = world.start("postgres", **options)
    until_healthy(server)
    assert _ask(server, "SELECT 1", "gpuslice") == "1"
    assert inside(server, "ls", f"{ROOT}/15").text == "data"


# ----------------------------------------------------------------------------- what it refuses


def _in_volume(world: Images, options: dict[str, Any], script: str) -> Any:
    return world.say(
        "postgres", ["-ec", script], entrypoint=["/bin/sh"], user="0:0", cap_drop=[], **options
    )


def _refused(world: Images, options: dict[str, Any], **differences: Any) -> str:
    said = world.say("postgres", [], **options, **differences)
    assert said.code == 1
    prefix, _, reason = said.text.partition("start-postgres: ")
    assert prefix == "" and reason.endswith(".") and "\n" not in reason, said.text
    return reason


def test_it_refuses_to_start_as_root(world: Images, options: dict[str, Any]) -> None:
    assert "never as root" in _refused(world, options, user="0:0")


def test_it_refuses_a_volume_of_somebody_else(world: Images, options: dict[str, Any]) -> None:
    assert _in_volume(world, options, f"touch {ROOT}/x && chown -R 0:0 {ROOT}").code == 0
    assert "belongs to user 0" in _refused(world, options)


def test_it_refuses_data_that_were_copied_as_root(world: Images, options: dict[str, Any]) -> None:
    made = f"mkdir -p {DATA} && echo 15 >{DATA}/PG_VERSION && chown 999:999 {ROOT}/15"
    assert _in_volume(world, options, made).code == 0
    assert "chown -R 999:999" in _refused(world, options)


@pytest.mark.parametrize("place", [f"{ROOT}/13/data", f"{ROOT}/data", ROOT])
def test_it_refuses_data_of_another_version(
    world: Images, options: dict[str, Any], place: str
) -> None:
    made = f"mkdir -p {place} && echo 13 >{place}/PG_VERSION && chown -R 999:999 {ROOT}"
    assert _in_volume(world, options, made).code == 0
    reason = _refused(world, options)
    assert place in reason and "PostgreSQL 13" in reason and "pg_dumpall" in reason


@pytest.mark.parametrize("content", ["", "\nsecond line\n"])
def test_it_refuses_an_empty_password(
    world: Images, options: dict[str, Any], tmp_path: Path, content: str
) -> None:
    (tmp_path / "password").write_text(content)
    assert "is empty" in _refused(world, options)


def test_it_refuses_to_start_without_the_passwords_file(
    world: Images, options: dict[str, Any]
) -> None:
    missing = {"POSTGRES_PASSWORD_FILE": "/run/secrets/missing"}
    assert "/run/secrets/missing" in _refused(world, options, environment=missing)


@pytest.mark.parametrize(
    "names",
    [
        {"POSTGRES_USER": "ada; DROP"},
        {"POSTGRES_USER": "postgres"},
        {"POSTGRES_DATABASES": 'a"b'},
        {"POSTGRES_DATABASES": "UPPER"},
        {"POSTGRES_USER": ""},
        {"POSTGRES_DATABASES": "*"},
    ],
)
def test_it_refuses_names_that_it_would_have_to_quote(
    world: Images, options: dict[str, Any], names: dict[str, str]
) -> None:
    assert "name" in _refused(world, options, environment=names)
