"""Hosts, addresses and origins, as headers and settings write them. Pure: nothing is looked up."""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass

import idna

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The ports that an origin leaves out (WHATWG URL, "special scheme").
DEFAULT_PORTS = {"http": 80, "https": 443}
# In a list: anything, and the peers of a Unix socket.
ANY, UNIX = "*", "unix"

# Characters of a name in DNS with a dot at its end (RFC 1035, 2.3.4), and of a colon with a port.
_LONGEST_NAME, _LONGEST_PORT = 254, 6
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?)(?::([0-9]{1,5}))?")
# The last label of what a browser takes for an IPv4 address (WHATWG URL, "ends in a number checker").
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


@dataclass(frozen=True, slots=True)
class Host:
    """A host. name: in lower case, without brackets and without a dot at its end. port: None if none is given.

    address: None if the host is a name.
    """

    name: str
    port: int | None = None
    address: Address | None = None

    def authority(self, scheme: str) -> str:
        """Return the host as a URL of this scheme writes it, without the default port."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port in (None, DEFAULT_PORTS[scheme]) else f"{name}:{self.port}"


def parse_host(text: str) -> Host | None:
    """Return the host of a Host header (RFC 9110, 7.2), or None if it is not valid.

    Not valid are user information, the zone of an IPv6 address, characters beyond ASCII, and an IPv4 address that is
    not written as four decimal numbers.
    """
    return _parse_host(text) if len(text) <= _LONGEST_NAME + _LONGEST_PORT else None


@functools.lru_cache(256)
def _parse_host(text: str) -> Host | None:
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    port = None if found[3] is None else int(found[3])
    if port is not None and port > 65535:
        return None
    name = found[2]
    if name is not None and not _NUMBER.fullmatch(name.rpartition(".")[2]):
        return Host(name.lower(), port) if len(name) < _LONGEST_NAME else None
    try:
        address = plain_address(ipaddress.IPv6Address(found[1]) if name is None else ipaddress.IPv4Address(name))
    except ValueError:
        return None
    return Host(str(address), port, address)


def parse_address(text: str) -> Address | None:
    """Return the address in an item of X-Forwarded-For or of a socket, or None. A port and a zone are left out."""
    text = text.strip(' \t"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return plain_address(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def plain_address(address: Address) -> Address:
    """Return an IPv4 address that is written as one of IPv6 (::ffff:192.0.2.1) as what it is."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def origin(scheme: str, host: Host) -> str:
    """Return the origin as a browser writes it (RFC 6454, 6.2)."""
    return f"{scheme}://{host.authority(scheme)}"


def parse_origin(text: str) -> tuple[str, Host] | None:
    """Return scheme and host of an Origin header, or None if it is not one of http or https."""
    scheme, separator, rest = text.partition("://")
    host = parse_host(rest) if separator and scheme.lower() in DEFAULT_PORTS else None
    return None if host is None else (scheme.lower(), host)


# --- the values of settings ---


def parse_allowed_hosts(text: str) -> tuple[str, ...]:
    """Return names, wildcards (`.example.org`, `*.example.org`), addresses and networks as `AllowedHosts` reads them.

    Raise ValueError for anything else.
    """
    return tuple(dict.fromkeys(_allowed_host(item) for item in _items(text)))


def _allowed_host(item: str) -> str:
    if item == ANY:
        return item
    if "/" in item and "://" not in item:
        return str(ipaddress.ip_network(item))
    address = parse_address(item) if ":" in item else None
    if address is not None and item.count(":") != 1 and not item.partition("]")[2]:
        return str(address)
    prefix = next((each for each in ("*.", ".") if item.startswith(each)), "")
    host = parse_host(_ascii(item.removeprefix(prefix)))
    if host is None or host.port is not None or (prefix and host.address is not None):
        raise ValueError(
            f"{item!r} is neither a host name nor an address; names have no scheme and no port, such as "
            "sluice.example.org, or .example.org with all names below it"
        )
    return prefix + host.name


def parse_origins(text: str) -> tuple[str, ...]:
    """Return origins as a browser writes them. Raise ValueError for anything else: there is no wildcard."""
    return tuple(dict.fromkeys(_origin(item) for item in _items(text)))


def _origin(item: str) -> str:
    scheme, separator, rest = item.removesuffix("/").partition("://")
    parsed = parse_origin(scheme + separator + _ascii(rest))
    if parsed is None:
        raise ValueError(f"{item!r} is not an origin; one is written like https://app.example.org")
    return origin(*parsed)


def parse_proxies(text: str) -> tuple[str, ...]:
    """Return addresses and networks, `*` and `unix`. Raise ValueError for anything else."""
    return tuple(
        dict.fromkeys(item if item in (ANY, UNIX) else str(ipaddress.ip_network(item)) for item in _items(text))
    )


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _ascii(text: str) -> str:
    """Return a name as DNS has it: a browser sends münchen.example as xn--mnchen-3ya.example (UTS 46)."""
    if text.isascii():
        return text
    name, colon, port = text.partition(":")
    try:
        return idna.encode(name, uts46=True).decode() + colon + port
    except idna.IDNAError:
        raise ValueError(f"{text!r} is not a host name") from None
