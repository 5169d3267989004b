"""Every relation of fixtures/awkward.sql, whole, in every format, as PostgreSQL itself writes it."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import create_app
from server.query.quoting import quote_identifier
from server.query.request import export_path
from server.settings import Settings
from tests.support.postgres import Postgres

SQL = Path(__file__).parents[1] / "fixtures" / "awkward.sql"
SCHEMAS = ("awkward", "awkward_too")
COPIED = {"csv": "HEADER", "tsv": "HEADER, DELIMITER E'\\t'"}

# The schema and the name of a relation, and whether it cannot be read.
Listed = tuple[str, str, bool]


@pytest.fixture(scope="module")
def relations(_postgres: Postgres) -> Iterator[list[Listed]]:
    """Create the relations of the file and list them."""
    _postgres.run(SQL.read_text())
    yield _postgres.run(
        "SELECT n.nspname, c.relname, coalesce(obj_description(c.oid, 'pg_class') = 'fails', false) "
        "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname = ANY (%s) AND c.relkind = ANY ('{r,p,v,m}') ORDER BY 1, 2",
        (list(SCHEMAS),),
    )
    _postgres.run(f"DROP SCHEMA {', '.join(SCHEMAS)} CASCADE")


@pytest.fixture(params=["native", "pure"])
async def client(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of a server that exports the two schemas, with either encoder."""
    chosen = replace(settings, export_schemas=SCHEMAS, pure_python=request.param == "pure")
    async with TestClient(
        TestServer(create_app(chosen)), auto_decompress=False, skip_auto_headers=["Accept-Encoding"]
    ) as opened:
        yield opened


def right_bytes(postgres: Postgres, source: str, format: str) -> bytes:
    """Return the file as the server's COPY or row_to_json writes it. source: the relation, quoted."""
    if format in COPIED:
        return postgres.copy(f"SELECT * FROM {source}", COPIED[format])
    rows = postgres.run(f"SELECT row_to_json(line.*)::text FROM {source} AS line")
    return "".join(line.replace("\n", " ").replace("\r", " ") + "\n" for (line,) in rows).encode()


async def get(client: TestClient[Any, Any], schema: str, name: str, format: str) -> tuple[int, bytes]:
    async with client.get(URL(export_path(schema, name, format), encoded=True)) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("format", ["csv", "tsv", "ndjson"])
async def test_every_relation_is_exported_as_postgresql_writes_it(
    client: TestClient[Any, Any], postgres: Postgres, relations: list[Listed], format: str
) -> None:
    wrong = []
    readable = [(schema, name) for schema, name, fails in relations if not fails]
    assert len(readable) > 35
    for schema, name in readable:
        right = right_bytes(postgres, f"{quote_identifier(schema)}.{quote_identifier(name)}", format)
        plain, packed = await get(client, schema, name, format), await get(client, schema, name, f"{format}.gz")
        if plain != (200, right) or packed[0] != 200 or gzip.decompress(packed[1]) != right:
            wrong.append((schema, name, plain[0], packed[0]))
    assert wrong == []


@pytest.mark.parametrize("format", ["csv", "tsv", "ndjson", "ndjson.gz"])
async def test_relations_that_cannot_be_read_are_their_own_fault(
    client: TestClient[Any, Any], relations: list[Listed], format: str
) -> None:
    failing = [(schema, name) for schema, name, fails in relations if fails]
    assert len(failing) > 5
    answers = {name: await get(client, schema, name, format) for schema, name in failing}
    assert {name: status for name, (status, _) in answers.items() if status < 500} == {}
    for _, body in answers.values():
        assert json.loads(body)["code"]


async def test_a_name_without_its_schema_means_the_first_one(
    client: TestClient[Any, Any], relations: list[Listed]
) -> None:
    assert ("awkward_too", "twice", False) in relations
    async with client.get("/export/twice.csv") as response:
        assert await response.read() == b"x\nthe first\n"
