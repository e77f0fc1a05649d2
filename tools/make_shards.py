"""Packs images into checked shards: python tools/make_shards.py SOURCE OUT [--size 256] [--shards N | --shard-mb M]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("make_shards")
