"""The process: gunicorn, the embedded PostgreSQL of a first run, and the log.

Knows how to start and how to stop, and nothing of requests: `server/__main__.py` hands it the application.

May import: postgres.
"""
