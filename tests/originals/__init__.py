"""Odd archives, folders and images, and what make_shards makes of each: see `__main__`."""
