"""Clients that do their worst, each in a process of its own: `python -m tests.support.attackers KIND PORT`.

Each repeats its attack on several connections until it is killed, ten times a second on each, and prints a line once
every connection has had its first answer, or waits for one that the server holds back. What counts is what one request
does: against a flood of cheap ones a proxy has to limit the rate.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

CONNECTIONS = 4
# Seconds between two requests on a connection.
PAUSE = 0.1
# Seconds until a connection that has had no answer counts as held back.
PATIENCE = 5.0
LONG_LIST = ",".join(["1"] * 60_000)
NESTED = "((a%3F)%7B0,40%7D)%7B0,40%7D"
CONDITIONS = "&".join(f"name=match.(%3F%3D{NESTED}){number}" for number in range(200))


def _request(target: str, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


# Requests that a client sends one after the other, by kind of attack.
REQUESTS: dict[str, list[bytes]] = {
    "repeated columns": [_request(f"/export/megabytes.csv?limit=6&select={','.join(['t'] * 600)}")],
    "slow patterns": [
        _request(f"/relations/users?explain&name=match.{NESTED}"),
        _request(f"/relations/users/preview?name=match.{NESTED}"),
        _request(f"/export/users.csv?name=match.{NESTED}"),
    ],
    "many slow conditions": [_request(f"/export/users.csv?{CONDITIONS}&id=eq.one")],
    "a long list": [_request(f"/export/users.csv?id=in.({LONG_LIST})"), _request(f"/table/users?id=in.({LONG_LIST})")],
    "many conditions": [_request("/table/users?" + "&".join(f"id=gt.{number}" for number in range(12_000)))],
    "previews": [_request("/relations/slow/preview"), _request("/table/slow")],
    "saved exports": [
        _request(
            f"/export/users.csv?limit=0&id=in.({LONG_LIST[:20_000].rstrip(',')})", "POST", "Content-Length: 0\r\n"
        ),
        _request("/exports"),
    ],
    "a locked session": [_request("/export/locking.csv")],
    "malformed requests": [b"GET /export/users.csv HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \x01\r\n\r\n"],
    "other hosts": [_request("/export/users.csv").replace(b"localhost", b"attacker.example")],
}
# What a client sends of a request that it never ends, or does not read the answer of.
HELD: dict[str, tuple[int, bytes]] = {
    "idle connections": (200, b""),
    "dripping headers": (50, b"GET /export/users.csv HTTP/1.1\r\nHost: localhost\r\nX-Drip: "),
    "event streams": (50, _request("/exports/events")),
}
KINDS = [*REQUESTS, *HELD]


def _repeat(port: int, requests: Sequence[bytes], began: Callable[[], None]) -> None:
    """Send the requests in turn for ever, each on a connection of its own, and read the answers."""
    while True:
        for request in requests:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
                raw.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                while raw.recv(1 << 20):
                    pass
            time.sleep(PAUSE)
        began()


def _hold(port: int, beginning: bytes, began: Callable[[], None]) -> None:
    """Keep a connection open, and add a byte to the request now and then. Open another one if the server closes it."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
            raw.sendall(beginning)
            began()
            while beginning and not beginning.endswith(b"\r\n\r\n"):
                time.sleep(0.5)
                raw.sendall(b"x")
            while raw.recv(1 << 16):
                pass
        began()
        time.sleep(0.2)


def main(kind: str, port: int) -> None:
    """Attack the server until this process is killed."""
    count, beginning = HELD.get(kind, (CONNECTIONS, b""))
    barrier = threading.Semaphore(0)

    def run() -> None:
        if kind in REQUESTS:
            _repeat(port, REQUESTS[kind], barrier.release)
        else:
            _hold(port, beginning, barrier.release)

    for _ in range(count):
        threading.Thread(target=run, daemon=True).start()
    for _ in range(count):
        barrier.acquire(timeout=PATIENCE)
    print("attacking", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
