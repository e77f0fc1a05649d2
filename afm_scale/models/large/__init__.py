"""Transformers of diffusers as generators: one file for each of its classes, and a line in `table.py`."""
