"""Replays recorded runs of the published method: python tools/replay_reference.py CASE.json [...] [--json]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("replay_reference")
