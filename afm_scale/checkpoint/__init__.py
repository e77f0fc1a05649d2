"""Checkpoints on disk: complete or absent, readable at any number of ranks."""
