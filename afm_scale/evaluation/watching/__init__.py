"""A live view of runs, from their files alone, as a page that a browser on this machine shows."""
