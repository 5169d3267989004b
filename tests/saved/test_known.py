"""What is known of the exports, compared with a list that is sorted and summed anew each time."""

from __future__ import annotations

import datetime
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from server.saved.known import Known, Record
from server.saved.manifest import FINISHED, STATUSES, Manifest
from server.saved.status import Entry, Progress

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
BASE = Manifest(
    id="", target="users.csv", query="", relation="users", format="csv", status="pending", created_at=NOW, bytes=None
)


def moment(number: int) -> datetime.datetime:
    return NOW + datetime.timedelta(microseconds=number)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A record of one of a few exports, at one of a few moments, so that they meet."""
    status = draw(st.sampled_from(STATUSES))
    manifest = replace(
        BASE,
        id=draw(st.sampled_from("abcdef")),
        status=status,
        created_at=moment(draw(st.integers(0, 3))),
        completed_at=moment(draw(st.integers(0, 3))) if status in FINISHED or draw(st.booleans()) else None,
        bytes=draw(st.none() | st.integers(0, 9)),
    )
    return Record(Entry(manifest, Progress()), draw(st.integers(1, 5)))


@given(st.lists(records() | st.sampled_from("abcdef"), max_size=30), st.sampled_from("abcdef"), st.integers(0, 4))
def test_orders_and_sums_are_right_after_any_changes(steps: list[Record | str], id: str, number: int) -> None:
    known, expected = Known(), dict[str, Record]()
    for step in steps:
        if isinstance(step, str):
            known.drop(step)
            expected.pop(step, None)
        else:
            known.put(step)
            expected[step.entry.manifest.id] = step
    everything = list(expected.values())
    ended = [each for each in everything if each.entry.manifest.finished]
    unfinished = [each for each in everything if not each.entry.manifest.finished]

    def created(record: Record) -> tuple[datetime.datetime, str]:
        return record.entry.manifest.created_at, record.entry.manifest.id

    assert (len(known), set(known.ids())) == (len(expected), set(expected))
    assert all(known.get(each) == expected.get(each) for each in "abcdef")
    assert list(known.newest_first()) == sorted(everything, key=created, reverse=True)
    after = (moment(number), id)
    older = [each for each in everything if created(each) < after]
    assert list(known.newest_first(after)) == sorted(older, key=created, reverse=True)
    pending = [each for each in everything if each.entry.manifest.status == "pending"]
    assert known.pending() == sorted(pending, key=created)
    assert known.any_pending is bool(pending)
    by_end = sorted(ended, key=lambda each: (each.entry.manifest.completed_at or NOW, each.entry.manifest.id))
    assert list(known.ended()) == by_end
    assert list(known.without_file()) == [each for each in by_end if each.entry.manifest.status != "completed"]
    assert known.unfinished == {each.entry.manifest.id for each in unfinished}
    assert known.manifest_bytes == sum(each.manifest_bytes for each in everything)
    assert known.unfinished_bytes == sum(each.manifest_bytes for each in unfinished)
    assert known.ended_bytes == sum(each.bytes for each in ended)
