"""From a plan to the chunks of its file, while the relation is being read.

Holds the one way in which a request becomes a file: GET, POST, previews and saved exports all begin with
`open_export` in `pipeline.py`. Decides how the rows are read (`strategy.py`), reads them (`scan.py`, `ranges.py`) and
compresses them. Knows no HTTP and no disk.

May import: query, postgres, encode.
"""
