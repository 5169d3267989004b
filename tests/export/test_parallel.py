"""Several readers of one table, under gunicorn: the same bytes as with one reader, or a cut stream.

The tables are just large enough to be read by ranges (strategy.FEWEST_BLOCKS), with a fill factor that makes them so.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from server import errors
from server.export.pipeline import OpenExport
from server.export.ranges import Ranges
from server.export.scan import _Scan
from server.memory import Memory
from server.postgres.database import Database
from server.postgres.session import Session
from server.query.catalogue import RelationName
from server.query.plan import ExportPlan, make_plan
from server.query.request import parse_export_request
from server.settings import Settings
from tests.support.engines import encoders, make_engine, open_database
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.waiting import at_work, come_to_rest, waiting_readers

ODD_NAME = '100% "sure"'

# About 60 bytes a row and a dozen rows a block.
ROWS = "n, n % 100 AS g, 'name of ' || n AS name, timestamptz '2026-01-01 UTC' + n * interval '1 min' AS at"
COLUMNS = "n int, g int, name text, at timestamptz"

# 80 MB of file in 9 MB of table, 18 MB in each range, so that a client that does not read makes every reader wait.
LARGE_ROWS = 20_000

TABLES = [
    # Autovacuum would change the numbers of blocks and the planner's estimates.
    f"CREATE TABLE heap ({COLUMNS}) WITH (fillfactor = 10, autovacuum_enabled = off)",
    f"INSERT INTO heap SELECT {ROWS} FROM generate_series(1, 16000) AS n",
    f'CREATE TABLE "{ODD_NAME.replace(chr(34), chr(34) * 2)}" ("%s" int, "50%" text) WITH (fillfactor = 10)',
    f"INSERT INTO \"{ODD_NAME.replace(chr(34), chr(34) * 2)}\" SELECT n, 'x' FROM generate_series(1, 30000) AS n",
    f"CREATE MATERIALIZED VIEW stored WITH (fillfactor = 10) AS SELECT {ROWS} FROM generate_series(1, 16000) AS n",
    # Leaves of all kinds: with sub-partitions, empty, of another order with a dropped column, in another schema.
    f"CREATE TABLE parts ({COLUMNS}) PARTITION BY RANGE (n)",
    "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (4000) WITH (fillfactor = 10)",
    "CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (4000) TO (5000) WITH (fillfactor = 10)",
    "CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (5000) TO (9000) PARTITION BY LIST (g)",
    "CREATE TABLE parts_3_rest PARTITION OF parts_3 DEFAULT WITH (fillfactor = 10)",
    "CREATE TABLE parts_3_7 PARTITION OF parts_3 FOR VALUES IN (7, 8) WITH (fillfactor = 10)",
    "CREATE TABLE parts_4 (gone int, at timestamptz, name text, g int, n int) WITH (fillfactor = 10)",
    "ALTER TABLE parts_4 DROP COLUMN gone",
    "ALTER TABLE parts ATTACH PARTITION parts_4 FOR VALUES FROM (9000) TO (20000)",
    f"INSERT INTO parts SELECT {ROWS} FROM generate_series(1, 16000) AS n WHERE n NOT BETWEEN 4000 AND 4999",
    f"CREATE TABLE parent ({COLUMNS}) WITH (fillfactor = 10)",
    "CREATE TABLE child (more int) INHERITS (parent) WITH (fillfactor = 10)",
    "CREATE TABLE grandchild () INHERITS (child) WITH (fillfactor = 10)",
    f"INSERT INTO parent SELECT {ROWS} FROM generate_series(1, 5000) AS n",
    f"INSERT INTO child SELECT {ROWS}, 1 FROM generate_series(5000, 9000) AS n",
    f"INSERT INTO grandchild SELECT {ROWS}, 2 FROM generate_series(9000, 16000) AS n",
    # Updated rows, dead rows between them, and no live row in the last third of the blocks.
    f"CREATE TABLE churned ({COLUMNS}) WITH (fillfactor = 10, autovacuum_enabled = off)",
    f"INSERT INTO churned SELECT {ROWS} FROM generate_series(1, 16000) AS n",
    "UPDATE churned SET name = name || repeat(' and more', 40) WHERE n % 3 = 0",
    "DELETE FROM churned WHERE g < 30",
    "UPDATE churned SET g = g + 1 WHERE n % 7 = 0",
    "DELETE FROM churned WHERE ctid >= '(800,0)'",
    # An index on a small leaf, in another order: cheaper than its range of blocks, dearer than a scan of the leaf.
    "CREATE TABLE leafy (n int, filler text) PARTITION BY RANGE (n)",
    "CREATE TABLE leafy_1 PARTITION OF leafy FOR VALUES FROM (0) TO (100000)",
    "CREATE TABLE leafy_2 PARTITION OF leafy FOR VALUES FROM (100000) TO (900000) WITH (fillfactor = 10)",
    "INSERT INTO leafy SELECT 50000 - n, '' FROM generate_series(1, 1000) AS n",
    "INSERT INTO leafy SELECT 100000 + n, 'x' FROM generate_series(1, 30000) AS n",
    "CREATE INDEX ON leafy_1 (n)",
    "CREATE TABLE documents (n int, data jsonb, tags text[]) WITH (fillfactor = 10)",
    (
        "INSERT INTO documents SELECT n, jsonb_build_object('a', jsonb_build_array(n, 'x' || n)), ARRAY['t' || n % 9] "
        "FROM generate_series(1, 16000) AS n"
    ),
    # One value, compressed once and then copied compressed.
    "CREATE TABLE one (filler text)",
    "INSERT INTO one VALUES (repeat('x', 4000))",
    "CREATE TABLE large (n int, filler text) WITH (fillfactor = 20)",
    f"INSERT INTO large SELECT n, filler FROM one, generate_series(1, {LARGE_ROWS}) AS n",
    "CREATE TABLE huge (n int, filler text)",
    "INSERT INTO huge SELECT n, filler FROM one, generate_series(1, 96000) AS n",
    "CREATE TABLE tiny AS SELECT 1 AS one",
    "CREATE VIEW seen AS SELECT * FROM heap",
    f"CREATE TABLE indexed ({COLUMNS}) WITH (fillfactor = 10)",
    f"INSERT INTO indexed SELECT {ROWS} FROM generate_series(1, 16000) AS n",
    "CREATE INDEX ON indexed (n)",
]
RELATIONS = [
    "heap",
    ODD_NAME,
    "stored",
    "parts",
    "parent",
    "churned",
    "leafy",
    "documents",
    "large",
    "huge",
    "one",
    "tiny",
    "indexed",
]


@pytest.fixture(scope="module")
def _tables(_postgres: Postgres) -> Iterator[None]:
    made = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in RELATIONS if name != "stored"]
    for statement in TABLES:
        _postgres.run(statement)
    _postgres.run(f"ANALYZE {', '.join([*made, 'stored'])}")
    try:
        yield
    finally:
        _postgres.run(f"DROP MATERIALIZED VIEW stored; DROP TABLE {', '.join(made)} CASCADE")


@pytest.fixture
def postgres(_tables: None, postgres: Postgres) -> Iterator[Postgres]:
    """The database with the tables of this module. Reference queries run without parallel workers."""
    postgres.run("SET max_parallel_workers_per_gather = 0")
    yield postgres
    postgres.run("RESET max_parallel_workers_per_gather; RESET timezone")


@pytest.fixture(scope="module")
def servers(database_url: str) -> Iterator[dict[int, LiveServer]]:
    """A server for each number of readers."""
    with contextlib.ExitStack() as running:
        yield {
            readers: running.enter_context(LiveServer(DATABASE_URL=database_url, PARALLEL_READERS=str(readers)))
            for readers in (1, 2, 3, 4)
        }


@pytest.fixture
def server(servers: dict[int, LiveServer]) -> LiveServer:
    """The one with three readers."""
    return servers[3]


def path_of(relation: str, query: str = "", suffix: str = "csv") -> str:
    return f"/export/{quote(relation)}.{suffix}{'?' if query else ''}{query}"


def explained(server: LiveServer, relation: str, query: str = "") -> dict[str, Any]:
    answer = ask(server, f"/relations/{quote(relation)}?explain{'&' if query else ''}{query}")
    assert answer.status == 200, answer.body
    document: dict[str, Any] = json.loads(answer.body)
    return document


def assert_single(server: LiveServer, postgres: Postgres, relation: str, query: str, select: str, reason: str) -> None:
    """Assert that one reader reads this, for this reason, and gives the rows of the SELECT."""
    document = explained(server, relation, query)
    assert (document["scan"], document["readers"], document["ranges"]) == ("cursor", 1, 0)
    assert reason in document["reason"]
    answer = ask(server, path_of(relation, query))
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body == postgres.copy(select)


def leave_nothing(postgres: Postgres) -> None:
    wait_until("PostgreSQL has stopped", lambda: not at_work(postgres))


@contextlib.contextmanager
def stalled(
    server: LiveServer, postgres: Postgres, relation: str, request_id: str
) -> Iterator[tuple[Client, list[int]]]:
    """A client that has sent a request and reads nothing, and the backends of its three readers, which wait."""
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send(path_of(relation), headers={"X-Request-Id": request_id})
        yield client, come_to_rest(server, postgres, 3)


# --- the same bytes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A relation, a query string, and the SELECT that gives the same rows."""

    relation: str
    query: str
    select: str


CASES = [
    Case("heap", "", "SELECT * FROM heap"),
    Case("heap", "select=who:name,n", "SELECT name AS who, n FROM heap"),
    Case("heap", "g=eq.3", "SELECT * FROM heap WHERE g = 3"),
    Case("heap", "or=(n.lt.2,n.gt.99)&name=like.*9*", "SELECT * FROM heap WHERE (n < 2 OR n > 99) AND name LIKE '%9%'"),
    Case("heap", "n=lt.0", "SELECT * FROM heap WHERE n < 0"),
    Case(ODD_NAME, "", 'SELECT * FROM "100% ""sure"""'),
    Case(ODD_NAME, "50%25=eq.x&%22%25s%22=gt.29000", 'SELECT * FROM "100% ""sure""" WHERE "%s" > 29000'),
    Case("stored", "", "SELECT * FROM stored"),
    Case("stored", "g=gt.90&select=at", "SELECT at FROM stored WHERE g > 90"),
    Case("parts", "", "SELECT * FROM parts"),
    Case("parts", "n=gt.4500", "SELECT * FROM parts WHERE n > 4500"),
    Case("parts", "g=neq.7&select=g,n", "SELECT g, n FROM parts WHERE g <> 7"),
    Case("parts", "name=eq.nobody", "SELECT * FROM parts WHERE name = 'nobody'"),
    Case("parts", "select=g::text,day:at::date&n=gt.99", "SELECT g::text, at::date AS day FROM parts WHERE n > 99"),
    Case(
        "documents",
        "select=data->a->>1,tags->>0,x:data->a->0::int&data->a->>1=neq.x9&or=(tags->>0.eq.t3,n.gt.90)",
        "SELECT data->'a'->>1 AS a, tags[1] AS tags, (data->'a'->0)::int AS x FROM documents "
        "WHERE data->'a'->>1 <> 'x9' AND (tags[1] = 't3' OR n > 90)",
    ),
    Case("parent", "", "SELECT * FROM parent"),
    Case("parent", "g=in.(1,2)", "SELECT * FROM parent WHERE g IN (1, 2)"),
    Case("child", "", "SELECT * FROM child"),
    Case("churned", "", "SELECT * FROM churned"),
    Case("churned", "g=gte.98", "SELECT * FROM churned WHERE g >= 98"),
    *(Case("leafy", f"n=gt.{low}", f"SELECT * FROM leafy WHERE n > {low}") for low in range(49700, 49770, 10)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.relation}?{case.query}")
def test_the_bytes_are_those_of_copy_for_every_number_of_readers(
    servers: dict[int, LiveServer], postgres: Postgres, case: Case
) -> None:
    right = postgres.copy(case.select)
    for readers, server in servers.items():
        before = len(server.log)
        answer = ask(server, path_of(case.relation, case.query), headers={"X-Request-Id": "bytes"})
        assert (answer.status, answer.ending) == (200, "terminator")
        assert answer.body == right, f"{readers} readers"
        server.wait_for_log("event=export .*requestId=bytes", after=before)
        # No reader has failed and left its ranges to the others.
        assert [line for line in server.log[before:] if "a reader ended early" in line] == []
    document = explained(servers[3], case.relation, case.query)
    # A part of a table may be too small for ranges; other tests cover that.
    assert document["scan"] == "cursor, block ranges" or document["reason"] == "small"
    if not case.query:
        assert document["scan"] == "cursor, block ranges" or case.relation == "child"


def test_a_small_leaf_is_read_in_its_own_order_though_an_index_is_cheaper(
    server: LiveServer, postgres: Postgres
) -> None:
    # The cases above with this table need these plans, which depend on PostgreSQL's costs.
    whole = "EXPLAIN (FORMAT JSON) SELECT * FROM leafy WHERE n > 49740"
    part = "EXPLAIN (FORMAT JSON) SELECT * FROM ONLY leafy_1 WHERE ctid >= '(0,0)' AND ctid < '(5,0)' AND n > 49740"
    assert {node["Node Type"] for node in postgres.run(whole)[0][0][0]["Plan"]["Plans"]} == {"Seq Scan"}
    assert postgres.run(part)[0][0][0]["Plan"]["Node Type"] == "Index Scan"
    assert explained(server, "leafy", "n=gt.49740")["scan"] == "cursor, block ranges"


@pytest.mark.parametrize("suffix", ["tsv", "ndjson", "csv.gz", "ndjson.gz"])
@pytest.mark.parametrize("relation", ["heap", "parts"])
def test_every_format_is_the_same_for_every_number_of_readers(
    servers: dict[int, LiveServer], postgres: Postgres, relation: str, suffix: str
) -> None:
    bodies = set()
    for server in servers.values():
        answer = ask(server, path_of(relation, "select=n,who:name", suffix))
        assert (answer.status, answer.ending) == (200, "terminator")
        bodies.add(gzip.decompress(answer.body) if suffix.endswith(".gz") else answer.body)
    (body,) = bodies
    select = f"SELECT n, name AS who FROM {relation}"
    if suffix.startswith("ndjson"):
        lines = postgres.run(f"SELECT row_to_json(line.*)::text FROM ({select}) AS line")
        assert body.decode() == "".join(f"{line}\n" for (line,) in lines)
    else:
        assert body == postgres.copy(select, "HEADER, DELIMITER E'\\t'" if suffix == "tsv" else "HEADER")


def test_every_reader_writes_times_in_the_requested_zone(servers: dict[int, LiveServer], postgres: Postgres) -> None:
    postgres.run("SET timezone = 'Asia/Kathmandu'")
    right = postgres.copy("SELECT * FROM heap")
    for server in servers.values():
        assert ask(server, path_of("heap", "timezone=Asia/Kathmandu")).body == right


def test_the_log_and_the_explanation_say_how_it_was_read(servers: dict[int, LiveServer], postgres: Postgres) -> None:
    for readers, server in servers.items():
        document = explained(server, "heap")
        assert document["readers"] == readers
        assert (document["ranges"] > 3) == (readers > 1)
        assert abs(document["estimatedRows"] - 16000) < 1600
        ask(server, path_of("heap"), headers={"X-Request-Id": f"how-{readers}"})
        assert server.export_line(f"how-{readers}")["scan"] == document["scan"]
        assert document["scan"] == ("cursor" if readers == 1 else "cursor, block ranges")
        assert document["reason"] == ("PARALLEL_READERS is 1" if readers == 1 else None)
    assert explained(servers[4], "heap", "parallel=2")["readers"] == 2
    assert explained(servers[2], "heap", "parallel=4")["readers"] == 2
    assert_single(servers[4], postgres, "heap", "parallel=1", "SELECT * FROM heap", "one reader was asked for")
    assert ask(servers[4], path_of("heap", "parallel=3")).body == postgres.copy("SELECT * FROM heap")


# --- when one reader reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "query", "select", "reason"),
    [
        ("seen", "", "SELECT * FROM seen", "a view"),
        ("heap", "order=name", "SELECT * FROM heap ORDER BY name", "sorted"),
        ("heap", "limit=15000", "SELECT * FROM heap LIMIT 15000", "limit or offset"),
        ("heap", "offset=1", "SELECT * FROM heap OFFSET 1", "limit or offset"),
        ("tiny", "", "SELECT * FROM tiny", "small"),
        ("parts", "n=lt.2000", "SELECT * FROM parts WHERE n < 2000", "small"),
        ("parts", "n=lt.0", "SELECT * FROM parts WHERE n < -1", "PostgreSQL plans "),
        ("indexed", "n=lt.20", "SELECT * FROM indexed WHERE n < 20", "PostgreSQL plans "),
        ("documents", "select=data->>day::date", "SELECT NULL AS day FROM documents", "depend on the time"),
        ("heap", "at=lt.now", "SELECT * FROM heap WHERE at < now()", "depend on the time"),
        ("heap", "or=(n.eq.1,at.in.(epoch,Yesterday))", "SELECT * FROM heap WHERE n = 1", "depend on the time"),
        (
            "heap",
            f"n=in.({','.join(map(str, range(1, 2000)))})",
            "SELECT * FROM heap WHERE n < 2000",
            "a long query",
        ),
    ],
)
def test_one_reader_reads_what_cannot_be_read_by_ranges(
    server: LiveServer, postgres: Postgres, relation: str, query: str, select: str, reason: str
) -> None:
    assert_single(server, postgres, relation, query, select, reason)


@pytest.fixture
def role_server(
    postgres: Postgres, database_url: str, start_live: Callable[..., LiveServer]
) -> Iterator[Callable[..., LiveServer]]:
    """Make a role with these options and rights, and start a server with three readers that connects as it."""

    def start(rights: str, options: str = "", dsn: str = "") -> LiveServer:
        postgres.run(f"CREATE ROLE clerk LOGIN {options}")
        postgres.run(rights)
        url = database_url.replace("postgresql://postgres@", "postgresql://clerk@", 1)
        return start_live(DATABASE_URL=url + dsn, PARALLEL_READERS="3")

    yield start
    if postgres.run("SELECT 1 FROM pg_roles WHERE rolname = 'clerk'"):
        postgres.run("DROP OWNED BY clerk; DROP ROLE clerk")
    postgres.run("DROP SCHEMA IF EXISTS closed CASCADE")


CLERK_READS = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO clerk"


def test_a_reading_role_has_ranges(role_server: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = role_server(CLERK_READS)
    for relation in ("heap", "parts", "parent", "stored"):
        assert explained(server, relation)["scan"] == "cursor, block ranges"
        assert ask(server, path_of(relation)).body == postgres.copy(f"SELECT * FROM {relation}")


@pytest.mark.slow
@pytest.mark.parametrize("on", ["copied", "copied_parent", "copied_leaf"])
def test_one_reader_reads_under_row_level_security(
    role_server: Callable[..., LiveServer], postgres: Postgres, on: str
) -> None:
    # A policy of a partitioned table applies to its partitions only if they are read through it.
    postgres.run(f"CREATE TABLE copied ({COLUMNS}) WITH (fillfactor = 10); INSERT INTO copied SELECT * FROM heap")
    postgres.run(f"CREATE TABLE copied_parent ({COLUMNS}) PARTITION BY LIST (g)")
    postgres.run("CREATE TABLE copied_leaf PARTITION OF copied_parent DEFAULT WITH (fillfactor = 10)")
    postgres.run("INSERT INTO copied_parent SELECT * FROM heap; ANALYZE copied, copied_parent")
    postgres.run(f"ALTER TABLE {on} ENABLE ROW LEVEL SECURITY; CREATE POLICY halves ON {on} USING (n % 2 = 0)")
    server = role_server(CLERK_READS)
    read = "copied" if on == "copied" else "copied_parent"
    seen = " WHERE n % 2 = 0" if on == read else ""
    assert_single(server, postgres, read, "", f"SELECT * FROM {read}{seen}", "row-level security")


def test_one_reader_reads_virtual_columns_of_partitions(server: LiveServer, postgres: Postgres) -> None:
    if postgres.connection.server_version < 180000:
        pytest.skip("virtual generated columns are new in PostgreSQL 18")
    # A query shows the expression of the table that it names.
    postgres.run("CREATE TABLE made (n int, v int GENERATED ALWAYS AS (n * 2) VIRTUAL) PARTITION BY RANGE (n)")
    postgres.run(
        "CREATE TABLE made_1 PARTITION OF made (v GENERATED ALWAYS AS (n * 3) VIRTUAL) FOR VALUES FROM (0) TO (90000) "
        "WITH (fillfactor = 10)"
    )
    postgres.run("INSERT INTO made (n) SELECT generate_series(1, 30000); ANALYZE made")
    assert_single(server, postgres, "made", "", "SELECT * FROM made", "virtual generated columns")
    assert explained(server, "made_1")["scan"] == "cursor, block ranges"
    assert ask(server, path_of("made_1")).body == postgres.copy("SELECT * FROM made_1")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["the role's setting", "the URI"])
def test_one_reader_reads_as_another_role(role_server: Callable[..., LiveServer], postgres: Postgres, way: str) -> None:
    if way == "the URI":
        server = role_server("GRANT postgres TO clerk", dsn="&options=-c%20role%3Dpostgres")
    else:
        server = role_server("GRANT postgres TO clerk; ALTER ROLE clerk SET role = 'postgres'")
    assert_single(server, postgres, "heap", "", "SELECT * FROM heap", "another role")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rights",
    [
        "GRANT SELECT ON parts TO clerk",
        f"{CLERK_READS}; REVOKE SELECT ON parts_4 FROM clerk; GRANT SELECT (n) ON parts_4 TO clerk",
        f"{CLERK_READS}; CREATE SCHEMA closed; ALTER TABLE parts_4 SET SCHEMA closed",
    ],
    ids=["only the parent", "only a column of a leaf", "a leaf in a closed schema"],
)
def test_one_reader_reads_leaves_that_the_role_may_not_read_by_themselves(
    role_server: Callable[..., LiveServer], postgres: Postgres, rights: str
) -> None:
    server = role_server(rights)
    try:
        assert_single(server, postgres, "parts", "", "SELECT * FROM parts", "may not read by itself")
    finally:
        if "closed" in rights:
            postgres.run("ALTER TABLE closed.parts_4 SET SCHEMA public")


def test_one_reader_reads_single_columns(role_server: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = role_server("GRANT SELECT (n, name) ON heap TO clerk")
    assert_single(server, postgres, "heap", "select=n,name", "SELECT n, name FROM heap", "may not read by itself")


def plan_of(relation: Any, query: str = "") -> ExportPlan:
    return make_plan(parse_export_request(f"{quote(relation.name)}.csv", query), relation)


# --- readers are a shared budget ---------------------------------------------------------------------------------


def test_many_exports_at_once_share_the_readers(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(PARALLEL_READERS="4", MAX_CONCURRENT_EXPORTS="8")
    right = {name: postgres.copy(f"SELECT * FROM {name}") for name in ("heap", "parts", "churned")}
    names = [*right] * 8

    def download(number: int) -> tuple[int, str, bool]:
        answer = ask(server, path_of(names[number]), headers={"X-Request-Id": f"crowd-{number}"})
        return answer.status, answer.ending, answer.body == right[names[number]]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(download, range(len(names)))) == [(200, "terminator", True)] * len(names)
    leave_nothing(postgres)


@pytest.mark.slow
def test_exports_start_while_others_use_all_the_readers(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(PARALLEL_READERS="3", MAX_CONCURRENT_EXPORTS="4")
    with contextlib.ExitStack() as clients:
        waiting = []
        for number in (3, 4, 5):  # three readers, and the one that every export has
            client = clients.enter_context(Client(server.connect(receive_buffer=4096)))
            client.send(path_of("large"))
            come_to_rest(server, postgres, number)
            waiting.append(client)
        # One export slot is left, with one reader.
        assert ask(server, path_of("heap")).body == postgres.copy("SELECT * FROM heap")
        # The export with one reader continues while the others wait.
        answer = waiting[2].read()
        assert (answer.status, answer.ending) == (200, "terminator")
        assert answer.body == postgres.copy("SELECT * FROM large")
    leave_nothing(postgres)
    # Their readers are available again.
    with stalled(server, postgres, "large", "afterwards"):
        pass
    leave_nothing(postgres)


@pytest.mark.parametrize("limit", [1, 2])
def test_fewer_readers_read_when_postgresql_has_no_more_connections(
    role_server: Callable[..., LiveServer], postgres: Postgres, limit: int
) -> None:
    server = role_server(CLERK_READS, options=f"CONNECTION LIMIT {limit}")
    # The worker's first check may still use the only connection.
    wait_until("it is ready", lambda: ask(server, "/health/ready").status == 200)
    for number in range(3):
        answer = ask(server, path_of("heap"), headers={"X-Request-Id": f"limited-{number}"})
        assert (answer.status, answer.ending) == (200, "terminator")
        assert answer.body == postgres.copy("SELECT * FROM heap")
        assert server.export_line(f"limited-{number}")["scan"] == "cursor, block ranges"
    server.wait_for_log("a reader ended early")


# --- when something goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
@pytest.mark.parametrize("reader", [0, 1, 2])
def test_a_reader_that_ends_while_it_waits_for_the_client_cuts_the_stream(
    server: LiveServer, postgres: Postgres, reader: int, function: str
) -> None:
    # It reads on, and notices, only after what it has read of its range has been handed over.
    request_id = f"{function}-{reader}"
    with stalled(server, postgres, "large", request_id) as (client, pids):
        assert postgres.run(f"SELECT {function}({pids[reader]})") == [(True,)]
        answer = client.read()
    right = postgres.copy("SELECT * FROM large")
    assert (answer.status, answer.ending) == (200, "reset")
    assert right.startswith(answer.body)
    assert len(answer.body) < len(right)
    line = server.export_line(request_id)
    assert line["outcome"] == "failed"
    assert line["code"] == ("database_unavailable" if function == "pg_terminate_backend" else "query_cancelled")
    leave_nothing(postgres)
    assert ask(server, path_of("heap")).body == postgres.copy("SELECT * FROM heap")


def test_curl_reports_that_a_stream_whose_first_reader_died_failed(
    server: LiveServer, postgres: Postgres, tmp_path: Path
) -> None:
    file = tmp_path / "large.csv"
    # Slow enough that the readers wait: the whole file would take ten seconds.
    with subprocess.Popen(
        ["curl", "-sS", "--limit-rate", "8M", "-o", str(file), f"{server.url}{path_of('large')}"],
        stderr=subprocess.PIPE,
    ) as curl:
        wait_until("three readers wait for curl", lambda: len(waiting_readers(postgres)) == 3)
        postgres.run(f"SELECT pg_terminate_backend({waiting_readers(postgres)[0]})")
        _, complaint = curl.communicate(timeout=60)
    assert curl.returncode in (18, 56), complaint
    received = file.read_bytes()
    right = postgres.copy("SELECT * FROM large")
    assert right.startswith(received)
    assert len(received) < len(right)
    leave_nothing(postgres)


def test_an_error_in_a_late_range_cuts_the_stream_there(server: LiveServer, postgres: Postgres) -> None:
    if postgres.connection.server_version < 180000:
        pytest.skip("virtual generated columns, which fail when they are read, are new in PostgreSQL 18")
    postgres.run("CREATE TABLE failing (n int, x int GENERATED ALWAYS AS (1 / (n - 29000))) WITH (fillfactor = 10)")
    postgres.run("INSERT INTO failing SELECT generate_series(1, 30000); ANALYZE failing")
    assert explained(server, "failing")["readers"] == 3
    for _ in range(5):
        answer = ask(server, path_of("failing"), headers={"X-Request-Id": "late"})
        assert (answer.status, answer.ending) == (200, "reset")
        assert postgres.copy("SELECT n, 1 / (n - 29000) AS x FROM failing WHERE n < 29000").startswith(answer.body)
        assert server.export_line("late")["code"] == "relation_failed"
    leave_nothing(postgres)


def test_a_client_that_leaves_stops_all_readers(server: LiveServer, postgres: Postgres) -> None:
    with stalled(server, postgres, "huge", "left-waiting"):
        pass
    leave_nothing(postgres)
    assert server.export_line("left-waiting")["outcome"] == "client_left"
    with Client(server.connect()) as client:
        client.send(path_of("huge"), headers={"X-Request-Id": "left-reading"})
        received = 0
        while received < 20_000_000:
            received += len(client.socket.recv(1 << 18))
    leave_nothing(postgres)
    assert server.export_line("left-reading")["outcome"] == "client_left"
    # A client that leaves is no error of the server.
    assert [line for line in server.log if "level=error" in line] == []


def test_all_readers_wait_for_a_client_that_does_not_read(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(PARALLEL_READERS="3")
    assert ask(server, path_of("heap")).status == 200  # everything that is loaded once is loaded now
    (worker,) = server.workers()
    before = worker.memory_info().rss
    with stalled(server, postgres, "huge", "stalls") as (client, pids):
        held = worker.memory_info().rss - before
        # More than the connections hold, so other backends would wait now if a reader had continued.
        for _ in range(100):
            client.receive()
        assert come_to_rest(server, postgres, 3) == pids
        held = max(held, worker.memory_info().rss - before)
    # Of a file of 380 MB.
    assert held < 64 << 20
    leave_nothing(postgres)


async def in_process(database: Database, relation: str, session: Session) -> OpenExport:
    plan = plan_of(await session.relation(RelationName(relation)))
    export = OpenExport(make_engine(database), session, plan)
    await export.strategy()
    return export


async def test_a_waiting_alter_table_does_not_block_the_readers(settings: Settings, postgres: Postgres) -> None:
    # ALTER TABLE waits for the first reader, the others would wait for ALTER TABLE, and the first for the others.
    right = postgres.copy("SELECT * FROM heap")
    other = postgres.connect()
    async with open_database(replace(settings, parallel_readers=3)) as database, database.session() as session:
        export = await in_process(database, "heap", session)
        assert (await export.strategy()).readers == 3
        altering = asyncio.create_task(
            asyncio.to_thread(other.cursor().execute, "BEGIN; ALTER TABLE heap ADD COLUMN more int; ROLLBACK")
        )
        await asyncio.to_thread(
            wait_until,
            "ALTER TABLE waits",
            lambda: postgres.run("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"),
        )
        body = b""
        async with asyncio.timeout(60), contextlib.aclosing(export.chunks()) as chunks:
            async for chunk in chunks:
                body += chunk.data
        assert not altering.done()
    await altering
    other.close()
    assert body == right


async def test_a_first_reader_that_has_lost_its_connection_raises_it(settings: Settings, postgres: Postgres) -> None:
    async with open_database(settings) as database, database.session() as session:
        export = await in_process(database, "heap", session)
        strategy = await export.strategy()
        postgres.run(f"SELECT pg_terminate_backend({session.backend_pid})")
        ranges = Ranges(1, 1)
        make_reader = lambda: encoders(native=True).reader(export.plan.dialect, export.plan.format)  # noqa: E731
        scan = _Scan(export.plan, strategy, make_reader, ranges, Memory(0))
        reading = asyncio.create_task(scan.read(session, ranges.reader(permanent=True)))
        async with asyncio.timeout(10):
            with pytest.raises(errors.ConnectionLost):
                await anext(ranges.chunks())
            with pytest.raises(errors.ConnectionLost):
                await reading


# --- settings that differ between connections --------------------------------------------------------------------


def test_all_readers_write_in_the_time_zone_of_the_first(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    postgres.run(
        "CREATE TABLE moments AS SELECT n, timestamptz '2024-01-01 00:00:00Z' + n * interval '1 minute' AS moment, "
        "repeat('x', 900) AS filler FROM generate_series(1, 16000) AS n"
    )
    name = postgres.run("SELECT current_database()")[0][0]
    server = start_live(PARALLEL_READERS="3")
    assert ask(server, "/health/ready").status == 200  # one connection is open, with the old settings
    postgres.run(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    try:
        answer = ask(server, "/export/moments.csv?select=moment")
    finally:
        postgres.run(f"ALTER DATABASE {name} RESET timezone")
    zones = {line[-3:] for line in answer.body.splitlines()[1:]}
    assert len(zones) == 1


def test_no_reader_scans_in_parallel(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    postgres.run(
        "CREATE TABLE leaves (n int, k int, filler text) PARTITION BY LIST (k);"
        + "".join(f"CREATE TABLE leaf_{k} PARTITION OF leaves FOR VALUES IN ({k});" for k in range(8))
        + "INSERT INTO leaves SELECT n, n % 8, repeat('x', 900) FROM generate_series(1, 16000) AS n"
    )
    name = postgres.run("SELECT current_database()")[0][0]
    eager = ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size")
    for setting in eager:
        postgres.run(f"ALTER DATABASE {name} SET {setting} = 0")
    try:
        server = start_live(PARALLEL_READERS="3")
        answers = {ask(server, "/export/leaves.csv?filler=imatch.x").body for _ in range(3)}
    finally:
        for setting in eager:
            postgres.run(f"ALTER DATABASE {name} RESET {setting}")
    assert answers == {postgres.copy("SELECT * FROM leaves")}


def test_a_role_that_may_not_export_a_snapshot_has_one_reader(
    role_server: Callable[..., LiveServer], postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE plain AS SELECT n, repeat('x', 900) AS filler FROM generate_series(1, 16000) AS n")
    postgres.run("REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM public")
    try:
        server = role_server("GRANT SELECT ON plain TO clerk")
        assert ask(server, "/export/plain.csv").body == postgres.copy("SELECT * FROM plain")
        explained = json.loads(ask(server, "/relations/plain?explain").body)
    finally:
        postgres.run("GRANT EXECUTE ON FUNCTION pg_export_snapshot() TO public")
    assert (explained["scan"], explained["reason"]) == ("cursor", "the role may not export a snapshot")
