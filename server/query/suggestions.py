"""A relation that was not found → the error, with the names that the user may have meant.

Names are suggested as they have to be written in an address. Runs no query itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from server.errors import RelationNotFound
from server.query.catalogue import LONGEST_RELATION_NAME, RelationName
from server.query.request import relation_path, schema_in_path

MOST_SUGGESTIONS = 3
# Bytes of a relation's name in PostgreSQL, as characters; comparing more of a long name only takes time.
_COMPARED = 64

# Relations to suggest, first those whose name is the wanted one, in any case, or begins with it and a dot. The limit
# bounds the time that comparing the names keeps the event loop busy. Parameters: $1, the schemas; $2, the name; $3, the
# name with its schema as the path has them.
LIST_NAMES = """
SELECT n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,v,m,f}')
  AND n.nspname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[])
  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND (pg_catalog.has_table_privilege(c.oid, 'SELECT') OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT'))
ORDER BY
    pg_catalog.lower(c.relname::pg_catalog.text) OPERATOR(pg_catalog.=) ANY (
        ARRAY[pg_catalog.lower($2::pg_catalog.text), pg_catalog.lower($3::pg_catalog.text)]
    ) OR pg_catalog.starts_with(
        c.relname::pg_catalog.text, $3::pg_catalog.text OPERATOR(pg_catalog.||) '.'::pg_catalog.text
    ) DESC,
    pg_catalog.array_position($1::pg_catalog.text[], n.nspname::pg_catalog.text)
LIMIT 300
"""


def relation_not_found(
    wanted: RelationName, known: Sequence[RelationName], export_schemas: Sequence[str]
) -> RelationNotFound:
    """Return the error for a relation that does not exist or may not be read: the two look alike to the user.

    known: the relations that the hint may suggest, with their schemas. export_schemas: the setting EXPORT_SCHEMAS.
    """
    found = _similar(wanted, known)
    paths = [
        relation_path(None if one.schema is None else schema_in_path(one.schema, export_schemas), one.name)
        for one in found
    ]
    hint = "The page at / lists all relations."
    if paths:
        hint = f"Did you mean {' or '.join(paths)}?"
    if any("." in one.name for one in found):
        hint += " In an address, a name that contains a dot is in double quotes, written %22."
    name = str(wanted)[:LONGEST_RELATION_NAME]
    return RelationNotFound(f'The relation "{name}" does not exist or cannot be exported.', hint=hint, similar=paths)


def _similar(wanted: RelationName, known: Sequence[RelationName]) -> list[RelationName]:
    """Return the most similar of the known relations, the most similar first."""
    # What the path has before the format may be one name with dots in it, and the format may be its end.
    whole = str(wanted)[:_COMPARED]
    first = [one for one in known if one.name in (whole, wanted.name) or one.name.startswith(f"{whole}.")]
    by_name: dict[str, list[RelationName]] = {}
    for one in known:
        by_name.setdefault(one.name.lower(), []).append(one)
    for text in dict.fromkeys((wanted.name[:_COMPARED].lower(), whole.lower())):
        for name in difflib.get_close_matches(text, by_name, n=MOST_SUGGESTIONS):
            first += by_name[name]
    return list(dict.fromkeys(first))[:MOST_SUGGESTIONS]
