"""Requests, plans and SQL as tables of cases, without a database."""
