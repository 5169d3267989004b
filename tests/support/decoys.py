"""Decoys: functions, operators, types and views that an attacker plants in a schema of the search path.

PostgreSQL calls the function or operator that fits the types best, in whatever schema of the search path it is. So
there is a decoy for each one of pg_catalog: with the same arguments, which is called if its schema comes first in the
path, and with arguments that fit better, which is called in any case. Each raises an error with the SQLSTATE DECOY.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.query.filters import COMPARISONS
from tests.support.postgres import Postgres

SCHEMA = "decoys"
SQLSTATE = "DECOY"
SERVER = Path(__file__).parents[2] / "server"

# Types of PostgreSQL's own that SQL of Sluice passes to functions and operators, as format_type() writes them.
OWN = ["text", "character varying", "name", "character", '"char"', "smallint", "integer", "bigint", "oid", "regclass"]
OWN += ["real", "double precision", "numeric", "boolean", "json", "jsonb"]
# Their names in pg_type, and those of others that such SQL may name.
TYPE_NAMES = ["text", "varchar", "name", "bpchar", "int2", "int4", "int8", "oid", "regclass", "float4", "float8"]
TYPE_NAMES += ["numeric", "bool", "json", "jsonb", "tid", "regtype", "regconfig", "regnamespace", "interval"]
# Combinations of arguments for one function.
MOST_VARIANTS = 60
# The arguments of functions that take any number of any type: those of a relation's columns, and of operators.
_CALLS = [
    ("json_build_array", ("name", "text", "boolean", "boolean", "boolean", "json", "text", *more))
    for more in ((), ("boolean",))
]
_CALLS.append(("json_build_array", ("text", "name", "name", "name", "name")))
_CALLS += [(name, (type,)) for name in ("concat", "count") for type in OWN]

_ELEMENT = ("anyelement", "anynonarray", "anycompatible", "anycompatiblenonarray")
_ARRAY = ("anyarray", "anycompatiblearray")
_NO_ARGUMENT = re.compile(r'internal|.*_handler|(event_)?trigger|"any"|cstring|unknown|pg_.*')


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What pg_catalog has, with the types as format_type() writes them.

    functions: name, types of the arguments, type of the result, whether it returns a set. operators: symbol, left type
    (None for a prefix), right type, type of the result. implicit: what each type is converted to implicitly.
    """

    functions: list[tuple[str, list[str], str, bool]]
    operators: list[tuple[str, str | None, str, str]]
    implicit: Mapping[str, set[str]]


def read_catalogue(postgres: Postgres) -> Catalogue:
    functions = postgres.run(
        "SELECT p.proname::text, ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY "
        "AS a (t, n) ORDER BY n)::text[], format_type(p.prorettype, NULL), p.proretset "
        "FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace"
    )
    operators = postgres.run(
        "SELECT oprname::text, CASE WHEN oprleft <> 0 THEN format_type(oprleft, NULL) END, format_type(oprright, NULL),"
        " format_type(oprresult, NULL) FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace"
    )
    implicit: dict[str, set[str]] = {}
    for source, target in postgres.run(
        "SELECT format_type(castsource, NULL), format_type(casttarget, NULL) FROM pg_cast WHERE castcontext = 'i' "
        "UNION ALL SELECT format_type(oid, NULL), format_type(typbasetype, NULL) FROM pg_type WHERE typtype = 'd'"
    ):
        implicit.setdefault(source, set()).add(target)
    return Catalogue(functions, operators, implicit)


def names_in_server() -> set[str]:
    """Return what stands before a bracket in Sluice's source text, and the operators: all that its SQL may name."""
    text = "\n".join(path.read_text() for path in SERVER.rglob("*.py"))
    return {*re.findall(r"(\w+)\(", text), *re.findall(r"[-+*/<>=~!@#%^&|`?]+", text), *COMPARISONS.values()}


def plant(postgres: Postgres, types: Sequence[str], names: Collection[str] | None = None) -> int:
    """Plant the decoys in SCHEMA, which exists. Return how many there are.

    The search path of this connection must be empty. types: those of columns, as format_type() writes them. names: of
    the functions and operators to plant; None for all.
    """
    catalogue = read_catalogue(postgres)
    planted = dict(_CALLS_WITH_RESULTS)
    for name, arguments, result, is_set in catalogue.functions:
        if names is None or name in names:
            for variant, returned in _variants(arguments, result, [*OWN, *types], catalogue.implicit):
                planted.setdefault((name, variant), f"{'SETOF ' * is_set}{returned}")
    operators = list(_operators(catalogue, types, names))
    parts = ["SET check_function_bodies = off", _function("boom", (), "boolean")]
    parts += [_function(name, variant, returned) for (name, variant), returned in planted.items()]
    parts += itertools.chain.from_iterable(operators)
    parts += [f'CREATE DOMAIN {SCHEMA}."{name}" AS pg_catalog.text CHECK ({SCHEMA}.boom())' for name in TYPE_NAMES]
    parts += [
        f'CREATE VIEW {SCHEMA}."{name}" AS SELECT {SCHEMA}.boom() AS oid'
        for (name,) in postgres.run(
            "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relname ~ '^pg_' "
            "AND relkind IN ('r', 'v')"
        )
    ]
    postgres.run(";\n".join(parts))
    return len(planted) + len(operators)


_CALLS_WITH_RESULTS = {call: "json" if call[0].startswith("json") else "text" for call in _CALLS}


def _function(name: str, arguments: Sequence[str], returned: str) -> str:
    written = ", ".join(arguments)
    return (
        f'CREATE FUNCTION {SCHEMA}."{name}"({written}) RETURNS {returned} LANGUAGE plpgsql AS $body$ BEGIN '
        f"RAISE EXCEPTION $text${name}({written})$text$ USING ERRCODE = '{SQLSTATE}'; END $body$"
    )


def _variants(
    arguments: Sequence[str], result: str, types: Sequence[str], implicit: Mapping[str, set[str]]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the arguments as they are, and of types that fit better, each with the type of the result."""
    if "void" in arguments or any(_NO_ARGUMENT.fullmatch(each) for each in (*arguments, result)):
        return
    polymorphic = {each for each in arguments if each.startswith("any")}
    if not polymorphic:
        choices = [[each, *(type for type in types if each in implicit.get(type, ()))] for each in arguments]
        for variant in itertools.islice(itertools.product(*choices), MOST_VARIANTS):
            yield variant, result
        return
    for type in types:
        array = type if type.endswith("[]") else f"{type}[]"
        replaced = dict.fromkeys(polymorphic, type) | dict.fromkeys(_ELEMENT, type) | dict.fromkeys(_ARRAY, array)
        returned = replaced.get(result, result)
        if not returned.startswith("any"):
            yield tuple(replaced.get(each, each) for each in arguments), returned


def _operators(catalogue: Catalogue, types: Sequence[str], names: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Yield the statements that create each operator: of its function, and its own."""
    planted: dict[tuple[str, str | None, str], str] = {}
    for symbol, left, right, result in catalogue.operators:
        sides = (right, result) if left is None else (left, right, result)
        unfit = any(each.startswith("any") or _NO_ARGUMENT.fullmatch(each) for each in sides)
        if (names is None or symbol in names) and not unfit:
            planted[symbol, left, right] = result
    for symbol in {symbol for symbol, left, _, _ in catalogue.operators if left is not None}:
        if names is None or symbol in names:
            pairs = [*((type, type) for type in (*OWN, *types)), *((type, "text") for type in types)]
            mixed = itertools.product(OWN, OWN) if symbol in ("=", "<>", "<", ">=") else ()
            for left, right in (*pairs, *mixed):
                planted.setdefault((symbol, left, right), "boolean")
    for number, ((symbol, left, right), result) in enumerate(planted.items()):
        function = f"operator_{number}_{symbol}"
        argument = "" if left is None else f"LEFTARG = {left}, "
        yield (
            _function(function, (right,) if left is None else (left, right), result),
            f'CREATE OPERATOR {SCHEMA}.{symbol} (FUNCTION = {SCHEMA}."{function}", {argument}RIGHTARG = {right})',
        )
