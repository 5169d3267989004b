"""Tests of the whole project: architecture, documents, command line, containers, the embedded PostgreSQL, and the
modules below all packages (`test_foundation_…`, `test_settings.py`).
"""
