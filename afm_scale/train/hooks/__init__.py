"""Everything observational: hooks read a report of each step and may ask to stop; they never touch a gradient."""
