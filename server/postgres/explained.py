"""The plan that EXPLAIN returns for a query, as a value. Runs no statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What is read of a plan. The rest, with the filters of each partition, would take megabytes as long as an export lasts.
_KEYS = ("Plan", "Plans", "Node Type", "Plan Rows", "Schema", "Relation Name")
# Why a plan is withheld of which nobody has asked whether it may be told.
NOT_ASKED = "not asked for"


def top_node(text: str) -> Mapping[str, Any]:
    """Return the top node of a plan (PostgreSQL manual, "EXPLAIN", options VERBOSE and FORMAT JSON)."""
    document = json.loads(text, object_hook=lambda node: {key: node[key] for key in _KEYS if key in node})
    node: Mapping[str, Any] = document[0]["Plan"]
    return node


@dataclass(frozen=True, slots=True)
class Explained:
    """PostgreSQL's plan of one query.

    node: its `top_node`. blocks: of the tables that the query reads, as they are now. withheld: why it must not be told
    to the user (`withheld.py`), the empty string if it may.
    """

    node: Mapping[str, Any]
    blocks: int = 0
    withheld: str = NOT_ASKED

    @property
    def rows(self) -> int:
        """How many rows the planner expects."""
        return round(float(self.node["Plan Rows"]))

    @property
    def parallel(self) -> bool:
        """Whether parallel workers take part (PostgreSQL manual, "How Parallel Query Works")."""
        return _gathers(self.node)

    def scans(self) -> Sequence[Mapping[str, Any]]:
        """Return the nodes that produce the rows, in the order of the rows: the parts of an Append, or the only one."""
        node = self.node
        while node["Node Type"] == "Subquery Scan":
            node = node["Plans"][0]
        parts: Sequence[Mapping[str, Any]] = node.get("Plans", []) if node["Node Type"] == "Append" else [node]
        return parts


def _gathers(node: Mapping[str, Any]) -> bool:
    return node["Node Type"] in ("Gather", "Gather Merge") or any(map(_gathers, node.get("Plans", [])))
