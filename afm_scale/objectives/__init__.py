"""One paper's equations in one file each, written against callables: no ranks, optimizers or files."""
