"""What each Range header selects of a file of 1000 bytes, by RFC 9110, 14.1.2 and 14.2."""

from __future__ import annotations

from server.http.byte_ranges import Selection

SIZE = 1000
WHOLE = Selection(200, 0, SIZE)
REFUSED = Selection(416)

# Range headers with their selections. The examples in RFC 9110 are for 10000 bytes.
RANGES = [
    ("bytes=0-0", Selection(206, 0, 1)),
    ("bytes=0-499", Selection(206, 0, 500)),
    ("bytes=500-999", Selection(206, 500, 500)),
    ("bytes=999-", Selection(206, 999, 1)),
    ("bytes=0-", Selection(206, 0, 1000)),
    ("bytes=990-5000", Selection(206, 990, 10)),
    ("bytes=0-" + "9" * 4500, Selection(206, 0, 1000)),
    ("bytes=-1", Selection(206, 999, 1)),
    ("bytes=-500", Selection(206, 500, 500)),
    ("bytes=-1000", Selection(206, 0, 1000)),
    ("bytes=-5000", Selection(206, 0, 1000)),
    ("bytes=007-008", Selection(206, 7, 2)),
    ("BYTES=0-1", Selection(206, 0, 2)),
    (" bytes=0-1 ", Selection(206, 0, 2)),
    ("bytes=,0-1,", Selection(206, 0, 2)),
    # Past the end.
    ("bytes=1000-", REFUSED),
    ("bytes=1000-2000", REFUSED),
    ("bytes=" + "9" * 4500 + "-", REFUSED),
    ("bytes=-0", REFUSED),
    # Several ranges: the whole file, as RFC 9110, 14.2 allows.
    ("bytes=0-0,-1", WHOLE),
    ("bytes=0-0, 2000-", WHOLE),
    ("bytes=500-600,601-999", WHOLE),
    # Not valid, or another unit: ignored (RFC 9110, 14.2).
    ("bytes=5-4", WHOLE),
    ("bytes=-", WHOLE),
    ("bytes=", WHOLE),
    ("bytes", WHOLE),
    ("bytes=a-b", WHOLE),
    ("bytes=0-1x", WHOLE),
    ("bytes=+0-1", WHOLE),
    ("bytes=0x0-1", WHOLE),
    ("bytes=0--1", WHOLE),
    ("bytes=1.0-2", WHOLE),
    ("bytes=٠-١", WHOLE),
    ("rows=0-1", WHOLE),
    ("0-1", WHOLE),
    ("", WHOLE),
]
