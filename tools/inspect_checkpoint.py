"""Shows what a checkpoint holds: python tools/inspect_checkpoint.py CHECKPOINT|RUN [--digest] [--json]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("inspect_checkpoint")
