"""From noise to images, and from images to files."""
