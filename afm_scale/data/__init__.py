"""Where batches come from. Rank and world size arrive as ints, encoders as callables."""
