"""Connections, sessions and rows against a real PostgreSQL."""
