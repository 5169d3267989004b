"""Any condition of a query string, for tests with random ones."""

from __future__ import annotations

from hypothesis import strategies as st

from server.query.fields import Field, Step
from server.query.filters import FULL_TEXT, IS_VALUES, OPERATORS, PATTERNS, QUANTIFIED, QUANTIFIERS, Condition
from server.query.grammar import write_quoted

VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12) | st.text(
    '"\\,(){}.*% aé\n', max_size=8
)
COLUMNS = VALUES.filter(bool) | st.sampled_from(["and", "or", "not", "not.and", "and(", "order", '"', "a.b", "eq"])
FIELDS = st.builds(
    lambda column, keys, as_text: Field(column, (*map(Step, keys), Step("last", as_text))) if keys else Field(column),
    COLUMNS,
    st.lists(VALUES | st.integers(-(2**31) + 1, 2**31 - 1), max_size=3),
    st.booleans(),
)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    """Generate any condition that a query string can have."""
    operator = draw(st.sampled_from(OPERATORS))
    modifier = None
    if operator == "is":
        values: tuple[str, ...] = (draw(st.sampled_from(IS_VALUES)),)
    elif operator == "in":
        values = tuple(draw(st.lists(VALUES, max_size=4)))
    else:
        value = draw(VALUES)
        if operator in PATTERNS:
            value = value.replace("\\", "\\\\")  # no unpaired backslash at its end
        values = (value,)
        if operator in QUANTIFIED and draw(st.booleans()):
            modifier = draw(st.sampled_from(QUANTIFIERS))
            values = ("{" + ",".join(map(write_quoted, draw(st.lists(st.just(value), max_size=2)))) + "}",)
        elif operator in FULL_TEXT:
            modifier = draw(st.sampled_from([None, "english", "my config", "any"]))
    return Condition(draw(FIELDS), operator, values, draw(st.booleans()), modifier)
