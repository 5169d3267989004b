"""The faults of a relation in words: which SQLSTATEs are its own, and that no text of the server is repeated."""

from __future__ import annotations

import pytest

from server.errors import ExportError, ForeignServerAway, QueryFailed, RelationFailed
from server.export.relation_faults import not_populated, relation_fault
from server.postgres.server_errors import error_for


def failed(state: str, message: str = "the message") -> QueryFailed:
    error = error_for(state, message, ends_session=False, in_function=True)
    assert isinstance(error, QueryFailed)
    return error


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("0A000", "does not support"),
        ("21000", "a subquery in it returns more than one row"),
        ("22003", "out of range"),
        ("22007", "does not fit the type"),
        ("22008", "a date or time in it is out of range"),
        ("22012", "divides by zero"),
        ("22021", "bytes that are not valid"),
        ("22023", "an expression in it does not accept a value"),
        ("2201B", "an expression in it does not accept a value"),
        ("22P02", "does not fit the type"),
        ("23514", "violates a constraint"),
        ("25006", "writes to the database"),
        ("20000", "a function in it raises an error"),  # CASE without a branch in PL/pgSQL
        ("26000", "a function in it raises an error"),
        ("28000", "a function in it raises an error"),
        ("2D000", "a function in it raises an error"),  # COMMIT in a function
        ("2F005", "a function in it raises an error"),
        ("38001", "a function in it raises an error"),
        ("42501", "lacks a privilege"),
        ("42601", "is not valid"),
        ("42703", "a column that does not exist"),
        ("42883", "a function or an operator that does not exist"),
        ("42P01", "a relation that does not exist"),
        ("42P07", "its definition does not work"),
        ("42P17", "refers to itself without end"),
        ("54000", "exceeds a limit of PostgreSQL"),
        ("54001", "calls itself without end"),
        ("55000", "not in the state"),
        ("HV00N", "the foreign server"),
        ("58P01", "it reads a file that does not exist"),
        ("99999", "a function in it raises an error"),
        ("P0001", "a function in it raises an error"),
        ("PT404", "a function in it raises an error"),
        ("XX001", "damaged data"),
    ],
)
def test_a_fault_of_the_relation_says_what_is_wrong(state: str, words: str) -> None:
    fault = relation_fault(failed(state))
    assert type(fault) is RelationFailed
    assert (fault.status, fault.code, fault.sqlstate) == (500, "relation_failed", state)
    assert fault.detail.startswith("The relation itself fails: ")
    assert words in fault.detail
    # A function may choose any five characters, perhaps those of a value.
    known = state[:2] not in ("99", "PT")
    assert fault.detail.endswith(f" (SQLSTATE class {state[:2]})." if known else "raises an error.")
    assert state not in fault.detail
    assert fault.hint is not None
    assert fault.of_query
    assert not fault.transient
    assert "the message" not in f"{fault.detail} {fault.hint}"
    assert fault.server_message == "the message"


@pytest.mark.parametrize("state", ["08001", "08006", "57P01", "57P03"])
def test_a_foreign_server_that_is_away_is_not_our_database(state: str) -> None:
    fault = relation_fault(failed(state))
    assert type(fault) is ForeignServerAway
    assert (fault.status, fault.code, fault.sqlstate) == (503, "foreign_server_unavailable", state)
    assert fault.retry_after


@pytest.mark.parametrize("state", ["58030", "F0000", "XX000", "57000", "25P02", "72000"])
def test_other_errors_do_not_blame_the_relation(state: str) -> None:
    error = failed(state)
    assert relation_fault(error) is error
    assert "relation" not in error.detail


@pytest.mark.parametrize("message", ["cache lookup failed for function 16401", "could not open relation with OID 7"])
def test_an_object_that_was_removed_without_the_relation_is_named(message: str) -> None:
    fault = relation_fault(failed("XX000", message))
    assert type(fault) is RelationFailed
    assert "something that was removed" in fault.detail
    assert message not in fault.detail


@pytest.mark.parametrize(
    ("itself", "subject"), [(True, "The materialized view is"), (False, "A materialized view that the relation reads")]
)
def test_a_materialized_view_without_data_is_named(itself: bool, subject: str) -> None:
    fault: ExportError = not_populated(failed("55000"), itself=itself)
    assert (fault.code, fault.sqlstate) == ("relation_not_populated", "55000")
    assert fault.detail.startswith(subject)
    assert "not populated" in fault.detail
    assert "REFRESH" in str(fault.hint)
