"""Exports that are saved on the server's disk in the background.

Holds the manifest of an export, the files and the lock of its folder, the queue, the quota, recovery, and the runner
that writes the files. The disk holds the only state. Knows no HTTP. Start with `queue.py` and `runner.py`.

Inside: values (manifest, status, events) → files (durable_files, export_ids, lock, store, quota) → one export (claim,
writer, recovery) → all of them (queue, runner). Each module imports only modules that stand before it.

May import: query, export.
"""
