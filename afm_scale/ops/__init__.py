"""Fused pieces of a training step, each behind one interface with several implementations, one of which is chosen."""
