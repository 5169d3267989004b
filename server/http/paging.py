"""The pages of a list of saved exports: how many are on one, and where the next one begins. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.saved.known import Place

# Exports on a page, and how many a client may ask for.
DEFAULT_LIMIT, MOST_LIMIT = 100, 1000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
# Seventeen digits are the year 5138.
_PLACE = re.compile(r"([0-9]{1,17})-([A-Za-z0-9_-]{22})", re.ASCII)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The page that a client asks for. after: it begins with the export that was created before this one."""

    limit: int = DEFAULT_LIMIT
    after: Place | None = None


def parse_page(parameters: Mapping[str, str]) -> PageRequest:
    """Return the page of the parameters `limit` and `after`. Raise InvalidRequest, also for any other one."""
    for name in parameters:
        if name not in ("limit", "after"):
            raise InvalidRequest(
                f'The list of saved exports has no parameter "{name[:50]}".',
                code="unknown_parameter",
                hint="Use limit and after.",
            )
    limit = parameters.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch("[0-9]{1,4}", limit, re.ASCII) or not 1 <= int(limit) <= MOST_LIMIT:
        raise InvalidRequest(f"limit must be a number from 1 to {MOST_LIMIT}.", code="invalid_limit")
    return PageRequest(int(limit), parse_place(parameters.get("after", "")))


def parse_place(text: str) -> Place | None:
    """Return the place that `write_place` wrote, None for an empty text. Raise InvalidRequest."""
    if not text:
        return None
    found = _PLACE.fullmatch(text)
    if found is not None:
        return _EPOCH + int(found[1]) * _MICROSECOND, found[2]
    raise InvalidRequest(
        "The value of after is not one of this server.",
        code="invalid_after",
        hint="Follow the link to the next page as it is given.",
    )


def write_place(place: Place | None) -> str:
    """Return the text of a place, "" for None: the time of creation in microseconds and the id."""
    return "" if place is None else f"{max((place[0] - _EPOCH) // _MICROSECOND, 0)}-{place[1]}"
