"""A function of the name of a column: PostgreSQL reads `relation.name` as a call of it if there is no such column.

Somebody plants the function, and waits until the owner of the relation drops or renames the column. A request that has
looked the column up by then waits for the lock, and is parsed when the column is gone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from server import events
from server.events import Event
from server.postgres.events import ServerErrorReported
from tests.support.decoys import SQLSTATE
from tests.support.live_server import eventually
from tests.support.postgres import Postgres

# The function `email` is run for each row. `relation` is run when the statement is planned, since PostgreSQL inlines
# what it calls.
RELATION = f"""
CREATE TABLE staff AS SELECT n AS id, 'a' || n AS email, 'b' || n AS relation FROM generate_series(1, 3) AS n;
CREATE FUNCTION planted() RETURNS text LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '{SQLSTATE}'; END $$;
CREATE FUNCTION email(staff) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN planted(); END';
CREATE FUNCTION relation(staff) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT planted()';
"""
PATHS = [
    *("/export/staff.csv", "/export/staff.ndjson", "/relations/staff/preview", "/relations/staff?explain"),
    *("/export/staff.csv?select=id,{}", "/export/staff.csv?select=id&{}=eq.a1", "/export/staff.csv?order={}.desc"),
    *("/export/staff.ndjson?select=id,x:{}::date&id=eq.1", "/export/staff.csv?select=id,{}::int"),
    *("/export/staff.csv?select=id&or=({}.lt.b,id.eq.1)", "/relations/staff?explain&select=id&order={}"),
]


@pytest.fixture
def staff(postgres: Postgres) -> Iterator[Postgres]:
    """Create the relation and the functions, and a connection that changes the relation."""
    postgres.run(RELATION)
    changing = Postgres(postgres.dsn)
    changing.connection.autocommit = False
    yield changing
    changing.connection.close()
    postgres.run("DROP TABLE staff CASCADE; DROP FUNCTION planted")


@pytest.fixture
def called(client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the calls of planted functions, once the server has started."""
    found: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, ServerErrorReported) and event.sqlstate == SQLSTATE:
            found.append(event.message)

    monkeypatch.setattr(events, "_observers", [observe])
    return found


async def answer_during(client: TestClient[Any, Any], path: str, staff: Postgres, change: str) -> tuple[int, str]:
    """Return the answer to a request that waits for a transaction which changes the relation."""
    staff.run(change)
    task = asyncio.create_task(client.get(path))
    look = Postgres(staff.dsn)
    try:
        waiting = "SELECT 1 FROM pg_locks WHERE relation = 'staff'::regclass AND NOT granted"
        await eventually("the request waits", lambda: look.run(waiting))
        staff.connection.commit()
        response = await task
        return response.status, await response.text()
    finally:
        look.connection.close()


@pytest.mark.parametrize("column", ["email", "relation"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_column_that_is_gone_is_no_function(
    client: TestClient[Any, Any], staff: Postgres, called: list[str], path: str, column: str
) -> None:
    change = f"ALTER TABLE staff RENAME {column} TO {column}_of_staff"
    status, body = await answer_during(client, path.format(column), staff, change)
    assert called == []
    assert "planted" not in body
    if "{}" in path:  # the request is read again, and its column is not there
        assert (status, json.loads(body)["code"]) == (400, "unknown_column")
    else:
        assert status == 200
        assert "explain" in path or f"{column}_of_staff" in body


async def test_a_file_has_the_columns_that_are_left(
    client: TestClient[Any, Any], staff: Postgres, called: list[str]
) -> None:
    answered = await answer_during(client, "/export/staff.csv", staff, "ALTER TABLE staff DROP relation")
    assert answered == (200, "id,email\n1,a1\n2,a2\n3,a3\n")
    assert called == []
