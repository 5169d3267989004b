"""Sluice: a streaming CSV download server for PostgreSQL."""

__version__ = "0.1.0"
