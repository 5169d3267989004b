"""The benchmark: `make bench`. Starts from `__main__.py`; nothing in `server/` knows of it."""
