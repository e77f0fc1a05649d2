"""Small data sets that need no download, and random ones."""
