"""The log and the terminal: no byte of a malformed request, and no character that hides or forges what a line says."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import http_exceptions, web
from aiohttp.http_parser import HttpRequestParserPy
from aiohttp.test_utils import TestClient
from hypothesis import given
from hypothesis import strategies as st

from server import events
from server.__main__ import main
from server.errors import InvalidRequest
from server.http.events import LoopError
from server.http.malformed import Malformed, describe
from server.query.file_names import safe_filename
from server.visible import is_visible, visible
from tests.support.live_server import HOST, LiveServer
from tests.support.raw_http import Client, ask

# --- malformed requests -----------------------------------------------------------------------------------------------

START = f"GET /health/live HTTP/1.1\r\nHost: {HOST}\r\n".encode()
BODY = f"POST /shape/users HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/x-www-form-urlencoded\r\n".encode()

# Bytes that hold SECRET, with the class of aiohttp's error and the position; None where a handler answers.
MALFORMED: dict[str, tuple[bytes, str | None, int | None]] = {
    "control character in a value": (START + b"Authorization: Bearer SECRET\x01\r\n\r\n", "BadHttpMessage", 28),
    "control character at the beginning": (START + b"Authorization: \x01SECRET\r\n\r\n", "BadHttpMessage", 15),
    "zero byte": (START + b"Cookie: a=SECRET\x00\r\n\r\n", "BadHttpMessage", 16),
    "space before the colon": (START + b"SECRET : x\r\n\r\n", "BadHttpMessage", 6),
    "no colon": (START + b"SECRET\r\n\r\n", "BadHttpMessage", 6),
    "folded line": (START + b"Authorization: Bearer\r\n SECRET\r\n\r\n", "BadHttpMessage", None),
    "line feed alone": (START + b"Authorization: SECRET\nX: y\r\n\r\n", "BadHttpMessage", None),
    "long value": (START + b"Authorization: SECRET" + b"x" * 20_000 + b"\r\n\r\n", "LineTooLong", None),
    "long name": (START + b"SECRET" + b"x" * 20_000 + b": y\r\n\r\n", "LineTooLong", None),
    "long target": (b"GET /SECRET" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n", "LineTooLong", None),
    "many headers": (START + b"X-Key: SECRET\r\n" * 200 + b"\r\n", "BadHttpMessage", None),
    "control character in the target": (b"GET /SECRET\x01 HTTP/1.1\r\n\r\n", "InvalidURLError", 11),
    "control character in the query": (b"GET /?key=SECRET\x7f HTTP/1.1\r\n\r\n", "InvalidURLError", None),
    "space in the target": (b"GET /?key=SECRET x HTTP/1.1\r\n\r\n", "BadStatusLine", None),
    "invalid authority": (b"GET http://SECRET:x/ HTTP/1.1\r\nHost: a\r\n\r\n", None, None),
    "no authority": (b"GET SECRET HTTP/1.1\r\nHost: a\r\n\r\n", None, None),
    "authority that breaks the parser": (
        b"GET http://a[::1]:S@?http:///SECRET HTTP/1.1\r\nHost: a\r\n\r\n",
        "BadHttpMessage",
        0,
    ),
    "authority of a tunnel": (b"CONNECT SECRET HTTP/1.1\r\nHost: a\r\n\r\n", None, None),
    "method": (b"SECRET / HTTP/1.1\r\n\r\n", None, None),
    "no request line": (b"SECRET\r\n\r\n", None, None),
    "version": (b"GET / HTTP/SECRET\r\n\r\n", "BadStatusLine", None),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: SECRET\r\n\r\n", "BadHttpMessage", None),
    "length": (START + b"Content-Length: SECRET\r\n\r\n", "BadHttpMessage", None),
    "two lengths": (START + b"Content-Length: 1\r\nContent-Length: SECRET\r\n\r\n", "BadHttpMessage", None),
    "transfer coding": (START + b"Transfer-Encoding: SECRET\r\n\r\n", "BadHttpMessage", None),
    "size of a chunk": (BODY + b"Transfer-Encoding: chunked\r\n\r\nSECRET\r\n\r\n", None, None),
    "websocket of 2010": (START + b"Sec-WebSocket-Key1: SECRET\r\n\r\n", "InvalidHeader", None),
    "expectation": (START + b"Expect: SECRET\r\n\r\n", None, None),
    "body that is not gzip": (BODY + b"Content-Encoding: gzip\r\nContent-Length: 6\r\n\r\nSECRET", None, None),
    "host": (b"GET / HTTP/1.1\r\nHost: a\x01SECRET\r\n\r\n", "BadHttpMessage", 7),
    "TLS": (b"\x16\x03\x01\x02\x00\x01SECRET\r\n\r\n", "BadHttpMethod", None),
    "second request": (START + b"\r\n" + START + b"Authorization: Bearer SECRET\x01\r\n\r\n", "BadHttpMessage", 28),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_no_byte_of_a_malformed_request_is_logged_or_answered(live: LiveServer, name: str) -> None:
    data, kind, position = MALFORMED[name]
    before = len(live.log)
    with Client(live.connect()) as client:
        client.socket.sendall(data)
        client.socket.settimeout(1 if name == "size of a chunk" else 30)  # whose handler waits for the rest of the body
        received = b""
        try:
            while part := client.socket.recv(1 << 16):
                received += part
                if b"\r\n\r\n" in received and kind is None:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
    assert b"SECRET" not in received
    if kind is not None:
        line = live.wait_for_log(rf'event="not an HTTP request" kind={kind}\b.*', after=before)[0]
        assert "client=127.0.0.1" in line
        assert "requestId=" in line
        assert position is None or f"position={position} " in line
    # A line that was written after all of the request has been read.
    ask(live, "/export/users.csv?limit=0", headers={"X-Request-Id": "after-" + re.sub(r"\W", "-", name)})
    live.export_line("after-" + re.sub(r"\W", "-", name))
    assert [logged for logged in live.log if "SECRET" in logged] == []
    assert [logged for logged in live.log[before:] if "Traceback" in logged] == []


def test_the_answer_says_what_is_wrong_and_where(live: LiveServer) -> None:
    with Client(live.connect()) as client:
        client.socket.sendall(MALFORMED["control character in a value"][0])
        problem = client.read().problem()
    assert (problem["status"], problem["code"]) == (400, "bad_request")
    assert problem["detail"].endswith(": Invalid header value char, after 28 bytes of its line.")
    with Client(live.connect()) as client:
        client.socket.sendall(MALFORMED["long value"][0])
        assert client.read().problem()["detail"].endswith(": Line or header of more than 8190 bytes.")
    with Client(live.connect()) as client:
        client.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.read().problem()["detail"].endswith(": Missing 'Host' header in request.")


@pytest.mark.parametrize("name", ["expectation", "body that is not gzip"])
def test_what_a_handler_cannot_read_is_a_problem_of_the_request(live: LiveServer, name: str) -> None:
    with Client(live.connect()) as client:
        client.socket.sendall(MALFORMED[name][0])
        answer = client.read()
    assert (answer.problem()["code"], answer.status) != ("internal", 500)
    assert 400 <= answer.status < 500


@pytest.mark.parametrize("name", MALFORMED)
def test_the_errors_of_the_parser_in_python_are_described_without_bytes(name: str) -> None:
    # The one that aiohttp uses where its compiled parser is missing.
    async def parse() -> Malformed | None:
        parser = HttpRequestParserPy(
            web.RequestHandler(web.Server(lambda request: None), loop=asyncio.get_running_loop()),  # type: ignore[arg-type,return-value]
            asyncio.get_running_loop(),
            2**16,
            max_line_size=128 << 10,
        )
        try:
            parser.feed_data(MALFORMED[name][0])
        except http_exceptions.HttpProcessingError as error:
            return describe(error)
        except IndexError:  # of yarl, for an authority that breaks it
            return None
        return None

    assert "SECRET" not in str(asyncio.run(parse()))


def test_a_message_that_imitates_the_parser_is_not_believed() -> None:
    assert describe(http_exceptions.InvalidURLError("SECRET: x")) == Malformed("InvalidURLError")
    assert describe(http_exceptions.BadHttpMessage("Duplicate 'SECRET' x")) == Malformed("BadHttpMessage")
    assert describe(http_exceptions.LineTooLong(b"SECRET")) == Malformed("LineTooLong")
    assert str(Malformed("LineTooLong")) == "LineTooLong"


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    """Return the list to which every event of the test is added."""
    found: list[events.Event] = []
    monkeypatch.setattr(events, "_observers", [found.append])
    return found


async def test_the_event_loop_repeats_no_arguments(client: TestClient[Any, Any], emitted: list[events.Event]) -> None:
    loop = asyncio.get_running_loop()

    def fail(data: bytes) -> None:
        raise ValueError("no bytes here")

    loop.call_soon(fail, b"SECRET")
    future: asyncio.Future[None] = loop.create_future()
    future.set_exception(web.RequestPayloadError("SECRET"))
    del future
    gc.collect()
    await asyncio.sleep(0)
    found = [event for event in emitted if isinstance(event, LoopError)]
    name = "test_the_event_loop_repeats_no_arguments"
    assert [event.what for event in found] == ["Future exception was never retrieved", f"Exception in callback {name}."]
    assert [type(event.error) for event in found] == [web.RequestPayloadError, ValueError]
    assert "SECRET" not in str([event.fields() for event in found])


# --- characters -------------------------------------------------------------------------------------------------------

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
UNSEEN = "\u00ad\u034f\u115f\u180e\u200b\u200c\u200d\u2060\u2063\u206f\u3164\ufe0f\ufeff\uffa0\U000e0041\U000e0100"
CONTROLS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "\u2028\u2029"
SPACES = "\u00a0\u2003\u202f\u3000"
BROKEN = "\ud800\udfff\ue000\uffff\U0010ffff"


@pytest.mark.parametrize("character", [*BIDI, *UNSEEN, *CONTROLS, *SPACES, *BROKEN])
def test_a_character_that_nobody_sees_is_escaped(character: str) -> None:
    assert not is_visible(character)
    assert visible(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"
    assert visible(f"a{character}b").isascii()


@pytest.mark.parametrize(
    "text", ["", "plain text", "größe", "顧客", "العربية", "a\\nb", "e\u0301", "🚀", "“quoted” … ·"]
)
def test_other_text_stays(text: str) -> None:
    assert visible(text) == text


@given(st.text())
def test_what_is_visible_stays_visible(text: str) -> None:
    shown = visible(text)
    assert is_visible(shown)
    assert visible(shown) == shown
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_name_that_nobody_sees_is_escaped_in_the_log(
    live: LiveServer, start_live: Callable[..., LiveServer], log_format: str
) -> None:
    server = live if log_format == "text" else start_live(LOG_FORMAT="json")
    name = f"a\u202egnp\x1b[2J\u2028event=forged{UNSEEN}"
    path = f"/export/%22{quote(name, safe='')}%22.csv"
    ask(server, path, headers={"X-Request-Id": "unseen"})
    line = server.wait_for_log(r".*event.*requestId\W+unseen.*")[0]
    assert is_visible(line)
    if log_format == "json":
        assert json.loads(line)["relation"] == visible(name)
    else:
        assert "\\u202egnp" in line


def test_values_of_every_type_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    from server.process.logs import escape_invisible

    given: dict[str, Any] = {
        "event": "a\u202e",
        "path": Path("b\x1b"),
        "list": ["c\u2066", ("d\u200b", 1)],
        "map": {"e\u202e": "f\u2029"},
        "number": 7,
        "nothing": None,
        "flag": True,
        "_record": given_record(),
    }
    shown = escape_invisible(None, "info", given)
    assert shown == {
        "event": "a\\u202e",
        "path": "b\\x1b",
        "list": ["c\\u2066", ["d\\u200b", 1]],
        "map": {"e\\u202e": "f\\u2029"},
        "number": 7,
        "nothing": None,
        "flag": True,
        "_record": given["_record"],
    }


def given_record() -> logging.LogRecord:
    return logging.LogRecord("a", logging.INFO, "a", 1, "a", None, None)


@pytest.mark.parametrize("character", ["\u202e", "\x1b", "\u200b", "\u3164"])
def test_an_error_shows_what_nobody_sees(live: LiveServer, character: str) -> None:
    path = f"/export/users.csv?select=na{quote(character)}me"
    problem = ask(live, path).problem()
    assert visible(f"na{character}me") in problem["detail"]
    page = ask(live, path, headers={"Accept": "text/html"}).body.decode()
    assert character not in page
    form = ask(live, path.replace("/export/users.csv", "/table/users"), headers={"Accept": "text/html"}).body.decode()
    assert visible(f"na{character}me") in form
    assert InvalidRequest(f"x{character}", hint=f"y{character}").hint == visible(f"y{character}")


@pytest.mark.parametrize("character", [*BIDI, *UNSEEN, "\u2028", "\x1b", "\n"])
def test_the_name_of_a_file_hides_no_suffix(live: LiveServer, character: str) -> None:
    assert safe_filename(f"a{character}exe") == "a_exe"
    answer = ask(live, f"/export/users.csv?filename=a{quote(character)}exe", method="HEAD")
    assert answer.headers["content-disposition"] == 'attachment; filename="a_exe.csv"'


EVIL = "\x1b]0;owned\x07\u202e"


def assert_shown(text: str) -> None:
    assert "\\u202e" in text
    assert is_visible(text.replace("\n", "").replace("\r", "")), text


def test_the_command_line_controls_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["dsn", EVIL])
    assert_shown(capsys.readouterr().err)
    monkeypatch.setenv("LOG_FORMAT", EVIL)
    assert main(["dsn"]) == 1
    assert_shown(capsys.readouterr().err)


def test_an_error_at_the_start_controls_no_terminal() -> None:
    environment = {"PATH": "/usr/bin", "PYTHONIOENCODING": "utf-8", "API_HOST": EVIL}
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve"], env=environment, capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 1
    assert_shown(done.stderr)
