"""Parts that tests add to a table by a line, as a newcomer would: each a file of its own."""
