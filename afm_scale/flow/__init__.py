"""Pure tensor functions on the path from noise to data."""
