"""How good samples of the small data sets are: each with its measure and its picture."""
