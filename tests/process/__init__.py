"""Starting, stopping and logging."""
