"""Brings back an earlier discriminator of a stopped run: tools/reload_discriminator.py RUN --list|--to STEP|--trial"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("reload_discriminator")
