"""The role through which `make run` serves its database: it reads everything, and can do nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg2
import psycopg2.extensions
import pytest

from server.process.data_folder import EmbeddedError
from server.process.embedded import EmbeddedPostgres
from server.process.reading_role import READER, reading_uri
from tests.support.folders import made_folder
from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.raw_http import ask


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedPostgres]:
    with made_folder() as folder, EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}) as postgres:
        yield postgres


@pytest.fixture(scope="module")
def owner(running: EmbeddedPostgres) -> Iterator[Postgres]:
    """The owner of the database, as in `psql "$(make -s dsn)"`."""
    postgres = Postgres(running.uri)
    postgres.run("CREATE TABLE secrets (id int PRIMARY KEY, text text)")
    postgres.run("INSERT INTO secrets VALUES (1, 'x')")
    yield postgres
    postgres.connection.close()


@pytest.fixture
def reader(running: EmbeddedPostgres, owner: Postgres) -> Iterator[psycopg2.extensions.connection]:
    """A connection as the served role, in which transactions may write, so that only its rights are in the way."""
    with contextlib.closing(psycopg2.connect(reading_uri(running))) as connection:
        connection.autocommit = True
        connection.cursor().execute("SET default_transaction_read_only = off")
        yield connection


REFUSED = [
    "COPY (SELECT 1) TO PROGRAM 'cat'",
    "CREATE TEMP TABLE t (a text); COPY t FROM PROGRAM 'id'",
    "COPY (SELECT 1) TO '/tmp/sluice-written'",
    "CREATE TEMP TABLE u (a text); COPY u FROM '/etc/passwd'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_stat_file('/etc/passwd')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_ls_logdir()",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/sluice-written')",
    "SELECT * FROM pg_hba_file_rules",
    "LOAD 'auto_explain'",
    "CREATE EXTENSION vector",
    "DROP EXTENSION plpgsql",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TABLE t (a int)",
    "CREATE SCHEMA s",
    "CREATE ROLE other SUPERUSER",
    "CREATE DATABASE other",
    "ALTER ROLE sluice_reader SUPERUSER",
    "ALTER SYSTEM SET shared_preload_libraries = 'evil'",
    "ALTER DATABASE postgres SET search_path = evil",
    "GRANT postgres TO sluice_reader",
    "GRANT pg_execute_server_program TO sluice_reader",
    "SET ROLE postgres",
    "SET ROLE pg_execute_server_program",
    "SET SESSION AUTHORIZATION postgres",
    "SET session_preload_libraries = 'evil'",
    "SET session_replication_role = replica",
    "SET row_security = off; SELECT * FROM hidden",
    "SELECT pg_reload_conf()",
    "SELECT pg_rotate_logfile()",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "SELECT pg_switch_wal()",
    "SELECT pg_create_restore_point('x')",
    "CHECKPOINT",
    "INSERT INTO secrets VALUES (2, 'y')",
    "UPDATE secrets SET text = 'y'",
    "DELETE FROM secrets",
    "TRUNCATE secrets",
    "DROP TABLE secrets",
    "CREATE INDEX ON secrets (text)",
    "SELECT * FROM secrets FOR UPDATE",
    "BEGIN; LOCK TABLE secrets IN ACCESS EXCLUSIVE MODE",
    "CREATE TRIGGER t AFTER INSERT ON secrets EXECUTE FUNCTION f()",
]


@pytest.fixture(scope="module")
def hidden(owner: Postgres) -> None:
    """A table whose rows a policy hides from everyone but its owner."""
    owner.run("CREATE TABLE hidden AS SELECT 1 AS n")
    owner.run("ALTER TABLE hidden ENABLE ROW LEVEL SECURITY")


@pytest.mark.parametrize("statement", REFUSED)
@pytest.mark.usefixtures("hidden")
def test_it_may_do_nothing_but_read(reader: psycopg2.extensions.connection, statement: str) -> None:
    *before, last = statement.split("; ")
    with reader.cursor() as cursor:
        for each in before:
            cursor.execute(each)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(last)


def test_its_transactions_only_read_unless_they_ask_for_more(running: EmbeddedPostgres, owner: Postgres) -> None:
    with contextlib.closing(psycopg2.connect(reading_uri(running))) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        assert cursor.fetchone() == ("on",)


def test_it_has_no_attribute_and_owns_nothing(owner: Postgres, reader: object) -> None:
    attributes = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
    assert owner.run(f"SELECT {attributes} FROM pg_roles WHERE rolname = '{READER}'") == [(False,) * 5]
    groups = owner.run(
        f"SELECT roleid::regrole::text, admin_option FROM pg_auth_members WHERE member = '{READER}'::regrole"
    )
    assert groups == [("pg_read_all_data", False)]
    assert owner.run(f"SELECT count(*) FROM pg_shdepend WHERE refobjid = '{READER}'::regrole AND deptype = 'o'") == [
        (0,)
    ]


def test_a_policy_holds_for_it(reader: psycopg2.extensions.connection, hidden: None) -> None:
    with reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM hidden")
        assert cursor.fetchone() == (0,)


@pytest.fixture(scope="module")
def server(running: EmbeddedPostgres, owner: Postgres) -> Iterator[LiveServer]:
    """Sluice as `make run` serves it."""
    with LiveServer(DATABASE_URL=reading_uri(running), EXPORT_SCHEMAS="public,later") as live:
        yield live


def test_what_is_made_later_is_served(owner: Postgres, server: LiveServer) -> None:
    owner.run("CREATE SCHEMA later")
    owner.run("CREATE TABLE later.made AS SELECT 4711 AS n")
    owner.run("CREATE VIEW later.seen AS SELECT n FROM later.made")
    owner.run("CREATE MATERIALIZED VIEW later.kept AS SELECT n FROM later.made")
    owner.run("CREATE ROLE colleague")
    owner.run("GRANT CREATE ON SCHEMA public TO colleague")
    owner.run("SET ROLE colleague; CREATE TABLE public.theirs AS SELECT 4711 AS n; RESET ROLE")
    for name in ("later.made", "later.seen", "later.kept", "theirs"):
        answer = ask(server, f"/export/{name}.csv")
        assert (answer.status, answer.body) == (200, b"n\n4711\n"), name


@pytest.mark.parametrize(
    "source",
    [
        "pg_read_file('/etc/passwd') AS text",
        "pg_ls_dir('/') AS text",
        "setting AS text FROM pg_file_settings",
        "lo_import('/etc/passwd')::text AS text",
    ],
)
def test_a_view_of_the_owner_lends_it_no_function(owner: Postgres, server: LiveServer, source: str) -> None:
    owner.run(f"DROP VIEW IF EXISTS lent; CREATE VIEW lent AS SELECT {source}")
    for path in ("/export/lent.csv", "/relations/lent/preview", "/export/lent.csv?text=like.*root*"):
        answer = ask(server, path)
        assert answer.status >= 400, path
        assert b"root:" not in answer.body


def test_it_is_made_once_and_then_left_as_it_is(running: EmbeddedPostgres, owner: Postgres) -> None:
    reading_uri(running)
    owner.run(f"REVOKE pg_read_all_data FROM {READER}")
    try:
        reading_uri(running)
        assert owner.run(f"SELECT pg_has_role('{READER}', 'pg_read_all_data', 'member')") == [(False,)]
    finally:
        owner.run(f"GRANT pg_read_all_data TO {READER}")


def test_functions_of_others_are_not_called_while_it_is_made(running: EmbeddedPostgres, owner: Postgres) -> None:
    owner.run(f"DROP OWNED BY {READER}; DROP ROLE {READER}")
    owner.run(
        "CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS "
        "$$ SELECT 'CREATE ROLE planted SUPERUSER' $$"
    )
    owner.run("ALTER DATABASE postgres SET search_path = public, pg_catalog")
    try:
        reading_uri(running)
        assert owner.run("SELECT count(*) FROM pg_roles WHERE rolname = 'planted'") == [(0,)]
        assert owner.run(f"SELECT count(*) FROM pg_roles WHERE rolname = '{READER}'") == [(1,)]
    finally:
        owner.run("ALTER DATABASE postgres RESET search_path")
        owner.run("DROP FUNCTION public.format(text, text)")


def test_a_failure_to_make_it_is_told(running: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.process.reading_role._SQL", "/nonexistent.sql")
    with pytest.raises(EmbeddedError, match=r"the role sluice_reader could not be created: .*No such file"):
        reading_uri(running)
