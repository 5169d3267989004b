"""DNS rebinding: a page whose name points to this machine gets nothing, on any route, however it writes the host."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest
from aiohttp import web

from server.app import create_app, create_app_runner
from server.http.hosts import AllowedHosts
from server.network_names import parse_allowed_hosts, parse_host
from server.settings import Settings
from tests.support.browser import browsing
from tests.support.live_server import LiveServer
from tests.support.raw_http import Answer, Client, ask

# --- what a Host header says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ("localhost", "localhost", None),
        ("LocalHost.:8080", "localhost", 8080),
        ("sluice_1.example-2.org:0", "sluice_1.example-2.org", 0),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example", None),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("[::1]", "::1", None),
        ("[0:0:0:0:0:0:0:1]:80", "::1", 80),
        ("[::FFFF:127.0.0.1]:80", "127.0.0.1", 80),
        (f"{'x' * 249}.org:80", f"{'x' * 249}.org", 80),
    ],
)
def test_a_host_that_is_valid(text: str, name: str, port: int | None) -> None:
    host = parse_host(text)
    assert host is not None
    assert (host.name, host.port) == (name, port)


INVALID = [
    *(
        "",
        " ",
        ".",
        "a..b",
        ".localhost",
        "localhost..",
        "localhost:",
        "localhost:port",
        "localhost:99999",
        "localhost:+1",
    ),
    *(
        "a b",
        "localhost\t",
        "@",
        "localhost@evil.example",
        "evil.example@localhost",
        "a@b:c@d",
        "localhost/",
        "localhost#",
    ),
    *(
        "localhost,evil.example",
        "localhost;",
        "http://localhost",
        "//localhost",
        "[::1",
        "::1",
        "[::1%25eth0]",
        "[::1%eth0]",
    ),
    *("[localhost]", "[127.0.0.1]", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.1.1", "evil.example.127"),
    *("münchen.example", "ｌocalhost", "localhost\u200b", "localhost\u202e", "%6cocalhost", "localhost\x00", "x" * 255),
    *('"><script>alert(3)</script>', "localhost:80:80", "l" * 8000),
]


@pytest.mark.parametrize("text", INVALID)
def test_a_host_that_is_not_valid(text: str) -> None:
    assert parse_host(text) is None
    assert not AllowedHosts(["*"]).allow(text) or text == ""


@pytest.mark.parametrize(
    ("listed", "allowed", "refused"),
    [
        (
            "",
            ["localhost", "LOCALHOST:1", "localhost.", "app.localhost", "127.0.0.1", "127.9.8.7:80", "[::1]:8080"],
            [None, "", "evil.example", "localhost.evil.example", "evillocalhost", "10.0.0.7", "[::2]", "0.0.0.0"],
        ),
        (
            "sluice.example.org",
            ["sluice.example.org", "Sluice.Example.ORG.:443", "localhost"],
            [None, "example.org", "a.sluice.example.org", "sluice.example.org.evil.example", "sluice.example.org:x"],
        ),
        (
            ".example.org",
            ["example.org", "a.example.org", "b.a.example.org:80"],
            ["evilexample.org", "example.org.evil"],
        ),
        ("*.example.org", ["a.example.org", "b.a.example.org:80"], ["example.org", "evilexample.org"]),
        (
            "192.0.2.7,10.0.0.0/8,fd00::/8",
            ["192.0.2.7:80", "10.255.0.1", "[fd00::1]:80", "[::ffff:10.0.0.1]"],
            ["192.0.2.8", "11.0.0.1", "[fe00::1]", "10.0.0.1.evil.example"],
        ),
        ("*", [None, "", "evil.example", "10.0.0.7", "[::2]:80"], ["a b", "user@evil.example"]),
        ("münchen.example", ["xn--mnchen-3ya.example"], ["münchen.example", "munchen.example"]),
    ],
)
def test_which_hosts_are_allowed(listed: str, allowed: list[str | None], refused: list[str | None]) -> None:
    hosts = AllowedHosts(parse_allowed_hosts(listed))
    assert [text for text in allowed if not hosts.allow(text)] == []
    assert [text for text in refused if hosts.allow(text)] == []


# --- over the wire ----------------------------------------------------------------------------------------------------

EVIL = "attacker.example"


def assert_misdirected(answer: Answer, *, named: str | None = EVIL) -> None:
    assert answer.status == 421
    problem = answer.problem()
    assert (problem["title"], problem["code"]) == ("Misdirected Request", "misdirected_request")
    if named is not None:
        assert f"ALLOWED_HOSTS={named}" in problem["hint"]
    assert answer.headers["cache-control"] == "no-store"


def routes(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield method and an address of every route of the application."""
    for route in create_app(settings).router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        for parameter, value in (("{target}", "users.csv"), ("{id}", "x" * 22), ("{name}", "sluice.css")):
            path = path.replace(parameter, value)
        assert "{" not in path, path
        yield route.method, path


async def test_every_route_but_the_probes_refuses_another_host(settings: Settings, live: LiveServer) -> None:
    found = [(method, path) for method, path in routes(settings)]
    assert len(found) > 25
    unrouted = [
        (method, path) for path in ("/nowhere", "/export", "/health/x") for method in ("GET", "POST", "OPTIONS")
    ]
    unrouted += [("OPTIONS", "*"), ("PUT", "/export/users.csv"), ("PROPFIND", "/health/live"), ("TRACE", "/")]

    def statuses() -> dict[tuple[str, str], int]:
        with Client(live.connect()) as client:
            return {
                (method, path): client.ask(path, method=method, headers={"Host": EVIL}).status
                for method, path in [*found, *unrouted]
            }

    answered = await asyncio.to_thread(statuses)
    assert {path for (_, path), status in answered.items() if status != 421} == {"/health/live", "/health/ready"}


@pytest.mark.parametrize("fetch_site", ["same-origin", "none", "cross-site"])
def test_a_page_under_another_name_gets_nothing(live: LiveServer, fetch_site: str) -> None:
    headers = {"Host": f"{EVIL}:{live.port}", "Sec-Fetch-Site": fetch_site, "Origin": f"http://{EVIL}:{live.port}"}
    for method in ("GET", "HEAD", "POST"):
        answer = ask(live, "/export/users.csv", method=method, headers=headers)
        if method == "HEAD":
            assert (answer.status, answer.body) == (421, b"")
        else:
            assert_misdirected(answer)


def test_a_browser_gets_a_page_that_says_what_to_set(live: LiveServer) -> None:
    answer = ask(live, "/", headers={"Host": EVIL, "Accept": "text/html"})
    assert (answer.status, answer.headers["content-type"]) == (421, "text/html; charset=utf-8")
    assert f"ALLOWED_HOSTS={EVIL}" in answer.body.decode()
    assert "users" not in answer.body.decode()


@pytest.mark.parametrize("host", [text for text in INVALID if text.isascii() and not set(text) & set("\x00")])
@pytest.mark.parametrize("path", ["/", "/table/users", "/export/users.csv"])
def test_a_host_header_that_is_not_valid_is_refused(live: LiveServer, host: str, path: str) -> None:
    answer = ask(live, path, headers={"Host": host})
    if host.strip() == "localhost":  # white space around a value is none of it
        assert answer.status == 200
        return
    assert_misdirected(answer, named=None)
    assert "ALLOWED_HOSTS" not in answer.problem()["hint"]
    missing = "The request does not name a host." if not host.strip() else "The host of the request is not valid."
    assert answer.problem()["detail"] == missing


def raw(server: LiveServer, request: str) -> Answer:
    with Client(server.connect()) as client:
        client.socket.sendall(request.encode("utf-8"))
        return client.read()


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        # RFC 9112, 3.2: HTTP/1.1 with no Host header, or with two, is a bad request.
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\nHost: localhost\r\nhost: {EVIL}\r\n\r\n", 400),
        ("GET /export/users.csv?limit=1 HTTP/1.0\r\n\r\n", 421),
        ("GET /export/users.csv?limit=1 HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        # RFC 9112, 3.2.2: the target takes the place of Host. Neither may be another host.
        ("GET http://localhost/export/users.csv?limit=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET HTTP://LOCALHOST:1/export/users.csv?limit=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (f"GET http://{EVIL}/export/users.csv?limit=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
        (f"GET http://localhost/export/users.csv?limit=1 HTTP/1.1\r\nHost: {EVIL}\r\n\r\n", 421),
        (f"GET http://localhost@{EVIL}/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
        (f"GET http://{EVIL}@localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
        (f"GET http://{EVIL}/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (f"GET http://{EVIL}/health/../export/users.csv HTTP/1.1\r\nHost: {EVIL}\r\n\r\n", 421),
        (f"GET /health/../export/users.csv HTTP/1.1\r\nHost: {EVIL}\r\n\r\n", 421),
        (f"GET /health/live/../../export/users.csv HTTP/1.1\r\nHost: {EVIL}\r\n\r\n", 421),
        (f"GET /health%2Flive HTTP/1.1\r\nHost: {EVIL}\r\n\r\n", 421),
        (f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
        (f"OPTIONS * HTTP/1.1\r\nHost: {EVIL}\r\n\r\n", 421),
        # Nobody believes this header without FORWARDED_ALLOW_IPS.
        (f"GET / HTTP/1.1\r\nHost: {EVIL}\r\nX-Forwarded-Host: localhost\r\n\r\n", 421),
        (f"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: {EVIL}\r\n\r\n", 200),
        (f"GET / HTTP/1.1\r\nHost: {EVIL}\r\nForwarded: host=localhost\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: ｌocalhost\r\n\r\n", 421),
    ],
)
def test_the_host_in_every_place_of_a_request(live: LiveServer, request_text: str, status: int) -> None:
    assert raw(live, request_text).status == status


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
@pytest.mark.parametrize("host", ["10.1.2.3:8080", EVIL, "", "a b"])
def test_a_probe_may_name_any_host(live: LiveServer, path: str, host: str) -> None:
    answer = ask(live, path, headers={"Host": host})
    assert (answer.status, set(json.loads(answer.body))) == (200, {"status"})


def addresses_of_this_machine() -> list[str]:
    """Return the IPv4 addresses of this machine that are not loopback addresses."""
    found = [
        each.address for every in psutil.net_if_addrs().values() for each in every if each.family == socket.AF_INET
    ]
    return [address for address in found if not ipaddress.ip_address(address).is_loopback]


def test_the_address_at_which_a_request_arrives_may_be_named(start_live: Callable[..., LiveServer]) -> None:
    server = start_live(API_HOST="0.0.0.0")
    server.wait_for_log("Requests that name another host than this machine are answered if ALLOWED_HOSTS lists it")
    if not (own := addresses_of_this_machine()):
        pytest.skip("this machine has no address but the loopback ones")

    def status(address: str, host: str) -> int:
        with socket.create_connection((address, server.port), 30) as connected, Client(connected) as client:
            return client.ask("/timezones", headers={"Host": host}).status

    assert status(own[0], f"{own[0]}:{server.port}") == 200
    # Nobody asks a loopback address under another address, nor this machine under that of another one.
    assert status("127.0.0.1", f"{own[0]}:{server.port}") == 421
    assert status(own[0], "203.0.113.5") == 421
    assert status(own[0], f"{own[0]}.attacker.example") == 421


def test_the_name_to_listen_on_may_be_named(settings: Settings) -> None:
    assert AllowedHosts([*settings.allowed_hosts, "sluice.internal"]).allow("sluice.internal:8080")


async def test_a_page_has_no_lines_to_copy_without_a_host(settings: Settings) -> None:
    runner = create_app_runner(replace(settings, allowed_hosts=("*",)))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        writer.write(b"GET /table/users HTTP/1.0\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    finally:
        await runner.cleanup()
    assert head.split()[1] == b"200"
    assert b"The request does not name a host." in body


# --- a real browser ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rebound_name_gets_nothing_in_a_browser(live: LiveServer) -> None:
    with browsing(f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as browser:
        page = browser.new_page()
        address = f"http://{EVIL}:{live.port}"
        # The answer itself is a page of that name, so its scripts may ask for more.
        shown = page.goto(f"{address}/")
        assert shown is not None
        assert shown.status == 421
        assert "email" not in page.content()
        # Styles of that name are refused too. What to do is seen without them.
        hint = page.get_by_text(f"ALLOWED_HOSTS={EVIL}").bounding_box()
        assert hint is not None
        assert hint["y"] < 500
        assert page.get_by_role("link", name="Show all tables").count() == 0  # it would be refused as well
        read = """async path => {
            const answer = await fetch(path, {headers: {"X-Forwarded-Host": "localhost"}})
            return [answer.status, await answer.text()]
        }"""
        for path in ("/relations", "/export/users.csv?limit=1", "/exports", "/"):
            status, text = page.evaluate(read, path)
            assert (status, "Misdirected" in text, "email" in text) == (421, True, False), path
        page.goto(f"http://app.localhost:{live.port}/")
        assert page.get_by_role("link", name="users").first.is_visible()
