"""The web page: its form, its HTML, and the pages in a browser."""
