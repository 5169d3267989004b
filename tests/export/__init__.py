"""Exports as a whole: how relations are read, and that the bytes are those of the server's own COPY."""
