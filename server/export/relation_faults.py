"""The faults of a relation itself: PostgreSQL's errors while it plans or reads a relation, in words for a user. Pure.

None of these errors is caused by the request: `diagnose.py` finds those that are. PostgreSQL's own message is not
repeated, since it may hold values of rows.
"""

from __future__ import annotations

from server.errors import ExportError, ForeignServerAway, QueryFailed, RelationFailed
from server.postgres.server_errors import in_brackets

# What is wrong, by the SQLSTATE or by its class, which is its first two characters (PostgreSQL manual, appendix
# "PostgreSQL Error Codes").
_FAULTS = {
    "0A": "it uses something that PostgreSQL does not support",
    "21": "a subquery in it returns more than one row",
    "22": "an expression in it does not accept a value",
    "22003": "a number in it is out of range",
    "22007": "a value in it does not fit the type that it is converted to",
    "22008": "a date or time in it is out of range",
    "22012": "an expression in it divides by zero",
    "22018": "a value in it does not fit the type that it is converted to",
    "22021": "a text in it holds bytes that are not valid in the encoding of the database or in UTF-8",
    "22P02": "a value in it does not fit the type that it is converted to",
    "22P05": "a text in it holds a character that UTF-8 does not have",
    "23": "a value in it violates a constraint",
    "25006": "a function in it writes to the database, and an export may only read",
    "3D": "it uses a database that does not exist",
    "3F": "it uses a schema that does not exist",
    "42": "its definition does not work",
    "42501": "a function or a foreign table that it uses lacks a privilege",
    "42601": "a statement in one of its functions is not valid",
    "42703": "it uses a column that does not exist",
    "42704": "it uses something that does not exist",
    "42883": "it uses a function or an operator that does not exist",
    "42P01": "it uses a relation that does not exist",
    "42P17": "one of its policies or rules refers to itself without end",
    "42P19": "a recursive query in it is not valid",
    "54": "it exceeds a limit of PostgreSQL",
    "54001": "its expressions are nested too deep, or a function in it calls itself without end",
    "55000": "something that it uses is not in the state that this requires",
    "HV": "the foreign server that it reads from gives an error",
    "58P01": "it reads a file that does not exist",
    "XX001": "PostgreSQL finds damaged data in it",
    "XX002": "PostgreSQL finds a damaged index of it",
}
# Errors of the transaction, the resources, the operators, the system and the configuration of the server, and internal
# ones: they say nothing about a relation.
_OF_THE_SERVER = ("25", "40", "53", "57", "58", "72", "F0", "XX")
# All other classes, also those that PostgreSQL does not have: RAISE takes any SQLSTATE.
_RAISED = "a function in it raises an error"
# The classes of a connection to a foreign server that fails: `server_errors.error_for` has sorted out those of our own.
_FOREIGN = ("08", "57P")
# How PostgreSQL's internal messages, which are never translated, name something that was removed without the relation.
_REMOVED = ("cache lookup failed for", "could not open relation with OID", "could not find")


def relation_fault(error: QueryFailed) -> ExportError:
    """Return the error that says what is wrong with the relation, or this one if the relation is not to blame.

    error: raised while PostgreSQL planned or read the relation.
    """
    state = error.sqlstate or ""
    what = _FAULTS.get(state, _FAULTS.get(state[:2]))
    if what is None and not state.startswith(_OF_THE_SERVER):
        what = _RAISED
    if state == "XX000" and error.server_message.startswith(_REMOVED):
        what = "it uses something that was removed"
    fault: ExportError
    if state.startswith(_FOREIGN):
        fault = ForeignServerAway(
            f"The relation reads from a foreign server that cannot be reached{in_brackets(state)}."
        )
    elif what is None:
        return error
    else:
        fault = RelationFailed(
            f"The relation itself fails: {what}{in_brackets(state)}.",
            hint="The request is not the cause. Ask the owner of the relation to correct it.",
        )
    fault.sqlstate, fault.server_message = state, error.server_message
    return fault


def not_populated(error: ExportError, *, itself: bool) -> RelationFailed:
    """Return the error for a materialized view without data: the relation itself, or one that it reads.

    error: PostgreSQL's (55000).
    """
    subject = "The materialized view" if itself else "A materialized view that the relation reads"
    fault = RelationFailed(
        f"{subject} is not populated: it holds no data until it is refreshed{in_brackets(error.sqlstate)}.",
        hint="Ask its owner to run REFRESH MATERIALIZED VIEW.",
        code="relation_not_populated",
    )
    fault.sqlstate, fault.server_message = error.sqlstate, error.server_message
    return fault
