"""Saved exports: their folder, their queue, and what a crash leaves of them."""
