"""The stages of a request that need no database: text → request → plan → SQL.

Holds the grammar of paths and query strings, the relations and columns of the catalogue as values, the plan of an
export, and the SQL text of a plan with its bound values. Everything here is pure: it opens no connection, reads no file
(except the time zone database, once) and knows nothing of HTTP.

Start with `request.py`.

Inside: dialect, grammar, patterns, quoting, regular_expressions, spreadsheets, tally → fields → filters, selection,
value_reader → operators → catalogue → columns, comparisons, parameters, pattern_limits, plus_signs → filter_reader →
request → plan, suggestions, switches → file_names, sql.
May import: nothing.
"""
