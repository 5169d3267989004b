"""The relations of the list: searched, sorted and grouped. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from server.errors import InvalidRequest
from server.query.catalogue import Relation
from server.query.request import relation_path, schema_in_path

# Characters of the text to search for.
LONGEST_SEARCH = 200
# Words of that text. The last one takes the rest of the text, blanks included.
MOST_WORDS = 8
# Characters of a comment in the list. A line of the list has room for fewer on most screens.
LONGEST_COMMENT = 120
# What the list can be sorted by, and whether it then begins with the highest value.
SORTS = {"name": False, "rows": True, "size": True}

# The columns whose names contain a word, by the OID of their relation and the word.
MatchingColumns = Mapping[int, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What the list shows. searched: as typed. schema: "" for all. sort: one of SORTS."""

    searched: str = ""
    schema: str = ""
    sort: str = "name"
    descending: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The words to find, in lower case. Each must be in the name, the comment or the name of a column."""
        return tuple(self.searched.lower().split(maxsplit=MOST_WORDS - 1))

    @property
    def sort_text(self) -> str:
        """The value of the parameter `sort`, "" for the order of an address without it."""
        return _sort_text(self.sort, self.descending)

    def sorted_by(self, sort: str) -> str:
        """Return the address of the same list sorted by this, or the other way round if it is sorted by it already."""
        descending = SORTS[sort] if sort != self.sort else not self.descending
        fields = {"q": self.searched, "schema": self.schema, "sort": _sort_text(sort, descending)}
        given = urlencode({name: text for name, text in fields.items() if text})
        return f"/?{given}" if given else "/"

    def aria_sort(self, sort: str) -> str | None:
        """Return how this column is sorted, in the words of ARIA; None for a column that the list is not sorted by."""
        if sort != self.sort:
            return None
        return "descending" if self.descending else "ascending"


@dataclass(frozen=True, slots=True)
class ListedRelation:
    """A relation of the list. path: the last segment of its address. label: its name, with the schema where needed.

    named: whether the name alone has all words of the search. columns: those that the search has found.
    """

    path: str
    label: str
    relation: Relation
    named: bool
    columns: tuple[str, ...]

    @property
    def comment(self) -> str:
        """The first line of the comment, shortened."""
        line = (self.relation.comment or "").strip().partition("\n")[0].rstrip()
        return line if len(line) <= LONGEST_COMMENT else line[: LONGEST_COMMENT - 1].rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Group:
    """Relations under one heading. title: None for a list without headings."""

    title: str | None
    listed: tuple[ListedRelation, ...]


def parse_list_query(fields: Mapping[str, str]) -> ListQuery:
    """Return what the parameters q, schema and sort of an address ask for. Raise InvalidRequest for an unknown sort."""
    sort = fields.get("sort", "") or "name"
    key, _, direction = sort.partition(".")
    if key not in SORTS or direction not in ("", "asc", "desc"):
        raise InvalidRequest(
            f'The list cannot be sorted by "{sort[:LONGEST_SEARCH]}".',
            code="invalid_order",
            hint="Write sort=name, sort=rows or sort=size, and .desc after it to begin with the highest value.",
        )
    searched = fields.get("q", "").strip()[:LONGEST_SEARCH]
    return ListQuery(searched, fields.get("schema", "")[:LONGEST_SEARCH], key, direction == "desc")


def arrange(
    relations: Sequence[Relation], columns: MatchingColumns, query: ListQuery, export_schemas: Sequence[str]
) -> list[Group]:
    """Return the relations that match, in groups.

    relations: in the order of the catalogue: partitions last, then by schema and name. columns: those that match the
    words of the query.

    Sorted by name, the relations are grouped by schema, and those whose names do not match come last: a word such as
    "id" is in the columns of every table. Sorted by rows or size, they are one group.
    """
    several = len({relation.schema for relation in relations}) > 1
    within = [relation for relation in relations if query.schema in ("", relation.schema)]
    words = query.words
    matches = (_match(relation, columns.get(relation.oid, {}), words, export_schemas) for relation in within)
    found = [each for each in matches if each is not None]
    if query.sort != "name":
        listed = _by_value(found, query)
        return [Group(None, tuple(listed))] if listed else []
    named = [each for each in found if each.named]
    others = [each for each in found if not each.named]
    groups = _by_schema(named, query, export_schemas) if several else [Group(None, _by_name(named, query))]
    if others:
        groups.append(Group("Found in comments and columns", _by_name(others, query)))
    return [group for group in groups if group.listed]


def first(groups: Sequence[Group], most: int) -> list[Group]:
    """Return the groups with the first relations of all, at most so many."""
    kept = []
    for group in groups:
        listed = group.listed[:most]
        most -= len(listed)
        if listed:
            kept.append(Group(group.title, listed))
    return kept


def _match(
    relation: Relation, columns: Mapping[str, Sequence[str]], words: Sequence[str], export_schemas: Sequence[str]
) -> ListedRelation | None:
    """Return the relation if it has all words. columns: those of the relation that match, by word."""
    schema = schema_in_path(relation.schema, export_schemas)
    label = relation.name if schema is None else f"{schema}.{relation.name}"
    named = True
    found: tuple[str, ...] = ()
    if words:
        name, comment = label.lower(), (relation.comment or "").lower()
        elsewhere = [word for word in words if word not in name]
        if not all(word in comment or columns.get(word) for word in elsewhere):
            return None
        named = not elsewhere
        found = tuple(dict.fromkeys(column for word in elsewhere for column in columns.get(word, ())))
    return ListedRelation(relation_path(schema, relation.name), label, relation, named, found)


def _by_schema(listed: Sequence[ListedRelation], query: ListQuery, export_schemas: Sequence[str]) -> list[Group]:
    """Return one group for each schema. Its heading names the schema, so the labels do not."""
    own: dict[str, list[ListedRelation]] = {schema: [] for schema in export_schemas}
    for each in listed:
        own[each.relation.schema].append(replace(each, label=each.relation.name))
    return [Group(schema, _by_name(within, query)) for schema, within in own.items()]


def _by_name(listed: Sequence[ListedRelation], query: ListQuery) -> tuple[ListedRelation, ...]:
    """Return the relations, which are in ascending order, in that of the query. Partitions stay last."""
    if not query.descending:
        return tuple(listed)
    descending = listed[::-1]
    return tuple(sorted(descending, key=lambda each: each.relation.is_partition))


def _by_value(listed: Sequence[ListedRelation], query: ListQuery) -> list[ListedRelation]:
    """Return the relations by rows or size. Those of which it is unknown come last."""

    def value(each: ListedRelation) -> int | None:
        return each.relation.estimated_rows if query.sort == "rows" else each.relation.bytes

    known = [each for each in listed if value(each) is not None]
    known.sort(key=lambda each: value(each) or 0, reverse=query.descending)
    return known + [each for each in listed if value(each) is None]


def _sort_text(sort: str, descending: bool) -> str:
    if sort == "name" and not descending:
        return ""
    return f"{sort}.desc" if descending else sort
