"""The grammar of an export's URL: what a path and a query string mean, and the errors they can have.

No catalogue, no database.
"""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.query.catalogue import RelationName
from server.query.dialect import Dialect
from server.query.fields import Field, Step
from server.query.filters import OPERATORS, Condition, Filter, Group, conditions_of
from server.query.parameters import LONGEST_FILENAME, MOST_READERS, MOST_ROWS
from server.query.request import (
    FORMATS,
    PARAMETERS,
    ExportRequest,
    export_path,
    parse_export_request,
    parse_relation_request,
)
from server.query.selection import MOST_SORT_KEYS, SelectedColumn, SortKey
from server.query.tally import MOST_CONDITIONS

# Names that PostgreSQL allows: not empty, without NUL, and without surrogates, which UTF-8 does not have.
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
# Names made of characters of the grammar: random text seldom has two of these in a row.
AWKWARD_NAMES = st.text('a."\\:,%/+ é', min_size=1, max_size=12)
# What aiohttp hands over: bytes of the request line that are not UTF-8 arrive as lone surrogates.
RAW = st.text(st.characters(exclude_categories=[])) | st.text('a.csvz"\\:,%0Ff+&=*select\udcff')
# Text made of words of the grammar: nearly valid text reaches more code than random text.
WORDS = [*PARAMETERS, *OPERATORS, *'=.,:()"{}\\&*%+-1', "not.", "a", "%22", "%00", "%ff", "true", "desc", "tab"]
NEARLY_RIGHT = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)


def parsed(target: str, query: str = "") -> ExportRequest:
    return parse_export_request(target, query)


def rejected(target: str, query: str = "") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request(target, query)
    return caught.value


@pytest.mark.parametrize(
    ("target", "schema", "name"),
    [
        ("users.csv", None, "users"),
        ("public.users.csv", "public", "users"),
        ("csv.csv", None, "csv"),
        ("users.csv.csv", "users", "csv"),
        ("gz.csv", None, "gz"),
        ("Users.csv", None, "Users"),
        # Names in double quotes.
        ('"users".csv', None, "users"),
        ('"my.table".csv', None, "my.table"),
        ('public."my.table".csv', "public", "my.table"),
        ('"my.schema"."my.table".csv', "my.schema", "my.table"),
        ('"my.schema".users.csv', "my.schema", "users"),
        ("%22my.table%22.csv", None, "my.table"),
        ("%22my%2Etable%22.csv", None, "my.table"),
        ('".".csv', None, "."),
        # A quote in a quoted name: doubled, or after a backslash, which may stand before any character.
        ('"a""b".csv', None, 'a"b'),
        ('"""".csv', None, '"'),
        (r'"a\"b".csv', None, 'a"b'),
        (r'"a\\b".csv', None, r"a\b"),
        (r'"a\\".csv', None, "a\\"),
        (r'"a\b".csv', None, "ab"),
        (r'"\.".csv', None, "."),
        # A quote or a backslash that is not at the start of the name is an ordinary character.
        ('a"b.csv', None, 'a"b'),
        ('a"b"".csv', None, 'a"b""'),
        (r"a\b.csv", None, r"a\b"),
        # Characters that have a meaning elsewhere.
        ("my%20table.csv", None, "my table"),
        ("my table.csv", None, "my table"),
        (" .csv", None, " "),
        ("a+b.csv", None, "a+b"),
        ("a%2Bb.csv", None, "a+b"),
        ("a%2Fb.csv", None, "a/b"),
        ("a/b.csv", None, "a/b"),
        ('"../../etc/passwd".csv', None, "../../etc/passwd"),
        ("%22..%2F..%2Fetc%2Fpasswd%22.csv", None, "../../etc/passwd"),
        ("a%252Eb.csv", None, "a%2Eb"),
        ("%zz.csv", None, "%zz"),
        ("100%.csv", None, "100%"),
        ("a%0D%0AX-Evil:%201.csv", None, "a\r\nX-Evil: 1"),
        ("'; DROP TABLE users; --.csv", None, "'; DROP TABLE users; --"),
        ("*.csv", None, "*"),
        ("a,b:c.csv", None, "a,b:c"),
        # Unicode, written out and percent-encoded.
        ("größe.csv", None, "größe"),
        ("gr%C3%B6%C3%9Fe.csv", None, "größe"),
        ("表.列.csv", "表", "列"),
        ("%F0%9F%A6%A5.csv", None, "🦥"),
        ("users%EF%BC%8Ecsv.csv", None, "users．csv"),  # a full-width dot is not a dot
        ("x" * 8192 + ".csv", None, "x" * 8192),
        ('"' + "x." * 4096 + '".csv', None, "x." * 4096),
    ],
)
def test_a_path_names_a_relation(target: str, schema: str | None, name: str) -> None:
    assert parsed(target) == ExportRequest(RelationName(name, schema))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("before", "relation"),
    [
        ("users", RelationName("users")),
        ("public.users", RelationName("users", "public")),
        ('"users.csv.gz"', RelationName("users.csv.gz")),
        ("gz", RelationName("gz")),
        ("gz.gz", RelationName("gz", "gz")),
        ("csv.tsv", RelationName("tsv", "csv")),
    ],
)
def test_a_path_names_a_format_and_whether_it_is_a_gzip_file(before: str, relation: RelationName, format: str) -> None:
    delimiter = {"tsv": Dialect(delimiter=b"\t")}.get(format, Dialect())
    assert parsed(f"{before}.{format}") == ExportRequest(relation, format, gzip=False, dialect=delimiter)
    assert parsed(f"{before}.{format}.gz") == ExportRequest(relation, format, gzip=True, dialect=delimiter)


@pytest.mark.parametrize(
    ("target", "relation"),
    [
        ("users", RelationName("users")),
        ("public.users", RelationName("users", "public")),
        ("users.csv", RelationName("csv", "users")),
        ('"users.csv"', RelationName("users.csv")),
        ("%22a.b%22.c", RelationName("c", "a.b")),
    ],
)
def test_the_path_of_a_relation_has_no_format(target: str, relation: RelationName) -> None:
    assert parse_relation_request(target, "limit=3") == ExportRequest(relation, limit=3)


@pytest.mark.parametrize("target", ["a.b.c", "", ".", '"a', "%ff"])
def test_a_path_that_names_no_relation_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_relation_request(target, "")


@pytest.mark.parametrize(
    ("target", "code", "named"),
    [
        # A missing name.
        ("", "missing_name", "in the path at position 1."),
        (".csv", "missing_name", "in the path at position 1."),
        ("users.", "missing_name", "in the path at position 7."),
        ("public..csv", "missing_name", "in the path at position 8."),
        ('"".csv', "missing_name", "in the path at position 1."),
        ('public."".csv', "missing_name", "in the path at position 8."),
        ("../../etc/passwd.csv", "missing_name", "in the path at position 1."),
        ("..%2F..%2Fetc%2Fpasswd.csv", "missing_name", "in the path at position 1."),
        # No format, or an unknown one.
        ("users", "unknown_format", "The path has no format."),
        ('"users.csv"', "unknown_format", "The path has no format."),
        ("gz", "unknown_format", "The path has no format."),
        ("users.xlsx", "unknown_format", 'The format "xlsx" is not known.'),
        ("users.CSV", "unknown_format", 'The format "CSV" is not known.'),
        ("users.csv ", "unknown_format", 'The format "csv " is not known.'),
        ("users.csv/", "unknown_format", 'The format "csv/" is not known.'),
        ("users.gz", "unknown_format", "The path has no format."),
        ("csv.gz", "unknown_format", "The path has no format."),
        ('users."csv.gz"', "unknown_format", 'The format "csv.gz" is not known.'),
        ("users.csv.GZ", "unknown_format", 'The format "GZ" is not known.'),
        ("users.csv.gz.gz", "unknown_format", 'The format "gz" is not known.'),
        ("users.json", "unknown_format", 'The format "json" is not known.'),
        ("users." + "x" * 8192, "unknown_format", f'The format "{"x" * 100}…" is not known.'),
        # Too many names.
        ("db.public.users.csv", "invalid_relation", "more than a schema and a relation"),
        ("a.b.c.d.e.csv", "invalid_relation", "more than a schema and a relation"),
        # Quotes.
        ('"users.csv', "invalid_quotes", "in the path at position 1 is not closed."),
        ('public."users.csv', "invalid_quotes", "in the path at position 8 is not closed."),
        ('"', "invalid_quotes", "in the path at position 1 is not closed."),
        (r'"users\".csv', "invalid_quotes", "in the path at position 1 is not closed."),
        ('"a"b.csv', "invalid_quotes", "text after the closing quote in the path at position 4."),
        ('public."a"b.csv', "invalid_quotes", "text after the closing quote in the path at position 11."),
        ('"größe"n.csv', "invalid_quotes", "text after the closing quote in the path at position 8."),
        # Bytes that are not text.
        ("%FF.csv", "invalid_encoding", "bytes in the path that are not UTF-8."),
        ("%C0%AE%C0%AE%2F.csv", "invalid_encoding", "bytes in the path that are not UTF-8."),  # overlong dots
        ("%ED%A0%80.csv", "invalid_encoding", "bytes in the path that are not UTF-8."),  # a surrogate
        ("users%F0%9F%A6.csv", "invalid_encoding", "bytes in the path that are not UTF-8."),  # cut short
        ("users\udcff.csv", "invalid_encoding", "bytes in the path that are not UTF-8."),  # a raw byte 0xFF
        ("users%00.csv", "invalid_encoding", "a NUL character in the path."),
        ('"users%00".csv', "invalid_encoding", "a NUL character in the path."),
        ("users.csv%00", "invalid_encoding", "a NUL character in the path."),
        ("users\0.csv", "invalid_encoding", "a NUL character in the path."),
    ],
)
def test_an_invalid_path_has_a_code_and_a_reason(target: str, code: str, named: str) -> None:
    error = rejected(target)
    assert (error.status, error.code) == (400, code)
    assert named in error.detail


@pytest.mark.parametrize("target", ["users", "users.xlsx", "a.b.c.csv"])
def test_the_hint_for_a_wrong_path_shows_a_valid_one(target: str) -> None:
    hint = rejected(target).hint
    assert hint is not None
    shown = re.search(r"/export/(\S+)", hint)
    assert shown is not None
    assert parsed(shown[1].replace("{relation}", "users")).format == "csv"


@pytest.mark.parametrize(
    ("query", "select"),
    [
        ("select=id", [("id", None)]),
        ("select=id,name", [("id", None), ("name", None)]),
        ("select=name,id", [("name", None), ("id", None)]),
        ("select=id,id", [("id", None), ("id", None)]),
        ("select=full_name:name", [("name", "full_name")]),
        ("select=id,full_name:name,x:id", [("id", None), ("name", "full_name"), ("id", "x")]),
        # Percent-encoding and + for a space are decoded before the grammar applies.
        ("select=id%2Cname", [("id", None), ("name", None)]),
        ("select=full%20name%3Aname", [("name", "full name")]),
        ("select=first+name", [("first name", None)]),
        ("select=first%2Bname", [("first+name", None)]),
        ("sel%65ct=id", [("id", None)]),
        ("select=a%26b", [("a&b", None)]),
        ("select=a=b", [("a=b", None)]),
        # Blanks around names do not count.
        ("select=id, name", [("id", None), ("name", None)]),
        ("select= id\t,  full name : name ", [("id", None), ("name", "full name")]),
        ('select=x:"a" ,b', [("a", "x"), ("b", None)]),
        ('select=" a ", b', [(" a ", None), ("b", None)]),
        ("select=a.b", [("a.b", None)]),
        ("select=größe", [("größe", None)]),
        ("select=gr%C3%B6%C3%9Fe", [("größe", None)]),
        ("select=" + "x" * 8192, [("x" * 8192, None)]),
        # Quoted names.
        ('select="a,b"', [("a,b", None)]),
        ('select="a:b":"c,d"', [("c,d", "a:b")]),
        ('select="a""b"', [('a"b', None)]),
        (r'select="a\"b",c', [('a"b', None), ("c", None)]),
        (r'select="a\\b"', [(r"a\b", None)]),
        ("select=%22a%2Cb%22", [("a,b", None)]),
        ('select=a"b', [('a"b', None)]),
        ('select="="', [("=", None)]),
        # A column named * is not all columns.
        ('select="*"', [("*", None)]),
        ("select=all:*", [("*", "all")]),
        # Brackets that are closed may be a part of a name; `plan.py` knows whether there is such a column.
        ("select=Total (EUR):sum(x)", [("sum(x)", "Total (EUR)")]),
        ('select="a(b"', [("a(b", None)]),
        # Empty pairs mean nothing.
        ("&select=id&", [("id", None)]),
        ("&&select=id&&", [("id", None)]),
        # An alias may be as long as an identifier of PostgreSQL.
        (f"select={'x' * 63}:id", [("id", "x" * 63)]),
        (f"select={'é' * 31}:id", [("id", "é" * 31)]),
    ],
)
def test_select_names_columns_in_order(query: str, select: list[tuple[str, str | None]]) -> None:
    assert parsed("users.csv", query).select == tuple(SelectedColumn(Field(column), alias) for column, alias in select)


DATA_A = Field("data", (Step("a"),))


@pytest.mark.parametrize(
    ("select", "items"),
    [
        ("*,id", [SelectedColumn(None), SelectedColumn(Field("id"))]),
        ("id, * ,*", [SelectedColumn(Field("id")), SelectedColumn(None), SelectedColumn(None)]),
        ("data->a", [SelectedColumn(DATA_A)]),
        ("x:data->a", [SelectedColumn(DATA_A, "x")]),
        ("x : data -> a , id", [SelectedColumn(DATA_A, "x"), SelectedColumn(Field("id"))]),
        ("data->a->>0", [SelectedColumn(Field("data", (Step("a"), Step(0, as_text=True))))]),
        ("amount::text", [SelectedColumn(Field("amount", cast="text"))]),
        ("x:amount::text", [SelectedColumn(Field("amount", cast="text"), "x")]),
        ("x:data->a::Text,id", [SelectedColumn(Field("data", (Step("a"),), "text"), "x"), SelectedColumn(Field("id"))]),
        ('"a:b"::int', [SelectedColumn(Field("a:b", cast="int4"))]),
        ("at::timestamp with time zone", [SelectedColumn(Field("at", cast="timestamptz"))]),
    ],
)
def test_select_takes_parts_of_json_and_casts(select: str, items: list[SelectedColumn]) -> None:
    assert parsed("users.csv", f"select={quote(select)}").select == tuple(items)


@pytest.mark.parametrize("query", ["", "&", "&&&", "select=*", "select=%2A", "select=+*+"])
def test_without_names_all_columns_are_selected(query: str) -> None:
    assert parsed("users.csv", query).select is None


@pytest.mark.parametrize(
    ("query", "code", "named"),
    [
        # Names that are missing.
        ("select=", "missing_name", 'in "select" at position 1.'),
        ("select", "missing_name", 'in "select" at position 1.'),
        ("select=,", "missing_name", 'in "select" at position 1.'),
        ("select=a,", "missing_name", 'in "select" at position 3.'),
        ("select=a,,b", "missing_name", 'in "select" at position 3.'),
        ("select=:a", "missing_name", 'in "select" at position 1.'),
        ("select=a:", "missing_name", 'in "select" at position 3.'),
        ("select=a:,b", "missing_name", 'in "select" at position 3.'),
        ('select=a,""', "missing_name", 'in "select" at position 3.'),
        ('select="":a', "missing_name", 'in "select" at position 1.'),
        ("select=a:b:c", "invalid_select", 'Expected a comma in "select" at position 4.'),
        ("select=a->b:c", "invalid_select", 'Expected a comma in "select" at position 5.'),
        ("select=a::text::int", "invalid_select", 'Expected a comma in "select" at position 8.'),
        ("select=a::text->b", "invalid_select", 'Expected a comma in "select" at position 8.'),
        ("select=a::", "missing_name", 'A name is missing in "select" at position 4.'),
        ("select=a::regclass", "unknown_cast", 'A value cannot be cast to "regclass" in "select".'),
        ("select=a::varchar(3)", "unknown_cast", 'A value cannot be cast to "varchar(3)" in "select".'),
        ("select=a::text[]", "unknown_cast", 'A value cannot be cast to "text[]" in "select".'),
        ('select=a::"x""y"', "unknown_cast", 'A value cannot be cast to "x"y" in "select".'),
        ("select=a::" + "b" * 8192, "unknown_cast", f'cast to "{"b" * 100}…" in "select".'),
        ("select=a->", "invalid_json_path", 'A key is missing in "select" at position 4.'),
        ("select=a->>b->c", "invalid_json_path", 'A step follows ->> in "select" at position 6'),
        ("select=->a", "missing_name", 'A name is missing in "select" at position 1.'),
        ("select=a->2147483648", "invalid_json_path", 'The index 2147483648 in "select" is larger than 2,147,483,647.'),
        ("select=a->-99999999999999", "invalid_json_path", 'The index -99999999999999 in "select" is larger'),
        ("select=a" + "->b" * 51, "too_deep", 'A path in "select" has more than 50 steps.'),
        ("order=a->>b->c", "invalid_json_path", 'A step follows ->> in "order" at position 6'),
        ("order=a.desc->b", "invalid_order", 'Unexpected -> in "order" at position 7.'),
        ("a->=eq.1", "invalid_json_path", "A key is missing in the name of a parameter at position 4."),
        ("or=(a->.eq.1)", "invalid_json_path", 'A key is missing in "or" at position 5.'),
        (f"select={'x' * 64}:id", "invalid_select", f'The alias "{"x" * 64}" in "select" is longer than 63 bytes.'),
        (f"select={'é' * 32}:id", "invalid_select", "is longer than 63 bytes."),
        (f"select={'x' * 8192}:id", "invalid_select", f'The alias "{"x" * 100}…" in "select" is longer'),
        # Quotes.
        ('select="a', "invalid_quotes", 'in "select" at position 1 is not closed.'),
        ('select=a,"b', "invalid_quotes", 'in "select" at position 3 is not closed.'),
        ('select=a,"b&', "invalid_quotes", 'in "select" at position 3 is not closed.'),
        ('select="a"b', "invalid_quotes", 'in "select" at position 4.'),
        ('select=x:"a" b', "invalid_quotes", 'in "select" at position 7.'),
        # Parameters. A name in another case, or with a space before or after it, is another name.
        ("Select=id", "unknown_parameter", 'The parameter "Select" is not known'),
        ("LIMIT=1", "unknown_parameter", 'The parameter "LIMIT" is not known'),
        ("+limit=1", "unknown_parameter", 'The parameter " limit" is not known'),
        ("limit+=1", "unknown_parameter", 'The parameter "limit " is not known'),
        ('"limit"=1', "unknown_parameter", 'The parameter ""limit"" is not known'),
        (
            "id=1",
            "unknown_parameter",
            'The parameter "id" is not known. A filter on a column of this name needs an operator.',
        ),
        ("id=", "unknown_parameter", 'The parameter "id" is not known'),
        ("id=eq", "unknown_parameter", 'The parameter "id" is not known'),
        ("id=1.5", "unknown_parameter", 'The parameter "id" is not known'),
        ("id=.eq.1", "unknown_parameter", 'The parameter "id" is not known'),
        ("id=(eq.1)", "unknown_parameter", 'The parameter "id" is not known'),
        ("select%5B%5D=id", "unknown_parameter", 'The parameter "select[]" is not known'),
        ("select;limit=10", "unknown_parameter", 'The parameter "select;limit" is not known'),
        ("gr%C3%B6%C3%9Fe", "unknown_parameter", 'The parameter "größe" is not known'),
        ("x" * 8192 + "=1", "unknown_parameter", f'The parameter "{"x" * 100}…" is not known'),
        ("=id", "missing_name", "A name is missing in the name of a parameter at position 1."),
        ("=", "missing_name", "A name is missing in the name of a parameter at position 1."),
        ('""=eq.1', "missing_name", "A name is missing in the name of a parameter at position 1."),
        ('"id=eq.1', "invalid_quotes", "The double quote in the name of a parameter at position 1 is not closed."),
        ('"id"x=eq.1', "invalid_quotes", "text after the closing quote in the name of a parameter at position 5."),
        ("select=id&select=name", "repeated_parameter", 'The parameter "select" is given twice.'),
        ("select=id&select=id", "repeated_parameter", 'The parameter "select" is given twice.'),
        ('select="a&select=b"', "repeated_parameter", 'The parameter "select" is given twice.'),
        ("select=*&sel%65ct=id", "repeated_parameter", 'The parameter "select" is given twice.'),
        ("limit=1&order=id&limit=1", "repeated_parameter", 'The parameter "limit" is given twice.'),
        ("bom=true&bom=false", "repeated_parameter", 'The parameter "bom" is given twice.'),
        # Bytes that are not text.
        ("select=%FF", "invalid_encoding", 'bytes in the value of "select" that are not UTF-8.'),
        ("select=id,\udcff", "invalid_encoding", 'bytes in the value of "select" that are not UTF-8.'),
        ("select=%00", "invalid_encoding", 'a NUL character in the value of "select".'),
        ("%FF=1", "invalid_encoding", "bytes in the name of a parameter that are not UTF-8."),
        ("sel%00ect=id", "invalid_encoding", "a NUL character in the name of a parameter."),
        ("id=eq.%FF", "invalid_encoding", 'bytes in the value of "id" that are not UTF-8.'),
        ("id=eq.%ED%A0%80", "invalid_encoding", 'bytes in the value of "id" that are not UTF-8.'),
        ("id=eq.%00", "invalid_encoding", 'a NUL character in the value of "id".'),
        ("or=(id.eq.%00)", "invalid_encoding", 'a NUL character in the value of "or".'),
        ("x" * 8192 + "=%00", "invalid_encoding", f'a NUL character in the value of "{"x" * 100}…".'),
        # Columns to sort by.
        ("order=", "missing_name", 'A name is missing in "order" at position 1.'),
        ("order", "missing_name", 'A name is missing in "order" at position 1.'),
        ("order=id,", "missing_name", 'A name is missing in "order" at position 4.'),
        ("order=id,,name", "missing_name", 'A name is missing in "order" at position 4.'),
        ("order=id.", "missing_name", 'A name is missing in "order" at position 4.'),
        ("order=.desc", "missing_name", 'A name is missing in "order" at position 1.'),
        ("order=id..desc", "missing_name", 'A name is missing in "order" at position 4.'),
        ('order=id,"na', "invalid_quotes", 'The double quote in "order" at position 4 is not closed.'),
        ('order="id"desc', "invalid_quotes", 'text after the closing quote in "order" at position 5.'),
        ("order=id.down", "invalid_order", 'Unexpected "down" after "id" in "order".'),
        ("order=id.DESC", "invalid_order", 'Unexpected "DESC" after "id" in "order".'),
        ("order=id.desc.desc", "invalid_order", 'Unexpected "desc" after "id" in "order".'),
        ("order=id.asc.desc", "invalid_order", 'Unexpected "desc" after "id" in "order".'),
        ("order=id.nullslast.nullsfirst", "invalid_order", 'Unexpected "nullsfirst" after "id" in "order".'),
        ("order=id.nullslast.desc", "invalid_order", 'Unexpected "desc" after "id" in "order".'),
        ("order=id.desc.nullslast.x", "invalid_order", 'Unexpected "x" after "id" in "order".'),
        ("order=a.b.desc", "invalid_order", 'Unexpected "b" after "a" in "order".'),
        ("order=id." + "x" * 8192, "invalid_order", f'Unexpected "{"x" * 100}…" after "id" in "order".'),
        # Counts.
        *(
            (
                f"{name}={text}",
                "invalid_count",
                f'"{name}" must be a whole number from 0 to {MOST_ROWS}, not "{text[:100]}',
            )
            for name in ("limit", "offset")
            for text in (
                "",
                "-1",
                "1.5",
                "1e3",
                "0x10",
                "ten",
                "١",
                "1_000",
                "9223372036854775808",
                "0" * 20,
                "9" * 8192,
            )
        ),
        ("limit=+1", "invalid_count", '"limit" must be a whole number from 0 to 9223372036854775807, not " 1".'),
        ("limit=null", "invalid_count", '775807, not "null".'),
        ("limit", "invalid_count", '775807, not "".'),
        # The dialect.
        ("delimiter=", "invalid_option", '"delimiter" must be "," or ";" or "|" or "tab", not "".'),
        ("delimiter=;;", "invalid_option", '"delimiter" must be "," or ";" or "|" or "tab", not ";;".'),
        ("delimiter=%09", "invalid_option", '"delimiter" must be "," or ";" or "|" or "tab", not "\\t".'),
        ("quote=none", "invalid_option", '"quote" must be "minimal" or "strings" or "all", not "none".'),
        ("header=yes", "invalid_option", '"header" must be "true" or "false", not "yes".'),
        ("header=True", "invalid_option", '"header" must be "true" or "false", not "True".'),
        ("header", "invalid_option", '"header" must be "true" or "false", not "".'),
        ("eol=%0A", "invalid_option", '"eol" must be "lf" or "crlf", not "\\n".'),
        ("eol=cr", "invalid_option", '"eol" must be "lf" or "crlf", not "cr".'),
        ("bom=1", "invalid_option", '"bom" must be "true" or "false", not "1".'),
        ("guard=true", "invalid_option", '"guard" must be "formulas", not "true".'),
        ("text=true", "invalid_option", '"text" must be "protect", not "true".'),
        ("text", "invalid_option", '"text" must be "protect", not "".'),
        ("excel=2019", "invalid_option", '"excel" must be "true" or "false", not "2019".'),
        ("eol=" + "x" * 8192, "invalid_option", f'"eol" must be "lf" or "crlf", not "{"x" * 100}…".'),
        ("null=a,b", "contradiction", '"null" holds the delimiter'),
        ("null=a;b&delimiter=;", "contradiction", '"null" holds the delimiter'),
        ("delimiter=tab&null=%09", "contradiction", '"null" holds the delimiter'),
        ('null=""', "contradiction", '"null" holds a quote'),
        ("null=%0A", "contradiction", '"null" holds a line break'),
        ("null=a%0D", "contradiction", '"null" holds a line break'),
        *(
            (f"{guard}&null={null}", "contradiction", '"null" must not begin like a formula while formulas are guarded')
            for guard in ("guard=formulas", "excel=true")
            for null in ("=", "-", "@x", "%09", "＝1", "n;=1", "a|-b", "a;\uff0d")
        ),
        ("excel=true&bom=false", "contradiction", '"excel=true" and "bom=false" contradict each other.'),
        ("eol=lf&excel=true", "contradiction", '"excel=true" and "eol=lf" contradict each other.'),
        # The rest.
        *(
            (f"parallel={text}", "invalid_count", f'"parallel" must be a whole number from 1 to 64, not "{shown}".')
            for text, shown in (
                *((text, text) for text in ("", "0", "000", "65", "-1", "1.5", "1e1", "two", "0x4", "000000065")),
                # Text that starts like a valid number, and characters that only look like digits.
                ("0000000641", "0000000641"),
                ("9" * 5000, "9" * 100 + "…"),
                ("%2B4", "+4"),
                ("4%20", "4 "),
                ("%D9%A4", "٤"),
                ("%C2%B2", "²"),
            )
        ),
        ("timezone=", "unknown_timezone", 'The time zone "" is not known.'),
        ("timezone=Mars/Olympus", "unknown_timezone", 'The time zone "Mars/Olympus" is not known.'),
        ("timezone=../../etc/passwd", "unknown_timezone", 'The time zone "../../etc/passwd" is not known.'),
        ("timezone=utc", "unknown_timezone", 'The time zone "utc" is not known.'),
        ("timezone=UTC%2B3", "unknown_timezone", 'The time zone "UTC+3" is not known.'),
        ("timezone=" + "x" * 8192, "unknown_timezone", f'The time zone "{"x" * 100}…" is not known.'),
        ("filename=", "invalid_filename", '"filename" is empty.'),
        ("filename=+%09", "invalid_filename", '"filename" is empty.'),
    ],
)
def test_an_invalid_query_has_a_code_and_a_reason(query: str, code: str, named: str) -> None:
    error = rejected("users.csv", query)
    assert (error.status, error.code) == (400, code)
    assert named in error.detail


def test_the_hint_for_an_unknown_parameter_lists_parameters_and_operators() -> None:
    hint = rejected("users.csv", "id=1").hint
    assert hint is not None
    listed = set(re.findall(r"[a-z.]+", hint.replace(", ", " ")))
    assert {*PARAMETERS, *OPERATORS} <= {word.strip(".") for word in listed}


@pytest.mark.parametrize(
    "option", ["delimiter=;", "quote=all", "header=true", "null=x", "eol=lf", "bom=false", "excel=true"]
)
def test_options_of_csv_are_refused_for_ndjson(option: str) -> None:
    error = rejected("users.ndjson", option)
    assert (error.status, error.code) == (400, "contradiction")
    assert f'"{option.partition("=")[0]}" applies to csv and tsv, not to ndjson' in error.detail


@pytest.mark.parametrize("delimiter", [",", ";", "tab", "nonsense"])
def test_the_delimiter_of_tsv_is_the_tab(delimiter: str) -> None:
    error = rejected("users.tsv", f"delimiter={delimiter}")
    assert (error.status, error.code) == (400, "contradiction")
    assert "tsv" in error.detail


def test_null_of_tsv_holds_no_tab() -> None:
    assert rejected("users.tsv.gz", "null=%09").code == "contradiction"


@pytest.mark.parametrize(
    ("query", "dialect"),
    [
        ("", Dialect()),
        ("delimiter=,", Dialect()),
        ("delimiter=;", Dialect(delimiter=b";")),
        ("delimiter=%3B", Dialect(delimiter=b";")),
        ("delimiter=|", Dialect(delimiter=b"|")),
        ("delimiter=tab", Dialect(delimiter=b"\t")),
        ("quote=minimal", Dialect()),
        ("quote=strings", Dialect(quote_style="strings")),
        ("quote=all", Dialect(quote_style="all")),
        ("header=true", Dialect()),
        ("header=false", Dialect(header=False)),
        ("null=", Dialect()),
        ("null=NULL", Dialect(null=b"NULL")),
        (r"null=\N", Dialect(null=rb"\N")),
        ("null=n/a", Dialect(null=b"n/a")),
        ("null=+", Dialect(null=b" ")),
        ("null=%E2%88%85", Dialect(null="∅".encode())),
        ("null=a,b&delimiter=;", Dialect(null=b"a,b", delimiter=b";")),
        ("eol=lf", Dialect()),
        ("eol=crlf", Dialect(eol=b"\r\n")),
        ("bom=true", Dialect(bom=True)),
        ("bom=false", Dialect()),
        ("guard=formulas", Dialect(guard=True)),
        ("text=protect", Dialect(protect=True)),
        ("text=protect&excel=true", Dialect(bom=True, eol=b"\r\n", guard=True, protect=True)),
        ("guard=formulas&null=n;a", Dialect(guard=True, null=b"n;a")),
        ("text=protect&null=0", Dialect(protect=True, null=b"0")),
        ("excel=true", Dialect(bom=True, eol=b"\r\n", guard=True)),
        ("excel=false", Dialect()),
        ("excel=false&bom=true", Dialect(bom=True)),
        ("excel=true&bom=true&eol=crlf&guard=formulas", Dialect(bom=True, eol=b"\r\n", guard=True)),
        ("delimiter=;&excel=true&quote=all", Dialect(b";", quote_style="all", eol=b"\r\n", bom=True, guard=True)),
    ],
)
def test_options_set_the_dialect(query: str, dialect: Dialect) -> None:
    assert parsed("users.csv", query) == ExportRequest(RelationName("users"), dialect=dialect)


@pytest.mark.parametrize("name", ["text", '"text"', "te%78t"])
@pytest.mark.parametrize("value", ["eq.protect", "not.is.null", "in.(a,b)"])
def test_a_column_named_text_is_filtered_as_any_other(name: str, value: str) -> None:
    wanted = parsed("users.csv", f"{name}={value}&text=protect")
    assert [condition.field for condition in conditions_of(wanted.filters)] == [Field("text")]
    assert replace(wanted, filters=()) == ExportRequest(RelationName("users"), dialect=Dialect(protect=True))


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("order=id", [SortKey(Field("id"))]),
        ("order=id.asc", [SortKey(Field("id"))]),
        ("order=id.desc", [SortKey(Field("id"), descending=True)]),
        ("order=id.nullsfirst", [SortKey(Field("id"), nulls_first=True)]),
        ("order=id.nullslast", [SortKey(Field("id"), nulls_first=False)]),
        ("order=id.asc.nullsfirst", [SortKey(Field("id"), nulls_first=True)]),
        ("order=id.desc.nullslast,name", [SortKey(Field("id"), True, False), SortKey(Field("name"))]),
        ("order=b,a.desc,b", [SortKey(Field("b")), SortKey(Field("a"), True), SortKey(Field("b"))]),
        ("order=id%2Cname%2Edesc", [SortKey(Field("id")), SortKey(Field("name"), True)]),
        ("order=desc", [SortKey(Field("desc"))]),
        ("order=desc.desc", [SortKey(Field("desc"), True)]),
        ("order=id desc", [SortKey(Field("id desc"))]),
        ("order= id ,\tname.desc ", [SortKey(Field("id")), SortKey(Field("name"), True)]),
        ('order=" id"', [SortKey(Field(" id"))]),
        ('order="a.b".desc,"c,d"', [SortKey(Field("a.b"), True), SortKey(Field("c,d"))]),
        ('order="say ""hi""".nullslast', [SortKey(Field('say "hi"'), nulls_first=False)]),
        ("order=data->a->>0.desc", [SortKey(Field("data", (Step("a"), Step(0, as_text=True))), True)]),
        ('order=data->>"a.b".nullslast', [SortKey(Field("data", (Step("a.b", as_text=True),)), nulls_first=False)]),
        ("order=1", [SortKey(Field("1"))]),
        ("order=größe", [SortKey(Field("größe"))]),
    ],
)
def test_order_names_columns_and_directions(query: str, order: list[SortKey]) -> None:
    assert parsed("users.csv", query) == ExportRequest(RelationName("users"), order=tuple(order))


@pytest.mark.parametrize(
    ("query", "limit", "offset"),
    [
        ("limit=0", 0, 0),
        ("limit=1", 1, 0),
        ("limit=007", 7, 0),
        (f"limit={MOST_ROWS}", MOST_ROWS, 0),
        ("offset=0", None, 0),
        ("offset=5", None, 5),
        (f"offset={MOST_ROWS}&limit=3", 3, MOST_ROWS),
    ],
)
def test_limit_and_offset_are_whole_numbers(query: str, limit: int | None, offset: int) -> None:
    assert parsed("users.csv", query) == ExportRequest(RelationName("users"), limit=limit, offset=offset)


@pytest.mark.parametrize(
    ("text", "readers"), [("1", 1), ("2", 2), ("64", MOST_READERS), ("007", 7), ("0" * 5000 + "4", 4)]
)
def test_the_readers_are_a_whole_number(text: str, readers: int) -> None:
    assert parsed("users.csv", f"parallel={text}").parallel == readers
    assert parsed("users.csv", "").parallel is None


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_a_time_zone_is_one_of_the_iana_database(name: str) -> None:
    assert parsed("users.csv", f"timezone={name.replace('+', '%2B')}").timezone == name


@pytest.mark.parametrize("name", ["report", " report ", "../../etc/passwd", 'a"b', "größe 🦥", "x" * LONGEST_FILENAME])
def test_a_file_name_may_be_any_text(name: str) -> None:
    """The download replaces what a header cannot carry."""
    assert parsed("users.csv", f"filename={name}").filename == name


EQ = Condition(Field("a"), "eq", ("1",))
NULL = Condition(Field("b"), "is", ("null",))


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("a=eq.1", [EQ]),
        ("%61=%65q.1", [EQ]),
        ('"a"=eq.1', [EQ]),
        ("a=eq.1&b=is.null", [EQ, NULL]),
        ("b=is.null&a=eq.1", [NULL, EQ]),
        ("a=eq.1&a=eq.1", [EQ, EQ]),
        ("or=(a.eq.1,b.is.null)", [Group("or", (EQ, NULL))]),
        ("and=(a.eq.1,b.is.null)", [Group("and", (EQ, NULL))]),
        ("not.or=(a.eq.1)", [Group("or", (EQ,), negated=True)]),
        ("not.and=(a.eq.1)", [Group("and", (EQ,), negated=True)]),
        ("or=(a.eq.1)&or=(b.is.null)", [Group("or", (EQ,)), Group("or", (NULL,))]),
        ("a=eq.1&or=(a.eq.1)&b=is.null", [EQ, Group("or", (EQ,)), NULL]),
        # Only the first = ends a name; + is a space, and & inside a value is percent-encoded.
        ("a=eq.b=c", [Condition(Field("a"), "eq", ("b=c",))]),
        ("a=eq.b+c", [Condition(Field("a"), "eq", ("b c",))]),
        ("a=eq.b%2Bc", [Condition(Field("a"), "eq", ("b+c",))]),
        ("a=eq.b%26c=eq.1", [Condition(Field("a"), "eq", ("b&c=eq.1",))]),
        ("a=eq.100%", [Condition(Field("a"), "eq", ("100%",))]),
        ("a=eq.%2525", [Condition(Field("a"), "eq", ("%25",))]),
        ("+a+=eq.1", [EQ]),
        ("data->a=eq.1", [Condition(DATA_A, "eq", ("1",))]),
        ("data-%3E%3Ea.b=eq.1", [Condition(Field("data", (Step("a.b", as_text=True),)), "eq", ("1",))]),
        ('"data->a"=eq.1', [Condition(Field("data->a"), "eq", ("1",))]),
        ("or=(data->a.eq.1,a.eq.1)", [Group("or", (Condition(DATA_A, "eq", ("1",)), EQ))]),
        ("a+b=eq.1", [Condition(Field("a b"), "eq", ("1",))]),
        # Columns with the name of a parameter.
        ('"order"=eq.1', [Condition(Field("order"), "eq", ("1",))]),
        ('"select"=in.(1)', [Condition(Field("select"), "in", ("1",))]),
        ('"or"=eq.1', [Condition(Field("or"), "eq", ("1",))]),
        ('"not.or"=eq.1', [Condition(Field("not.or"), "eq", ("1",))]),
        ("not=eq.1", [Condition(Field("not"), "eq", ("1",))]),
        # In the name of a parameter only a quote at its start has a meaning.
        ("a.b=eq.1", [Condition(Field("a.b"), "eq", ("1",))]),
        ("a,b:c(d)=eq.1", [Condition(Field("a,b:c(d)"), "eq", ("1",))]),
        ('a"b=eq.1', [Condition(Field('a"b'), "eq", ("1",))]),
        (r'"a\"b"=eq.1', [Condition(Field('a"b'), "eq", ("1",))]),
    ],
)
def test_any_other_parameter_filters_a_column(query: str, filters: list[Filter]) -> None:
    assert parsed("users.csv", query) == ExportRequest(RelationName("users"), filters=tuple(filters))


def test_all_parameters_go_together() -> None:
    assert parsed(
        "public.users.csv.gz",
        "a=eq.1&select=x:a,b&or=(b.is.null)&order=a.desc&limit=5&offset=2&delimiter=;&timezone=UTC&filename=f&eol=crlf",
    ) == ExportRequest(
        RelationName("users", "public"),
        "csv",
        gzip=True,
        select=(SelectedColumn(Field("a"), "x"), SelectedColumn(Field("b"))),
        filters=(EQ, Group("or", (NULL,))),
        order=(SortKey(Field("a"), descending=True),),
        limit=5,
        offset=2,
        dialect=Dialect(delimiter=b";", eol=b"\r\n"),
        timezone="UTC",
        filename="f",
    )


def test_the_number_of_sort_keys_is_limited() -> None:
    """PostgreSQL looks at each for seconds, and then refuses more than this number of different ones."""
    most = ",".join(["a->b.desc"] * MOST_SORT_KEYS)
    assert len(parsed("users.csv", f"order={most}").order) == MOST_SORT_KEYS
    error = rejected("users.csv", f"order={most},a,(")
    assert (error.status, error.code) == (400, "too_complex")
    assert error.detail == '"order" names more than 1,664 sort keys.'


def test_the_number_of_conditions_is_limited() -> None:
    """They are counted over the whole query string, in groups or not."""
    half = ",".join(["a.eq.1"] * (MOST_CONDITIONS // 2))
    assert len(conditions_of(parsed("users.csv", f"or=({half})&and=({half})").filters)) == MOST_CONDITIONS
    assert len(parsed("users.csv", "&".join(["a=eq.1"] * MOST_CONDITIONS)).filters) == MOST_CONDITIONS
    one_too_many = "&".join(["a=eq.1"] * (MOST_CONDITIONS + 1))
    # The last of these has no operator, but is not read.
    for query in (f"or=({half})&and=({half})&a=eq.1", one_too_many, f"{one_too_many}&a=1"):
        error = rejected("users.csv", query)
        assert (error.status, error.code) == (400, "too_many_conditions")
        assert error.detail == f"There are more than {MOST_CONDITIONS} conditions."


@pytest.mark.parametrize(
    ("schema", "name", "path"),
    [
        (None, "users", "/export/users.csv"),
        ("public", "users", "/export/public.users.csv"),
        (None, "my.table", "/export/%22my.table%22.csv"),
        (None, "..", "/export/%22..%22.csv"),
        (None, "a/b", "/export/a%2Fb.csv"),
        (None, 'a"b', "/export/a%22b.csv"),
        (None, '"', "/export/%22%5C%22%22.csv"),
        ("größe", "100%", "/export/gr%C3%B6%C3%9Fe.100%25.csv"),
    ],
)
def test_a_relation_has_a_path(schema: str | None, name: str, path: str) -> None:
    assert export_path(schema, name, "csv") == path


@given(schema=st.none() | NAMES | AWKWARD_NAMES, name=NAMES | AWKWARD_NAMES)
@example(schema=None, name='a.b\\"c\\')
@example(schema='"', name="\\")
@example(schema=".", name="x.csv")
@example(schema=None, name="x" * 8192)
def test_the_path_of_a_relation_names_it(schema: str | None, name: str) -> None:
    path = export_path(schema, name, "csv")
    # Nothing that a browser, a proxy or a log would interpret: no slash, no dot segment, only ASCII.
    assert re.fullmatch(r"/export/[A-Za-z0-9_.~%-]+\.csv", path)
    assert parse_export_request(path.removeprefix("/export/"), "") == ExportRequest(RelationName(name, schema))


@given(target=RAW, query=RAW | NEARLY_RIGHT | NEARLY_RIGHT.map(lambda text: "&" + text))
@example(target="users.csv", query='select="')
@example(target="%", query="%=%")
@example(target="users.csv", query="a=in.(")
@example(target="users.csv", query='or=(a.in.("")')
@example(target="users.csv", query='or=(a.eq.{"\\')
@example(target="users.csv", query="id=is.İ")
def test_any_text_is_parsed_or_raises_invalid_request(target: str, query: str) -> None:
    for path in (target, "users.csv", "users.ndjson"):
        outcome: ExportRequest | InvalidRequest
        try:
            outcome = parse_export_request(path, query)
        except InvalidRequest as error:
            outcome = error
        if isinstance(outcome, InvalidRequest):
            assert outcome.status == 400
            assert 0 < len(outcome.detail.encode()) < 1000
            continue
        names = [outcome.relation.name, outcome.relation.schema]
        fields = [item.field for item in outcome.select or () if item.field is not None]
        fields += [key.field for key in outcome.order] + [item.field for item in conditions_of(outcome.filters)]
        names += [field.column for field in fields] + [item.alias for item in outcome.select or ()]
        assert all(name is None or (name and "\0" not in name) for name in names)
        assert all("\0" not in str(step.key) for field in fields for step in field.path)
        assert all("\0" not in value for condition in conditions_of(outcome.filters) for value in condition.values)
        assert outcome.format in FORMATS
        assert outcome.offset >= 0
