"""Compares runs on the plane's mixture: python tools/guidance_figure.py OUT.png NAME=RUN[,RUN...] ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("guidance_figure")
