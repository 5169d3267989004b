"""From the text of a request to an immutable plan, and from the plan to SQL.

Holds the grammar of paths and query strings, the relations and columns of the catalogue as values, the plan of an
export, and the SQL text of a plan with its bound values. Everything here is pure: it opens no connection, reads no file
and knows nothing of HTTP. Start with `request.py`, then `plan.py` and `sql.py`.

May import: nothing.
"""
