"""The addresses of exports: how they begin, and how a route reads the rest of one."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from server.errors import InvalidRequest
from server.query.catalogue import Relation
from server.query.request import relation_path

# Before the relation of an export.
EXPORT_PREFIX = "/export/"
# The list of saved exports. The address of one begins with it too.
SAVED_PREFIX = "/exports"
# Before the name of a probe.
HEALTH_PREFIX = "/health/"


def raw_target(request: web.Request) -> str:
    """Return the path after its first segment, still percent-encoded: a name may hold an encoded slash.

    aiohttp's match_info is decoded already.
    """
    return request.rel_url.raw_path.split("/", 2)[2]


def relation_headers(relation: Relation) -> dict[str, str]:
    """Return the headers that say which relation was found, and which other schemas have one of its name.

    Both are percent-encoded, as in an address.
    """
    headers = {"X-Sluice-Relation": relation_path(relation.schema, relation.name)}
    if relation.also_in:
        headers["X-Sluice-Also-In"] = ", ".join(quote(schema, safe="") for schema in relation.also_in)
    return headers


def refuse_parameters(request: web.Request, detail: str, *, hint: str | None = None) -> None:
    """Raise InvalidRequest if the address has a query string. detail: says what takes no parameters."""
    if request.rel_url.raw_query_string:
        raise InvalidRequest(detail, code="unknown_parameter", hint=hint)


def refuse_parameters_of_saved_exports(request: web.Request) -> None:
    """Raise InvalidRequest if the address of saved exports has a query string."""
    refuse_parameters(request, "Saved exports take no parameters.")
