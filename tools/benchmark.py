"""Times parts of the product: python tools/benchmark.py data|step|traffic|evaluation|checkpoint|compare ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("benchmark")
