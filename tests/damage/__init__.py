"""Bad and odd files of every kind that is loaded, each handed to the commands that load it: see `__main__`."""
