"""Everything that intervenes in a run, at step boundaries alone: phases, reloads, roll-backs. `pilot.py` first."""
