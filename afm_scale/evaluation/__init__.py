"""How good samples are, as numbers and as pictures."""
