"""Exports that are saved on the server's disk in the background.

Holds the manifest of an export, the files and the lock of its folder, the queue, the quota, recovery, and the runner
that writes the files. The disk holds the only state. Knows no HTTP. Start with `queue.py` and `runner.py`.

Inside: durable_files, errors, events, manifest → export_ids, lock, status → folder, known → store → quota, watch →
claim → recovery, retries, writer → queue → runner.

May import: query, export.
"""
