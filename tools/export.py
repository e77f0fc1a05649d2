"""Publishes the average of a run: python tools/export.py RUN|CKPT OUT"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("export")
