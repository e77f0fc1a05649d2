"""Sets of finished images to be measured."""
