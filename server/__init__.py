"""Sluice: a streaming CSV download server for PostgreSQL.

Holds the packages and, around them, the modules that every package may import, the application (`app.py`) and the
command line (`__main__.py`).

Inside: chunk, cpus, events, memory, network_names, setting_values, shutdown, threads, visible
→ errors, ram → settings → app → __main__.
"""

__version__ = "0.1.0"
