"""The bytes on the wire under gunicorn: framing, headers, problem documents and the page, over raw sockets."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask

HEADER_LINE = re.compile(r"[A-Za-z-]+: [\x20-\x7e]*")

# Headers of every download.
EXPORT_HEADERS = {
    "content-type": "text/csv; charset=utf-8; header=present",
    "content-disposition": 'attachment; filename="users.csv"',
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-accel-buffering": "no",
}

# Names of relations with the paths of their exports.
ODD_NAMES = [
    ("with space", "/export/with%20space.csv"),
    ("dots.in.name", "/export/%22dots.in.name%22.csv"),
    ("users.csv", "/export/%22users.csv%22.csv"),
    ("..", "/export/%22..%22.csv"),
    ("../../etc/passwd", "/export/%22..%2F..%2Fetc%2Fpasswd%22.csv"),
    ("a/b", "/export/a%2Fb.csv"),
    ('quo"te', "/export/quo%22te.csv"),
    ('"quoted"', "/export/%22%22%22quoted%22%22%22.csv"),
    ("it's", "/export/it's.csv"),
    ("back\\slash", "/export/back%5Cslash.csv"),
    ('users"; DROP TABLE users; --', "/export/users%22%3B%20DROP%20TABLE%20users%3B%20--.csv"),
    ("100%", "/export/100%25.csv"),
    ("%41", "/export/%2541.csv"),
    ("a+b", "/export/a+b.csv"),
    ("?query=1#fragment", "/export/%3Fquery=1%23fragment.csv"),
    ("表 naïve 🚀", "/export/%E8%A1%A8%20na%C3%AFve%20%F0%9F%9A%80.csv"),
    ("n" * 63, f"/export/{'n' * 63}.csv"),
    ("line\r\nX-Injected: yes\r\n\r\nbody", "/export/line%0D%0AX-Injected:%20yes%0D%0A%0D%0Abody.csv"),
    ("tab\tand\x1b[31m", "/export/tab%09and%1B%5B31m.csv"),
    ("<script>alert(1)</script>", "/export/%3Cscript%3Ealert(1)%3C%2Fscript%3E.csv"),
]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# --- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", ["users", "orders", "orders_2024_02", "revenue_by_country"])
def test_chunked_body_is_what_copy_writes(live: LiveServer, postgres: Postgres, relation: str) -> None:
    with Client(live.connect()) as client:
        answer = client.ask(f"/export/{relation}.csv")
        assert client.nothing_more()
    assert answer.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers
    assert answer.ending == "terminator"
    assert answer.body == postgres.copy(f"SELECT * FROM {relation}")


# Around the numbers of rows that libpq delivers together, and around the first batches of a cursor.
@pytest.mark.parametrize("rows", [0, 1, 2, 8, 9, 10, 73, 74, 199, 200, 201, 585, 586])
def test_every_row_arrives_at_the_edges_of_batches(live: LiveServer, postgres: Postgres, rows: int) -> None:
    postgres.run(f"CREATE TABLE counted AS SELECT n, 'row ' || n AS text FROM generate_series(1, {rows}) AS n")
    answer = ask(live, "/export/counted.csv")
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body == postgres.copy("SELECT * FROM counted")
    assert answer.body.count(b"\n") == rows + 1


def test_a_relation_without_columns_has_empty_lines(live: LiveServer, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE bare (); INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES")
    answer = ask(live, "/export/bare.csv")
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body == postgres.copy("SELECT * FROM bare")


def test_rows_arrive_before_the_query_ends(live: LiveServer, postgres: Postgres) -> None:
    # PostgreSQL sends 8 kB at a time, as it does for COPY.
    postgres.run(
        "CREATE VIEW slow AS SELECT n, repeat('x', 4000) AS filler, CASE WHEN n > 20 THEN pg_sleep(600)::text END AS x "
        "FROM generate_series(1, 30) AS n"
    )
    with Client(live.connect()) as client:
        client.send("/export/slow.csv")
        received = b""
        while b"\n16," not in received:
            data = client.socket.recv(4096)
            assert data
            received += data
    assert b"\r\nn,filler,x\n1,xxx" in received


def test_http_1_0_gets_the_same_bytes_without_chunks(live: LiveServer, postgres: Postgres) -> None:
    answer = ask(live, "/export/users.csv", http="1.0")
    assert answer.head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert "transfer-encoding" not in answer.headers
    assert answer.ending == "closed"
    assert answer.body == postgres.copy("SELECT * FROM users")


def test_http_1_0_with_keep_alive_still_sees_the_end(live: LiveServer, postgres: Postgres) -> None:
    # Without chunks and without a length only the end of the connection can end the file (RFC 9112, 6.3).
    with Client(live.connect()) as client:
        client.socket.settimeout(3)
        answer = client.ask("/export/revenue_by_country.csv", http="1.0", headers={"Connection": "keep-alive"})
    assert answer.ending == "closed"
    assert answer.body == postgres.copy("SELECT * FROM revenue_by_country")


# --- one connection, several requests ---------------------------------------------------------------------------


def test_head_has_the_headers_of_get_and_leaves_the_connection_usable(live: LiveServer, postgres: Postgres) -> None:
    named = {"X-Request-Id": "head-and-get"}
    with Client(live.connect()) as client:
        head = client.ask("/export/users.csv", method="HEAD", headers=named)
        assert client.nothing_more()
        get = client.ask("/export/users.csv", headers=named)
        assert client.nothing_more()
    # HEAD may leave out the framing of the body (RFC 9110, 9.3.2). A length of 0 would be wrong.
    left_out = {"date", "transfer-encoding"}
    assert {name: value for name, value in head.headers.items() if name not in left_out} == {
        name: value for name, value in get.headers.items() if name not in left_out
    }
    assert get.body == postgres.copy("SELECT * FROM users")


def test_head_runs_no_query_on_the_relation(live: LiveServer, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW broken AS SELECT 1 / (n - 1) AS x FROM generate_series(1, 2) AS n")
    assert ask(live, "/export/broken.csv", method="HEAD").status == 200


def test_head_of_a_missing_relation_has_the_status_and_no_body(live: LiveServer) -> None:
    with Client(live.connect()) as client:
        assert client.ask("/export/nothing_here.csv", method="HEAD").status == 404
        assert client.nothing_more()
        assert client.ask("/health/live").status == 200


def test_two_downloads_on_one_connection(live: LiveServer, postgres: Postgres) -> None:
    expected = postgres.copy("SELECT * FROM users")
    with Client(live.connect()) as client:
        for _ in range(2):
            answer = client.ask("/export/users.csv")
            assert answer.ending == "terminator"
            assert answer.body == expected
            assert answer.headers.get("connection", "keep-alive") == "keep-alive"


def test_pipelined_requests_are_answered_in_order(live: LiveServer, postgres: Postgres) -> None:
    with Client(live.connect()) as client:
        for path in ("/export/users.csv", "/export/nothing_here.csv", "/export/revenue_by_country.csv"):
            client.send(path)
        users, nothing, revenue = (client.read() for _ in range(3))
        assert client.nothing_more()
    assert users.body == postgres.copy("SELECT * FROM users")
    assert nothing.status == 404
    assert revenue.body == postgres.copy("SELECT * FROM revenue_by_country")


def test_a_connection_stays_usable_after_errors(live: LiveServer, postgres: Postgres) -> None:
    with Client(live.connect()) as client:
        for path in ("/nowhere", "/export/users.csv?limitt=1", "/export/nothing_here.csv", "/export/users"):
            assert client.ask(path).status >= 400
        assert client.ask("/export/users.csv").body == postgres.copy("SELECT * FROM users")


def test_connection_close_is_honoured(live: LiveServer) -> None:
    with Client(live.connect()) as client:
        answer = client.ask("/export/revenue_by_country.csv", headers={"Connection": "close"})
        assert answer.ending == "terminator"
        assert answer.headers["connection"] == "close"
        assert client.socket.recv(1) == b""


# --- headers ----------------------------------------------------------------------------------------------------


def test_headers_of_a_download(live: LiveServer) -> None:
    headers = ask(live, "/export/users.csv").headers
    assert {name: headers.get(name) for name in EXPORT_HEADERS} == EXPORT_HEADERS


@pytest.mark.parametrize("path", ["/export/revenue_by_country.csv", "/export/nothing_here.csv", "/", "/health/live"])
def test_the_callers_request_id_is_echoed(live: LiveServer, path: str) -> None:
    assert ask(live, path, headers={"X-Request-Id": "trace:1.2-A_b"}).headers["x-request-id"] == "trace:1.2-A_b"


@pytest.mark.parametrize("given", [None, "", "two words", "é", '"quoted"', "x" * 129])
def test_a_request_without_a_usable_id_gets_a_new_one(live: LiveServer, given: str | None) -> None:
    made = [
        ask(live, "/health/live", headers={} if given is None else {"X-Request-Id": given}).headers["x-request-id"]
        for _ in range(2)
    ]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in made)
    assert made[0] != made[1]


@pytest.mark.parametrize(("name", "path"), ODD_NAMES)
def test_odd_names_are_found_and_never_break_a_header(
    live: LiveServer, postgres: Postgres, name: str, path: str
) -> None:
    postgres.run(f"CREATE TABLE {quoted(name)} AS SELECT 1 AS one")
    answer = ask(live, path)
    assert (answer.status, answer.body, answer.ending) == (200, b"one\n1\n", "terminator")
    lines = answer.head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")[1:]
    assert [line for line in lines if not HEADER_LINE.fullmatch(line)] == []
    assert "x-injected" not in answer.headers
    filename = re.fullmatch(
        r'attachment; filename="([^"\\/]+)\.csv"(; filename\*=.*)?', answer.headers["content-disposition"]
    )
    assert filename
    assert ask(live, path, method="HEAD").headers["content-disposition"] == answer.headers["content-disposition"]
    # Without such a relation the name must not break the headers of the error either.
    postgres.run(f"DROP TABLE {quoted(name)}")
    missing = ask(live, path)
    assert missing.status == 404
    assert "x-injected" not in missing.headers
    assert missing.problem()["code"] == "relation_not_found"


@pytest.mark.parametrize(
    ("select", "sql"),
    [
        ("id,full_name:name", "id, name AS full_name"),
        ("name,id,name", "name, id, name"),
        ("*", "*"),
        ("%22a,b%22:id", 'id AS "a,b"'),
        ("%22a:b%22:id,c:email", 'id AS "a:b", email AS c'),
        ("%22say%20%5C%22hi%5C%22%22:id", 'id AS "say ""hi"""'),
        ("%E5%90%8D%E5%89%8D:name", 'name AS "名前"'),
        ("two+words:id", 'id AS "two words"'),
        ("%22line%0D%0AX-Injected:%20yes%22:id", 'id AS "line\r\nX-Injected: yes"'),
    ],
)
def test_select_chooses_orders_and_renames(live: LiveServer, postgres: Postgres, select: str, sql: str) -> None:
    answer = ask(live, f"/export/users.csv?select={select}")
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body == postgres.copy(f"SELECT {sql} FROM users")
    assert "x-injected" not in answer.headers


# --- errors -----------------------------------------------------------------------------------------------------

ERRORS = [
    ("GET", "/nowhere", 404, "not_found"),
    ("GET", "/export", 404, "not_found"),
    ("GET", "//export/users.csv", 404, "not_found"),
    ("GET", "/static/../index.html", 404, "not_found"),
    ("GET", "/static/%2e%2e/index.html", 404, "not_found"),
    ("GET", "/static/nothing.css", 404, "not_found"),
    ("GET", "/export/nothing_here.csv", 404, "relation_not_found"),
    ("GET", "/export/pg_catalog.pg_class.csv", 404, "relation_not_found"),
    ("GET", f"/export/{'n' * 2000}.csv", 404, "relation_not_found"),
    ("GET", f"/export/{'n' * 8000}.csv", 414, "path_too_long"),
    ("GET", "/export/%22%C3%A9t%C3%A9%20%22%22x%22%22%22.csv", 404, "relation_not_found"),
    ("GET", "/export/%22..%2F..%2Fetc%2Fpasswd%22.csv", 404, "relation_not_found"),
    ("GET", "/export/../../etc/passwd.csv", 400, "missing_name"),
    ("GET", "/export/..%2F..%2Fetc%2Fpasswd.csv", 400, "missing_name"),
    ("GET", "/export/.csv", 400, "missing_name"),
    ("GET", "/export/", 400, "missing_name"),
    ("GET", "/export/users", 400, "unknown_format"),
    ("GET", "/export/users.xlsx", 400, "unknown_format"),
    ("GET", "/export/a.b.c.csv", 400, "invalid_relation"),
    ("GET", "/export/%22users.csv", 400, "invalid_quotes"),
    ("GET", "/export/%22users%22x.csv", 400, "invalid_quotes"),
    ("GET", "/export/users%00.csv", 400, "invalid_encoding"),
    ("GET", "/export/%FF%FE.csv", 400, "invalid_encoding"),
    ("GET", "/export/users.csv?select=%00", 400, "invalid_encoding"),
    ("GET", "/export/users.csv?limitt=1", 400, "unknown_parameter"),
    ("GET", "/export/users.csv?%3Cscript%3E", 400, "unknown_parameter"),
    ("GET", "/export/users.csv?select=id&select=id", 400, "repeated_parameter"),
    ("GET", "/export/users.csv?select=", 400, "missing_name"),
    ("GET", "/export/users.csv?select=id,nothing", 400, "unknown_column"),
    ("GET", "/export/users.csv?select=id%22%20FROM%20users;--", 400, "unknown_column"),
    ("GET", "/export/users.csv?select=a:b:id", 400, "invalid_select"),
    ("POST", "/relations", 405, "method_not_allowed"),
    ("POST", "/exports", 405, "method_not_allowed"),
    ("DELETE", "/export/users.csv", 405, "method_not_allowed"),
    ("PUT", "/export/users.csv", 405, "method_not_allowed"),
    ("DELETE", "/", 405, "method_not_allowed"),
    ("OPTIONS", "/export/users.csv", 405, "method_not_allowed"),
    ("PROPFIND", "/health/live", 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("method", "path", "status", "code"), ERRORS, ids=[f"{e[0]} {e[1][:40]}" for e in ERRORS])
def test_every_error_is_a_problem_document(live: LiveServer, method: str, path: str, status: int, code: str) -> None:
    answer = ask(live, path, method=method)
    assert answer.status == status
    problem = answer.problem()
    assert problem["code"] == code
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    # A long request does not make a long answer.
    assert len(answer.body) < 2000
    if status == 405:
        allowed = ["GET", "HEAD", "POST"] if path.startswith("/export/") else ["GET", "HEAD"]
        assert answer.headers["allow"].replace(" ", "").split(",") == allowed


MALFORMED = {
    "request line of 200 kB": b"GET /export/" + b"n" * 200_000 + b".csv HTTP/1.1\r\nHost: sluice.test\r\n\r\n",
    "header of 20 kB": b"GET /health/live HTTP/1.1\r\nHost: sluice.test\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n",
    "space in the path": b"GET /export/two words.csv HTTP/1.1\r\nHost: sluice.test\r\n\r\n",
    "bytes beyond ASCII": b"GET /export/\xff.csv HTTP/1.1\r\nHost: sluice.test\r\n\r\n",
    "control character": b"GET /export/\x01.csv HTTP/1.1\r\nHost: sluice.test\r\n\r\n",
    "unknown method": b"BREW /export/users.csv HTTP/1.1\r\nHost: sluice.test\r\n\r\n",
    "negative length": b"GET /health/live HTTP/1.1\r\nHost: sluice.test\r\nContent-Length: -1\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_bytes_that_are_not_http_get_a_problem_document(live: LiveServer, request_bytes: bytes) -> None:
    with Client(live.connect()) as client:
        client.socket.sendall(request_bytes)
        answer = client.read()
    assert answer.status == 400
    assert answer.problem()["code"] == "bad_request"
    assert "aiohttp" not in answer.headers["server"]


def test_a_request_target_may_be_a_whole_url(live: LiveServer, postgres: Postgres) -> None:
    # RFC 9112, 3.2.2: a server must accept the absolute form, which is sent to proxies.
    answer = ask(live, "http://sluice.test/export/revenue_by_country.csv")
    assert answer.status == 200
    assert answer.body == postgres.copy("SELECT * FROM revenue_by_country")


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_lists_every_relation_with_a_link_that_works(live: LiveServer, postgres: Postgres) -> None:
    for name, _ in ODD_NAMES:
        postgres.run(f"CREATE TABLE {quoted(name)} AS SELECT 1 AS one")
    page = ask(live, "/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    links = ["/" + link for link in re.findall(r"<a href=(table/[^ >]*)", text)]
    names = {
        name
        for (name,) in postgres.run(
            "SELECT relname FROM pg_class WHERE relkind IN ('r','p','v','m','f') "
            "AND relnamespace = 'public'::regnamespace"
        )
    }
    assert len(links) == len(names) > 20
    with Client(live.connect()) as client:
        assert [link for link in links if client.ask(link).status != 200] == []
        of_users = client.ask("/table/users").body.decode()
    assert "/table/users" in links
    assert re.search(r'href="[^"]*/export/users\.csv', of_users)


def test_the_page_escapes_what_the_catalogue_says(live: LiveServer, postgres: Postgres) -> None:
    evil = "<script>alert(1)</script>"
    postgres.run(f"CREATE TABLE {quoted(evil)} (x int)")
    postgres.run('CREATE TABLE "\'onclick=alert(2) ""x" (x int)')
    page = ask(live, "/")
    text = page.body.decode()
    assert page.status == 200
    assert [tag for tag in re.findall(r"<script[^>]*>", text) if "/static/" not in tag] == []
    assert html.escape(evil) in text
    assert f"href=table/{quote(evil, safe='')}>" in text
    assert '"onclick' not in text
    assert " onclick=" not in re.sub(r'"[^"]*"', "", text)


def test_the_page_forbids_frames_and_scripts_other_than_its_own(live: LiveServer) -> None:
    policy = ask(live, "/").headers["content-security-policy"]
    directives = dict(directive.strip().partition(" ")[::2] for directive in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["frame-ancestors"] == "'none'"
    assert directives["script-src"] == "'self'"
    assert "unsafe" not in policy


def test_the_style_sheet_is_served(live: LiveServer) -> None:
    answer = ask(live, "/static/sluice.css")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/css")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.body == (Path(__file__).parents[2] / "server/pages/static/sluice.css").read_bytes()


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health(live: LiveServer, path: str) -> None:
    answer = ask(live, path)
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
