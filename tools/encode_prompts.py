"""Embeds prompts with a pipeline's text encoder: python tools/encode_prompts.py PROMPTS OUT --pipeline FOLDER ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.ending import main

if __name__ == "__main__":
    main("encode_prompts")
