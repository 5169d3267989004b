"""Tests of the whole project: architecture, documents, command line, containers, the embedded PostgreSQL, and the
modules below all packages (`test_cpus.py`, `test_events.py`, `test_threads.py`, `test_settings.py`).
"""
