"""Content negotiation: what a client accepts (RFC 9110, 12). Pure."""

from __future__ import annotations

import re

from multidict import MultiMapping

# RFC 9110, 12.4.2: 0 to 1 with at most three digits after the point.
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")

# Characters of a list. A request may have a hundred lines of 8 kB, which would take the event loop half a second.
LONGEST_LIST = 8192


def weights(headers: MultiMapping[str], name: str) -> dict[str, float]:
    """Return the items of a weighted list (RFC 9110, 12.4.2), in lower case, with their weights from 0 to 1.

    An item without a weight has 1; a weight that is not valid is 0; of an item that is repeated the lowest counts.
    Parameters other than q are ignored. name: of the header, whose lines are joined (RFC 9110, 5.3). Of a long list
    the first LONGEST_LIST characters count.
    """
    found: dict[str, float] = {}
    text = ",".join(headers.getall(name, []))
    if len(text) > LONGEST_LIST:
        text = text[:LONGEST_LIST].rpartition(",")[0]
    for entry in text.lower().split(","):
        item, *parameters = (part.strip() for part in entry.split(";"))
        found[item] = min(_weight(parameters), found.get(item, 1.0))
    found.pop("", None)  # RFC 9110, 5.6.1.2: empty elements are ignored
    return found


def accepts_gzip(headers: MultiMapping[str]) -> bool:
    """Return whether gzip may be used and is preferred at least as much as no compression (RFC 9110, 12.5.3).

    Without an Accept-Encoding it is not used: such clients often cannot decode it.
    """
    codings = weights(headers, "Accept-Encoding")
    others = codings.get("*", 0.0)
    gzip = codings.get("gzip", codings.get("x-gzip", others))
    return gzip > 0 and gzip >= codings.get("identity", others)


def accepts_html(headers: MultiMapping[str]) -> bool:
    """Return whether the client names text/html (RFC 9110, 12.5.1), as browsers do when they open an address.

    A range such as */* is not enough: scripts and curl send it, and are given JSON.
    """
    return weights(headers, "Accept").get("text/html", 0.0) > 0


def _weight(parameters: list[str]) -> float:
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            value = value.strip()
            weight = float(value) if _WEIGHT.fullmatch(value) else 0.0
    return weight
