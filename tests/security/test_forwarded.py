"""Trust in proxies: what X-Forwarded-… says counts only if a listed proxy says it, and then the log shows it."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from server.app import create_app
from server.http.aiohttp_internals import ProblemRunner
from server.http.forwarded import Arrival, TrustedProxies, client_address
from server.network_names import parse_proxies
from server.settings import Settings
from tests.support.live_server import HOST, LiveServer
from tests.support.proxies import running_nginx
from tests.support.raw_http import Client, ask

PROXY, EDGE, CLIENT = "10.0.0.1", "10.0.0.2", "203.0.113.9"
NETWORK = "10.0.0.0/8,fd00::/8"


def arrived(listed: str, peer: str, headers: list[tuple[str, str]]) -> Arrival:
    request = make_mocked_request("GET", "/", headers=CIMultiDict([("Host", "asked.example"), *headers]))
    return TrustedProxies(parse_proxies(listed)).arrival(request.clone(remote=peer))


@pytest.mark.parametrize(
    ("listed", "peer", "forwarded_for", "client"),
    [
        # Nobody is believed who is not listed.
        ("", "127.0.0.1", [CLIENT], "127.0.0.1"),
        ("", "::ffff:192.0.2.1", [], "192.0.2.1"),
        (NETWORK, "192.0.2.1", [CLIENT], "192.0.2.1"),
        (NETWORK, "110.0.0.1", [CLIENT], "110.0.0.1"),
        # One proxy, several, and a header that was sent in parts.
        (NETWORK, PROXY, [], PROXY),
        (NETWORK, PROXY, [CLIENT], CLIENT),
        (NETWORK, f"::ffff:{PROXY}", [CLIENT], CLIENT),
        (NETWORK, "fd00::1", [f"{CLIENT}, {EDGE}"], CLIENT),
        (NETWORK, PROXY, [CLIENT, EDGE], CLIENT),
        (NETWORK, PROXY, [f"{CLIENT},{EDGE}", "10.9.9.9"], CLIENT),
        (PROXY, PROXY, [f"{CLIENT}, {EDGE}"], EDGE),
        # What stands left of the client's own address was sent by the client.
        (NETWORK, PROXY, [f"198.51.100.1, {CLIENT}"], CLIENT),
        (NETWORK, PROXY, [f"127.0.0.1, {PROXY}, {CLIENT}, {EDGE}"], CLIENT),
        ("*", PROXY, [f"198.51.100.1, {CLIENT}"], "198.51.100.1"),
        # A client inside the trusted network.
        (NETWORK, PROXY, ["10.1.1.1"], "10.1.1.1"),
        # As they are written.
        (NETWORK, PROXY, [f"{CLIENT}:4711"], CLIENT),
        (NETWORK, PROXY, ["[2001:DB8::1]:4711"], "2001:db8::1"),
        (NETWORK, PROXY, ['"[2001:db8::1]"'], "2001:db8::1"),
        (NETWORK, PROXY, ["2001:db8:0:0::1"], "2001:db8::1"),
        (NETWORK, PROXY, ["::ffff:203.0.113.9"], CLIENT),
        (NETWORK, PROXY, ["fe80::1%eth0"], "fe80::1"),
        (NETWORK, PROXY, [f"\t{CLIENT} "], CLIENT),
        # What is not an address ends the search.
        (NETWORK, PROXY, [""], PROXY),
        (NETWORK, PROXY, [","], PROXY),
        (NETWORK, PROXY, ["unknown"], PROXY),
        (NETWORK, PROXY, ["_hidden"], PROXY),
        (NETWORK, PROXY, [f"{CLIENT}, unknown"], PROXY),
        (NETWORK, PROXY, [f"{CLIENT}, <script>, {EDGE}"], EDGE),
        (NETWORK, PROXY, [f"{CLIENT}\u202e"], PROXY),
        (NETWORK, PROXY, ["999.0.0.1"], PROXY),
        (NETWORK, PROXY, ["2130706433"], PROXY),
        # A Unix socket has no address.
        ("unix", "", [CLIENT], CLIENT),
        ("*", "", [CLIENT], CLIENT),
        (NETWORK, "", [CLIENT], "unix"),
        ("unix", PROXY, [CLIENT], PROXY),
    ],
)
def test_the_address_of_the_client(listed: str, peer: str, forwarded_for: list[str], client: str) -> None:
    assert arrived(listed, peer, [("X-Forwarded-For", value) for value in forwarded_for]).client == client


@pytest.mark.parametrize(
    ("headers", "scheme", "host"),
    [
        ([], None, "asked.example"),
        ([("X-Forwarded-Proto", "https")], "https", "asked.example"),
        ([("X-Forwarded-Proto", "HTTPS"), ("X-Forwarded-Host", "Shown.example:8443")], "https", "Shown.example:8443"),
        ([("X-Forwarded-Proto", "http")], "http", "asked.example"),
        # Garbage.
        ([("X-Forwarded-Proto", "javascript"), ("X-Forwarded-Host", "a b")], None, "asked.example"),
        ([("X-Forwarded-Proto", ""), ("X-Forwarded-Host", "user@shown.example")], None, "asked.example"),
        ([("X-Forwarded-Host", '"><script>')], None, "asked.example"),
        ([("Forwarded", f"for={CLIENT};proto=https;host=shown.example")], None, "asked.example"),
        # The peer has written the last item; the one before it is the client's unless the proxy before is trusted too.
        ([("X-Forwarded-Proto", "https, http")], "http", "asked.example"),
        ([("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "https, http")], "http", "asked.example"),
        (
            [("X-Forwarded-For", f"{CLIENT}, {EDGE}"), ("X-Forwarded-Proto", "http, https, http")],
            "https",
            "asked.example",
        ),
        (
            [("X-Forwarded-For", f"{CLIENT}, {EDGE}"), ("X-Forwarded-Host", "evil.example, shown.example, inner")],
            None,
            "shown.example",
        ),
        ([("X-Forwarded-For", f"{CLIENT}, {EDGE}"), ("X-Forwarded-Proto", "https")], "https", "asked.example"),
    ],
)
def test_scheme_and_host(headers: list[tuple[str, str]], scheme: str | None, host: str) -> None:
    arrival = arrived(NETWORK, PROXY, headers)
    assert (arrival.scheme, arrival.host) == (scheme, host)
    # The Host header is checked as well: a proxy may pass on an X-Forwarded-Host of the client.
    assert arrival.hosts[0] == "asked.example"
    assert arrived(NETWORK, "192.0.2.1", headers) == Arrival("192.0.2.1", None, ("asked.example",))


def test_a_long_list_costs_no_time() -> None:
    headers = [("X-Forwarded-For", ", ".join(["10.0.0.1"] * 900))] * 100
    arrived(NETWORK, PROXY, headers)
    started = time.process_time()
    arrived(NETWORK, PROXY, headers)
    assert time.process_time() - started < 0.01


# --- over the wire ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(database_url: str) -> Iterator[LiveServer]:
    """Start a server that trusts proxies on this machine."""
    # Gunicorn, which reads this variable too, knows addresses only.
    trusting = {"FORWARDED_ALLOW_IPS": "127.0.0.1,unix", "ALLOWED_HOSTS": f"{HOST},sluice.example"}
    with LiveServer(DATABASE_URL=database_url, LOG_FORMAT="json", **trusting) as server:
        yield server


def pasted(page: str) -> set[str]:
    """Return the origins in the lines to copy of a page."""
    return set(re.findall(r"(https?://[^/\s\"'&]+)/export/", page))


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "sluice.example", "X-Forwarded-For": CLIENT}


def test_the_lines_to_copy_say_https_behind_tls(behind: LiveServer, live: LiveServer) -> None:
    assert pasted(ask(behind, "/table/users", headers=FORWARDED).body.decode()) == {"https://sluice.example"}
    assert pasted(ask(behind, "/table/users").body.decode()) == {f"http://{HOST}"}
    with_port = {**FORWARDED, "X-Forwarded-Host": "sluice.example:443"}
    assert pasted(ask(behind, "/table/users", headers=with_port).body.decode()) == {"https://sluice.example"}
    # A server that trusts nobody.
    assert pasted(ask(live, "/table/users", headers=FORWARDED).body.decode()) == {f"http://{HOST}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Forwarded-Host": "evil.example"}, 421),
        # A page whose name points to the proxy can set this header, if the proxy does not.
        ({"Host": "evil.example", "X-Forwarded-Host": "localhost"}, 421),
        ({"X-Forwarded-Host": "localhost, evil.example"}, 421),
        ({"X-Forwarded-Host": "evil.example, localhost"}, 200),
    ],
)
def test_the_forwarded_host_is_checked_too(behind: LiveServer, headers: dict[str, str], status: int) -> None:
    assert ask(behind, "/timezones", headers=headers).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://sluice.example", "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": "https://sluice.example:443"}, 202),
        # The same host without TLS is another origin (RFC 6454), and the proxy says that it was TLS.
        ({"Origin": "http://sluice.example"}, 403),
        ({"Origin": "https://sluice.test"}, 403),
    ],
)
def test_the_own_origin_is_that_before_the_proxy(behind: LiveServer, headers: dict[str, str], status: int) -> None:
    answer = ask(behind, "/export/users.csv?limit=1", method="POST", headers={**FORWARDED, **headers})
    assert answer.status == status
    if status == 202:
        assert answer.headers["location"].startswith("/exports/")
        assert ask(behind, answer.headers["location"], method="DELETE").status == 204


def line_of(server: LiveServer, request_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(server.wait_for_log(rf'.*"requestId": "{request_id}".*')[0])
    return found


def test_the_log_names_the_client(behind: LiveServer, live: LiveServer) -> None:
    ask(behind, "/export/users.csv?limit=1", headers={**FORWARDED, "X-Request-Id": "by-proxy"})
    assert line_of(behind, "by-proxy")["client"] == CLIENT
    ask(behind, "/export/users.csv?limit=1", headers={"X-Request-Id": "direct"})
    assert line_of(behind, "direct")["client"] == "127.0.0.1"
    ask(behind, "/export/users.csv?limit=1", headers={"X-Forwarded-For": "x\xe2\x80\xae", "X-Request-Id": "garbage"})
    assert line_of(behind, "garbage")["client"] == "127.0.0.1"
    ask(live, "/export/users.csv?limit=1", headers={**FORWARDED, "X-Request-Id": "nobody-trusted"})
    assert live.export_line("nobody-trusted")["client"] == "127.0.0.1"


async def test_a_proxy_on_a_unix_socket_is_trusted_by_a_word(settings: Settings, tmp_path: Path) -> None:
    seen = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(client_address(request))
        return web.Response()

    for listed in (("unix",), ()):
        app = create_app(replace(settings, forwarded_allow_ips=listed))
        app.router.add_get("/seen", handler)
        runner = ProblemRunner(app, access_log=None)
        await runner.setup()
        path = str(tmp_path / f"{len(listed)}.socket")
        try:
            await web.UnixSite(runner, path).start()
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
                async with session.get("http://localhost/seen", headers=FORWARDED | {"X-Forwarded-Host": "localhost"}):
                    pass
                async with session.get("http://evil.example/seen") as answer:
                    assert answer.status == 421
        finally:
            await runner.cleanup()
    assert seen == [CLIENT, "unix"]


# --- behind a real nginx ----------------------------------------------------------------------------------------------

README = (Path(__file__).parents[2] / "README.md").read_text()


def directives_of_the_readme() -> str:
    """Return the location of the README's nginx lines."""
    found = re.search(r"```nginx\n(?:.*\n)*?( +location / \{\n(?:.*\n)*?) *\}\n\}\n```", README)
    assert found is not None
    return found[1] + "}"


def test_the_lines_for_nginx_in_the_readme(behind: LiveServer) -> None:
    location = directives_of_the_readme().replace("http://127.0.0.1:8080", behind.url)
    assert behind.url in location
    with running_nginx(f"server_name sluice.example; {location}") as address:
        port = int(address.rpartition(":")[2])

        def asked(path: str, **headers: str) -> tuple[int, str]:
            with Client(socket.create_connection(("127.0.0.1", port), 30)) as client:
                answer = client.ask(path, headers={"Host": "sluice.example", **headers})
                return answer.status, answer.body.decode()

        status, page = asked("/table/users")
        assert (status, pasted(page)) == (200, {"http://sluice.example"})
        # nginx writes over what a client sends.
        status, page = asked("/table/users", **{"X-Forwarded-Proto": "https", "X-Forwarded-Host": "localhost"})
        assert (status, pasted(page)) == (200, {"http://sluice.example"})
        asked("/export/users.csv?limit=1", **{"X-Forwarded-For": CLIENT, "X-Request-Id": "by-nginx"})
        assert line_of(behind, "by-nginx")["client"] == CLIENT  # said by a peer of nginx that is a trusted address too
        assert asked("/table/users", Host="evil.example")[0] == 421
