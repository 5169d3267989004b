"""Where a request comes from and where it was sent to, also behind proxies: client address, scheme and host.

A proxy tells in X-Forwarded-For, -Proto and -Host. They are read only if the peer of the connection is a proxy that
FORWARDED_ALLOW_IPS lists: any client can send them. `Forwarded` (RFC 7239) is never read: nginx, Traefik and Caddy do
not write it and pass on what a client has written.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDictProxy

from server.errors import InvalidRequest
from server.network_names import ANY, DEFAULT_PORTS, UNIX, origin, parse_address, parse_host

# Characters of a list of proxies that are read, from its end: more than 50 proxies.
_LONGEST_LIST = 2048


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a request came.

    client: the address of the client, "unix" for a Unix socket. scheme: None unless a trusted proxy tells. hosts: the
    hosts it names, None for a missing Host header. The last one is the host that the client has asked.
    """

    client: str
    scheme: str | None
    hosts: tuple[str | None, ...]

    @property
    def host(self) -> str | None:
        """The host that the client has asked for, as it wrote it."""
        return self.hosts[-1]


class TrustedProxies:
    """The proxies whose headers are believed: FORWARDED_ALLOW_IPS."""

    def __init__(self, listed: Iterable[str]) -> None:
        """listed: as `parse_proxies` returns it."""
        names = frozenset(listed)
        self._none = not names
        self._any = ANY in names
        self._unix = UNIX in names
        self._networks = [ipaddress.ip_network(name) for name in names - {ANY, UNIX}]
        self._trusts = functools.lru_cache(1024)(self._judge)

    def trusts(self, peer: str) -> bool:
        """Return whether the peer of a connection, or a hop behind it, is a trusted proxy. peer: as `peer_address`."""
        return not self._none and self._trusts(peer)

    def _judge(self, peer: str) -> bool:
        if self._any:
            return True
        if peer == UNIX:
            return self._unix
        address = parse_address(peer)
        return address is not None and any(address in network for network in self._networks)

    def arrival(self, request: web.Request) -> Arrival:
        """Return how this request came."""
        peer = peer_address(request)
        hosts: tuple[str | None, ...] = (request.headers.get("Host"),)
        if not request.raw_path.startswith(("/", "*")):  # an absolute target takes the place of Host (RFC 9112, 3.2.2)
            hosts += (request.url.raw_authority,)
        if not self.trusts(peer):
            return Arrival(peer, None, hosts)
        client, proxies = self._client(peer, request.headers)
        scheme = _written_by(proxies, _items(request.headers, "X-Forwarded-Proto")).lower()
        host = _written_by(proxies, _items(request.headers, "X-Forwarded-Host"))
        if parse_host(host) is not None:
            hosts += (host,)
        return Arrival(client, scheme if scheme in DEFAULT_PORTS else None, hosts)

    def _client(self, peer: str, headers: CIMultiDictProxy[str]) -> tuple[str, int]:
        """Return the nearest address that is no trusted proxy, and the number of trusted proxies before it.

        An item that is not an address ends the search: the proxy that wrote it does not know its client.
        """
        client, proxies = peer, 0
        for item in reversed(_items(headers, "X-Forwarded-For")):
            if not self.trusts(client):
                break
            proxies += 1
            address = parse_address(item)
            if address is None:
                break
            client = str(address)
        return client, max(proxies, 1)


def _items(headers: CIMultiDictProxy[str], name: str) -> list[str]:
    """Return the items of a list that each proxy adds one to, the last one written by the peer."""
    text = ",".join(headers.getall(name, ()))[-_LONGEST_LIST:]
    return [item.strip() for item in text.split(",")] if text else []


def _written_by(proxies: int, items: list[str]) -> str:
    """Return the item that the outermost trusted proxy has written, or "". proxies: how many are trusted."""
    return items[-min(proxies, len(items))] if items else ""


PROXIES = web.AppKey("proxies", TrustedProxies)
_ARRIVAL = web.RequestKey("arrival", Arrival)


def peer_address(request: web.BaseRequest) -> str:
    """Return the address of the peer of the connection, which may be a proxy; "unix" for a Unix socket."""
    remote = request.remote
    return remote.removeprefix("::ffff:") if remote else UNIX


def arrival(request: web.Request) -> Arrival:
    """Return how this request came. Found once for each request."""
    known = request.get(_ARRIVAL)
    if known is None:
        known = request[_ARRIVAL] = request.app[PROXIES].arrival(request)
    return known


def client_address(request: web.Request) -> str:
    """Return the IP address of the client, behind trusted proxies too; "unix" for a peer on a Unix socket."""
    return arrival(request).client


def own_origin(request: web.Request) -> str:
    """Return scheme, host and port as the client wrote them. Raise InvalidRequest if the request names no host."""
    sent = arrival(request)
    host = parse_host(sent.host or "")
    if host is None:
        raise InvalidRequest("The request does not name a host.", hint="Send one Host header.")
    return origin(sent.scheme or request.scheme, host)
