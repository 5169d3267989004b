"""The process: gunicorn, the embedded PostgreSQL of a first run, and the log.

Holds starting, stopping and logging. Knows nothing of requests: `server/__main__.py` passes it the application. Start
with `serve.py`.

Inside: data_folder, logs → children, programs → creation → embedded → reading_role, sample_data → serve.
May import: postgres.
"""
