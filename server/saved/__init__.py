"""Exports that are saved on the server's disk in the background.

Holds the manifest of an export, the files and locks of its folder, the queue, the quota, and the runner that makes the
files. What is on the disk is the state; there is no other. Knows no HTTP. Start with `queue.py` and `runner.py`.

May import: query, postgres, encode, export.
"""
