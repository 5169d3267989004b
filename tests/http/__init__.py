"""The API over HTTP, most of it under real gunicorn."""
