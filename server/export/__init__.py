"""From a plan to the chunks of its file, while the relation is being read.

Downloads, previews and saved exports all start with `open_export` in `pipeline.py`. The other modules are its stages:
`strategy.py` decides how the rows are read, `scan.py` and `ranges.py` read them, `compress.py` compresses them, and
`diagnose.py`, `rejected_values.py` and `relation_faults.py` say whether the request or the relation is the cause of an
error. Must not know HTTP or the disk.

Inside: compress, engine, events, ranges, rejected_values, rejections, relation_faults, strategy → diagnose, scan →
pipeline → preview.

May import: query, postgres, encode.
"""
