"""The web page: the list of relations, a form for each relation, and the saved exports.

Holds the form and its query string, the pages' own routes, `templates/` and `static/`. It works without JavaScript and
makes no request that the API does not serve too.

May import: query, postgres, encode, export, saved, http.
"""
