"""The catalogue as JSON: all relations, one relation, and its first rows under the same query string as an export."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import psycopg2
import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import create_app
from server.export.preview import PREVIEW_TIMEOUT
from server.export.strategy import FEWEST_BLOCKS
from server.query.plan import PREVIEW_ROWS
from server.settings import Settings
from tests.support.live_server import LiveServer, eventually, wait_until
from tests.support.postgres import Postgres

# Seconds: much longer than an answer that waits for nothing takes. One that waits for a lock never comes.
AT_ONCE = 30.0


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """Open a client of a server with these settings."""
    async with TestClient(TestServer(create_app(settings))) as opened:
        yield opened


async def answer(client: TestClient[Any, Any], path: str, status: int = 200) -> dict[str, Any]:
    """Return the JSON at this path, which is percent-encoded already."""
    async with client.get(URL(path, encoded=True)) as response:
        assert response.status == status, await response.text()
        assert response.content_type == ("application/json" if status == 200 else "application/problem+json")
        assert response.headers["Cache-Control"] == "no-store"
        document: dict[str, Any] = await response.json()
        return document


async def listed(client: TestClient[Any, Any]) -> dict[str, dict[str, Any]]:
    """Return all relations by name."""
    document = await answer(client, "/relations")
    assert document.keys() == {"relations"}
    return {relation["name"]: relation for relation in document["relations"]}


def path_of(name: str, *, schema: str | None = None) -> str:
    """Return the path of a relation's description, with the name in double quotes."""
    parts = [part.replace("\\", "\\\\").replace('"', '\\"') for part in ([schema, name] if schema else [name])]
    return "/relations/" + quote(".".join(f'"{part}"' for part in parts), safe="")


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def as_text(postgres: Postgres, query: str) -> list[list[str | None]]:
    """Return the rows with every value as PostgreSQL writes it."""
    with postgres.connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM ({query}) AS nothing LIMIT 0")
        assert cursor.description is not None
        oids = tuple(column.type_code for column in cursor.description)
        psycopg2.extensions.register_type(psycopg2.extensions.new_type(oids, "RAW", lambda value, _: value), cursor)
        cursor.execute(query)
        return [list(row) for row in cursor.fetchall()]


# --- The list, and one relation. ---


async def test_a_relation_is_described(client: TestClient[Any, Any], postgres: Postgres) -> None:
    heap, toast = postgres.run(
        "SELECT pg_relation_size('users'), pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'users'::regclass"
    )[0]
    rows = postgres.run("SELECT count(*) FROM users")[0][0]
    assert await answer(client, "/relations/users") == {
        "schema": "public",
        "name": "users",
        "kind": "table",
        "isPartition": False,
        "estimatedRows": rows,
        "bytes": heap + toast,
        "comment": None,
        "columns": [
            {"name": "id", "type": "bigint", "nullable": False, "indexed": True},
            {"name": "name", "type": "text", "nullable": False, "indexed": False},
            {"name": "email", "type": "text", "nullable": True, "indexed": False},
            {"name": "signup_date", "type": "timestamp with time zone", "nullable": False, "indexed": True},
            {"name": "country_code", "type": "character(2)", "nullable": False, "indexed": True},
            {"name": "subscription_tier", "type": "text", "nullable": False, "indexed": False},
            {"name": "lifetime_value", "type": "numeric(10,2)", "nullable": True, "indexed": False},
        ],
        "exportUrl": "/export/users.csv",
    }


async def test_the_list_consists_of_the_descriptions(client: TestClient[Any, Any]) -> None:
    relations_listed = await listed(client)
    assert {"users", "orders", "orders_2024_01", "revenue_by_country"} <= relations_listed.keys()
    for name in ("users", "orders", "orders_2025_12", "revenue_by_country"):
        assert await answer(client, f"/relations/{name}") == relations_listed[name]
        assert await answer(client, f"/relations/public.{name}") == relations_listed[name]


async def test_partitions_come_last_and_are_counted_in_their_parent(client: TestClient[Any, Any]) -> None:
    every = list((await listed(client)).values())
    partitions = [relation for relation in every if relation["isPartition"]]
    assert [relation["name"] for relation in every[-24:]] == [relation["name"] for relation in partitions]
    orders = next(relation for relation in every if relation["name"] == "orders")
    assert orders["kind"] == "partitioned table"
    assert orders["estimatedRows"] == sum(partition["estimatedRows"] for partition in partitions) > 0
    assert orders["bytes"] == sum(partition["bytes"] for partition in partitions) > 0


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("CREATE TABLE {0} (a int)", "table"),
        ("CREATE UNLOGGED TABLE {0} (a int)", "table"),
        ("CREATE TABLE {0} (a int) PARTITION BY LIST (a)", "partitioned table"),
        ("CREATE VIEW {0} AS SELECT 1 AS a", "view"),
        ("CREATE MATERIALIZED VIEW {0} AS SELECT 1 AS a", "materialized view"),
    ],
)
async def test_every_kind_has_its_name(
    client: TestClient[Any, Any], postgres: Postgres, statement: str, kind: str
) -> None:
    postgres.run(statement.format("of_a_kind"))
    assert (await listed(client))["of_a_kind"]["kind"] == kind
    described = await answer(client, "/relations/of_a_kind")
    assert described["columns"] == [{"name": "a", "type": "integer", "nullable": True, "indexed": False}]


async def test_unknown_estimates_are_null(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE VIEW unknown AS SELECT 1 AS a")
    described = await answer(client, "/relations/unknown")
    assert (described["estimatedRows"], described["bytes"]) == (None, None)
    # The table was never analysed, so PostgreSQL has no estimate.
    postgres.run("CREATE TABLE never (a int); INSERT INTO never VALUES (1)")
    described = await answer(client, "/relations/never")
    assert (described["estimatedRows"], described["bytes"]) == (None, None)
    postgres.run("VACUUM ANALYZE never")
    described = await answer(client, "/relations/never")
    assert (described["estimatedRows"], described["bytes"]) == (1, 8192)
    # A partition for a time to come stays without statistics. It does not hide the size of the others.
    postgres.run("""
        CREATE TABLE parts (a int) PARTITION BY LIST (a);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1); INSERT INTO parts VALUES (1)""")
    assert (await answer(client, "/relations/parts"))["bytes"] is None
    postgres.run("VACUUM ANALYZE parts_1")
    postgres.run("CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2)")
    assert (await answer(client, "/relations/parts"))["bytes"] == 8192


async def test_toasted_values_are_counted(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE large (a text); ALTER TABLE large ALTER a SET STORAGE EXTERNAL")
    postgres.run("INSERT INTO large VALUES (repeat('x', 1000000)); VACUUM".partition(";")[0])
    postgres.run("VACUUM ANALYZE large")
    assert 1_000_000 < (await answer(client, "/relations/large"))["bytes"] < 1_200_000


@pytest.mark.usefixtures("described_types")
async def test_types_are_named_as_postgresql_names_them(client: TestClient[Any, Any], postgres: Postgres) -> None:
    declared = {
        "a": ("varchar(10)", "character varying(10)"),
        "b": ("numeric(5, 1)", "numeric(5,1)"),
        "c": ("integer[]", "integer[]"),
        "d": ("timestamptz(3)", "timestamp(3) with time zone"),
        "e": ("described.mood", "described.mood"),
        "f": ('described."odd type"', 'described."odd type"'),
        "g": ("described.positive[]", "described.positive[]"),
        "h": ('"char"', '"char"'),
        "i": ("bit(3)", "bit(3)"),
        "j": ("interval day to second(2)", "interval day to second(2)"),
    }
    columns = ", ".join(f"{name} {type}" for name, (type, _) in declared.items())
    postgres.run(f"CREATE TABLE typed ({columns})")
    described = await answer(client, "/relations/typed")
    assert {column["name"]: column["type"] for column in described["columns"]} == {
        name: written for name, (_, written) in declared.items()
    }


@pytest.fixture
def described_types(postgres: Postgres) -> Iterator[None]:
    """Create a schema with user-defined types."""
    postgres.run(
        "DROP SCHEMA IF EXISTS described CASCADE; CREATE SCHEMA described;"
        "CREATE TYPE described.mood AS ENUM ('sad'); CREATE DOMAIN described.\"odd type\" AS text;"
        "CREATE DOMAIN described.positive AS integer CHECK (VALUE > 0)"
    )
    yield
    postgres.run("DROP SCHEMA described CASCADE")


async def test_nullable_and_indexed(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run(
        """
        CREATE TABLE indexed (key int, part int, both_a int NOT NULL, both_b int, partial int, hashed text,
            lowered text, gin int[], uniq int UNIQUE, included int, dropped int, plain int, PRIMARY KEY (key, part));
        CREATE INDEX ON indexed (both_a, both_b);
        CREATE INDEX ON indexed (partial) WHERE partial > 0;
        CREATE INDEX ON indexed USING hash (hashed);
        CREATE INDEX ON indexed (lower(lowered));
        CREATE INDEX ON indexed USING gin (gin);
        CREATE INDEX ON indexed (both_a DESC) INCLUDE (included);
        CREATE INDEX gone ON indexed (dropped);
        DROP INDEX gone
        """
    )
    columns = (await answer(client, "/relations/indexed"))["columns"]
    # Only the first column of an index: the others do not serve a filter of their own, and an expression is no column.
    leading = {"key", "both_a", "partial", "hashed", "gin", "uniq"}
    assert {column["name"] for column in columns if column["indexed"]} == leading
    assert {column["name"] for column in columns if not column["nullable"]} == {"key", "part", "both_a"}


async def test_dropped_columns_are_not_listed(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE shrunk (a int, b int, c int); ALTER TABLE shrunk DROP b")
    assert [column["name"] for column in (await answer(client, "/relations/shrunk"))["columns"]] == ["a", "c"]
    postgres.run("ALTER TABLE shrunk DROP a, DROP c")
    assert (await answer(client, "/relations/shrunk"))["columns"] == []


# --- Names. ---

ODD_NAMES = [
    "Users", "select", "my table", "my.table", ".", "..", "../../etc/passwd", "a/b", "/", "a//b", "x/preview",
    "/preview", "preview", "preview/preview", "a%2Fb", "a+b", "a?b#c&d=e", 'a"b', '"', "a\\b.c\\", "%(name)s %s %",
    "'; DROP TABLE users; --", "a\r\nSet-Cookie: b=c", "\t", "größe", "🦥", "\u202egpj.exe", "x" * 63, "csv", " ",
    "users.csv",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names_are_listed_described_previewed_and_exported(
    client: TestClient[Any, Any], postgres: Postgres, name: str
) -> None:
    postgres.run(f"CREATE TABLE {identifier(name)} AS SELECT 1 AS {identifier(name)}, 'x' AS other")
    described = (await listed(client))[name]
    assert [column["name"] for column in described["columns"]] == [name, "other"]
    assert await answer(client, path_of(name)) == described
    preview = await answer(client, path_of(name) + "/preview")
    assert preview == {
        "columns": [{"name": name, "type": "integer"}, {"name": "other", "type": "text"}],
        "rows": [["1", "x"]],
    }
    url = described["exportUrl"]
    assert url.isascii()
    async with client.get(URL(url, encoded=True)) as response:
        assert response.status == 200
        assert await response.read() == postgres.copy(f"SELECT * FROM {identifier(name)}")


async def test_a_relation_whose_name_ends_like_a_preview_is_found(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run('CREATE TABLE x AS SELECT 1 AS of_x; CREATE TABLE "x/preview" AS SELECT 2 AS of_the_other')
    assert (await answer(client, "/relations/x"))["name"] == "x"
    assert (await answer(client, "/relations/x%2Fpreview"))["name"] == "x/preview"
    assert (await answer(client, "/relations/x%2fpreview"))["name"] == "x/preview"
    assert (await answer(client, "/relations/x/preview"))["rows"] == [["1"]]
    assert (await answer(client, "/relations/x%2Fpreview/preview"))["rows"] == [["2"]]
    # Without a relation x there is no preview of x.
    postgres.run("DROP TABLE x")
    await answer(client, "/relations/x/preview", 404)


async def test_every_url_of_the_list_is_an_export(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run('CREATE TABLE "a/b.c" (); CREATE VIEW nothing AS SELECT WHERE false')
    every = await listed(client)
    assert len(every) > 28
    for relation in every.values():
        async with client.get(URL(relation["exportUrl"] + "?limit=1", encoded=True)) as response:
            assert response.status == 200, relation


async def test_relations_of_several_schemas(settings: Settings, postgres: Postgres) -> None:
    postgres.run(
        "DROP SCHEMA IF EXISTS other CASCADE; CREATE SCHEMA other; CREATE TABLE other.users AS SELECT 'other' AS whose;"
        'CREATE TABLE other."a.b" AS SELECT 1 AS one; CREATE SCHEMA IF NOT EXISTS hidden;'
        "CREATE TABLE IF NOT EXISTS hidden.secret ()"
    )
    try:
        async with serving(replace(settings, export_schemas=("public", "other"))) as client:
            document = await answer(client, "/relations")
            urls = {(one["schema"], one["name"]): one["exportUrl"] for one in document["relations"]}
            assert urls["public", "users"] == "/export/users.csv"
            assert urls["other", "users"] == "/export/other.users.csv"
            assert {schema for schema, _ in urls} == {"public", "other"}
            async with client.get(URL(urls["other", "users"], encoded=True)) as response:
                assert await response.text() == "whose\nother\n"
            async with client.get(URL(urls["other", "a.b"], encoded=True)) as response:
                assert await response.text() == "one\n1\n"
            assert (await answer(client, "/relations/users"))["schema"] == "public"
            assert (await answer(client, "/relations/other.users"))["schema"] == "other"
            assert (await answer(client, path_of("a.b", schema="other")))["name"] == "a.b"
            assert (await answer(client, "/relations/other.users/preview"))["rows"] == [["other"]]
            await answer(client, "/relations/hidden.secret", 404)
    finally:
        postgres.run("DROP SCHEMA other CASCADE; DROP SCHEMA hidden CASCADE")


NAMED, ALSO_IN = "X-Sluice-Relation", "X-Sluice-Also-In"


async def test_the_answer_says_which_of_several_schemas_was_found(settings: Settings, postgres: Postgres) -> None:
    postgres.run(
        'CREATE SCHEMA other; CREATE SCHEMA "th.ird"; CREATE TABLE other.twin AS SELECT 2 AS place;'
        'CREATE TABLE "th.ird".twin AS SELECT 3 AS place; CREATE TABLE twin AS SELECT 1 AS place;'
        "CREATE TABLE other.single AS SELECT 4 AS place; CREATE TYPE other.users AS (a int)"
    )
    schemas = ("public", "other", "th.ird", "missing")
    try:
        async with serving(replace(settings, export_schemas=schemas)) as client:
            for path, found, others in (
                ("/export/twin.csv", "public.twin", "other, th.ird"),
                ("/export/public.twin.csv", "public.twin", None),
                ("/export/other.twin.csv", "other.twin", None),
                ("/export/single.csv", "other.single", None),
                ("/export/users.csv", "public.users", None),  # the other is a type
                ("/export/%22th.ird%22.twin.csv", "%22th.ird%22.twin", None),
            ):
                for method in ("GET", "HEAD"):
                    async with client.request(method, URL(path + "?limit=1", encoded=True)) as response:
                        assert response.status == 200
                        assert (response.headers[NAMED], response.headers.get(ALSO_IN)) == (found, others)
                document = await answer(client, path.replace("/export/", "/relations/").replace(".csv", "?explain"))
                assert document["alsoIn"] == ([] if others is None else others.split(", "))
                assert document["schema"] == found.rpartition(".")[0].replace("%22", "")
            async with client.post("/export/twin.csv") as response:
                assert response.status == 202
                assert (response.headers[NAMED], response.headers[ALSO_IN]) == ("public.twin", "other, th.ird")
                assert (await response.json())["relation"] == "public.twin"
            async with client.get("/table/twin") as response:
                page = await response.text()
            assert '<a href="/table/other.twin">other.twin</a>' in page
            assert "public is the first schema with this name." in page
            async with client.get("/table/public.twin") as response:
                assert "first schema" not in await response.text()
    finally:
        postgres.run('DROP SCHEMA other CASCADE; DROP SCHEMA "th.ird" CASCADE')


async def test_a_schema_that_the_role_may_not_read_is_not_named(settings: Settings, postgres: Postgres) -> None:
    postgres.run(
        "CREATE SCHEMA other; CREATE TABLE other.twin AS SELECT 2 AS place; CREATE TABLE twin AS SELECT 1 AS place"
    )
    try:
        with role(postgres, settings, "GRANT SELECT ON twin TO sluice_narrow") as narrow:
            async with serving(replace(narrow, export_schemas=("other", "public"))) as client:
                for grant in ("GRANT USAGE ON SCHEMA other TO sluice_narrow", "SELECT 1"):
                    async with client.get("/export/twin.csv") as response:
                        assert (response.headers[NAMED], response.headers.get(ALSO_IN)) == ("public.twin", None)
                    postgres.run(grant)
    finally:
        postgres.run("DROP SCHEMA other CASCADE")


async def test_the_hint_for_a_name_with_dots_is_an_address_that_works(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run('CREATE TABLE "t.csv" AS SELECT 1 AS one; CREATE TABLE "a.b.c" AS SELECT 2 AS two')
    for path, hinted in (("/export/t.csv.csv", "%22t.csv%22"), ("/export/t.csv", "%22t.csv%22")):
        hint = (await answer(client, path, 404))["hint"]
        assert hint.startswith(f"Did you mean {hinted}?")
        async with client.get(URL(f"/export/{hinted}.csv", encoded=True)) as response:
            assert await response.text() == "one\n1\n"
    hint = (await answer(client, "/export/a.b.c.csv", 400))["hint"]
    assert hint == "Put a name that contains a dot in double quotes: /export/%22a.b.c%22.csv"
    async with client.get(URL(hint.rpartition(" ")[2], encoded=True)) as response:
        assert await response.text() == "two\n2\n"


# --- What a role may see. ---


@contextmanager
def role(postgres: Postgres, settings: Settings, grants: str) -> Iterator[Settings]:
    """Return settings that log in as a role with nothing but these grants."""
    postgres.run("DROP ROLE IF EXISTS sluice_narrow; CREATE ROLE sluice_narrow LOGIN PASSWORD 'of a test'")
    try:
        postgres.run(grants or "SELECT 1")
        dsn = psycopg2.extensions.make_dsn(settings.dsn, user="sluice_narrow", password="of a test")
        yield replace(settings, database_url=dsn)
    finally:
        postgres.run("DROP OWNED BY sluice_narrow; DROP ROLE sluice_narrow")


async def test_a_role_without_privileges_sees_nothing(settings: Settings, postgres: Postgres) -> None:
    with role(postgres, settings, "") as narrow:
        async with serving(narrow) as client:
            assert await answer(client, "/relations") == {"relations": []}
            for path in ("/relations/users", "/relations/users/preview", "/relations/public.users"):
                problem = await answer(client, path, 404)
                assert problem["code"] == "relation_not_found"
                assert problem == {**(await answer(client, path, 404)), "requestId": problem["requestId"]}
                # The answer is that of a missing relation, and the name is not suggested.
                assert "users" not in problem.get("hint", "")


async def test_a_role_sees_only_the_columns_it_may_read(settings: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE salaries AS SELECT 1 AS id, 'Ada' AS name, 100 AS salary")
    with role(postgres, settings, "GRANT SELECT (id, name) ON salaries TO sluice_narrow") as narrow:
        async with serving(narrow) as client:
            assert list(await listed(client)) == ["salaries"]
            described = await answer(client, "/relations/salaries")
            assert [column["name"] for column in described["columns"]] == ["id", "name"]
            assert "salary" not in str(described)
            preview = await answer(client, "/relations/salaries/preview?select=id,name")
            assert preview["rows"] == [["1", "Ada"]]
            for query in ("", "?select=salary", "?select=id&salary=gt.1", "?select=id&order=salary"):
                problem = await answer(client, f"/relations/salaries/preview{query}", 403)
                assert problem["code"] == "columns_not_readable"


async def test_the_relations_of_a_schema_without_usage_are_not_found(settings: Settings, postgres: Postgres) -> None:
    postgres.run("DROP SCHEMA IF EXISTS closed CASCADE; CREATE SCHEMA closed; CREATE TABLE closed.t AS SELECT 1 AS a")
    try:
        with role(postgres, settings, "GRANT SELECT ON closed.t TO sluice_narrow") as narrow:
            async with serving(replace(narrow, export_schemas=("closed",))) as client:
                assert await answer(client, "/relations") == {"relations": []}
                await answer(client, "/relations/closed.t", 404)
    finally:
        postgres.run("DROP SCHEMA closed CASCADE")


# --- The first rows. ---


@pytest.mark.parametrize(
    ("query", "sql"),
    [
        ("", "SELECT * FROM users LIMIT 20"),
        ("limit=5", "SELECT * FROM users LIMIT 5"),
        ("limit=0", "SELECT * FROM users LIMIT 0"),
        ("limit=20", "SELECT * FROM users LIMIT 20"),
        ("limit=21", "SELECT * FROM users LIMIT 20"),
        ("limit=9223372036854775807", "SELECT * FROM users LIMIT 20"),
        ("limit=5&offset=3", "SELECT * FROM users LIMIT 5 OFFSET 3"),
        ("offset=19995", "SELECT * FROM users OFFSET 19995"),
        ("order=id.desc", "SELECT * FROM users ORDER BY id DESC LIMIT 20"),
        ("order=lifetime_value.desc.nullsfirst,id", "SELECT * FROM users ORDER BY lifetime_value DESC, id LIMIT 20"),
        ("id=in.(3,1,2)&order=id", "SELECT * FROM users WHERE id IN (1, 2, 3) ORDER BY id"),
        ("select=id,full%20name:name&limit=2", "SELECT id, name FROM users LIMIT 2"),
        ("select=id,id,id:name&id=eq.7", "SELECT id, id, name FROM users WHERE id = 7"),
        (
            "or=(id.eq.1,email.is.null)&order=id",
            "SELECT * FROM users WHERE id = 1 OR email IS NULL ORDER BY id LIMIT 20",
        ),
        ("name=like.*%22*&order=id", "SELECT * FROM users WHERE name LIKE '%\"%' ORDER BY id LIMIT 20"),
        ("id=lt.0", "SELECT * FROM users WHERE id < 0"),
        # A preview takes the options of a file too. They do not change it.
        ("quote=all&null=x&excel=true&delimiter=;&filename=x&limit=3", "SELECT * FROM users LIMIT 3"),
    ],
)
async def test_a_preview_has_the_first_rows_of_the_export(
    client: TestClient[Any, Any], postgres: Postgres, query: str, sql: str
) -> None:
    postgres.run("SET synchronize_seqscans = off")
    preview = await answer(client, f"/relations/users/preview?{query}")
    assert preview["rows"] == as_text(postgres, sql)
    assert len(preview["rows"]) <= PREVIEW_ROWS == 20
    if "select" not in query:
        described = await answer(client, "/relations/users")
        expected = [{"name": column["name"], "type": column["type"]} for column in described["columns"]]
        assert preview["columns"] == expected


async def test_a_preview_uses_the_aliases_of_the_request(client: TestClient[Any, Any]) -> None:
    preview = await answer(client, "/relations/users/preview?select=id,full%20name:name,id&limit=0")
    assert preview == {
        "columns": [
            {"name": "id", "type": "bigint"},
            {"name": "full name", "type": "text"},
            {"name": "id", "type": "bigint"},
        ],
        "rows": [],
    }


async def test_values_are_postgresqls_text_and_null_is_null(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run(
        """
        CREATE TABLE valued AS SELECT NULL::text AS nothing, '' AS empty, 'null' AS word, true AS yes,
            9223372036854775807::int8 AS big, 0.10::numeric(5, 2) AS dime, 'NaN'::float8 AS nan, 0.1::float8 AS tenth,
            '{"a": 1.0}'::json AS doc, ARRAY[1, NULL] AS several, '\\x00ff'::bytea AS raw, '1 day'::interval AS gap,
            date 'infinity' AS ever, E'two\\nlines "and" \\\\ 🦥 </script>' AS odd, 'a'::"char" AS small
        """
    )
    preview = await answer(client, "/relations/valued/preview")
    values = dict(zip((column["name"] for column in preview["columns"]), preview["rows"][0], strict=True))
    assert values == {
        "nothing": None,
        "empty": "",
        "word": "null",
        "yes": "t",
        "big": "9223372036854775807",
        "dime": "0.10",
        "nan": "NaN",
        "tenth": "0.1",
        "doc": '{"a": 1.0}',
        "several": "{1,NULL}",
        "raw": "\\x00ff",
        "gap": "1 day",
        "ever": "infinity",
        "odd": 'two\nlines "and" \\ 🦥 </script>',
        "small": "a",
    }


async def test_a_preview_without_rows_and_without_columns(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE no_rows (a int); CREATE TABLE no_columns (); CREATE TABLE neither ()")
    postgres.run("INSERT INTO no_columns SELECT FROM generate_series(1, 50)")
    no_rows = await answer(client, "/relations/no_rows/preview")
    assert no_rows == {"columns": [{"name": "a", "type": "integer"}], "rows": []}
    assert await answer(client, "/relations/no_columns/preview") == {"columns": [], "rows": [[]] * 20}
    assert await answer(client, "/relations/neither/preview") == {"columns": [], "rows": []}


async def test_a_preview_uses_the_time_zone_of_the_request(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE moments AS SELECT timestamptz '2024-02-29 12:00+00' AS at, timestamp '2024-02-29' AS ts")
    for zone, written in (("UTC", "2024-02-29 12:00:00+00"), ("Asia%2FKathmandu", "2024-02-29 17:45:00+05:45")):
        preview = await answer(client, f"/relations/moments/preview?timezone={zone}")
        assert preview["rows"] == [[written, "2024-02-29 00:00:00"]]


@pytest.mark.parametrize("odd_name", [False, True], ids=["in values", "in names"])
async def test_bytes_that_are_not_utf8_are_an_error_of_the_database(
    settings: Settings, postgres: Postgres, odd_name: bool
) -> None:
    """A database in SQL_ASCII keeps any bytes, in values and in names."""
    postgres.run("DROP DATABASE IF EXISTS sluice_ascii")
    postgres.run("CREATE DATABASE sluice_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        dsn = psycopg2.extensions.make_dsn(settings.dsn, dbname="sluice_ascii")
        connection = psycopg2.connect(dsn, client_encoding="SQL_ASCII")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE good AS SELECT 'ok' AS v")
            cursor.execute(b"CREATE TABLE bad AS SELECT 'a\xffb'::text AS v")
            if odd_name:
                cursor.execute(b'CREATE TABLE "odd\xff" AS SELECT 1 AS "\xfe"')
        connection.close()
        async with serving(replace(settings, database_url=dsn)) as client:
            async with client.get("/relations/bad/preview") as response:
                assert (response.status, (await response.json())["code"]) == (500, "relation_failed")
            async with client.get("/relations/bad") as response:
                assert response.status == 200
            async with client.get("/relations") as response:
                document = await response.json()
                assert response.status == (500 if odd_name else 200)
                assert not odd_name or "cannot be sent as UTF-8" in document["detail"]
            assert (await answer(client, "/relations/good/preview"))["rows"] == [["ok"]]
            if not odd_name:
                assert (await listed(client)).keys() == {"good", "bad"}
    finally:
        postgres.run("DROP DATABASE sluice_ascii WITH (FORCE)")


# --- Time. ---

SLOW = "CREATE VIEW slow AS SELECT n, pg_sleep(60)::text AS s FROM generate_series(1, 5) AS n"


@pytest.mark.slow
async def test_a_slow_preview_times_out(postgres: Postgres, client: TestClient[Any, Any]) -> None:
    postgres.run(SLOW)
    started = time.monotonic()
    problem = await answer(client, "/relations/slow/preview", 504)
    assert time.monotonic() - started >= PREVIEW_TIMEOUT
    assert problem["code"] == "query_timeout"
    # The limit is that of previews: a longer STATEMENT_TIMEOUT would not change it.
    assert "STATEMENT_TIMEOUT" not in problem.get("hint", "")
    # The query is cancelled after the answer has been sent.
    await eventually("the query has ended", lambda: not any(state == "active" for state, _ in postgres.statements()))
    assert (await answer(client, "/relations/users/preview?limit=1"))["rows"]


async def test_the_limit_is_for_the_whole_preview(
    postgres: Postgres, client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is not for each statement: here the first waits for a lock, and the next one is slow."""
    monkeypatch.setattr("server.export.preview.PREVIEW_TIMEOUT", 2.0)
    postgres.run("CREATE TABLE awaited (a int); INSERT INTO awaited VALUES (1)")
    postgres.run("CREATE VIEW late AS SELECT a, pg_sleep(60)::text AS s FROM awaited")
    holder = postgres.connect()
    try:
        with holder.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE awaited IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        asking = asyncio.create_task(answer(client, "/relations/late/preview", 504))
        await asyncio.sleep(1.0)
        holder.close()
        released = time.monotonic()
        await asking
        # The statement that waited for the lock had 1 s left. A limit for each statement would give the next one 2 s.
        assert time.monotonic() - released < 2.0
        assert time.monotonic() - started >= 2.0
    finally:
        holder.close()


async def test_a_preview_is_tried_again_within_its_limit_if_the_table_is_rewritten_meanwhile(
    postgres: Postgres, client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt waits for a TRUNCATE and ends by it; the second one waits for another lock."""
    monkeypatch.setattr("server.export.preview.PREVIEW_TIMEOUT", 3.0)
    postgres.run("CREATE TABLE rewritten (a int); INSERT INTO rewritten VALUES (1)")
    locks = "SELECT mode FROM pg_locks WHERE relation = 'rewritten'::regclass AND NOT granted ORDER BY mode"
    truncating, locking = postgres.connect(), postgres.connect()
    waiting: asyncio.Future[None] | None = None
    try:
        with truncating.cursor() as first, locking.cursor() as second:
            first.execute("BEGIN; TRUNCATE rewritten; INSERT INTO rewritten VALUES (2)")
            asking = asyncio.create_task(answer(client, "/relations/rewritten/preview", 503))
            await eventually("the preview waits", lambda: postgres.run(locks) == [("AccessShareLock",)])
            second.execute("BEGIN")
            lock = "LOCK TABLE rewritten IN ACCESS EXCLUSIVE MODE"
            waiting = asyncio.ensure_future(asyncio.to_thread(second.execute, lock))
            await eventually("the other lock waits", lambda: len(postgres.run(locks)) == 2)
            await asyncio.sleep(1.5)
            first.execute("COMMIT")
            repeated = time.monotonic()
            await waiting
            await eventually("the preview waits again", lambda: postgres.run(locks) == [("AccessShareLock",)])
            assert (await asking)["code"] == "relation_locked"
            # The second attempt waits for 80 % of the 1.5 s that are left. A limit for each would give it 2.4 s.
            assert time.monotonic() - repeated < 2.2
            second.execute("COMMIT")
        assert (await answer(client, "/relations/rewritten/preview"))["rows"] == [["2"]]
    finally:
        truncating.close()
        if waiting is not None:
            await waiting
        locking.close()


async def test_a_shorter_statement_timeout_applies_to_previews_too(
    settings: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.run(SLOW)
    monkeypatch.setattr("server.export.preview.PREVIEW_TIMEOUT", 600.0)
    async with serving(replace(settings, statement_timeout=0.5)) as client:
        assert (await answer(client, "/relations/slow/preview", 504))["code"] == "query_timeout"


def test_a_client_that_leaves_a_preview_stops_its_query(live: LiveServer, postgres: Postgres) -> None:
    postgres.run(SLOW)
    connection = live.request("/relations/slow/preview")
    wait_until("the query runs", lambda: any(state == "active" for state, _ in postgres.statements()))
    connection.close()
    wait_until(
        "the query has ended",
        lambda: not any(state == "active" for state, _ in postgres.statements()),
    )


LOCKS = {
    "locked": "LOCK TABLE busy IN ACCESS EXCLUSIVE MODE",
    "truncated": "TRUNCATE busy",
    "altered": "ALTER TABLE busy ADD more text",
    "rewritten": "ALTER TABLE busy ALTER id TYPE numeric",
    "indexed": "CREATE INDEX ON busy (id)",
    "dropped": "DROP TABLE busy",
}


@contextmanager
def busy(postgres: Postgres, statement: str) -> Iterator[None]:
    """Create the table `busy`, with TOASTed values. An open transaction holds the lock of this statement on it."""
    postgres.run("CREATE TABLE busy (id int, note text); ALTER TABLE busy ALTER note SET STORAGE EXTERNAL")
    postgres.run("INSERT INTO busy VALUES (1, repeat('x', 20000))")
    holder = postgres.connect()
    try:
        with holder.cursor() as cursor:
            cursor.execute(f"BEGIN; {statement}")
        yield
    finally:
        holder.close()


@pytest.mark.parametrize("lock", LOCKS)
async def test_the_list_does_not_wait_for_locks(postgres: Postgres, client: TestClient[Any, Any], lock: str) -> None:
    with busy(postgres, LOCKS[lock]):
        async with asyncio.timeout(AT_ONCE):
            described = (await listed(client))["busy"]
    assert [column["name"] for column in described["columns"]] == ["id", "note"]


@pytest.mark.parametrize("lock", LOCKS)
async def test_descriptions_do_not_wait_for_locks_and_delay_no_other_request(
    postgres: Postgres, client: TestClient[Any, Any], lock: str
) -> None:
    with busy(postgres, LOCKS[lock]):
        # More requests than there are control connections.
        asking = [asyncio.create_task(answer(client, "/relations/busy")) for _ in range(3)]
        ready = asyncio.create_task(answer(client, "/health/ready"))
        _, waiting = await asyncio.wait([*asking, ready], timeout=AT_ONCE)
        health_waits = ready in waiting
        for task in waiting:
            task.cancel()
        described = await asyncio.gather(*asking, ready, return_exceptions=True)
    assert not waiting, f"{len(waiting)} of 4 still waited after {AT_ONCE:g} s; /health/ready: {health_waits}"
    assert [one["name"] for one in described[:3] if isinstance(one, dict)] == ["busy"] * 3


# --- Bad requests. ---


@pytest.mark.parametrize(
    ("path", "status", "code", "named"),
    [
        ("/relations?limit=1", 400, "unknown_parameter", ""),
        ("/relations?x", 400, "unknown_parameter", ""),
        ("/relations/users?select=id", 400, "unknown_parameter", ""),
        ("/relations/users?x=1", 400, "unknown_parameter", ""),
        ("/relations/users/preview?x=1", 400, "unknown_parameter", '"x"'),
        ("/relations/users/preview?Limit=1", 400, "unknown_parameter", '"Limit"'),
        ("/relations/users/preview?limit=1&limit=2", 400, "repeated_parameter", '"limit"'),
        ("/relations/users/preview?limit=-1", 400, "invalid_count", '"limit"'),
        ("/relations/users/preview?select=nothing", 400, "unknown_column", '"nothing"'),
        ("/relations/users/preview?nothing=eq.1", 400, "unknown_column", '"nothing"'),
        ("/relations/users/preview?order=nothing", 400, "unknown_column", '"nothing"'),
        ("/relations/users/preview?id=is", 400, "unknown_parameter", '"id"'),
        ("/relations/users/preview?id=same.1", 400, "unknown_operator", '"id"'),
        ("/relations/users/preview?timezone=Mars", 400, "unknown_timezone", '"Mars"'),
        ("/relations/users/preview?delimiter=x", 400, "invalid_option", '"delimiter"'),
        # Errors that only PostgreSQL can find, with the column and its type.
        ("/relations/users/preview?id=eq.abc", 400, "invalid_value", '"id" (bigint)'),
        ("/relations/users/preview?signup_date=gt.2024-13-01", 400, "invalid_value", '"signup_date" (timestamp'),
        ("/relations/users/preview?name=eq.x&id=in.(1,%22%22)", 400, "invalid_value", '"id" (bigint)'),
        ("/relations/users/preview?name=match.(", 400, "invalid_value", '"name" (text)'),
        ("/relations/users/preview?id=like.1*", 400, "operator_not_supported", '"id" (bigint)'),
        ("/relations/users/preview?or=(id.eq.1,name.cs.x)", 400, "operator_not_supported", '"name" (text)'),
        # Names.
        ("/relations/nothing", 404, "relation_not_found", '"nothing"'),
        ("/relations/nothing/preview", 404, "relation_not_found", '"nothing"'),
        ("/relations/usres", 404, "relation_not_found", '"usres"'),
        ("/relations/users/", 404, "relation_not_found", '"users/"'),
        ("/relations/users/preview/", 404, "relation_not_found", '"users/preview/"'),
        ("/relations/users.csv", 404, "relation_not_found", '"users.csv"'),
        ("/relations/pg_catalog.pg_authid", 404, "relation_not_found", '"pg_catalog.pg_authid"'),
        ("/relations/pg_catalog.pg_authid/preview", 404, "relation_not_found", '"pg_catalog.pg_authid"'),
        ("/relations/a.b.c", 400, "invalid_relation", ""),
        ("/relations//preview", 400, "missing_name", ""),
        ("/relations/.users", 400, "missing_name", ""),
        ("/relations/%22users", 400, "invalid_quotes", ""),
        ("/relations/%FF", 400, "invalid_encoding", ""),
        ("/relations/%00/preview", 400, "invalid_encoding", ""),
    ],
)
async def test_the_answer_to_an_invalid_request_says_what_is_wrong(
    client: TestClient[Any, Any], path: str, status: int, code: str, named: str
) -> None:
    problem = await answer(client, path, status)
    assert problem["code"] == code
    assert named in problem["detail"]
    assert "SELECT" not in str(problem)


@pytest.mark.parametrize("path", ["/relations", "/relations/users", "/relations/users/preview"])
async def test_only_get_and_head_are_allowed(client: TestClient[Any, Any], path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        async with client.request(method, path) as response:
            assert response.status == 405
            assert set(response.headers["Allow"].replace(" ", "").split(",")) == {"GET", "HEAD"}
    async with client.head(path) as response:
        assert response.status == 200
        assert await response.read() == b""


# --- How an export would be read. ---


@contextmanager
def large_table(postgres: Postgres) -> Iterator[None]:
    """Create the table `large`, with one row in each block and just enough blocks for several readers."""
    postgres.run(
        "CREATE TABLE large (id int PRIMARY KEY, filler text); ALTER TABLE large ALTER filler SET STORAGE PLAIN"
    )
    postgres.run(f"INSERT INTO large SELECT n, repeat('x', 7000) FROM generate_series(1, {FEWEST_BLOCKS}) AS n")
    postgres.run("ANALYZE large")
    yield


@pytest.mark.parametrize(
    ("query", "scan", "readers", "reason"),
    [
        ("", "cursor, block ranges", 3, None),
        ("select=id", "cursor, block ranges", 3, None),
        ("filler=neq.y", "cursor, block ranges", 3, None),
        ("select=id::text", "cursor, block ranges", 3, None),
        ("delimiter=;&timezone=UTC", "cursor, block ranges", 3, None),
        ("parallel=2", "cursor, block ranges", 2, None),
        ("parallel=64", "cursor, block ranges", 3, None),
        ("parallel=1", "cursor", 1, "one reader was asked for"),
        ("order=id", "cursor", 1, "sorted"),
        ("order=filler", "cursor, parallel plan", 1, "sorted"),
        ("limit=5", "cursor", 1, "limit or offset"),
        ("offset=5", "cursor", 1, "limit or offset"),
        ("id=eq.7", "cursor", 1, "PostgreSQL plans Index Scan"),
    ],
)
async def test_an_explanation_says_how_the_export_would_be_read(
    settings: Settings, postgres: Postgres, query: str, scan: str, readers: int, reason: str | None
) -> None:
    path = f"/relations/large?explain{'&' if query else ''}{query}"
    with large_table(postgres):
        async with serving(replace(settings, parallel_readers=3)) as client:
            document = await answer(client, path)
            assert document.keys() == {
                *("schema", "name", "alsoIn", "scan", "readers", "reason", "ranges", "estimatedRows")
            }
            assert (document["schema"], document["name"], document["alsoIn"]) == ("public", "large", [])
            assert (document["scan"], document["readers"]) == (scan, readers)
            assert document["reason"] is None if reason is None else document["reason"].startswith(reason)
            assert (document["ranges"] > 0) == (scan == "cursor, block ranges")
            assert document["estimatedRows"] >= 0
            if not query:
                assert document["estimatedRows"] == FEWEST_BLOCKS
            # In every place of the query string.
            assert await answer(client, f"/relations/large?{query}{'&' if query else ''}explain") == document


async def test_an_explanation_runs_no_query(settings: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW endless AS SELECT pg_sleep(3600)::text AS x")
    async with serving(settings) as client, asyncio.timeout(30):
        document = await answer(client, "/relations/endless?explain")
    assert (document["scan"], document["reason"], document["estimatedRows"]) == ("cursor", "a view", 1)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("explain&colour=red", 400, "unknown_parameter"),
        ("explain&select=nothing", 400, "unknown_column"),
        ("explain&id=eq.x", 400, "invalid_value"),
        ("explain&parallel=0", 400, "invalid_count"),
        ("explain=true", 400, "unknown_parameter"),
        ("select=id", 400, "unknown_parameter"),
    ],
)
async def test_an_explanation_takes_the_query_string_of_an_export(
    client: TestClient[Any, Any], query: str, status: int, code: str
) -> None:
    problem = await answer(client, f"/relations/users?{query}", status)
    assert problem["code"] == code


async def test_the_explanation_of_a_missing_relation_is_not_found(client: TestClient[Any, Any]) -> None:
    assert (await answer(client, "/relations/nothing?explain", 404))["code"] == "relation_not_found"


async def test_an_explanation_needs_no_export_slot(settings: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW slow AS SELECT pg_sleep(3600)::text AS x")
    async with serving(replace(settings, max_concurrent_exports=1)) as client:
        export = asyncio.create_task(client.get("/export/slow.csv"))
        await eventually(
            "the export runs", lambda: [q for s, q in postgres.statements() if s == "active" and "slow" in q]
        )
        assert (await answer(client, "/relations/users?explain"))["readers"] == 1
        export.cancel()
