"""The benchmark: `make bench`. It starts in `__main__.py`. Nothing in `server/` may import it."""
