"""What times and counts parts of the product, and what only that uses."""
