"""The pages as HTML over HTTP: their content, headers, escaping and size, and that they work without JavaScript.

What a user sees and does in a browser is in test_browser.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import create_app
from server.errors import ServerBusy
from server.pages import listing, static_files, table
from server.pages.sent_fields import FORM_TYPE
from server.query.parameters import parse_dialect
from server.saved.runner import Runner
from server.settings import Settings
from tests.support.live_server import eventually
from tests.support.postgres import Postgres

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
# Bytes of HTML, styles and scripts of the list with 1,000 tables.
MOST_WEIGHT = 100_000


# Elements without an end tag (HTML, "Void elements").
VOID = {"br", "input", "link", "meta"}


class Page(HTMLParser):
    """A parsed page: its elements as (tag, attributes) in order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        # The text inside each element, and the numbers of those that are open.
        self._texts: list[str] = []
        self._open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._texts.append("")
        if tag not in VOID:
            self._open.append(len(self.tags) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.tags[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        for number in self._open:
            self._texts[number] += data

    def each(self, tag: str) -> list[str]:
        """Return the text inside each element of this tag."""
        return [text for (name, _), text in zip(self.tags, self._texts, strict=True) if name == tag]

    def words(self, id: str) -> str:
        """Return the text inside the element of this id, with single spaces."""
        found = (text for (_, each), text in zip(self.tags, self._texts, strict=True) if each.get("id") == id)
        return " ".join(next(found).split())

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]

    def links(self) -> list[str]:
        return [str(attributes["href"]) for attributes in self.all("a")]

    def export(self) -> str:
        """Return the address of the export that the page offers, without its origin."""
        return "/export/" + self.words("url").split("/export/", 1)[1]

    def can_download(self) -> bool:
        (button,) = self.all("button", id="download")
        return "disabled" not in button


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, shutdown_timeout=5, export_storage_path=tmp_path / "exports")


@pytest.fixture
async def other(settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[TestClient[Any, Any]]:
    """Yield a client of a server with the settings of the test, given as an indirect parameter."""
    async with TestClient(TestServer(create_app(replace(settings, **request.param)))) as opened:
        yield opened


async def page(client: TestClient[Any, Any], path: str, status: int = 200) -> Page:
    async with client.get(path, headers=BROWSER) as response:
        assert (response.status, response.content_type) == (status, "text/html"), path
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["Cache-Control"] == "no-store"
        text = await response.text()
    found = Page(text)
    # Nothing inline, nothing from other sites.
    for _, attributes in found.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "action"):
            assert not urlsplit(attributes.get(name) or "").netloc
    assert all(script.get("src") for script in found.all("script"))
    assert not found.all("style")
    return found


async def count(client: TestClient[Any, Any]) -> int:
    """Return the number of relations."""
    async with client.get("/relations") as response:
        return len((await response.json())["relations"])


# --- The list ---


async def test_the_list_links_to_every_relation(client: TestClient[Any, Any]) -> None:
    found = await page(client, "/")
    assert {"table/users", "table/orders", "table/revenue_by_country", "table/orders_2024_01"} <= set(found.links())
    for link in ("table/users", "table/revenue_by_country"):
        await page(client, "/" + link)


ODD = [
    SCRIPT,
    IMAGE,
    "my.table",
    "a/b",
    "..",
    '"',
    "x?y#z",
    "Größe 😀",
    "50%",
    "a b",
    "preview",
    "&amp;",
    "{{ 7 * 7 }}",
]


@pytest.mark.parametrize("name", ODD)
async def test_odd_names_are_shown_as_text(client: TestClient[Any, Any], postgres: Postgres, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    postgres.run(f"CREATE TABLE {quoted} (id int, {quoted} text)")
    postgres.run(f"INSERT INTO {quoted} VALUES (1, %s)".replace("50%", "50%%"), [name])
    listed = await page(client, "/")
    assert name in listed.text
    assert not listed.all("img")
    link = next(link for link in listed.links() if link.startswith("table/") and link not in USUAL)
    found = await page(client, "/" + link)
    assert not found.all("img")
    assert name in found.text
    assert {field["value"] for field in found.all("input", name="c")} == {"id", name}
    async with client.get(URL(found.export(), encoded=True)) as response:
        assert await response.read() == postgres.copy(f"SELECT * FROM {quoted}")


USUAL = {"table/users", "table/orders", "table/revenue_by_country"} | {
    f"table/orders_{year}_{month:02}" for year in (2024, 2025) for month in range(1, 13)
}


def listed(found: Page) -> list[str]:
    """Return the addresses of the relations in the list."""
    return [link for link in found.links() if link.startswith("table/")]


async def test_the_list_can_be_searched_without_javascript(client: TestClient[Any, Any]) -> None:
    found = await page(client, "/?q=USERS")
    assert listed(found) == ["table/users"]
    assert f"1 of {await count(client)}" in found.text
    nothing = await page(client, f"/?q={quote(IMAGE)}")
    assert not listed(nothing)
    assert nothing.all("input", id="q")[0]["value"] == IMAGE
    assert not nothing.all("img")


async def test_the_list_is_searched_by_comment_and_column_and_shows_comments(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("""
        CREATE TABLE parcels (id int, weight_in_grams int);
        COMMENT ON TABLE parcels IS 'What was <b>sent</b>\nand when';
        CREATE VIEW heaviest AS SELECT weight_in_grams FROM parcels;
        COMMENT ON VIEW heaviest IS 'The largest';
        COMMENT ON COLUMN parcels.weight_in_grams IS 'never shown'""")
    found = await page(client, "/?q=B%3ESENT")
    assert listed(found) == ["table/parcels"]
    assert "What was <b>sent</b>" in found.text
    assert not found.all("b")
    found = await page(client, "/?q=In_Gram")
    assert listed(found) == ["table/heaviest", "table/parcels"]
    assert found.text.count("column weight_in_grams") == 2
    assert "never shown" not in (await page(client, "/")).text
    # The partitions of orders have the same columns; their parent is enough.
    assert listed(await page(client, "/?q=ordered_at")) == ["table/orders"]
    assert listed(await page(client, "/?q=largest+weight")) == ["table/heaviest"]
    async with client.get("/relations/heaviest") as response:
        assert (await response.json())["comment"] == "The largest"


async def test_only_readable_columns_are_found(settings: Settings, postgres: Postgres) -> None:
    postgres.run("""
        CREATE TABLE people (id int, salary int);
        CREATE ROLE list_reader LOGIN; GRANT SELECT (id) ON people TO list_reader""")
    try:
        dsn = re.sub(r"//[^@/]*@", "//list_reader@", settings.dsn)
        async with TestClient(TestServer(create_app(replace(settings, database_url=dsn)))) as client:
            assert listed(await page(client, "/?q=id")) == ["table/people"]
            assert listed(await page(client, "/?q=salary")) == []
    finally:
        postgres.run("DROP TABLE people; DROP ROLE list_reader")


async def test_the_list_is_sorted_by_name_rows_and_size(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("""
        CREATE TABLE sorted_a (a text); CREATE TABLE sorted_b (a text); CREATE TABLE sorted_c (a text);
        ALTER TABLE sorted_b ALTER a SET STORAGE PLAIN;
        INSERT INTO sorted_a SELECT 'x' FROM generate_series(1, 50);
        INSERT INTO sorted_b SELECT repeat('x', 6000) FROM generate_series(1, 5)""")
    for table_name in ("sorted_a", "sorted_b"):
        postgres.run(f"VACUUM ANALYZE {table_name}")

    async def order(sort: str) -> str:
        return "".join(link[-1] for link in listed(await page(client, f"/?q=sorted_&sort={sort}")))

    assert [await order(sort) for sort in ("", "name", "name.desc")] == ["abc", "abc", "cba"]
    # c was never analysed: it is last both ways.
    assert [await order(sort) for sort in ("rows", "rows.desc")] == ["bac", "abc"]
    assert [await order(sort) for sort in ("size", "size.desc")] == ["abc", "bac"]
    found = await page(client, "/?q=sorted_&sort=size.desc")
    assert [head.get("aria-sort") for head in found.all("th", scope="col")] == [None, None, None, "descending"]
    assert "/?q=sorted_&sort=size" in found.links()
    assert found.all("input", name="sort")[0]["value"] == "size.desc"
    refused = await page(client, "/?sort=colour", 400)
    assert "cannot be sorted" in refused.text


async def test_an_unknown_size_is_blank(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE never_analysed (a int); INSERT INTO never_analysed VALUES (1)")
    found = await page(client, "/?q=never_analysed")
    assert re.search(r"never_analysedtable\s*$", found.text, re.MULTILINE)
    assert "0 B" not in found.text
    async with client.get("/relations/never_analysed") as response:
        described = await response.json()
    assert (described["estimatedRows"], described["bytes"]) == (None, None)


@pytest.mark.parametrize("other", [{"export_schemas": ("public", "other <b>")}], indirect=True)
async def test_the_list_is_grouped_by_schema_and_filters_by_it(other: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run('CREATE SCHEMA "other <b>"; CREATE TABLE "other <b>".users (a int)')
    try:
        everything = await page(other, "/")
        assert {"table/users", "table/other%20%3Cb%3E.users"} <= set(everything.links())
        assert len(everything.all("th", scope="rowgroup")) == 2
        assert "other <b> 1" in everything.text
        found = await page(other, "/?schema=other+%3Cb%3E")
        assert listed(found) == ["table/other%20%3Cb%3E.users"]
        assert "other <b>.users" in (await page(other, "/table/other%20%3Cb%3E.users")).text
        # Sorted by size, all schemas are one list, and the names have their schemas.
        ranked = await page(other, "/?sort=size")
        assert not ranked.all("th", scope="rowgroup")
        assert "other <b>.users" in ranked.text
    finally:
        postgres.run('DROP SCHEMA "other <b>" CASCADE')


@pytest.mark.parametrize("other", [{"export_schemas": ("empty_schema",)}], indirect=True)
async def test_an_empty_list_explains_what_to_grant(other: TestClient[Any, Any]) -> None:
    found = await page(other, "/")
    assert "nothing to export" in found.text
    assert "empty_schema" in found.text


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"export_schemas": ("thousand",)}], indirect=True)
async def test_a_list_of_a_thousand_tables_is_small(other: TestClient[Any, Any], postgres: Postgres) -> None:
    names = [f"customer_{number:05}" for number in range(1000)]
    postgres.run("CREATE SCHEMA thousand")
    try:
        postgres.run(";".join(f"CREATE TABLE thousand.{name} (id bigint, name text)" for name in names))
        found = await page(other, "/")
        assert [link for link in found.links() if link.startswith("table/")] == [f"table/{name}" for name in names]
        weight = 0
        own = [script["src"] for script in found.all("script")] + [link["href"] for link in found.all("link")]
        for path in ["/", "/static/live.js", *map(str, own)]:  # list.js imports live.js
            async with other.get(path, headers=BROWSER) as response:
                weight += len(await response.read())
        assert weight <= MOST_WEIGHT
    finally:
        for part in range(0, 1000, 200):  # each table is a lock
            postgres.run(";".join(f"DROP TABLE thousand.{name}" for name in names[part : part + 200]))
        postgres.run("DROP SCHEMA thousand")


async def test_a_longer_list_is_truncated_with_a_notice(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_RELATIONS", 5)
    found = await page(client, "/")
    assert len([link for link in found.links() if link.startswith("table/")]) == 5
    assert f"The first 5 of {await count(client)} are shown" in found.text


@pytest.mark.parametrize("other", [{"database_url": "postgresql://nobody@127.0.0.1:9/x"}], indirect=True)
@pytest.mark.parametrize("path", ["/", "/table/users"])
async def test_pages_report_an_unavailable_database(other: TestClient[Any, Any], path: str) -> None:
    found = await page(other, path, 503)
    assert "connection" in found.text or "reached" in found.text
    async with other.get(path, headers=BROWSER) as response:
        assert int(response.headers["Retry-After"]) > 0


async def test_the_saved_exports_report_an_unavailable_folder(client: TestClient[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "exports").rename(tmp_path / "elsewhere")
    found = await page(client, "/saved", 503)
    assert "Direct downloads still work" in found.text
    async with client.get("/saved", headers=BROWSER) as shown, client.get("/exports") as listed:
        assert shown.headers["Retry-After"] == listed.headers["Retry-After"] == "60"


# --- A relation ---


async def test_the_form_shows_the_query_of_its_address(client: TestClient[Any, Any]) -> None:
    query = "select=id,who:name&signup_date=gte.2024-01-01T12:30&id=in.(1,2)&or=(id.eq.1,id.eq.2)&order=id.desc&limit=3"
    found = await page(client, f"/table/users?{query}&format=tsv.gz")
    assert [field["value"] for field in found.all("input", name="c")][:2] == ["id", "name"]
    assert [field["value"] for field in found.all("input", name="a")][1] == "who"
    assert len([field for field in found.all("input", name="t") if "checked" in field]) == 2
    assert found.all("input", type="date")[0]["value"] == "2024-01-01"
    assert found.all("input", type="time")[0]["value"] == "12:30"
    assert found.all("input", name="f1.value")[0]["value"] == "1, 2"
    assert found.all("input", name="limit")[0]["value"] == "3"
    assert "or=(id.eq.1,id.eq.2)" in found.text
    assert urlsplit(found.export()).path == "/export/users.tsv.gz"


async def test_the_page_offers_to_keep_text_and_says_what_a_spreadsheet_does_otherwise(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE notes (id int, text text); INSERT INTO notes VALUES (1, '007'), (2, 'Ada')")
    found = await page(client, "/table/notes")
    (box,) = found.all("input", name="text")
    assert (box["type"], "checked" in box) == ("checkbox", False)
    assert "a spreadsheet shows the text 007 as 7, 1e5 as 100000 and 12/1 as a date" in found.text
    assert box["aria-describedby"] in [note.get("id") for note in found.all("p")]
    # The parameter has the name of a column, which is filtered all the same.
    found = await page(client, "/table/notes?text=eq.Ada&text=protect")
    assert "checked" in found.all("input", name="text")[0]
    assert [field["value"] for field in found.all("input", name="f0.value")] == ["Ada"]
    shape = {"format": "csv", "f0.column": "text", "f0.op": "is", "f0.value": "007", "text": "protect"}
    async with client.get("/shape/notes", params=shape, allow_redirects=False) as response:
        query = urlsplit(response.headers["Location"]).query
    async with client.get(URL(f"/export/notes.csv?{query}", encoded=True)) as response:
        assert await response.text() == 'id,text\n1,"=""007"""\n', query


async def test_a_submitted_form_redirects_to_the_equivalent_address(client: TestClient[Any, Any]) -> None:
    fields = "c=id&a=&t=0&c=name&a=full+name&t=1&c=email&a=&f0.column=id&f0.op=lte&f0.value=2&format=csv&limit=&more="
    async with client.get(f"/shape/users?{fields}", headers=BROWSER, allow_redirects=False) as response:
        assert response.status == 303
        assert response.headers["Location"] == "/table/users?select=id,full%20name:name&id=lte.2"
    found = await page(client, "/table/users?select=id,full%20name:name&id=lte.2")
    assert "full name" in found.text


FIELDS = "c=id&a=&t=0&c=name&a=&f0.column=id&f0.op=lte&f0.value={value}&format=tsv&gzip=gz&limit={limit}"


@pytest.mark.parametrize(
    ("value", "limit", "location"),
    [
        ("2", "", "/export/users.tsv.gz?select=id&id=lte.2"),
        # What cannot be exported is shown on the page.
        ("2", "many", "/table/users?format=tsv.gz&select=id&id=lte.2&limit=many"),
        ("abc", "", "/table/users?format=tsv.gz&select=id&id=lte.abc"),  # PostgreSQL refuses it
    ],
)
async def test_the_download_button_sends_the_form(
    client: TestClient[Any, Any], value: str, limit: str, location: str
) -> None:
    fields = FIELDS.format(value=value, limit=limit)
    (button,) = (await page(client, "/table/users")).all("button", id="download")
    async with client.get(
        f"/shape/users?{fields}&{button['name']}={button['value']}", headers=BROWSER, allow_redirects=False
    ) as response:
        assert (response.status, response.headers["Location"]) == (303, location)


async def test_the_page_says_what_is_wrong_with_a_relation_after_a_press(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS id WITH NO DATA")
    async with client.get("/shape/unfilled?c=id&a=&t=0&do=download", headers=BROWSER) as response:
        assert response.url.path == "/table/unfilled"
        assert "The materialized view is not populated" in await response.text()
    headers = {"Content-Type": "application/x-www-form-urlencoded", **BROWSER}
    async with client.post("/shape/unfilled", data="c=id&a=&t=0", headers=headers) as response:
        assert response.url.path == "/table/unfilled"
    # A lock may be gone when the export begins.
    postgres.run("CREATE TABLE busy (id int)")
    holder = postgres.connect()
    with contextlib.closing(holder), holder.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE busy")
        async with client.get("/shape/busy?c=id&a=&t=0&do=download", allow_redirects=False) as response:
            assert response.headers["Location"] == "/export/busy.csv"


@pytest.mark.parametrize(
    ("value", "limit", "location", "saved"),
    [
        ("2", "", "/saved", ["select=id&id=lte.2"]),
        ("2", "many", "/table/users?format=tsv.gz&select=id&id=lte.2&limit=many", []),
        ("abc", "", "/table/users?format=tsv.gz&select=id&id=lte.abc", []),  # PostgreSQL refuses it
    ],
)
async def test_the_save_button_sends_the_form(
    client: TestClient[Any, Any], value: str, limit: str, location: str, saved: list[str]
) -> None:
    (button,) = (await page(client, "/table/users")).all("button", id="save")
    assert button["formmethod"] == "post"
    headers = {"Content-Type": "application/x-www-form-urlencoded", **BROWSER}
    async with client.post(
        "/shape/users", data=FIELDS.format(value=value, limit=limit), headers=headers, allow_redirects=False
    ) as response:
        assert (response.status, response.headers["Location"]) == (303, location)
    async with client.get("/exports") as response:
        found = [(each["relation"], each["query"]) for each in (await response.json())["exports"]]
    assert found == [("users", query) for query in saved]


async def test_only_the_fields_of_a_form_are_saved(client: TestClient[Any, Any]) -> None:
    async with client.post("/shape/users", json={"limit": 1}) as response:
        assert (response.status, (await response.json())["code"]) == (400, "invalid_form")
    async with client.post("/shape/users", data=b"limit=\xff", headers={"Content-Type": FORM_TYPE}) as response:
        assert response.status == 200  # the page, which shows the fault
    async with client.get("/exports") as response:
        assert not (await response.json())["exports"]


async def test_the_links_depend_on_no_row(client: TestClient[Any, Any], postgres: Postgres) -> None:
    """Another session holds the lock, so a preview would wait for it."""
    postgres.run("CREATE TABLE held (a int)")
    holder = postgres.connect()
    try:
        with holder.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE")
            fields = "c=a&a=&t=0&f0.column=a&f0.op=gt&f0.value=7&format=csv"
            async with client.get(f"/shape/held?{fields}", headers={"X-Sluice-Live": "links", **BROWSER}) as response:
                found = Page(await response.text())
    finally:
        holder.close()
    assert found.export() == "/export/held.csv?a=gt.7"
    (changes,) = found.all("output", id="changes")
    assert changes["data-page"] == "/table/held?a=gt.7"
    assert "data-usable" in changes
    assert not found.all("div", id="preview")


async def test_the_preview_shows_rows_of_the_export(client: TestClient[Any, Any], postgres: Postgres) -> None:
    found = await page(client, "/table/users?select=id,email&id=lte.3&order=id.desc")
    for number, email in postgres.run("SELECT id, email FROM users WHERE id <= 3 ORDER BY id DESC"):
        assert f"{number}{email}" in found.text
    assert "All 3 rows" in found.text
    assert "No rows match" in (await page(client, "/table/users?id=lt.0")).text


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("", "contain only its header line"),
        ("format=tsv", "contain only its header line"),
        ("header=false", "be empty"),
        ("format=ndjson", "be empty"),
    ],
)
async def test_a_preview_without_rows_tells_what_the_file_will_contain(
    client: TestClient[Any, Any], query: str, content: str
) -> None:
    found = await page(client, f"/table/users?id=lt.0&{query}")
    assert f"The file will {content}." in found.text
    async with client.get(URL(found.export(), encoded=True)) as response:
        assert bool(await response.read()) == ("header" in content)


async def test_an_empty_table_is_said_to_be_empty(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE nothing (id int)")
    text = (await page(client, "/table/nothing")).text
    assert "The table is empty. The file will contain only its header line." in text
    assert "Change the filters" not in text
    text = (await page(client, "/table/nothing?id=eq.1")).text
    assert "No rows match" in text
    assert "is empty" not in text


async def test_the_page_never_contradicts_the_rows_in_sight(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("""
        CREATE TABLE six (a int) WITH (autovacuum_enabled = false);
        INSERT INTO six SELECT generate_series(1, 6);
        CREATE TABLE more (a int) WITH (autovacuum_enabled = false);
        INSERT INTO more SELECT generate_series(1, 25);
        CREATE TABLE filled (a int) WITH (autovacuum_enabled = false);
        ANALYZE filled; INSERT INTO filled SELECT generate_series(1, 6)""")
    for path, about, size in [
        ("six", "table 6 rows 1 column", "6 rows about 12 B"),
        ("six?a=gt.4", "table 1 column", "2 rows about 4 B"),
        ("six?limit=0", "table 1 column", "0 rows"),
        ("more", "table at least 20 rows 1 column", "at least 20 rows"),
        ("more?limit=20", "table 1 column", "20 rows about 51 B"),
        ("filled", "table 6 rows 1 column", "6 rows about 12 B"),
    ]:
        found = await page(client, f"/table/{path}")
        assert (found.words("about"), found.words("size")) == (about, size), path
    async with client.get("/relations/six") as response:
        document = await response.json()
    assert (document["estimatedRows"], document["bytes"]) == (None, None)


async def test_the_preview_shows_what_the_file_holds(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("""CREATE TABLE formulas ("=head" text, n int); INSERT INTO formulas VALUES ('=1+1', -2), (NULL, 3)""")
    for query, lines in [
        ("", ["=head,n", "=1+1,-2", ",3"]),
        ("excel=true&null=N", ["'=head,n", "'=1+1,-2", "N,3"]),
        ("header=false&quote=all", ['"=1+1","-2"', ',"3"']),
        ("format=tsv", ["=head\tn", "=1+1\t-2", "\t3"]),
        ("format=ndjson", ['{"=head":"=1+1","n":-2}', '{"=head":null,"n":3}']),
    ]:
        found = await page(client, f"/table/formulas?{query}")
        assert found.each("li")[-len(lines) :] == lines
        async with client.get(URL(found.export(), encoded=True)) as response:
            assert (await response.read()).decode("utf-8-sig").splitlines() == lines
        if "ndjson" in query:
            assert not found.all("table")
        else:
            guard = "'" if "excel" in query else ""
            assert found.each("th") == [f"{guard}=headtext", "ninteger"]
            assert found.each("td") == [f"{guard}=1+1", "-2", "NULL", "3"]
    assert "UTF-8 with a byte order mark. Lines end in CRLF." in (await page(client, "/table/formulas?excel=true")).text
    assert "UTF-8. Lines end in LF." in (await page(client, "/table/formulas")).text
    async with client.get("/relations/formulas/preview?guard=formulas") as response:
        document = await response.json()
    assert document["columns"][0]["name"] == "'=head"
    assert document["rows"] == [["'=1+1", "-2"], [None, "3"]]


async def test_null_and_the_empty_string_look_different(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE halves (a text, b text); INSERT INTO halves VALUES (NULL, '')")
    found = await page(client, "/table/halves")
    assert len(found.all("i")) == 1


@pytest.mark.parametrize(
    ("query", "slot", "says"),
    [
        ("id=eq.abc", "fault-f0", "id takes whole numbers."),
        ("id=in.(1,abc)", "fault-f0", "id takes whole numbers, not abc."),
        ("id=eq.99999999999999999999", "fault-f0", "id takes whole numbers from -9223372036854775808 to"),
        ("signup_date=gt.2023-02-30", "fault-f0", "signup_date takes dates with or without a time"),
        ("lifetime_value=gt.1&lifetime_value=lt.much", "fault-f1", "lifetime_value takes numbers."),
        ("name=match.(", "fault-f0", "This is not a valid regular expression."),
        ("limit=many", "fault-limit", "Maximum rows takes a whole number."),
        ("timezone=Mars", "fault-timezone", "There is no time zone Mars."),
        ("order=gone", "fault-sort", "There is no column “gone”."),
        ("select=gone", "fault-columns", "There is no column “gone”."),
        ("or=(id.eq.1", "fault-more", "not closed"),
        ("nonsense=1", "fault-more", "not known"),
        ("name=match.((a%3F){0,40}){0,40}", "fault-more", "repeats too much"),
    ],
)
async def test_an_error_is_shown_at_its_field(client: TestClient[Any, Any], query: str, slot: str, says: str) -> None:
    found = await page(client, f"/table/users?{query}")
    shown = [field for field in found.all("p") if (field.get("class") == "fault") and "hidden" not in field]
    assert [field["id"] for field in shown] == [slot]
    assert found.text.count(says) == 1
    assert not found.can_download()
    assert f"#{slot}" in found.links()


@pytest.mark.parametrize(
    ("query", "implied"),
    [
        ("", {"delimiter": "comma", "eol": "LF (Unix)", "bom": "no", "guard": "unchanged"}),
        ("format=tsv", {"delimiter": "tab (TSV)", "eol": "LF (Unix)"}),
        ("excel=true", {"eol": "CRLF (Excel)", "bom": "yes (Excel)", "guard": "guarded (Excel)"}),
        ("excel=true&delimiter=;", {"delimiter": "semicolon", "bom": "yes (Excel)"}),
        ("excel=true&eol=lf", {"eol": "lf", "bom": "yes (Excel)"}),  # an error, shown as it is
        ("excel=false&eol=crlf", {"eol": "CRLF (Windows)", "bom": "no"}),
    ],
)
async def test_options_that_others_set_are_shown_as_set(
    client: TestClient[Any, Any], query: str, implied: dict[str, str]
) -> None:
    found = await page(client, f"/table/users?{query}")
    shown: dict[str, str] = {}
    texts = iter(found.each("option"))
    for tag, attributes in found.tags:
        if tag == "select":
            name = str(attributes["name"])
        elif tag == "option":
            text = next(texts)
            if name not in shown or "selected" in attributes:
                shown[name] = text
    assert {name: shown[name] for name in implied} == implied


def test_the_page_knows_all_that_excel_sets() -> None:
    dialect = parse_dialect({"excel": "true"}, "csv")
    assert dialect == parse_dialect({"eol": "crlf", "bom": "true", "guard": "formulas"}, "csv")


async def test_a_form_without_a_ticked_column_says_so_once(client: TestClient[Any, Any]) -> None:
    async with client.get("/shape/users?c=id&a=&c=name&a=&format=csv", headers=BROWSER) as response:
        assert (await response.text()).count("Tick at least one column.") == 1


# Rows around the bounds of days, also of those on which summer time begins and ends (New York, 2024).
MOMENTS = [
    *("2020-01-01 23:59:59.999999", "2020-01-02 00:00", "2020-01-02 12:30", "2020-01-02 23:59:59.999999"),
    *("2020-01-03 00:00", "2020-01-03 05:00", "2020-01-02 05:00", "2020-01-02 04:59:59", "2020-01-03 04:59:59.999999"),
    *("2024-03-10 04:59", "2024-03-10 05:00", "2024-03-11 03:59", "2024-03-11 04:00", "2024-11-03 03:59"),
    *("2024-11-03 04:00", "2024-11-04 04:59", "2024-11-04 05:00", "infinity", "-infinity", None),
]
DAY_FILTERS = {
    "eq": "{day} = '{one}'",
    "neq": "{day} <> '{one}'",
    "gt": "{day} > '{one}'",
    "gte": "{day} >= '{one}'",
    "lt": "{day} < '{one}'",
    "lte": "{day} <= '{one}'",
    "in": "{day} IN ('{one}', '2020-01-03')",
    "not_in": "{day} NOT IN ('{one}', '2020-01-03')",
}


@pytest.mark.parametrize("zone", ["", "America/New_York", "Asia/Tokyo"])
async def test_a_date_without_a_time_is_the_whole_day(
    client: TestClient[Any, Any], postgres: Postgres, zone: str
) -> None:
    postgres.run("CREATE DOMAIN event_time AS timestamptz")
    postgres.run("CREATE TABLE moments (id serial, at timestamptz, local timestamp, event event_time)")
    moment = "m::timestamp AT TIME ZONE 'UTC'"
    values = f"SELECT {moment}, m::timestamp, {moment} FROM unnest(%s) AS m"
    postgres.run(f"INSERT INTO moments (at, local, event) {values}", [MOMENTS])
    day_of = {"at": f"(at AT TIME ZONE '{zone or 'UTC'}')::date", "local": "local::date"}
    day_of["event"] = day_of["at"]
    choice = [("c", "id"), ("a", ""), ("t", "0"), ("timezone", zone)]
    try:
        for (column, day), (key, condition) in itertools.product(day_of.items(), DAY_FILTERS.items()):
            for one in ("2020-01-02", "2024-03-10", "2024-11-03"):
                value = f"{one}, 2020-01-03" if key.endswith("in") else one
                fields = [*choice, ("f0.column", column), ("f0.op", key), ("f0.value", value), ("f0.time", "")]
                address = URL("/shape/moments").with_query(fields)
                async with client.get(address, headers=BROWSER, allow_redirects=False) as response:
                    query = urlsplit(response.headers["Location"]).query
                async with client.get(URL(f"/export/moments.csv?{query}", encoded=True)) as response:
                    assert response.status == 200, query
                    rows = await response.read()
                where = condition.format(day=day, one=one)
                assert rows == postgres.copy(f"SELECT id FROM moments WHERE {where}"), (query, where)
    finally:
        postgres.run("DROP DOMAIN event_time CASCADE")


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("signup_date=lt.2020-01-03T00:00", "Before 2020-01-03 00:00 (Etc/UTC, the default)."),
        ("signup_date=lte.2020-01-02&timezone=Asia/Tokyo", "Up to 2020-01-02 00:00 (Asia/Tokyo)."),
    ],
)
async def test_the_page_shows_the_bounds_of_a_date(client: TestClient[Any, Any], query: str, note: str) -> None:
    found = await page(client, f"/table/users?{query}")
    (slot,) = found.all("p", id="note-f0")
    assert "hidden" not in slot
    assert note in found.text
    assert [field["value"] for field in found.all("input", name="f0.value", type="date")] == ["2020-01-02"]
    live = {"X-Sluice-Live": "1", **BROWSER}
    fields = f"c=id&a=&t=0&f0.column=signup_date&f0.op=lte&f0.value=2020-01-02&format=csv&{query.partition('&')[2]}"
    async with client.get(f"/shape/users?{fields}", headers=live) as response:
        changed = Page(await response.text())
    assert changed.all("p", **{"data-note": "f0"})
    assert "Before 2020-01-03 00:00 (" in changed.text


async def test_the_default_time_zone_is_that_of_the_role(settings: Settings, postgres: Postgres) -> None:
    postgres.run("""
        CREATE TABLE seen (at timestamptz); INSERT INTO seen VALUES ('2020-01-01 15:00+00'), ('2020-01-02 15:00+00');
        CREATE ROLE page_reader LOGIN; GRANT SELECT ON seen TO page_reader;
        ALTER ROLE page_reader SET timezone = 'Asia/Tokyo'""")
    try:
        dsn = re.sub(r"//[^@/]*@", "//page_reader@", settings.dsn)
        async with TestClient(TestServer(create_app(replace(settings, database_url=dsn)))) as client:
            found = await page(client, "/table/seen?and=(at.gte.2020-01-02,at.lt.2020-01-03)")
            assert "From 2020-01-02 00:00, before 2020-01-03 00:00 (Asia/Tokyo, the default)." in found.text
            assert found.all("input", name="timezone")[0]["placeholder"] == "Asia/Tokyo (default)"
            assert "2020-01-02 00:00:00+09" in found.text
            assert "One row of this export" in found.text
    finally:
        postgres.run("DROP TABLE seen; DROP ROLE page_reader")


async def test_types_have_short_names_and_only_wide_tables_a_search(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    found = await page(client, "/table/users?select=id,name")
    types = {field["title"] for field in found.all("small") if "title" in field}
    assert types >= {"bigint", "text", "timestamp with time zone", "character(2)"}
    for shown in ("timestamptz", "char(2)", "2 of 7", "Name in file"):
        assert shown in found.text
    assert not found.all("input", id="column-search")
    postgres.run(f"CREATE TABLE widish ({', '.join(f'c{number} int' for number in range(13))})")
    assert (await page(client, "/table/widish")).all("input", id="column-search")


async def test_every_time_zone_of_the_list_is_one_of_postgresql(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    async with client.get("/timezones") as response:
        assert response.status == 200
        names = (await response.json())["timezones"]
    assert names == sorted(names)
    assert {"Europe/Berlin", "UTC", "America/New_York"} <= set(names)
    postgres.run("SELECT set_config('TimeZone', name, true) FROM unnest(%s) AS name", [names])
    postgres.run("RESET TimeZone")


async def test_the_script_gets_only_the_changed_parts(client: TestClient[Any, Any]) -> None:
    live = {"X-Sluice-Live": "1", **BROWSER}
    fields = "c=id&a=&t=0&f7.column=id&f7.op=eq&f7.value=abc&format=csv"
    async with client.get(f"/shape/users?{fields}", headers=live) as response:
        changed = Page(await response.text())
    (changes,) = changed.all("output", id="changes")
    assert (changes["data-fault"], changes["data-page"]) == ("f7", "/table/users?select=id&id=eq.abc")
    assert not changed.all("form", id="shape")


async def test_a_slow_preview_does_not_delay_the_page(
    client: TestClient[Any, Any], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "FIRST_PREVIEW_SECONDS", 0.1)
    postgres.run("CREATE VIEW slow AS SELECT n, pg_sleep(60)::text AS s FROM generate_series(1, 5) AS n")
    found = await page(client, "/table/slow")
    assert any("data-retry" in field for field in found.all("div"))
    assert "No preview yet" in found.text
    assert found.can_download()  # the export itself may take longer


WAITING = "SELECT 1 FROM pg_locks WHERE relation = 'rewritten'::regclass AND NOT granted"


@pytest.mark.parametrize("path", ["/table/rewritten", "/shape/rewritten?c=a&a=&t=0&format=csv"])
async def test_a_preview_is_tried_again_if_the_table_is_rewritten_meanwhile(
    client: TestClient[Any, Any], postgres: Postgres, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Rewritten between the snapshot, which then has no rows of it, and the lock."""
    monkeypatch.setattr(table, "FIRST_PREVIEW_SECONDS", 60.0)
    monkeypatch.setattr("server.export.preview.PREVIEW_TIMEOUT", 60.0)
    postgres.run("CREATE TABLE rewritten (a text); INSERT INTO rewritten VALUES ('the old row')")
    holder = postgres.connect()
    try:
        with holder.cursor() as cursor:
            cursor.execute("BEGIN; TRUNCATE rewritten; INSERT INTO rewritten VALUES ('the new row')")
            asking = asyncio.create_task(client.get(path, headers={"X-Sluice-Live": "1", **BROWSER}))
            await eventually("the preview waits for the lock", lambda: postgres.run(WAITING))
            cursor.execute("COMMIT")
        async with await asking as response:
            shown = Page(await response.text())
        assert response.status == 200
    finally:
        holder.close()
    assert "the new row" in shown.text
    assert "One row of this export" in shown.text
    assert not [field for field in shown.all("p", **{"class": "fault"}) if "hidden" not in field]


async def test_labels_of_an_enum_are_offered_and_in_the_api(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("""
        CREATE TYPE mood AS ENUM ('sad', 'ok, "fine"', '<b>');
        CREATE TABLE moods (id int, mood mood); INSERT INTO moods VALUES (1, 'sad'), (2, 'ok, "fine"')""")
    try:
        async with client.get("/relations/moods") as response:
            columns = (await response.json())["columns"]
        assert columns[1]["values"] == ["sad", 'ok, "fine"', "<b>"]
        assert "values" not in columns[0]
        found = await page(client, "/table/moods?mood=in.(sad,%22ok,%20%5C%22fine%5C%22%22)")
        boxes = found.all("input", name="f0.value")
        assert [box["value"] for box in boxes if "checked" in box] == ["sad", 'ok, "fine"']
        assert "All 2 rows" in found.text
    finally:
        postgres.run("DROP TYPE mood CASCADE")


async def test_unreadable_columns_are_left_out(settings: Settings, postgres: Postgres) -> None:
    postgres.run("""
        CREATE TABLE people (id int, salary int); INSERT INTO people VALUES (1, 2);
        CREATE ROLE page_reader LOGIN; GRANT SELECT (id) ON people TO page_reader""")
    try:
        dsn = re.sub(r"//[^@/]*@", "//page_reader@", settings.dsn)
        async with TestClient(TestServer(create_app(replace(settings, database_url=dsn)))) as client:
            found = await page(client, "/table/people")
            assert [field["value"] for field in found.all("input", name="c")] == ["id"]
            assert found.export() == "/export/people.csv?select=id"
    finally:
        postgres.run("DROP TABLE people; DROP ROLE page_reader")


async def test_a_relation_of_many_columns(client: TestClient[Any, Any], postgres: Postgres) -> None:
    names = [f"column_{number:04}" for number in range(1600)]
    postgres.run(f"CREATE TABLE wide ({', '.join(f'{name} int' for name in names)})")
    found = await page(client, "/table/wide")
    assert [field["value"] for field in found.all("input", name="c")] == names
    fields = "&".join(f"c={name}&a=&t={number}" for number, name in enumerate(names))
    async with client.get(f"/shape/wide?{fields}", headers=BROWSER, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/table/wide")


async def test_a_relation_without_columns(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE none_at_all ()")
    assert "no columns" in (await page(client, "/table/none_at_all")).text


async def test_the_page_of_a_relation_is_small(client: TestClient[Any, Any]) -> None:
    weight = 0
    for path in ["/table/users", *(f"/static/{name}" for name in STATIC)]:  # and the files of the other pages
        async with client.get(path, headers=BROWSER) as response:
            weight += len(await response.read())
    assert weight <= MOST_WEIGHT


# --- Pages for browsers, JSON for other clients ---


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/nowhere", 404, "nothing at this address"),
        ("/table/userz", 404, "Did you mean users?"),
        ("/table/a.b.c", 400, "more than a schema"),
        ("/export/users.csv?limit=x", 400, "whole number"),
        ("/export/users.xls", 400, "not known"),
        (f"/table/{quote(IMAGE[2:], safe='')}", 404, IMAGE[2:]),
    ],
)
async def test_a_browser_gets_errors_as_pages(client: TestClient[Any, Any], path: str, status: int, says: str) -> None:
    found = await page(client, path, status)
    assert says in found.text
    assert not found.all("img")
    for accept in ("*/*", "application/json", "text/html;q=0, */*"):
        async with client.get(path, headers={"Accept": accept}) as response:
            assert (response.status, response.content_type) == (status, "application/problem+json")
            assert response.headers["Vary"] == "Accept"


async def test_similar_names_are_links(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run('CREATE TABLE "users & <b>.x" (a int)')
    for path in ("/table/users%20%26%20%3Cb%3E", "/export/users%20%26%20%3Cb.csv", "/export/userz.csv"):
        found = await page(client, path, 404)
        links = [link for link in found.links() if link.startswith("/table/")]
        assert links
        for link in links:
            await page(client, link)
    async with client.get("/export/userz.csv") as response:
        assert (await response.json())["similar"] == ["users"]
    assert "Did you mean" not in (await page(client, "/table/quite_another_name", 404)).text


async def test_saving_from_the_page_redirects_to_the_saved_exports(client: TestClient[Any, Any]) -> None:
    nothing = await page(client, "/saved")
    assert "No saved exports yet" in nothing.text
    async with client.post("/export/users.csv?id=lte.3", headers=BROWSER, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/saved")
    async with client.post("/export/users.csv?id=lte.3") as response:
        assert response.status == 202
    found = await page(client, "/saved")
    assert len(found.all("article")) == 2
    assert "id=lte.3" in found.text


async def saved_ids(client: TestClient[Any, Any], path: str = "/saved") -> list[str]:
    """Return the ids of the saved exports that the page shows."""
    return [str(article["data-id"]) for article in (await page(client, path)).all("article")]


async def save(client: TestClient[Any, Any], target: str, *statuses: str) -> str:
    """Save an export and wait until it has one of these statuses. Return its id."""
    async with client.post(URL(f"/export/{target}", encoded=True)) as response:
        assert response.status == 202
        address = response.headers["Location"]
    while True:
        async with client.get(address) as response:
            if (await response.json())["status"] in statuses:
                return address.rpartition("/")[2]
        await asyncio.sleep(0.01)


async def submit(client: TestClient[Any, Any], fields: list[tuple[str, str]], location: str | None) -> Page:
    """Send the form that deletes. location: where it redirects to; None for a question, which is returned."""
    async with client.post("/saved/delete", data=fields, headers=BROWSER, allow_redirects=False) as response:
        assert (response.status, response.headers.get("Location")) == (303 if location else 200, location)
        return Page(await response.text())


async def test_saved_exports_are_deleted_together_after_a_question(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("CREATE VIEW breaking AS SELECT 1 / (id - 500) AS x FROM users")
    first, second, kept = [await save(client, f"users.csv?id=lte.{n}", "completed") for n in (1, 2, 3)]
    fields = [("id", first), ("id", second), ("q", "users"), ("status", "completed")]
    question = await submit(client, fields, None)
    assert "Delete these 2 saved exports?" in question.text
    assert "id=lte.1" in question.text
    assert "id=lte.3" not in question.text
    assert sorted(str(field["value"]) for field in question.all("input", name="id")) == sorted([first, second])
    assert question.all("a", id="keep")[0]["href"] == "/saved?q=users&status=completed"
    assert len(await saved_ids(client)) == 3
    await submit(client, [*fields, ("sure", "yes")], "/saved?q=users&status=completed")
    assert await saved_ids(client) == [kept]
    # Deleted already; no id at all; an id that is none.
    for given in ([*fields, ("sure", "yes")], fields, [("id", "../..")], []):
        await submit(client, given, "/saved?q=users&status=completed" if ("q", "users") in given else "/saved")
    # A failed export has no file to lose.
    failed = await save(client, "breaking.csv", "failed")
    assert await saved_ids(client, "/saved?status=failed") == [failed]
    await submit(client, [("id", failed)], "/saved")
    assert await saved_ids(client) == [kept]


async def test_a_running_export_is_cancelled_and_deleted(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE VIEW sleeping AS SELECT id, pg_sleep(60)::text AS s FROM users")
    first, second = [await save(client, "sleeping.csv", "processing") for _ in range(2)]
    async with client.post(f"/saved/{first}/cancel", headers=BROWSER, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/saved")
    assert await saved_ids(client, "/saved?status=cancelled") == [first]
    # It has ended: cancelling it again does not delete it.
    async with client.post(f"/saved/{first}/cancel", headers=BROWSER, allow_redirects=False) as response:
        assert response.status == 303
    assert "cancelled" in (await submit(client, [("id", second), ("id", first)], None)).text
    await submit(client, [("id", second), ("id", first), ("sure", "yes")], "/saved")
    assert await saved_ids(client) == []


async def test_an_export_that_cannot_be_deleted_keeps_no_other(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = [await save(client, f"users.csv?id=lte.{n}", "completed") for n in (1, 2)]
    delete = Runner.delete

    async def refuse(runner: Runner, id: str) -> None:
        if id == stuck:
            raise ServerBusy("The export is in use.")
        await delete(runner, id)

    monkeypatch.setattr(Runner, "delete", refuse)
    fields = [("id", stuck), ("id", other), ("sure", "yes")]
    async with client.post("/saved/delete", data=fields, headers=BROWSER) as response:
        assert response.status == 503
        assert "in use" in await response.text()
    assert await saved_ids(client) == [stuck]


async def test_saved_exports_are_filtered(client: TestClient[Any, Any]) -> None:
    users = await save(client, "users.csv.gz?name=like.*Ada*", "completed")
    orders = await save(client, "orders.csv?limit=1", "completed")
    assert await saved_ids(client) == [orders, users]
    assert await saved_ids(client, "/saved?q=ADA") == [users]
    assert await saved_ids(client, "/saved?q=csv&status=completed") == [orders, users]
    nothing = await page(client, f"/saved?q={quote(IMAGE)}")
    assert "No saved exports match" in nothing.text
    assert not nothing.all("img")
    empty = await page(client, "/saved?q=users&status=failed")
    assert "No saved exports match" in empty.text
    assert "ready 1" in empty.text
    assert "/saved?q=users&status=completed" in empty.links()
    assert "has the status" in (await page(client, "/saved?status=done", 400)).text


async def test_a_long_query_is_shortened_on_the_page(client: TestClient[Any, Any]) -> None:
    await save(client, f"users.csv?id=in.({','.join(map(str, range(1000)))})", "completed")
    found = await page(client, "/saved")
    assert "id=in.(0,1,2" in found.text
    assert ",999" not in found.text


@pytest.mark.parametrize("path", ["/", "/saved", "/table/users", "/table/gone"])
async def test_a_page_begins_with_a_link_to_its_content(client: TestClient[Any, Any], path: str) -> None:
    found = await page(client, path, 404 if path.endswith("gone") else 200)
    skips = [str(link["href"]) for link in found.all("a") if link.get("class") == "skip"]
    assert skips == (["#main", "#download"] if path == "/table/users" else ["#main"])
    ids = {attributes.get("id") for _, attributes in found.tags}
    assert {skip[1:] for skip in skips} <= ids
    assert found.links()[: len(skips)] == skips


async def test_requests_from_other_sites_are_refused(client: TestClient[Any, Any]) -> None:
    for path in ("/export/users.csv", "/shape/users", "/saved/delete", "/saved/AAAAAAAAAAAAAAAAAAAAAA/cancel"):
        async with client.post(path, headers={**BROWSER, "Sec-Fetch-Site": "cross-site"}) as response:
            assert response.status == 403
    assert not (await page(client, "/saved")).all("article")


STATIC = {
    path.name: (path.read_bytes(), int(path.stat().st_mtime))
    for path in sorted((Path(static_files.__file__).parent / "static").iterdir())
}


@pytest.mark.parametrize("name", STATIC)
async def test_a_static_file_is_sent_whole_with_its_type_and_validators(
    client: TestClient[Any, Any], name: str
) -> None:
    content, modified = STATIC[name]
    types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for method in ("GET", "HEAD"):
        async with client.request(method, f"/static/{name}") as response:
            assert (response.status, response.headers["Content-Type"]) == (200, types[Path(name).suffix])
            assert response.headers["Content-Length"] == str(len(content))
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert re.fullmatch(r'"[0-9a-f]{32}"', response.headers["ETag"])
            assert parsedate_to_datetime(response.headers["Last-Modified"]).timestamp() == modified
            assert await response.read() == (content if method == "GET" else b"")


async def test_static_files_have_different_etags(client: TestClient[Any, Any]) -> None:
    etags = set()
    for name in STATIC:
        async with client.head(f"/static/{name}") as response:
            etags.add(response.headers["ETag"])
    assert len(etags) == len(STATIC)


async def test_a_static_file_that_the_browser_has_is_not_sent_again(client: TestClient[Any, Any]) -> None:
    path = "/static/sluice.css"
    async with client.get(path) as response:
        etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
    old = "Mon, 01 Jan 2001 00:00:00 GMT"
    cases = [
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'"other", W/{etag}'}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": modified}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": old}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"Range": "bytes=0-9"}, 200),
    ]
    for headers, status in cases:
        async with client.get(path, headers=headers) as response:
            assert response.status == status, headers
            if status == 304:
                assert await response.read() == b""
                assert (response.headers["ETag"], response.headers["Cache-Control"]) == (etag, "no-cache")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fsite.py", "%2e%2e"])
async def test_nothing_else_is_a_static_file(client: TestClient[Any, Any], name: str) -> None:
    async with client.get(URL(f"/static/{name}", encoded=True)) as response:
        assert response.status == 404


async def test_static_files_are_read_only_once(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(static_files, "FOLDER", tmp_path / "gone")
    async with client.get("/static/live.js") as response:
        assert await response.read() == STATIC["live.js"][0]
