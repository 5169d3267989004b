"""The translation of PostgreSQL's errors: what each SQLSTATE becomes, and what of the server's text is kept."""

from __future__ import annotations

import logging

import pytest

from server import errors
from server.events import Event
from server.postgres.events import ServerErrorReported
from server.postgres.server_errors import LONGEST_MESSAGE, connect_error, error_for, error_in
from tests.support.fake_backend import error as error_response

HEADER = 5  # bytes of a message before its body


def body(**fields: str) -> bytes:
    """Return the body of an ErrorResponse with these fields."""
    return error_response(**fields)[HEADER:]


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events that the test emits."""
    seen: list[Event] = []
    monkeypatch.setattr("server.events._observers", [seen.append])
    return seen


@pytest.mark.parametrize(
    ("states", "kind", "status"),
    [
        # The session is over, and a new one may work.
        ("08000 08006 08P01 57P01 57P02 57P03 57P04 57P05 26000", errors.ConnectionLost, 503),
        ("57014", errors.QueryCancelled, 503),
        ("40001 40P01", errors.SnapshotConflict, 503),
        ("53000 53100 53200 53300 53400", errors.DatabaseUnavailable, 503),
        # The privilege, the relation or the column of the statement itself.
        ("42501", errors.Forbidden, 403),
        ("42P01 42703", errors.RelationGone, 404),
        # Nothing else is known to be the fault of the request.
        ("21000 22003 22012 22021 22P02 2201B 23514 25006 2F005 38001 39004", errors.QueryFailed, 500),
        ("42601 42704 42725 42804 42809 42883 42P17 42P22 54000 54001 54011", errors.QueryFailed, 500),
        ("0A000 55000 58030 58P01 F0000 HV000 HV00N P0001 P0002 XX000 XX001", errors.QueryFailed, 500),
    ],
)
def test_every_sqlstate_has_its_error(states: str, kind: type[errors.ExportError], status: int) -> None:
    for state in states.split():
        error = error_for(state, "the message")
        assert type(error) is kind, state
        assert (error.status, error.sqlstate, error.server_message) == (status, state, "the message")
        assert "the message" not in f"{error.detail} {error.hint}"


def test_an_error_without_a_sqlstate_is_a_lost_connection() -> None:
    assert type(error_for(None)) is errors.ConnectionLost


@pytest.mark.parametrize("state", ["42501", "42P01", "42703", "26000"])
def test_an_error_inside_a_function_is_not_about_the_statement(state: str) -> None:
    error = error_for(state, ends_session=False, in_function=True)
    assert type(error) is errors.QueryFailed
    assert not error.transient


@pytest.mark.parametrize("state", ["08001", "08003", "08006", "57P01", "57P03", "57P05"])
def test_an_error_after_which_the_session_goes_on_is_not_a_lost_connection(state: str) -> None:
    """Foreign data wrappers pass on what happens to their own connections."""
    assert type(error_for(state, ends_session=False)) is errors.QueryFailed


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"S": "ERROR", "V": "ERROR", "C": "42P01", "M": "no"}, errors.RelationGone),
        ({"S": "ERROR", "V": "ERROR", "C": "42P01", "M": "no", "P": "15"}, errors.RelationGone),
        ({"S": "ERROR", "V": "ERROR", "C": "42P01", "M": "no", "W": "PL/pgSQL function f()"}, errors.QueryFailed),
        ({"S": "ERROR", "V": "ERROR", "C": "42501", "M": "no", "W": "SQL function"}, errors.QueryFailed),
        ({"S": "FEHLER", "V": "ERROR", "C": "57P01", "M": "no"}, errors.QueryFailed),
        ({"S": "ВАЖНО", "V": "FATAL", "C": "57P01", "M": "no"}, errors.ConnectionLost),
        ({"S": "PANIK", "V": "PANIC", "C": "57P02", "M": "no"}, errors.ConnectionLost),
        # Poolers, and servers before PostgreSQL 9.6.
        ({"S": "FATAL", "C": "08P01", "M": "no"}, errors.ConnectionLost),
        ({"S": "ERROR", "C": "08006", "M": "no"}, errors.QueryFailed),
        ({"C": "57P01", "M": "no"}, errors.ConnectionLost),
        ({}, errors.ConnectionLost),
    ],
)
def test_the_severity_and_the_context_of_an_error_count(fields: dict[str, str], kind: type[errors.ExportError]) -> None:
    assert type(error_in(body(**fields))) is kind


def test_an_error_of_which_the_end_is_missing_may_come_from_a_function() -> None:
    whole = body(V="ERROR", C="42501", M="denied" * 100)
    assert type(error_in(whole)) is errors.Forbidden
    assert type(error_in(whole[:-20])) is errors.QueryFailed


def test_the_message_is_kept_in_part_and_logged_at_debug_only(emitted: list[Event]) -> None:
    error = error_in(
        body(V="ERROR", C="22P02", M="value " * 100, D="secret detail", H="secret hint", W="secret context")
    )
    assert error.server_message == ("value " * 100)[:LONGEST_MESSAGE]
    assert "value" not in f"{error} {error.detail} {error.hint}"
    (event,) = emitted
    assert isinstance(event, ServerErrorReported)
    assert event.severity == logging.DEBUG
    texts = {"detail": "secret detail", "hint": "secret hint", "where": "secret context"}
    assert event.fields() == {"sqlstate": "22P02", "message": error.server_message, **texts}


FAILED = 'connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "kind", "code", "state"),
    [
        ("FATAL:  53300: sorry, too many clients already", errors.TooManyConnections, "too_many_connections", "53300"),
        (
            'FATAL:  53300: too many connections for role "r"',
            errors.TooManyConnections,
            "too_many_connections",
            "53300",
        ),
        ("FATAL:  53300: zu viele Verbindungen", errors.TooManyConnections, "too_many_connections", "53300"),
        ("FATAL:  57P03: starting up", errors.DatabaseNotAccepting, "database_not_accepting", "57P03"),
        ("FATAL:  57P03: shutting down", errors.DatabaseNotAccepting, "database_not_accepting", "57P03"),
        (
            "FATAL:  28000: no\nfailed: FATAL:  57P03: no",
            errors.DatabaseNotAccepting,
            "database_not_accepting",
            "57P03",
        ),
        ("FATAL:  28P01: no", errors.DatabaseUnavailable, "database_unavailable", "28P01"),
        ("Connection refused", errors.DatabaseUnavailable, "database_unavailable", None),
        ("FATAL:  sorry, too many clients already", errors.DatabaseUnavailable, "database_unavailable", None),
        ("", errors.DatabaseUnavailable, "database_unavailable", None),
    ],
)
def test_a_refused_connection_is_told_by_its_sqlstate(
    text: str, kind: type[errors.DatabaseUnavailable], code: str, state: str | None
) -> None:
    location = "" if state is None else "\nLOCATION:  ProcessStartupPacket, postmaster.c:2200"
    error, reason = connect_error(f"{FAILED}{text}{location}\n")
    assert (type(error), error.code, error.sqlstate, error.status) == (kind, code, state, 503)
    assert error.retry_after
    assert "127.0.0.1" not in error.detail
    assert reason == f"{FAILED}{text}".strip()
