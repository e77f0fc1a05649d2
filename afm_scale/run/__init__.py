"""The composition root: from a recipe to a run, the only package that imports all others."""
