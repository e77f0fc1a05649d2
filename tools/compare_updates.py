"""Compares cheap updates with the published one: python tools/compare_updates.py digits|mnist|mixture1d|mixture2d"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("compare_updates")
