"""The web page: what can be exported, a form for each relation, and the saved exports. Works without JavaScript."""
