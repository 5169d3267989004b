"""The pages in Chromium, from finding a table to the bytes of the file: by mouse, by keyboard, without JavaScript."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.support.browser import PATIENCE, keep_picture, launch, open_page
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import ask

expect.set_options(timeout=PATIENCE)

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

OpenPage = Callable[..., AbstractContextManager[Page]]


# For the module and not the session: while Playwright runs, its event loop would prevent asynchronous tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = launch(playwright)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(database_url: str) -> Iterator[LiveServer]:
    with LiveServer(DATABASE_URL=database_url) as running:
        yield running


@pytest.fixture
def visit(browser: Browser, server: LiveServer) -> OpenPage:
    """Return a function that opens a page with options of its own: `with visit(viewport=…) as page`."""

    def opened(**options: Any) -> AbstractContextManager[Page]:
        return open_page(browser, server.url, **options)

    return opened


@pytest.fixture
def page(visit: OpenPage) -> Iterator[Page]:
    with visit(viewport=DESKTOP) as opened:
        yield opened


def download(page: Page, link: str = "#download") -> bytes:
    """Click on the link and return the bytes of the downloaded file."""
    with page.expect_download() as started:
        page.locator(link).click()
    assert started.value.failure() is None
    return Path(started.value.path()).read_bytes()


def go_to_table(page: Page, name: str, query: str = "") -> None:
    page.goto(f"/table/{name}?{query}")
    expect(page.locator("#shape[data-live]")).to_be_attached()


@pytest.fixture
def gate(postgres: Postgres) -> Iterator[psycopg2.extensions.connection]:
    """Create the view `gated`, which returns its first 4,000 rows, and the others once this connection is closed.

    The first rows are megabytes, more than the buffers between PostgreSQL and the file.
    """
    lock_holder = postgres.connect()
    with lock_holder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(20261)")
    postgres.run("""
        CREATE VIEW gated AS
        SELECT id, repeat('sluice', 150) AS filler,
            CASE WHEN id > 4000 THEN pg_advisory_xact_lock_shared(20261)::text END AS waited
        FROM (SELECT id FROM users ORDER BY id LIMIT 5000) AS first""")
    yield lock_holder
    lock_holder.close()


@pytest.fixture(autouse=True)
def _nothing_saved(server: LiveServer, postgres: Postgres) -> Iterator[None]:
    """Delete what a test has saved before the relations that it reads are dropped."""
    yield
    for export in json.loads(ask(server, "/exports").body)["exports"]:
        for _ in range(2):  # the first request cancels a running export, the second deletes it
            ask(server, f"/exports/{export['exportId']}", method="DELETE")
    wait_until("no export runs", lambda: not any(state == "active" for state, _ in postgres.statements()), seconds=60)


# --- From a table to its file ---


def test_find_a_table_and_download_a_part_of_it(page: Page, postgres: Postgres) -> None:
    page.goto("/")
    page.get_by_label("Search tables by name").fill("users")
    expect(page.locator(".relations tbody tr:visible")).to_have_count(1)
    expect(page.locator("#count")).to_have_text(re.compile(r"^1 of \d+$"))
    page.get_by_role("link", name="users", exact=True).click()
    expect(page.get_by_role("heading", name="users")).to_be_visible()

    page.get_by_role("button", name="None").click()
    for name in ("id", "name", "signup_date"):
        page.get_by_role("checkbox", name=re.compile(rf"^{name}\b")).check()
    page.get_by_label("Name of name in the file").fill("full name")
    page.get_by_role("group", name="New filter").get_by_label("Column").select_option("name")
    row = page.get_by_role("group", name="Filter on name")
    row.get_by_label("Comparison").select_option("contains")
    row.get_by_label("Value").fill("ada")
    page.get_by_role("group", name="New filter").get_by_label("Column").select_option("signup_date")
    row = page.get_by_role("group", name="Filter on signup_date")
    row.get_by_label("Comparison").select_option("lt")
    row.get_by_label("Date", exact=True).fill("2023-01-01")
    page.get_by_role("group", name="New sort key").get_by_label("Column").select_option("id")
    page.get_by_role("group", name="Sort by id").get_by_label("Direction").select_option("desc")
    page.get_by_label("Maximum rows").fill("50")

    sql = (
        'SELECT id, name AS "full name", signup_date FROM users '
        "WHERE name ILIKE '%ada%' AND signup_date < '2023-01-01' ORDER BY id DESC LIMIT 50"
    )
    rows = [line.split(",")[0] for line in postgres.copy(sql, "HEADER false").decode().splitlines()]
    expect(page.locator(".preview tbody tr td:first-child")).to_have_text(rows[:20])
    headers = ["idbigint", "full nametext", "signup_datetimestamptz"]
    expect(page.locator(".preview th")).to_have_text(headers)
    query = "select=id,full%20name:name,signup_date&name=ilike.*ada*&signup_date=lt.2023-01-01&order=id.desc&limit=50"
    expect(page).to_have_url(re.compile(re.escape(f"/table/users?{query}") + "$"))
    expect(page.locator("#url")).to_have_text(re.compile(re.escape(f"/export/users.csv?{query}") + "$"))
    assert download(page) == postgres.copy(sql)
    keep_picture(page, "form")

    # The address contains the whole form: opened again, it shows the same.
    address = page.url
    page.goto("/")
    page.goto(address)
    expect(page.locator(".preview tbody tr td:first-child")).to_have_text(rows[:20])
    expect(page.locator(".preview th")).to_have_text(headers)
    row = page.get_by_role("group", name="Filter on signup_date")
    expect(row.get_by_label("Date", exact=True)).to_have_value("2023-01-01")


@pytest.mark.slow
def test_search_within_one_schema_and_in_all(browser: Browser, database_url: str, postgres: Postgres) -> None:
    postgres.run("CREATE SCHEMA second; CREATE TABLE second.users_of_old (a int); CREATE TABLE second.other (a int)")
    try:
        with (
            LiveServer(DATABASE_URL=database_url, EXPORT_SCHEMAS="public,second") as server,
            open_page(browser, server.url) as page,
        ):
            page.goto("/")
            names = page.locator(".relations tbody a")
            headings = page.locator(".relations .group")
            search, schema = page.get_by_label("Search tables by name"), page.get_by_label("Schema")
            search.fill("users")
            expect(names).to_have_text(["users", "users_of_old"])
            expect(headings).to_have_text(["public 1", "second 1"])
            schema.select_option("second")
            expect(names).to_have_text(["users_of_old"])
            search.fill("")
            expect(names).to_have_text(["other", "users_of_old"])
            search.fill("users")
            expect(names).to_have_text(["users_of_old"])
            schema.select_option("")
            expect(names).to_have_text(["users", "users_of_old"])
            search.fill("user_id")
            expect(names).to_have_text(["orders"])
            expect(headings).to_have_text(["Found in comments and columns 1"])
            search.fill("nothing like that")
            expect(page.get_by_role("heading", name="No tables match")).to_be_visible()
    finally:
        postgres.run("DROP SCHEMA second CASCADE")


def test_the_list_is_sorted_by_its_headings(page: Page) -> None:
    page.goto("/?q=orders_2024")
    names = page.locator(".relations tbody a")
    ascending = [f"orders_2024_{month:02}" for month in range(1, 13)]
    expect(names).to_have_text(ascending)
    heading = page.get_by_role("link", name="Name", exact=True)
    heading.focus()
    page.keyboard.press("Enter")
    expect(names).to_have_text(ascending[::-1])
    expect(page.locator("#sort-name")).to_be_focused()
    expect(page).to_have_url(re.compile(r"/\?q=orders_2024&sort=name\.desc$"))
    # A search keeps the order.
    page.get_by_label("Search tables by name").fill("orders_2024_1")
    expect(names).to_have_text(["orders_2024_12", "orders_2024_11", "orders_2024_10"])


@pytest.mark.slow
def test_the_list_waits_for_a_server_that_is_away(page: Page) -> None:
    page.goto("/")
    page.route("**/*", lambda route: route.abort())
    page.get_by_label("Search tables by name").fill("revenue")
    expect(page.locator("#count")).to_contain_text("cannot be reached")
    page.unroute("**/*")
    expect(page.locator(".relations tbody a")).to_have_text(["revenue_by_country"])


def test_the_keyboard_reaches_the_download_early(page: Page) -> None:
    go_to_table(page, "users", "limit=1")
    for _ in range(2):
        page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the download")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#download")).to_be_focused()


def test_an_unreachable_server_is_reported(browser: Browser, database_url: str) -> None:
    with LiveServer(DATABASE_URL=database_url) as server, open_page(browser, server.url) as page:
        go_to_table(page, "users", "limit=1")
        server.stop()
        page.get_by_label("Maximum rows").fill("2")
        expect(page.locator("#preview")).to_contain_text("The server cannot be reached")


def test_inputs_by_type(page: Page, postgres: Postgres) -> None:
    postgres.run("""
        CREATE TYPE stage AS ENUM ('new', 'won', 'lost, twice');
        CREATE TABLE deals (id int, stage stage, closed date, paid boolean);
        INSERT INTO deals SELECT n, (enum_range(NULL::stage))[1 + n % 3], date '2024-01-01' + n, n % 2 = 0
        FROM generate_series(1, 30) AS n""")
    try:
        go_to_table(page, "deals")
        new = page.get_by_role("group", name="New filter").get_by_label("Column")
        new.select_option("stage")
        page.get_by_role("checkbox", name="won").check()
        page.get_by_role("checkbox", name="lost, twice").check()
        new.select_option("paid")
        page.get_by_role("group", name="Filter on paid").get_by_label("Comparison").select_option("is false")
        new.select_option("closed")
        page.get_by_role("group", name="Filter on closed").get_by_label("Date", exact=True).fill("2024-01-10")
        kept = "NOT paid AND closed >= '2024-01-10'"
        sql = f"SELECT * FROM deals WHERE stage IN ('won', 'lost, twice') AND {kept}"
        ids = [str(number) for (number, *_) in postgres.run(sql)]
        expect(page.locator(".preview tbody tr td:first-child")).to_have_text(ids)
        assert download(page) == postgres.copy(sql)
        page.get_by_role("button", name="Remove the filter on stage").click()
        ids = [str(number) for (number,) in postgres.run(f"SELECT id FROM deals WHERE {kept}")]
        expect(page.locator(".preview tbody tr td:first-child")).to_have_text(ids)
    finally:
        postgres.run("DROP TYPE stage CASCADE")


def test_a_date_without_a_time_is_the_whole_day(page: Page, postgres: Postgres) -> None:
    go_to_table(page, "users", "select=id,signup_date&timezone=America/New_York")
    page.get_by_role("group", name="New filter").get_by_label("Column").select_option("signup_date")
    row = page.get_by_role("group", name="Filter on signup_date")
    expect(row.locator(".note")).to_have_text("This filter is not used yet: it has no value.")
    comparison, date = row.get_by_label("Comparison"), row.get_by_label("Date", exact=True)
    comparison.select_option("up to")
    date.fill("2020-01-01")
    expect(row.locator(".note")).to_have_text("Before 2020-01-02 00:00 (America/New_York).")
    day = "(signup_date AT TIME ZONE 'America/New_York')::date"
    rows = page.locator(".preview tbody tr")

    def expected(condition: str) -> int:
        (found,) = postgres.run(f"SELECT count(*) FROM users WHERE {condition}")[0]
        assert 0 < found < 20, "the preview has to show all rows"
        return int(found)

    expect(rows).to_have_count(expected(f"{day} <= '2020-01-01'"))
    comparison.select_option("is")
    expect(row.locator(".note")).to_have_text("From 2020-01-01 00:00, before 2020-01-02 00:00 (America/New_York).")
    expect(rows).to_have_count(expected(f"{day} = '2020-01-01'"))
    # The text field of a list takes the date over, and gives its first one back.
    comparison.select_option("is one of")
    expect(date).to_be_hidden()
    expect(row.get_by_label("Value")).to_have_value("2020-01-01")
    row.get_by_label("Value").fill("2020-01-01, 2019-12-31")
    expect(rows).to_have_count(expected(f"{day} IN ('2020-01-01', '2019-12-31')"))
    address = page.url
    comparison.select_option("up to")
    expect(row.get_by_label("Value")).to_be_hidden()
    expect(date).to_have_value("2020-01-01")
    row.get_by_label("Time").fill("00:00:30")
    expect(row.locator(".note")).to_have_text("Up to 2020-01-01 00:00:30 (America/New_York).")
    # A date that is only typed in part counts as missing, which the page says.
    date.press("Delete")
    expect(row.locator(".note")).to_have_text("This filter is not used yet: complete the date or the time.")
    page.goto(address)
    expect(row.get_by_label("Value")).to_have_value("2020-01-01, 2019-12-31")


def test_wide_tables_have_a_search_for_columns(page: Page, postgres: Postgres) -> None:
    names = [f"{word}_{number}" for word in ("price", "amount") for number in range(1, 8)]
    postgres.run(f"CREATE TABLE wide ({', '.join(f'{name} int' for name in names)}, at timestamptz)")
    go_to_table(page, "wide")
    count, search = page.locator("#taken"), page.get_by_label("Search columns")
    shown = page.locator(".columns > li:visible .name")
    expect(count).to_have_text("15 of 15")
    search.fill("PRICE")
    expect(shown).to_have_text(names[:7])
    page.get_by_role("button", name="None found").click()
    expect(count).to_have_text("8 of 15")
    search.fill("_1")
    expect(shown).to_have_text(["price_1", "amount_1"])
    page.get_by_role("button", name="Move amount_1 up").click()  # past the column in sight, not a hidden one
    expect(shown).to_have_text(["amount_1", "price_1"])
    expect(page).to_have_url(re.compile(r"\?select=amount_1,amount_2,"))
    search.fill("with time zone")
    expect(shown).to_have_text(["at"])
    search.fill("nothing")
    expect(shown).to_have_count(0)
    expect(page.get_by_text("No column has this")).to_be_visible()
    search.press("Enter")
    search.fill("")
    expect(shown).to_have_count(15)
    page.get_by_role("button", name="All", exact=True).click()
    expect(count).to_have_text("15 of 15")
    page.get_by_role("button", name="None", exact=True).click()
    expect(page.locator("#fault-columns")).to_have_text("Tick at least one column.")


def test_time_zones_come_from_the_list_of_the_server(visit: OpenPage) -> None:
    with visit(timezone_id="Asia/Tokyo") as page:
        go_to_table(page, "users", "limit=1&timezone=Nowhere")
        field = page.get_by_label("Time zone")
        expect(page.locator("#fault-timezone")).to_contain_text("There is no time zone Nowhere.")
        field.click()
        zones = page.locator("#timezones option")
        expect(zones.first).to_have_text("Asia/Tokyo")
        expect(zones.nth(1)).to_have_text("UTC")
        assert zones.count() > 400
        field.fill("Europe/Berlin")
        expect(page.locator("#fault-timezone")).to_be_hidden()
        expect(page).to_have_url(re.compile(r"timezone=Europe/Berlin$"))


def test_a_narrow_form_keeps_the_names_in_the_file_behind_a_button(visit: OpenPage) -> None:
    with visit(viewport=PHONE) as page:
        go_to_table(page, "users", "select=id,full:name&limit=1")
        expect(page.get_by_label("Name of name in the file")).to_have_value("full")
        field = page.get_by_label("Name of id in the file")
        expect(field).to_be_hidden()
        page.get_by_role("button", name="Rename id").click()
        expect(field).to_be_focused()
        field.fill("number")
        expect(page).to_have_url(re.compile(r"\?select=number:id,full:name"))


def test_columns_move_by_keyboard_and_keep_the_focus(page: Page) -> None:
    go_to_table(page, "users", "limit=1")
    button = page.get_by_role("button", name="Move email up")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".preview th").nth(1)).to_have_text("emailtext")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".preview th").nth(0)).to_have_text("emailtext")
    expect(page).to_have_url(re.compile(r"\?select=email,id,name,"))


def test_the_preview_has_the_whole_width(page: Page) -> None:
    go_to_table(page, "users", "limit=1")
    widths = "(part) => part.getBoundingClientRect().width"
    assert page.locator("#preview").evaluate(widths) == page.locator(".workbench").evaluate(widths)


def test_conditions_without_inputs_stay_as_text(page: Page) -> None:
    go_to_table(page, "users", "or=(id.eq.3,id.eq.5)&limit=9")
    expect(page.get_by_label("More conditions")).to_have_value("or=(id.eq.3,id.eq.5)")
    page.get_by_label("Maximum rows").fill("8")
    expect(page).to_have_url(re.compile(r"\?or=\(id\.eq\.3,id\.eq\.5\)&limit=8$"))
    expect(page.locator(".preview tbody tr")).to_have_count(2)
    note = page.locator("#note-columns")
    expect(note).to_be_hidden()
    page.get_by_label("More conditions").fill("select=who:name\nid=eq.3")
    expect(page.locator(".preview th")).to_have_text(["whotext"])
    expect(note).to_have_text("The line that begins with select= in “More conditions” selects the columns.")


def test_an_error_appears_at_its_field_and_disappears(page: Page) -> None:
    go_to_table(page, "users")
    page.get_by_role("group", name="New filter").get_by_label("Column").select_option("id")
    row = page.get_by_role("group", name="Filter on id")
    row.get_by_label("Value").fill("abc")
    expect(row.locator(".fault")).to_have_text("id takes whole numbers.")
    expect(row.get_by_label("Value")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#download")).to_be_disabled()
    expect(page.locator("#lines")).to_be_empty()
    page.locator("#obstacle").get_by_role("link", name="the filter on id").click()
    expect(row.get_by_label("Value")).to_be_focused()
    row.get_by_label("Value").fill("3")
    expect(row.locator(".fault")).to_be_hidden()
    expect(page.locator(".preview tbody tr")).to_have_count(1)
    expect(page.locator("#download")).to_be_enabled()
    page.get_by_label("Maximum rows").fill("many")
    expect(page.locator("#fault-limit")).to_contain_text("a whole number")
    expect(page.locator("#obstacle")).to_have_text("To download, correct Maximum rows.")
    # A button pressed before the answer leads to the field: by a link that has the focus, or by the page itself for
    # what only PostgreSQL refuses.
    page.get_by_label("Maximum rows").fill("")
    expect(page.locator("#download")).to_be_enabled()
    page.evaluate(CHANGE_AND_PRESS.replace("f0.value", "offset"), ["many", "download"])
    expect(page.locator("#fault-offset")).to_be_visible()
    expect(page.locator("#preview")).to_contain_text("Correct Rows to skip to see one.")
    expect(page.locator("#to-fault")).to_be_focused()
    go_to_table(page, "users", "id=eq.1")
    page.evaluate(CHANGE_AND_PRESS, ["abc", "download"])
    expect(row.locator(".fault")).to_have_text("id takes whole numbers.")
    expect(page).to_have_url(re.compile(r"/table/users\?id=eq\.abc$"))
    # The page as the server sends it marks the same field.
    go_to_table(page, "users", "id=eq.abc")
    expect(row.get_by_label("Value")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#preview")).to_contain_text("Correct the filter on id")


def test_a_superseded_preview_is_cancelled(page: Page, postgres: Postgres) -> None:
    postgres.run(
        "CREATE VIEW sleepy AS SELECT id, pg_sleep(CASE WHEN id > 10 THEN 60 ELSE 0 END)::text AS s FROM users"
    )

    def sleeping() -> bool:
        return bool(postgres.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'"))

    go_to_table(page, "sleepy", "id=lte.3")
    value = page.get_by_role("group", name="Filter on id").get_by_label("Value")
    value.fill("30")
    tries = itertools.count(31)

    def sleeping_again() -> bool:
        if page.get_by_text("There was no preview").is_visible():  # it ended before it was seen
            value.fill(str(next(tries)))
        return sleeping()

    wait_until("the preview sleeps in the database", sleeping_again, seconds=60)
    value.fill("4")
    expect(page.locator(".preview tbody tr")).to_have_count(4)
    wait_until("the statement is cancelled", lambda: not sleeping(), seconds=60)


def test_copy_buttons(visit: OpenPage) -> None:
    with visit(permissions=["clipboard-read", "clipboard-write"]) as page:
        go_to_table(page, "users", "name=eq.Ada")
        tabs = page.locator("#lines > label")
        for tab in tabs.all():
            tab.click()
            shown = page.locator("#lines .pane:visible")
            shown.get_by_role("button").click()
            expect(shown.get_by_role("button")).to_have_text("Copied")
            assert page.evaluate("navigator.clipboard.readText()") == shown.locator("code").inner_text()
        # It wraps, and the chosen tab stays open.
        page.get_by_role("group", name="Filter on name").get_by_label("Value").fill("12, 34, 56, 78")
        expect(shown).to_contain_text("name=eq.12,%2034,%2056,%2078")
        assert page.evaluate("(code) => code.scrollWidth <= code.clientWidth", shown.locator("code").element_handle())
        expect(tabs.last).to_have_css("font-weight", "600")


def test_names_with_markup_are_shown_as_text(page: Page, postgres: Postgres) -> None:
    for name in (SCRIPT, IMAGE):
        quoted = '"' + name.replace('"', '""') + '"'
        postgres.run(f"CREATE TABLE {quoted} ({quoted} text); INSERT INTO {quoted} VALUES ($x${name}$x$)")
        page.goto("/")
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        expect(page.locator(".preview td")).to_have_text(name)
        page.get_by_role("group", name="New filter").get_by_label("Column").select_option(name)
        page.locator("[aria-label='Value']").first.fill("<img src=x onerror=alert(2)>")
        expect(page.get_by_text("No rows match")).to_be_visible()
        assert page.locator("img").count() == 0


# --- What is downloaded is what the form shows ---

# Adds a filter and presses a button before any request can be answered.
CHANGE_AND_PRESS = """([value, button]) => {
    const input = document.querySelector("[name='f0.value']");
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    document.getElementById(button).click();
}"""


class Held:
    """The requests of the page's script of one kind, held until `release` is called."""

    def __init__(self, page: Page, kind: str) -> None:
        self._kind = kind
        self._routes: list[Route] = []
        self._released = False
        page.route("**/shape/**", self._decide)

    def release(self) -> None:
        self._released = True
        for route in self._routes:
            with contextlib.suppress(PlaywrightError):  # the script has given it up
                route.continue_()

    def _decide(self, route: Route) -> None:
        if route.request.headers.get("x-sluice-live") == self._kind and not self._released:
            self._routes.append(route)
        else:
            route.continue_()


def asks_for(kind: str) -> Callable[[Request], bool]:
    """Return whether a request is one of the page's script of this kind."""
    return lambda request: request.headers.get("x-sluice-live") == kind


def test_a_click_right_after_a_change_downloads_the_changed_form(page: Page, postgres: Postgres) -> None:
    go_to_table(page, "users", "id=eq.1")
    with page.expect_download() as started:
        page.evaluate(CHANGE_AND_PRESS, ["7", "download"])
    assert Path(started.value.path()).read_bytes() == postgres.copy("SELECT * FROM users WHERE id = 7")
    page.evaluate(CHANGE_AND_PRESS, ["8", "save"])
    expect(page).to_have_url(re.compile("/saved$"))
    expect(page.get_by_role("article")).to_contain_text("id=eq.8")


def test_the_links_do_not_wait_for_the_preview(page: Page, postgres: Postgres) -> None:
    go_to_table(page, "users", "id=eq.1")
    Held(page, "1")
    with page.expect_request(asks_for("1")):
        page.get_by_role("group", name="Filter on id").get_by_label("Value").fill("7")
    expect(page.locator("#url")).to_have_text(re.compile(r"id=eq\.7$"))
    expect(page.locator("#lines")).not_to_have_attribute("inert", "")
    expect(page).to_have_url(re.compile(r"id=eq\.7$"))
    expect(page.locator("#preview")).to_have_attribute("aria-busy", "true")
    assert download(page) == postgres.copy("SELECT * FROM users WHERE id = 7")


def test_old_lines_cannot_be_copied_and_a_click_waits_for_the_links(page: Page, postgres: Postgres) -> None:
    go_to_table(page, "users", "id=eq.1")
    held = Held(page, "links")
    lines = page.locator("#lines")
    expect(lines).not_to_have_attribute("inert", "")
    with page.expect_request(asks_for("links")):
        page.get_by_role("group", name="Filter on id").get_by_label("Value").fill("7")
    expect(lines).to_have_attribute("inert", "")
    with page.expect_request(asks_for("links")):
        page.locator("#download").click()
    with page.expect_download() as started:
        held.release()
    assert Path(started.value.path()).read_bytes() == postgres.copy("SELECT * FROM users WHERE id = 7")
    expect(lines).not_to_have_attribute("inert", "")


@pytest.mark.slow
def test_a_server_that_is_gone_is_reported_until_it_is_back(page: Page, postgres: Postgres) -> None:
    go_to_table(page, "users", "id=eq.1")
    obstacle, button, save = page.locator("#obstacle"), page.locator("#download"), page.locator("#save")
    page.route("**/*", lambda route: route.abort())
    page.evaluate(CHANGE_AND_PRESS, ["7", "download"])
    expect(obstacle).to_have_text("The server cannot be reached. Trying again…")
    expect(button).to_be_disabled()
    expect(save).to_be_disabled()
    expect(page.locator("#lines")).to_have_attribute("inert", "")
    page.unroute("**/*")
    expect(button).to_be_enabled()  # by itself
    expect(obstacle).to_be_empty()
    expect(page.locator(".preview tbody tr td:first-child")).to_have_text(["7"])
    assert download(page) == postgres.copy("SELECT * FROM users WHERE id = 7")
    # Nothing has changed: a click says it too, and leaves the page as it is.
    page.route("**/*", lambda route: route.abort())
    button.click()
    expect(obstacle).to_have_text("The server cannot be reached. Trying again…")
    page.unroute("**/*")
    expect(button).to_be_enabled()
    # The browser itself is offline: said without a change of the form.
    page.context.set_offline(True)
    expect(obstacle).to_contain_text("cannot be reached")
    expect(button).to_be_disabled()
    page.context.set_offline(False)
    expect(button).to_be_enabled()


def test_a_server_that_does_not_answer_is_reported_until_it_does(visit: OpenPage) -> None:
    with visit(viewport=DESKTOP) as page:
        page.clock.install()
        go_to_table(page, "users", "id=eq.1")
        expect(page.locator("#preview")).not_to_have_attribute("aria-busy", "true")
        held, obstacle = Held(page, "links"), page.locator("#obstacle")
        with page.expect_request(asks_for("links")):
            page.locator("#download").click()
        page.clock.run_for(1100)
        expect(obstacle).to_have_text("Waiting for the server…")
        page.clock.run_for(20000)
        expect(obstacle).to_have_text("The server does not answer. Trying again…")
        expect(page.locator("#download")).to_be_disabled()
        held.release()
        page.clock.run_for(1100)
        expect(page.locator("#download")).to_be_enabled()
        expect(obstacle).to_be_empty()


def test_a_list_too_long_for_an_address_is_refused_at_once(page: Page) -> None:
    go_to_table(page, "users", "id=in.(1,2)")
    value = page.get_by_role("group", name="Filter on id").get_by_label("Value")
    value.fill(", ".join(map(str, range(100000, 120000))))
    obstacle = page.locator("#obstacle")
    expect(obstacle).to_have_text("What the form asks for is too long for an address. Shorten its lists of values.")
    expect(page.locator("#download")).to_be_disabled()
    value.fill("1, 2, 3")
    expect(obstacle).to_be_empty()
    expect(page.locator(".preview tbody tr")).to_have_count(3)


def test_a_change_before_the_script_runs_counts(page: Page, postgres: Postgres) -> None:
    held: list[Route] = []
    page.route("**/static/table.js", lambda route: held.append(route))  # noqa: PLW0108 - Playwright marks the function
    value = page.get_by_role("group", name="Filter on id").get_by_label("Value")
    page.goto("/table/users?id=eq.1", wait_until="commit")
    value.fill("7")
    new = page.get_by_role("group", name="New filter")
    new.get_by_label("Column").select_option("email")
    new.get_by_label("Value").fill("user7")
    held.pop().continue_()
    expect(page.locator("#url")).to_have_text(re.compile(r"id=eq\.7&email=ilike\.\*user7\*$"))
    page.goto("/table/users?id=eq.1", wait_until="commit")
    value.fill("8")
    assert download(page) == postgres.copy("SELECT * FROM users WHERE id = 8")


def test_options_follow_for_excel(page: Page) -> None:
    go_to_table(page, "users", "delimiter=;&id=eq.1")
    end, excel = page.get_by_label("Line endings"), page.get_by_role("checkbox", name="For Excel")
    chosen = "(select) => select.selectedOptions[0].textContent"
    assert end.evaluate(chosen) == "LF (Unix)"
    excel.check()
    assert end.evaluate(chosen) == "CRLF (Excel)"
    page.get_by_text("Text of the file").click()
    expect(page.locator("#preview")).to_contain_text("UTF-8 with a byte order mark. Lines end in CRLF.")
    expect(page.locator(".text li").first).to_be_visible()  # the tab stays open
    excel.uncheck()
    assert end.evaluate(chosen) == "LF (Unix)"
    expect(page.locator("#preview")).to_contain_text("UTF-8. Lines end in LF.")
    page.get_by_label("Format").select_option("ndjson")
    expect(page.locator(".text li")).to_have_text([re.compile(r'^\{"id":1,')])
    for part in (excel, page.locator("[name=text]"), page.locator("#about-text")):  # which JSON lines do not have
        expect(part).to_be_hidden()


# --- A failing download ---


def test_a_broken_stream_is_a_failed_download(page: Page, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW breaks AS SELECT id, repeat('x', 500) AS filler, 1 / (id - 19000) AS x FROM users")
    go_to_table(page, "breaks")
    with page.expect_download() as started:
        page.locator("#download").click()
    assert started.value.failure() is not None


# --- Saved exports ---


def test_save_in_the_background_and_download_in_two_parts(
    page: Page, postgres: Postgres, gate: psycopg2.extensions.connection
) -> None:
    go_to_table(page, "gated")
    page.get_by_role("button", name="Save in background").click()
    expect(page).to_have_url(re.compile("/saved$"))
    card = page.get_by_role("article", name=re.compile("gated"))
    expect(card.get_by_role("progressbar")).to_be_visible()
    expect(card.locator("[data-show=rows]")).not_to_have_text("0")
    expect(card.locator("[data-show=estimate]")).to_have_text(" of about 5,000")
    keep_picture(page, "saving")
    gate.close()
    expect(card.locator(".badge")).to_have_text("ready")
    expect(page.locator("#announcement")).to_have_text(re.compile("gated: ready$"))  # the word of the badge
    expect(card.get_by_role("progressbar")).to_have_count(0)
    expect(card).to_contain_text("5,000 rows")
    expected = postgres.copy("SELECT * FROM gated")
    link = card.get_by_role("link", name="Download")
    with page.expect_download() as started:
        link.click()
    assert Path(started.value.path()).read_bytes() == expected
    # As a browser does on pause and resume: aborts, then requests the rest of the same file.
    digest = page.evaluate(
        """async ([address, kept]) => {
            const pause = new AbortController();
            const first = await fetch(address, { signal: pause.signal });
            const parts = [];
            for (let have = 0, reader = first.body.getReader(); have < kept; ) {
                const { value } = await reader.read();
                parts.push(value.slice(0, kept - have));
                have += parts.at(-1).length;
            }
            pause.abort();
            const headers = { Range: `bytes=${kept}-`, "If-Range": first.headers.get("ETag") };
            const rest = await fetch(address, { headers });
            if (rest.status !== 206) throw new Error(rest.status);
            parts.push(await rest.arrayBuffer());
            const whole = await new Blob(parts).arrayBuffer();
            const sum = await crypto.subtle.digest("SHA-256", whole);
            return [...new Uint8Array(sum)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
        }""",
        [link.get_attribute("href"), len(expected) // 3],
    )
    assert digest == hashlib.sha256(expected).hexdigest()
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("link", name="Keep it").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(card).to_have_count(0)
    expect(page.get_by_text("No saved exports yet")).to_be_visible()


@pytest.mark.usefixtures("gate")
def test_cancel_a_saved_export(page: Page, postgres: Postgres) -> None:
    go_to_table(page, "gated")
    page.get_by_role("button", name="Save in background").click()
    card = page.get_by_role("article", name=re.compile("gated"))
    expect(card.locator("[data-show=rows]")).not_to_have_text("0")
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".badge")).to_have_text("cancelled")
    expect(card.get_by_role("button", name="Save again")).to_be_visible()
    wait_until(
        "no statement runs", lambda: not any(state == "active" for state, _ in postgres.statements()), seconds=60
    )
    card.get_by_role("button", name="Delete").click()
    expect(card).to_have_count(0)


@pytest.mark.usefixtures("gate")
def test_the_progress_of_an_export_without_an_estimate(page: Page) -> None:
    id = page.request.post("/export/gated.csv").json()["exportId"]
    wait_until("it runs", lambda: page.request.get(f"/exports/{id}").json()["status"] == "processing")
    status = page.request.get(f"/exports/{id}").json()
    status["progress"] |= {"processedRows": 0, "totalRows": None, "bytes": 7}
    event = f"data: {json.dumps(status)}\n\n"
    page.route("**/events", lambda route: route.fulfill(body=event, content_type="text/event-stream"))
    page.goto("/saved")
    expect(page.locator("[data-show=bytes]")).to_have_text("7 B")
    expect(page.locator("[data-show=estimate]")).to_be_empty()


def test_hidden_tabs_leave_the_connections_to_the_one_that_is_shown(
    page: Page, gate: psycopg2.extensions.connection
) -> None:
    for _ in range(4):
        page.request.post("/export/gated.csv")
    tabs = [page, page.context.new_page(), page.context.new_page()]
    for tab in tabs[:2]:  # a browser has six connections for all of them, and each would open four streams
        tab.goto("/saved")
        expect(tab.locator("[data-show=rows]").first).not_to_have_text("0")
        turn(tab, hidden=True)
    tabs[2].goto("/saved")
    expect(tabs[2].get_by_role("article")).to_have_count(4)
    gate.close()
    expect(tabs[2].locator(".badge.completed")).to_have_count(4)
    expect(page.locator(".badge.completed")).to_have_count(0)
    turn(page, hidden=False)
    expect(page.locator(".badge.completed")).to_have_count(4)


def turn(page: Page, *, hidden: bool) -> None:
    """Do as a browser does when the user turns to another tab, or back: without a window, all are shown."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


@pytest.mark.usefixtures("gate")
def test_the_page_is_read_again_once_if_all_streams_are_refused(page: Page) -> None:
    for _ in range(4):
        page.request.post("/export/gated.csv")
    read: list[str] = []
    page.on("request", lambda request: read.append(request.url) if request.resource_type == "fetch" else None)
    page.route("**/events", lambda route: route.fulfill(status=429))
    page.clock.install()
    page.goto("/saved")

    def later() -> int:
        page.clock.run_for(1000)
        return len(read)

    wait_until("the page is read again", later)
    assert len(read) == 1


def test_a_failed_saved_export_shows_the_reason(page: Page, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW broken AS SELECT id, 1 / (id - 500) AS x FROM users")
    go_to_table(page, "broken")
    page.get_by_role("button", name="Save in background").click()
    card = page.get_by_role("article", name=re.compile("broken"))
    expect(card.locator(".badge")).to_have_text("failed")
    expect(card).to_contain_text("divides by zero")
    card.get_by_role("button", name="Delete").click()
    expect(card).to_have_count(0)


def test_saved_exports_are_searched_selected_and_deleted(page: Page) -> None:
    for number in range(1, 5):
        page.request.post(f"/export/users.csv?id=lte.{number}")
    page.goto("/saved")
    expect(page.locator(".badge.completed")).to_have_count(4)
    delete = page.get_by_role("button", name="Delete selected")
    expect(delete).to_be_disabled()
    # The search keeps what is selected.
    page.get_by_role("article", name=re.compile("users")).first.get_by_role("checkbox").check()
    page.get_by_label("Search saved exports").fill("lte.4")
    expect(page.get_by_role("article")).to_have_count(1)
    expect(delete).to_have_text("Delete selected (1)")
    page.get_by_label("Search saved exports").fill("")
    expect(page.get_by_role("article")).to_have_count(4)
    page.get_by_label("Select all").check()
    expect(delete).to_have_text("Delete selected (4)")
    page.get_by_role("article").last.get_by_role("checkbox").uncheck()
    delete.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Delete these 3 saved exports?")
    keep_picture(page, "saved-question")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("article")).to_have_count(4)
    delete.click()
    dialog.get_by_role("button", name="Delete 3").click()
    expect(page.get_by_role("article")).to_have_count(1)
    expect(page.get_by_role("article")).to_contain_text("id=lte.1")
    expect(page.get_by_role("article").get_by_role("checkbox")).to_be_focused()


# --- Without JavaScript ---


def test_everything_works_without_javascript(visit: OpenPage, postgres: Postgres) -> None:
    with visit(java_script_enabled=False) as page:
        page.goto("/")
        page.get_by_label("Search tables by name").fill("users")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name="users", exact=True).click()
        page.get_by_role("checkbox", name=re.compile("^email")).uncheck()
        new = page.get_by_role("group", name="New filter")
        new.get_by_label("Column").select_option("id")
        new.get_by_label("Comparison").select_option("lte")
        new.get_by_label("Value").fill("30")
        # What is sent is the form as it is, also before "Apply".
        columns = "id, name, signup_date, country_code, subscription_tier, lifetime_value"
        assert download(page) == postgres.copy(f"SELECT {columns} FROM users WHERE id <= 30")
        page.get_by_role("button", name="Apply").last.click()
        expect(page).to_have_url(re.compile(r"/table/users\?select=.*&id=lte\.30$"))
        page.get_by_role("button", name="Move name up").click()
        expect(page.locator(".preview th").first).to_have_text("nametext")
        sql = "SELECT name, id, signup_date, country_code, subscription_tier, lifetime_value FROM users WHERE id <= 30"
        assert download(page) == postgres.copy(sql)
        page.get_by_role("button", name="Save in background").click()
        expect(page.get_by_role("article")).to_have_count(1)
        wait_until(
            "the export is ready", lambda: page.reload() and page.locator(".badge.completed").count(), seconds=60
        )
        assert download(page, "article a.primary") == postgres.copy(sql)
        page.get_by_role("button", name="Delete users").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.get_by_text("No saved exports yet")).to_be_visible()


# --- Accessibility and small screens ---

PAGES = {
    "list": "/",
    "nothing-found": "/?q=zzzz",
    "found": "/?q=user",
    "sorted": "/?sort=size.desc",
    "table": "/table/users?select=id,name&signup_date=gte.2024-01-01&subscription_tier=in.(free,pro)&order=id.desc",
    "more": "/table/users?or=(id.eq.1,id.eq.2)&delimiter=;&timezone=Europe/Berlin",
    "fault": "/table/users?id=eq.abc",
    "no-rows": "/table/users?id=lt.0",
    "saved": "/saved",
    "error": "/table/nothing_here",
}


@pytest.mark.usefixtures("gate")
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_accessibility_problem(visit: OpenPage, postgres: Postgres, scheme: str) -> None:
    """axe-core finds nothing serious or critical, in both colour schemes."""
    postgres.run("CREATE VIEW failing AS SELECT 1 / (id - 500) AS x FROM users")
    with visit(color_scheme=scheme, viewport=DESKTOP, bypass_csp=True) as page:
        for address in ("users.csv.gz?select=id,name", "failing.csv", "gated.csv"):
            page.request.post(f"/export/{address}")
        page.goto("/saved")
        expect(page.locator(".badge.completed")).to_have_count(1)
        expect(page.locator(".badge.failed")).to_have_count(1)
        expect(page.locator(".badge.processing")).to_have_count(1)
        for name, address in PAGES.items():
            page.goto(address)
            found = Axe().run(page).response["violations"]
            serious = [
                (each["id"], [node["html"] for node in each["nodes"]])
                for each in found
                if each["impact"] in ("serious", "critical")
            ]
            assert serious == [], f"{name}, {scheme}"
            keep_picture(page, f"{name}-{scheme}")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone(visit: OpenPage, scheme: str) -> None:
    with visit(color_scheme=scheme, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        page.request.post(f"/export/users.csv.gz?name=in.({','.join(f'somebody{n}' for n in range(30))})")
        for name, address in PAGES.items():
            page.goto(address)
            expect(page.get_by_role("main")).to_be_visible()
            widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1] == PHONE["width"], name
            if address.startswith("/table/users"):
                for top in (0, 10_000):
                    page.evaluate("(top) => scrollTo(0, top)", top)
                    expect(page.locator("#download")).to_be_in_viewport(ratio=1)
            keep_picture(page, f"{name}-phone-{scheme}")
