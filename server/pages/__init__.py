"""The web page: the list of relations, a form for each relation, and the saved exports.

Holds the form and its query string, the routes of the pages, `templates/` and `static/`. Every page works without
JavaScript, and shows or does nothing that the API does not offer too.

The form as a value comes first, then its reading, then the pages.

Inside: controls, expected, formatting, relation_list, sent_fields, snippets, static_files → days → form, site → faults,
form_reader, listing, notes, result, shown_form → table → saved.
May import: query, export, saved, http.
"""
