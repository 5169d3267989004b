"""What becomes of a saved export after each kind of error: tried again, forgiven, or failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import errors
from server.database import Database
from server.exports import MOST_SETBACKS, Exports
from server.settings import Settings
from tests.test_spool import claimed, created, make_spool

AGAIN, FORGIVEN, FAILED, UNTOUCHED = "again", "forgiven", "failed", "untouched"


@pytest.fixture
async def exports(tmp_path: Path) -> Exports:
    """One that runs nothing by itself."""
    spool = make_spool(tmp_path, export_max_attempts=3)
    return Exports(spool, Database(Settings(database_url="postgresql://nowhere.invalid/")), native_encoder=False)


CASES = [
    (errors.ServerBusy("x"), UNTOUCHED, UNTOUCHED),
    (errors.DatabaseUnavailable("x"), UNTOUCHED, FORGIVEN),
    (errors.ConnectionLost("x"), UNTOUCHED, FORGIVEN),
    (errors.SnapshotConflict("x"), FORGIVEN, FORGIVEN),
    (errors.QueryCancelled("x"), AGAIN, AGAIN),
    (errors.RelationChanged("x"), AGAIN, AGAIN),
    (errors.RelationGone("x"), AGAIN, AGAIN),
    (ValueError("x"), AGAIN, AGAIN),
    (OSError("x"), AGAIN, AGAIN),
    (errors.RelationNotFound("x"), FAILED, FAILED),
    (errors.InvalidRequest("x"), FAILED, FAILED),
    (errors.Forbidden("x"), FAILED, FAILED),
    (errors.QueryFailed("x"), FAILED, FAILED),
    (errors.QueryTimeout("x"), FAILED, FAILED),
    (errors.NoSpaceLeft("x"), FAILED, FAILED),
]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("error", "before", "after"), CASES, ids=lambda value: type(value).__name__)
async def test_what_each_error_leads_to(
    exports: Exports, tmp_path: Path, error: Exception, before: str, after: str, begun: bool
) -> None:
    id = created(exports.spool)
    expected = after if begun else before
    for number in range(1, MOST_SETBACKS + 2):
        with exports.spool.shelf.root() as root:
            claim = exports.spool._take(root, id)
        assert claim is not None
        if begun and expected != UNTOUCHED:
            claim.begin(None)
        await exports._end_after(claim, error)
        claim.close()
        manifest = exports.spool.shelf.get(id).manifest
        assert not list((tmp_path / id).glob("data*"))
        if expected == UNTOUCHED:
            assert (manifest.status, manifest.attempts, manifest.setbacks) == ("pending", 0, 0)
            assert exports._resume_at > 0
        elif expected == FAILED or (expected == AGAIN and number == 3) or number > MOST_SETBACKS:
            assert manifest.status == "failed"
            assert manifest.error_code == getattr(error, "code", "internal")
            break
        else:
            assert manifest.status == "pending"
            assert manifest.not_before is not None
            assert (manifest.attempts, manifest.setbacks) == ((number, 0) if expected == AGAIN else (0, number))
    else:
        assert expected == UNTOUCHED


async def test_an_export_is_not_given_to_itself_again(exports: Exports) -> None:
    id = created(exports.spool)
    claim = claimed(exports.spool)
    await exports._end_after(claim, errors.QueryCancelled("x"))
    claim.close()
    assert exports.spool.claim() is None  # it waits for its time
    assert exports.spool.shelf.get(id).manifest.status == "pending"
