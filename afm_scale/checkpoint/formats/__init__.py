"""Checkpoints of other programs and of other shapes: a file a format, and its line in `table.py`."""
