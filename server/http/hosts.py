"""The names to which this server answers: protection against DNS rebinding.

A page of `attacker.example` whose name is made to point here is, for its browser, a page of the same site: only the
Host header shows the difference. No name server can do that to an address, so a request that names the address at which
it has arrived is answered too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from server.errors import MisdirectedRequest
from server.http.addresses import HEALTH_PREFIX
from server.http.forwarded import arrival
from server.network_names import ANY, parse_address, parse_host

# The names of this machine. Browsers resolve all names below localhost to it as well (RFC 6761, 6.3).
_LOOPBACK = ("localhost", ".localhost", "127.0.0.1", "::1")


class AllowedHosts:
    """The hosts that a request may name, with any port: this machine and those of ALLOWED_HOSTS."""

    def __init__(self, listed: Iterable[str]) -> None:
        """listed: as `parse_allowed_hosts` returns it."""
        names = {*_LOOPBACK, *listed}
        self._any = ANY in names
        self._networks = [ipaddress.ip_network(name) for name in names if "/" in name]
        self._names = {name.removeprefix(".") for name in names}
        self._suffixes = tuple(name.removeprefix("*") for name in names if name.startswith((".", "*.")))

    def allow(self, text: str | None) -> bool:
        """Return whether a request may name this host. text: of a Host header, None without one."""
        host = parse_host(text or "")
        if host is None:  # not valid; HTTP/1.0 and clients without a name to ask for may leave it out
            return self._any and not text
        if self._any or host.name in self._names:
            return True
        if host.address is None:
            return host.name.endswith(self._suffixes)
        return host.address.is_loopback or any(host.address in network for network in self._networks)


def host_middleware(hosts: AllowedHosts) -> Middleware:
    """Return a middleware that answers 421 to a request for another host, whatever its path and method.

    `/health/…` is left out: a probe names any address, and the answer tells nothing.
    """

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        for host in arrival(request).hosts:
            if not (hosts.allow(host) or _is_own_address(request, host) or _is_probe(request)):
                raise _misdirected(host)
        return await handler(request)

    return check_host


def _is_own_address(request: web.Request, text: str | None) -> bool:
    """Return whether this is the address of this machine at which the request has arrived."""
    host = parse_host(text or "")
    arrived_at = None if request.transport is None else request.transport.get_extra_info("sockname")
    return (
        host is not None
        and host.address is not None
        and isinstance(arrived_at, tuple)
        and host.address == parse_address(arrived_at[0])
    )


def _is_probe(request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical.startswith(HEALTH_PREFIX)


def _misdirected(text: str | None) -> MisdirectedRequest:
    host = parse_host(text or "")
    if host is None:
        return MisdirectedRequest(
            "The host of the request is not valid." if text else "The request does not name a host.",
            hint="Send one Host header with a name or an address, such as localhost:8080 or sluice.example.org.",
        )
    return MisdirectedRequest(
        f"This server does not answer to the host {host.name}.",
        hint=f"If it should, start it with ALLOWED_HOSTS={host.name} (commas between several hosts). On its own "
        "machine it always answers to localhost.",
    )
