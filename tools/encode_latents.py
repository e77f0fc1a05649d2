"""Encodes packed images into latents: python tools/encode_latents.py SHARDS OUT --vae FOLDER [--scale S] ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("encode_latents")
