"""Compares the five objectives at equal operations: python tools/compare_objectives.py --data mixture1d|digits|mnist"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("compare_objectives")
