"""What PostgreSQL says about the values of a statement that is parsed and not run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.export.rejected_values import message_about
from server.postgres.database import Database
from server.query.sql import Statement
from tests.support.postgres import Postgres


@pytest.fixture
def types(postgres: Postgres) -> Iterator[Postgres]:
    """Create types with a domain inside."""
    postgres.run(
        "CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0); CREATE DOMAIN free AS int; "
        "CREATE TYPE pair AS (a even, b int); CREATE TYPE plain_pair AS (a free, b int); "
        "CREATE TYPE spans AS RANGE (SUBTYPE = even)"
    )
    yield postgres
    postgres.run("DROP TYPE pair, plain_pair, spans; DROP DOMAIN even, free")


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("SELECT 1 / 0 FROM users WHERE id = $1", ["1"], None),
        ("SELECT 1 / 0 FROM users WHERE id = $1", ["x"], 'invalid input syntax for type bigint: "x"'),
        (
            "SELECT FROM users WHERE name = $1 AND id IN ($2, $3)",
            ["x", "1", "y"],
            "invalid input syntax for type bigint: ",
        ),
        ("SELECT FROM users WHERE id = ANY ($1)", ["{1,x}"], 'invalid input syntax for type bigint: "x"'),
        (
            "SELECT FROM users WHERE signup_date > $1",
            ["2024-02-31"],
            'date/time field value out of range: "2024-02-31"',
        ),
        ("SELECT 1 / 0", [], None),
        # A domain that checks something would run a function, in whatever it stands.
        ("SELECT $1::pair", ["(x,1)"], None),
        ("SELECT $1::even[]", ["{x}"], None),
        ("SELECT $1::pair[]", ['{"(x,1)"}'], None),
        ("SELECT $1::spans", ["[x,2)"], None),
        ("SELECT $1::spansmultirange", ["{[x,2)}"], None),
        ("SELECT $1::spans[]", ['{"[x,2)"}'], None),
        # A domain that checks nothing would not.
        ("SELECT $1::plain_pair", ["(x,1)"], 'invalid input syntax for type integer: "x"'),
        ("SELECT $1::free[]", ["{x}"], 'invalid input syntax for type integer: "x"'),
        ("SELECT $1::int4range", ["[x,2)"], 'invalid input syntax for type integer: "x"'),
        # What cannot be parsed says nothing.
        ("SELECT FROM nowhere WHERE id = $1", ["x"], None),
        ("SELECT nothing FROM users WHERE id = $1", ["x"], None),
        ("SELECT FROM users WHERE id = $1 AND", ["x"], None),
        ("SELECT FROM users WHERE id = $1 AND name = $1", ["x"], None),
    ],
)
@pytest.mark.usefixtures("types")
async def test_only_a_message_about_a_value_is_returned(
    database: Database, text: str, values: list[str], message: str | None
) -> None:
    async with database.control_session() as session:
        found = await message_about(session, Statement(text, values))
    assert found is None if message is None else found is not None and found.startswith(message)
