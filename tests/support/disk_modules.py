"""The modules that use the disk of saved exports. Test servers and tests replace the name `os` in them."""

from __future__ import annotations

from server.http import sendfile
from server.saved import claim, durable_files, folder, lock, queue, quota, store

DISK_MODULES = (claim, durable_files, folder, lock, queue, quota, store, sendfile)
