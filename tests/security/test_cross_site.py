"""Pages of other sites: a person may follow a link from one, and nothing else of it gets an answer."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from playwright.sync_api import Browser

from server.http.cross_site import is_foreign
from server.http.forwarded import Arrival
from tests.support.browser import browsing
from tests.support.live_server import HOST, LiveServer
from tests.support.raw_http import Client, ask

OWN, OTHER, FRIEND = "http://sluice.test", "https://evil.example", "https://app.example"
NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
CORS = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}


def foreign(method: str, *headers: tuple[str, str], scheme: str | None = None, host: str = "sluice.test") -> bool:
    sent = CIMultiDictProxy(CIMultiDict(headers))
    return is_foreign(method, sent, Arrival("192.0.2.1", scheme, (host,)), {FRIEND})


def headers(site: str | None = None, origin: str | None = None, **others: str) -> list[tuple[str, str]]:
    """Return request headers. others: mode, dest, purpose."""
    named = {"Sec-Fetch-Site": site, "Origin": origin, **{f"Sec-{name}": value for name, value in others.items()}}
    return [(name.replace("_", "-"), value) for name, value in named.items() if value is not None]


def navigation(site: str, dest: str | None = "document", mode: str = "navigate") -> list[tuple[str, str]]:
    found = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode)]
    return found if dest is None else [*found, ("Sec-Fetch-Dest", dest)]


EITHER = ("GET", "HEAD", "POST", "DELETE", "PUT")
READING = ("GET", "HEAD")
WRITING = ("POST", "DELETE", "PUT", "PATCH", "OPTIONS")

ALLOWED = [
    (EITHER, []),  # curl
    (EITHER, headers("same-origin")),
    (EITHER, headers("Same-Origin", OWN)),
    (EITHER, headers("none")),
    (EITHER, headers("same-origin", purpose="prefetch")),
    (EITHER, headers(None, OWN)),
    (EITHER, headers(None, "HTTP://Sluice.Test:80")),
    (EITHER, headers(None, "https://sluice.test:443")),  # behind a proxy that is not listed, nobody knows the scheme
    (EITHER, headers("cross-site", FRIEND)),
    (EITHER, headers("same-site", FRIEND)),
    (EITHER, headers(None, "https://APP.example:443")),
    (("OPTIONS",), headers("cross-site", FRIEND)),
    (READING, navigation("cross-site")),
    (READING, navigation("same-site")),
    (READING, navigation("cross-site", "empty")),  # <a download>
    (READING, navigation("cross-site", None)),  # before Chromium 80
]
REFUSED = [
    # A link is followed with GET: no form of another site changes anything.
    (WRITING, navigation("cross-site")),
    (WRITING, navigation("same-site")),
    (WRITING, [*navigation("cross-site"), ("Origin", OTHER)]),
    # Scripts, images, frames, and what a browser fetches before anybody clicks.
    *((EITHER, navigation("cross-site", dest)) for dest in ("iframe", "frame", "embed", "object", "fencedframe", "")),
    *((EITHER, navigation("same-site", dest, "no-cors")) for dest in ("image", "script", "style", "document", "empty")),
    (EITHER, navigation("cross-site", "document", "nested-navigate")),
    (EITHER, headers("cross-site")),
    (EITHER, headers("same-site")),
    (EITHER, headers("something new")),
    (EITHER, headers("")),
    (EITHER, [*navigation("cross-site"), ("Sec-Purpose", "prefetch")]),
    (EITHER, [*navigation("cross-site"), ("Sec-Purpose", "prefetch;prerender")]),
    # Speculation rules of another site: Chromium says that no site has sent this.
    *((EITHER, [*navigation("none"), ("Sec-Purpose", text)]) for text in ("prefetch", "prefetch;prerender", "")),
    (EITHER, headers(None, purpose="prefetch")),
    (EITHER, headers(None, OWN, purpose="prefetch")),
    (EITHER, headers("cross-site", FRIEND, purpose="prefetch")),
    # Other origins, and what is none.
    *(
        (EITHER, headers(None, origin))
        for origin in (
            *(
                "null",
                "",
                OTHER,
                "http://sluice.test:8080",
                "http://sluice.test.evil.example",
                "http://evilsluice.test",
            ),
            *("http://[", "sluice.test", "//sluice.test", "http://sluice.test/", "http://user@sluice.test", "file://"),
            *(
                "ftp://sluice.test",
                "http://app.example",
                "https://app.example:8443",
                "https://x.app.example",
                f"{OWN}, {OWN}",
            ),
        )
    ),
    # Both headers must agree.
    (EITHER, headers("same-origin", OTHER)),
    (EITHER, headers("same-origin", "null")),
    (EITHER, headers("none", OTHER)),
    (EITHER, headers("same-origin", FRIEND)),
    (EITHER, headers("none", FRIEND)),
    (EITHER, headers("cross-site", OWN)),
    (EITHER, headers("same-site", OWN)),
    (EITHER, headers("cross-site", OTHER)),
    (EITHER, [*navigation("cross-site"), ("Origin", "null")]),
    # Twice.
    (EITHER, [("Sec-Fetch-Site", "same-origin")] * 2),
    (EITHER, [("Sec-Fetch-Site", "same-origin"), ("sec-fetch-site", "cross-site")]),
    (EITHER, [("Origin", OWN)] * 2),
    (EITHER, [("Origin", FRIEND), ("Origin", OTHER)]),
    (EITHER, [("Sec-Fetch-Site", "same-origin, cross-site")]),
]


@pytest.mark.parametrize(("methods", "sent"), ALLOWED)
def test_what_is_answered(methods: tuple[str, ...], sent: list[tuple[str, str]]) -> None:
    assert [method for method in methods if foreign(method, *sent)] == []


@pytest.mark.parametrize(("methods", "sent"), REFUSED)
def test_what_is_refused(methods: tuple[str, ...], sent: list[tuple[str, str]]) -> None:
    assert [method for method in methods if not foreign(method, *sent)] == []


def test_the_scheme_counts_if_a_trusted_proxy_tells_it() -> None:
    assert not foreign("POST", ("Origin", "https://sluice.test"), scheme="https")
    assert foreign("POST", ("Origin", "http://sluice.test"), scheme="https")


def test_the_port_counts() -> None:
    assert not foreign("POST", ("Origin", "http://sluice.test:8080"), host="sluice.test:8080")
    assert foreign("POST", ("Origin", "http://sluice.test:8080"), host="sluice.test")
    assert foreign("POST", ("Origin", "http://sluice.test"), host="sluice.test:8080")
    assert foreign("POST", ("Origin", "http://sluice.test"), host="")


# --- over the wire ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(database_url: str) -> Iterator[LiveServer]:
    """Start a server that lets the pages of one other site in."""
    with LiveServer(DATABASE_URL=database_url, CORS_ORIGINS=f"{FRIEND},http://localhost:3000") as running:
        yield running


PATHS = [
    "/export/users.csv?limit=1",
    "/relations",
    "/exports",
    "/",
    "/table/users",
    "/static/sluice.css",
    "/health/live",
]


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
def test_a_refused_request_gets_nothing(live: LiveServer, path: str) -> None:
    for sent in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": OTHER}, {"Origin": "null"}):
        answer = ask(live, path, headers=sent)
        assert answer.status == 403
        assert answer.problem()["code"] == "foreign_page"
        assert "access-control-allow-origin" not in answer.headers
    followed = ask(live, path, headers={"Sec-Fetch-Site": "cross-site", **NAVIGATION})
    assert followed.status == (404 if path == "/nowhere" else 200)


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
def test_no_answer_may_be_embedded(live: LiveServer, path: str) -> None:
    for sent in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        assert ask(live, path, headers=sent).headers["cross-origin-resource-policy"] == "same-origin"


def test_bytes_that_are_not_http_may_not_be_embedded_either(live: LiveServer) -> None:
    with Client(live.connect()) as client:
        client.socket.sendall(b"\x01\r\n\r\n")
        assert client.read().headers["cross-origin-resource-policy"] == "same-origin"


def test_duplicates_are_refused_over_the_wire(live: LiveServer) -> None:
    for name, value in (("Origin", f"http://{HOST}"), ("Sec-Fetch-Site", "same-origin")):
        twice = f"{name}: {value}\r\n" * 2
        with Client(live.connect()) as client:
            client.socket.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n{twice}\r\n".encode())
            assert client.read().status == 403


def test_an_allowed_site_reads_and_changes(server: LiveServer) -> None:
    sent = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site", **CORS}
    answer = ask(server, "/export/users.csv?limit=1", headers=sent)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == FRIEND
    exposed = {name.lower() for name in answer.headers["access-control-expose-headers"].split(", ")}
    assert {"content-disposition", "location", "etag", "link", "x-request-id", "retry-after"} <= exposed
    assert answer.headers["vary"] == "Accept-Encoding, Origin"
    saved = ask(server, "/export/users.csv?limit=1", method="POST", headers=sent)
    assert (saved.status, saved.headers["access-control-allow-origin"]) == (202, FRIEND)
    assert ask(server, saved.headers["location"], method="DELETE", headers=sent).status == 204
    wrong = ask(server, "/export/nothing.csv", headers=sent)
    assert (wrong.status, wrong.headers["access-control-allow-origin"]) == (404, FRIEND)


def test_others_are_told_that_answers_depend_on_the_origin(server: LiveServer) -> None:
    for sent in ({}, {"Origin": f"http://{HOST}"}, {"Origin": OTHER}):
        answer = ask(server, "/static/sluice.css", headers=sent)
        assert answer.status == (403 if sent == {"Origin": OTHER} else 200)
        assert answer.headers["vary"].split(", ")[-1] == "Origin"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/export/users.csv", "/exports", "/nowhere"])
def test_preflights(server: LiveServer, live: LiveServer, path: str) -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
    sent = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site", **CORS, **asking}
    answer = ask(server, path, method="OPTIONS", headers=sent)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert {"GET", "HEAD", "POST", "DELETE"} == set(answer.headers["access-control-allow-methods"].split(", "))
    assert "Idempotency-Key" in answer.headers["access-control-allow-headers"].split(", ")
    assert int(answer.headers["access-control-max-age"]) > 600
    assert "Origin" in answer.headers["vary"].split(", ")
    assert "access-control-allow-credentials" not in answer.headers
    for asked in (server, live):
        refused = ask(asked, path, method="OPTIONS", headers={**sent, "Origin": OTHER})
        assert refused.status == 403
        assert "access-control-allow-origin" not in refused.headers
    # Not a preflight.
    assert ask(server, path, method="OPTIONS").status == (404 if path == "/nowhere" else 405)


# --- a real browser ---------------------------------------------------------------------------------------------------

PAGE = """<!doctype html><title>wiki</title>
<a id=link href="{target}/export/users.csv?limit=3">the users</a>
<a id=saved href="{target}/export/users.csv?limit=3" download>the users, saved</a>
<a id=page href="{target}/table/users">the page</a>
<form id=form method=post action="{target}/export/users.csv?limit=3"><button>save</button></form>
<img id=image src="{target}/static/icon.svg">
<iframe id=frame src="{target}/relations"></iframe>
<script type=speculationrules>
{{"prefetch": [{{"source": "list", "urls": ["{target}/export/users.csv?limit=5"]}}]}}
</script>
"""


@contextmanager
def other_site(folder: Path) -> Iterator[int]:
    """Serve the files of this folder and yield the port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield serving.server_address[1]
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a browser for which every name of .example is this machine."""
    with browsing("--host-resolver-rules=MAP *.example 127.0.0.1") as opened:
        yield opened


# cross-site: another name. same-site: another port of this machine, which browsers take for the same site.
@pytest.mark.parametrize(
    "host",
    [
        pytest.param("wiki.example", id="cross-site"),
        pytest.param("127.0.0.1", id="same-site", marks=pytest.mark.slow),
    ],
)
def test_a_browser_on_a_page_of_another_site(live: LiveServer, browser: Browser, tmp_path: Path, host: str) -> None:
    (tmp_path / "index.html").write_text(PAGE.format(target=live.url))
    with other_site(tmp_path) as port, closing(browser.new_page()) as page:
        with (
            page.expect_response(f"{live.url}/relations") as framed,
            page.expect_response(f"{live.url}/export/users.csv?limit=5") as prefetched,
        ):
            page.goto(f"http://{host}:{port}/")
        assert (framed.value.status, prefetched.value.status) == (403, 403)
        page.wait_for_function("document.getElementById('image').complete")
        assert page.evaluate("document.getElementById('image').naturalWidth") == 0
        for mode in ("cors", "no-cors"):
            for method in ("GET", "POST", "DELETE") if mode == "cors" else ("GET", "POST"):
                read = page.evaluate(
                    "async ([url, mode, method]) => { try { "
                    "return await (await fetch(url, {mode, method})).text() } catch (error) { return error.name } }",
                    [f"{live.url}/export/users.csv?limit=3", mode, method],
                )
                assert read in ("TypeError", ""), read
        before = ask(live, "/exports").body
        page.click("#form button")
        page.wait_for_url(f"{live.url}/**")
        assert "may only link" in page.content()
        assert ask(live, "/exports").body == before
        for link in ("#link", "#saved"):
            page.goto(f"http://{host}:{port}/")
            with page.expect_download() as download:
                page.click(link)
            assert Path(download.value.path()).read_bytes().count(b"\n") == 4
        page.goto(f"http://{host}:{port}/")
        page.click("#page")
        page.wait_for_url(f"{live.url}/table/users")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").first.click()
        assert download.value.suggested_filename == "users.csv"


@pytest.mark.slow
def test_a_browser_on_a_page_of_an_allowed_site(database_url: str, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>app</title>")
    with (
        other_site(tmp_path) as port,
        LiveServer(DATABASE_URL=database_url, CORS_ORIGINS=f"http://app.example:{port}") as server,
        closing(browser.new_page()) as page,
    ):
        page.goto(f"http://app.example:{port}/")
        read = page.evaluate(
            """async url => {
                const read = await fetch(url, {headers: {"X-Request-Id": "app"}})
                const saved = await fetch(url, {method: "POST", headers: {"Idempotency-Key": "one"}})
                const gone = await fetch(new URL(saved.headers.get("Location"), url), {method: "DELETE"})
                return [(await read.text()).split("\\n").length, read.headers.get("Content-Disposition"),
                        read.headers.get("X-Request-Id"), saved.status, gone.status]
            }""",
            f"{server.url}/export/users.csv?limit=3",
        )
        assert read == [5, 'attachment; filename="users.csv"', "app", 202, 204]
