"""The headers of a download: every name gives a file name that all systems take, and no name breaks the header.

RFC 6266 and RFC 8187.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.http.file_headers import content_disposition, make_response
from server.query.catalogue import Relation, RelationName
from server.query.dialect import Dialect
from server.query.file_names import file_name, file_name_of, safe_filename
from server.query.plan import ExportPlan, make_plan
from server.query.request import FORMATS, ExportRequest

# RFC 8187, 3.2.1: an extended value consists of attr-char and %XX.
VALUE_CHARS = r"(?:[A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-F]{2})*"
# RFC 6266, 4.1 and RFC 9110, 5.6.4: the whole header. Sluice writes quoted strings without escapes.
HEADER = re.compile(rf"attachment; filename=\"([^\"\\]*)\"(?:; filename\*=UTF-8''({VALUE_CHARS}))?")

ANY_NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=[])) | st.text(
    "a. \"\\/\r\n;%*='é\u202e\u200d🦥x", max_size=300
)


def decoded(header: str) -> tuple[str, str]:
    """Return the file name for clients without RFC 8187, and the one for clients with it."""
    match = HEADER.fullmatch(header)
    assert match is not None, header
    plain, extended = match.groups()
    return plain, plain if extended is None else unquote(extended, errors="strict")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("users", "users"),
        ("Größe", "Größe"),
        ("表 🦥", "表 🦥"),
        ("my.table", "my.table"),
        ("a,b;c='d'", "a,b;c='d'"),
        ("100%", "100%"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..", "export"),
        (".hidden", "hidden"),
        ("trailing. . ", "trailing"),
        (" ", "export"),
        ("", "export"),
        ("C:\\Windows\\x", "C__Windows_x"),
        ('<a>|"b"?*', "_a___b___"),
        ("a\r\nSet-Cookie: x", "a__Set-Cookie_ x"),
        ("a\tb\x00c\x7fd\x85e", "a_b_c_d_e"),
        ("gpj.\u202eexe", "gpj._exe"),  # right-to-left override
        ("a\u200bb\ufeffc", "a_b_c"),  # zero-width characters
        ("\ud800", "_"),  # a lone surrogate
        ("\ue000", "_"),  # private use
        ("x" * 8192, "x" * 200),
        ("é" * 8192, "é" * 100),
        ("x" + "é" * 8192, "x" + "é" * 99),  # never a part of a character
        ("🦥" * 8192, "🦥" * 50),
        ("x" * 199 + ". and more", "x" * 199),
        # Devices of Windows, in any case, with any suffix, before blanks.
        *(
            (name, f"_{name}")
            for name in ("CON", "nul", "Prn", "aux", "COM1", "com9", "LPT1", "lpt²", "COM¹", "CONIN$")
        ),
        ("LPT1.a", "_LPT1.a"),
        ("nul.tar.old", "_nul.tar.old"),
        ("NUL .txt", "_NUL .txt"),
        ("con. ", "_con"),
        (" .CON", "_CON"),
        ("con." + "x" * 300, "_con." + "x" * 195),
        # Names that only look like them.
        *((name, name) for name in ("console", "COM10", "LPT", "x.CON", "_CON", "CON-1", "auxiliary", "null", "NUL1")),
    ],
)
def test_a_name_becomes_a_safe_file_name(name: str, safe: str) -> None:
    assert safe_filename(name) == safe


@given(
    ANY_NAME | st.sampled_from(["con", "NUL", "com¹"]).flatmap(lambda device: ANY_NAME.map(lambda rest: device + rest))
)
@example("." * 300)
@example("x" * 198 + "é.")
def test_every_file_name_is_safe(name: str) -> None:
    safe = safe_filename(name)
    assert 0 < len(safe.encode()) <= 200
    assert not set(safe) & set('<>:"/\\|?*')
    assert all(unicodedata.category(character)[0] != "C" for character in safe)
    assert safe.strip(" .") == safe
    assert not re.match(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9¹²³]) *(\.|$)", safe)
    assert safe_filename(safe) == safe


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("users.csv", 'attachment; filename="users.csv"'),
        ("my table.csv", 'attachment; filename="my table.csv"'),
        ("a;b=c,d.csv", 'attachment; filename="a;b=c,d.csv"'),
        ("it's.csv", 'attachment; filename="it\'s.csv"'),
        ("größe.csv", "attachment; filename=\"gr__e.csv\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.csv"),
        ("€ rates.csv", "attachment; filename=\"_ rates.csv\"; filename*=UTF-8''%E2%82%AC%20rates.csv"),
        ("🦥.csv", "attachment; filename=\"_.csv\"; filename*=UTF-8''%F0%9F%A6%A5.csv"),
        # Some browsers decode % in a plain file name, so it is replaced there (RFC 6266, appendix D).
        ("100%25.csv", "attachment; filename=\"100_25.csv\"; filename*=UTF-8''100%2525.csv"),
        ("é'(*)+~.csv", "attachment; filename=\"_'(*)+~.csv\"; filename*=UTF-8''%C3%A9%27%28%2A%29+~.csv"),
    ],
)
def test_the_header_names_the_file_for_old_and_new_clients(filename: str, header: str) -> None:
    assert content_disposition(filename) == header


@given(ANY_NAME)
@example('x"; filename="evil.exe')
@example("x\r\nSet-Cookie: a=b")
@example("x\\")
@example("%22")
@example("é" * 300)
def test_no_name_breaks_out_of_the_header(name: str) -> None:
    filename = f"{safe_filename(name)}.csv"
    header = content_disposition(filename)
    assert all(" " <= character <= "~" for character in header)
    plain, shown = decoded(header)
    assert shown == filename
    assert len(plain) == len(filename)
    assert "%" not in plain


def plan(name: str, **wanted: Any) -> ExportPlan:
    """Return the plan of a relation without columns. wanted: fields of the request."""
    relation = Relation(1, "public", name, "table", False, (), None, None)
    return make_plan(ExportRequest(RelationName(name), **wanted), relation)


def headers(made: ExportPlan, *, compressed: bool = False) -> dict[str, str]:
    response = make_response(made, compressed=compressed)
    assert response.status == 200
    return {name: value for name, value in response.headers.items() if name != "Date"}


def test_a_download_is_an_attachment_that_no_cache_stores() -> None:
    assert headers(plan("users")) == {
        "Content-Type": "text/csv; charset=utf-8; header=present",
        "Content-Disposition": 'attachment; filename="users.csv"',
        "Cache-Control": "no-store",
        "Accept-Ranges": "none",
        "X-Accel-Buffering": "no",
        "X-Sluice-Relation": "public.users",
        "Vary": "Accept-Encoding",
    }


def test_the_relation_in_a_header_is_written_as_in_an_address() -> None:
    relation = Relation(1, 'süd "1"', "a.b\r\n", "table", False, (), None, None, also_in=("x,y", "ß"))
    found = headers(make_plan(ExportRequest(RelationName("a.b\r\n")), relation))
    assert found["X-Sluice-Relation"] == "s%C3%BCd%20%221%22.%22a.b%0D%0A%22"
    assert found["X-Sluice-Also-In"] == "x%2Cy, %C3%9F"


def test_bytes_compressed_for_the_transfer_have_a_content_encoding() -> None:
    assert headers(plan("users"), compressed=True) == headers(plan("users")) | {"Content-Encoding": "gzip"}


@pytest.mark.parametrize("format", FORMATS)
def test_a_gzip_file_does_not_depend_on_what_the_client_accepts(format: str) -> None:
    made = headers(plan("users", format=format, gzip=True))
    assert made["Content-Type"] == "application/gzip"
    assert made["Content-Disposition"] == f'attachment; filename="users.{format}.gz"'
    assert {"Vary", "Content-Encoding"}.isdisjoint(made)


@pytest.mark.parametrize(
    ("format", "dialect", "content_type"),
    [
        ("csv", Dialect(), "text/csv; charset=utf-8; header=present"),
        ("csv", Dialect(header=False), "text/csv; charset=utf-8; header=absent"),
        ("csv", Dialect(delimiter=b";", bom=True), "text/csv; charset=utf-8; header=present"),
        ("tsv", Dialect(delimiter=b"\t"), "text/tab-separated-values; charset=utf-8"),
        ("ndjson", Dialect(), "application/x-ndjson; charset=utf-8"),
    ],
)
def test_every_format_has_its_type_and_suffix(format: str, dialect: Dialect, content_type: str) -> None:
    made = headers(plan("users", format=format, dialect=dialect))
    assert made["Content-Type"] == content_type
    assert made["Content-Disposition"] == f'attachment; filename="users.{format}"'


def test_the_file_is_named_after_the_relation() -> None:
    assert decoded(headers(plan('../"Größe"\r\n'))["Content-Disposition"])[1] == "__Größe___.csv"


@pytest.mark.parametrize(
    ("filename", "saved"),
    [
        ("report", "report.csv"),
        ("my report 2024.12", "my report 2024.12.csv"),
        ("Größe 🦥", "Größe 🦥.csv"),
        ("../../etc/passwd", "_.._etc_passwd.csv"),
        ('x"; filename="evil.exe', "x_; filename=_evil.exe.csv"),
        ("x\r\nSet-Cookie: a=b", "x__Set-Cookie_ a=b.csv"),
        (" . ", "export.csv"),
        ("x" * 8192, "x" * 200 + ".csv"),
        ("CON", "_CON.csv"),
        ("LPT1.a", "_LPT1.a.csv"),
        ("aux.csv", "_aux.csv"),
    ],
)
def test_the_file_is_named_as_the_request_says(filename: str, saved: str) -> None:
    assert decoded(headers(plan("users", filename=filename))["Content-Disposition"])[1] == saved


@pytest.mark.parametrize("relation", ["aux", "NUL", "com1"])
def test_a_relation_with_the_name_of_a_device_gets_another_file_name(relation: str) -> None:
    assert decoded(headers(plan(relation))["Content-Disposition"])[1] == f"_{relation}.csv"
    assert file_name(relation, "ndjson.gz") == f"_{relation}.ndjson.gz"


@pytest.mark.parametrize(
    ("target", "query", "name"),
    [
        ("users.csv", "", "users.csv"),
        ("public.users.csv.gz", "limit=3", "users.csv.gz"),
        ("users.csv", "id=in.(1,2)&filename=my%20report&order=id", "my report.csv"),
        ("users.csv.gz", "filename=report.csv", "report.csv.gz"),
        ("users.ndjson", "%66ilename=a+b", "a b.ndjson"),
        ("%22my.table%22.tsv", "name=eq.filename=x&xfilename=eq.y", "my.table.tsv"),
        ("aux.csv", "", "_aux.csv"),
        # The rest of the query string is not read: it was valid when the export was saved.
        ("users.csv", "no such parameter&filename=x", "x.csv"),
    ],
)
def test_the_name_of_a_file_is_read_from_its_address(target: str, query: str, name: str) -> None:
    assert file_name_of(target, query) == name
