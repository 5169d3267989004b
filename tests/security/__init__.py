"""Attacks on the server, each with the limit that stops it."""
