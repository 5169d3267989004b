"""No SQL of Sluice names a function, an operator, a type or a table that PostgreSQL looks up in the search path.

Reads the SQL of every module and of every form of a request, without a database. `test_search_path.py` reads what a
server sends.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

import server
from server.postgres import statements
from server.query.catalogue import Column, Relation
from server.query.fields import CASTS
from server.query.filters import COMPARISONS, FULL_TEXT, IS_VALUES, QUANTIFIED
from server.query.operators import Operator, OtherType
from server.query.plan import make_plan
from server.query.request import parse_export_request
from server.query.sql import (
    Blocks,
    count_without_casts,
    empty_statement,
    lock_statements,
    probes,
    select_statement,
    value_probes,
)
from tests.support.sql_names import unqualified

QUERY = re.compile(r"\s*(WITH|SELECT)\s")
# A text from which queries are made.
TEMPLATE = re.compile(r"\{\w*\}")
OTHER = OtherType('"exts"."isbn"', False, ",", {"=": Operator('OPERATOR("exts".=)', '"exts"."isbn"')})
COLUMNS = (
    *(Column(name, name, True, True, False) for name in ("text", "json", "jsonb", "tsvector", "text[]", "box")),
    Column("own", "isbn", True, True, False, built_in=False, other=OTHER),
    Column("row", "pair", True, True, False, built_in=False, other=replace(OTHER, composite=True, operators={})),
)
RELATION = Relation(1, "public", "kinds", "table", False, COLUMNS, None, None)


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ('SELECT source."a" FROM "s"."t" AS source WHERE source."a" OPERATOR(pg_catalog.=) $1', []),
        ("SELECT a = 1", ["operator ="]),
        ("SELECT a OPERATOR(=) 1", ["operator ="]),
        ("SELECT a -> 'b'", ["operator ->"]),
        ("SELECT pg_catalog.now(), now()", ["function now"]),
        ("SELECT public.now()", ["function public.now"]),
        ("SELECT pg_catalog.count(*), line.* FROM pg_catalog.pg_class AS line", []),
        ("SELECT FROM pg_class", ["table pg_class"]),
        ('SELECT FROM ONLY "t"', ['table "t"']),
        ("SELECT FROM pg_catalog.pg_class AS c JOIN pg_index AS i ON true", ["table pg_index"]),
        ("WITH RECURSIVE a (b) AS (SELECT 1) SELECT b FROM a JOIN c ON true", ["table c"]),
        ("SELECT a::text, a::bigint, a::pg_catalog.text", ["type text"]),
        ("SELECT CAST(a AS text), CAST(a AS pg_catalog.text) AS text", ["type text"]),
        ("SELECT text ''", ["type text of ''"]),
        ("SELECT 'pg_class'::pg_catalog.regclass", ["object 'pg_class'"]),
        ("SELECT a IN (1)", ["IN"]),
        ("SELECT a LIKE 'b', nullif(a, b)", ["LIKE", "nullif"]),
        ("SELECT a IS NOT DISTINCT FROM b.c", ["DISTINCT"]),
        ("SELECT DISTINCT a", []),
        ("SELECT CASE a WHEN 1 THEN 2 END", ["CASE with a value"]),
        ("SELECT CASE WHEN a THEN '2' END", []),
        ('SELECT FROM "a"."b" JOIN "a"."c" USING (d)', ["USING"]),
        ("SELECT extract(epoch FROM a), coalesce(a, b), least(a), EXISTS (SELECT), ARRAY(SELECT 1)", []),
        ("SELECT 'a = b', \"a = b\" -- a = b", []),
        ("SET LOCAL lock_timeout = '1s'", []),
    ],
)
def test_the_reader_finds_what_is_looked_up(sql: str, found: list[str]) -> None:
    assert unqualified(sql) == found


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts(each)


def constants() -> dict[str, str]:
    """Return the SQL that stands in the modules, by its name."""
    found = {}
    for info in pkgutil.walk_packages(server.__path__, "server."):
        if info.name == "server.__main__":
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            for number, text in enumerate(texts(value)):
                if QUERY.match(text) and not TEMPLATE.search(text):
                    found[f"{info.name}.{name}.{number}"] = text
    return found


def test_the_sql_of_every_module_is_qualified() -> None:
    found = constants()
    assert {"server.query.catalogue.FIND_RELATION.0", "server.export.strategy.FACTS.0"} <= found.keys()
    assert {name: unqualified(text) for name, text in found.items() if unqualified(text)} == {}


def requests() -> Iterator[str]:
    """Yield a query string for each form of a condition, a sort key and a column, on each column."""
    for each in COLUMNS:
        column = f'"{each.name}"'
        for field in (column,) if each.name in ("text", "tsvector", "box") else (column, f"{column}->a->>0"):
            yield from (f"{field}={prefix}{operator}.x" for operator in COMPARISONS for prefix in ("", "not."))
            yield from (f"{field}={name}({quantifier}).{{x}}" for name in QUANTIFIED for quantifier in ("any", "all"))
            yield from (f"{field}={operator}{brackets}.x" for operator in FULL_TEXT for brackets in ("", "(simple)"))
            yield from (f"{field}=is.{value}" for value in IS_VALUES)
            yield from (f"{field}=in.({items})" for items in ("", "x", "x,y"))
            yield f"or=({field}.eq.x,not.and({field}.gt.y,{field}.like.z*))"
            yield f"order={field}.desc.nullslast,{column}"
            yield from (f"select=a:{field}::{type},{column}" for type in CASTS)


def made(query: str, target: str) -> Iterator[str]:
    plan = make_plan(parse_export_request(target, query), RELATION)
    yield from (select_statement(plan).text, select_statement(plan, Blocks("public", "kinds", 0, 256)).text)
    yield from (count_without_casts(plan).text, empty_statement(plan).text)
    yield from (probe.statement.text for probe in (*probes(plan), *value_probes(plan)))


@pytest.mark.slow
def test_the_sql_of_every_request_is_qualified() -> None:
    found = {text for query in requests() for text in made(query, "k.csv" if "=x" in query else "k.ndjson")}
    assert len(found) > 500
    assert {text: names for text in found if (names := unqualified(text))} == {}
    # `source.name` may be a call of a function `name`, unless source is a subquery.
    assert {before for text in found for before in re.findall(r"(\S+) AS source", text)} == {"relation)"}


def test_the_sql_of_a_session_is_qualified() -> None:
    made = [
        *statements.begin(None),
        *statements.begin("00000003-1"),
        statements.pin(statements.PINNED),
        f"SELECT {statements.set_local(statements.NO_PARALLEL_PLAN)}",
        *lock_statements([("public", "kinds")]),
    ]
    assert list(itertools.chain.from_iterable(map(unqualified, made))) == []
