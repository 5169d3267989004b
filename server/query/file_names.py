"""The name under which a file is saved: what the user or the relation is called, in a form that every system takes."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote_plus

from server.query.plan import file_stem
from server.query.request import parse_export_request
from server.visible import is_visible

# Bytes of a file name without its suffix. File systems take 255, and a browser may add a number to the name.
_MOST_BYTES = 200

# Characters that some file system or shell does not accept in a file name. Invisible characters are replaced too: one
# that reverses the text after it would show another suffix.
_UNSAFE = set('<>:"/\\|?*')
# Devices of Windows, which opens the device if a file has its name, in any case and with any suffix (Microsoft, "Naming
# Files, Paths, and Namespaces").
_PORTS = (port + number for port in ("COM", "LPT") for number in "0123456789¹²³")
_DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$", *_PORTS))


def safe_filename(name: str) -> str:
    """Return a name that every common file system takes: no separators, invisible or reserved characters, 200 bytes.

    The name of a device of Windows gets an underscore before it.
    """
    kept = "".join(character if _is_safe(character) else "_" for character in name).strip(" .")
    if kept.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        kept = f"_{kept}"
    kept = kept.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip(" .")
    return kept or "export"


def _is_safe(character: str) -> bool:
    """Return whether a name may hold it: neither reserved nor invisible. A wide or narrow space is seen as a space."""
    return character not in _UNSAFE and (is_visible(character) or unicodedata.category(character) == "Zs")


def file_name(stem: str, full_format: str) -> str:
    """Return the name under which the file is saved. stem: its safe name is used. full_format: csv, csv.gz, …"""
    return f"{safe_filename(stem)}.{full_format}"


def file_name_of(target: str, query: str) -> str:
    """Return the name of the file of `/export/{target}?{query}`, both percent-encoded. Raise InvalidRequest.

    Reads no more of the query string than its `filename`, since a list of saved exports may hold megabytes of them.
    """
    named = [pair for pair in query.split("&") if unquote_plus(pair.partition("=")[0]) == "filename"]
    wanted = parse_export_request(target, "&".join(named))
    return file_name(file_stem(wanted), wanted.full_format)
