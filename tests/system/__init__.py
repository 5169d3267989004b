"""The whole: architecture, documents, command line, containers, the embedded PostgreSQL."""
