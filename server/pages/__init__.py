"""The web page: the list of relations, a form for each relation, and the saved exports.

Holds the form and its query string, the routes of the pages, `templates/` and `static/`. Every page works without
JavaScript, and shows or does nothing that the API does not offer too.

May import: query, postgres, encode, export, saved, http.
"""
