"""Types, schedules, stateless random numbers and errors. Imports nothing else of this project."""
