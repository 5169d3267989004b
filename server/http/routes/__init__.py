"""One small file per resource. A route parses, calls the stages in order and answers; no logic of its own."""
