"""The web page: its form, its HTML, and a real browser."""
