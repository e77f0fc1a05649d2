"""Compares runs on the plane's mixture: python tools/guidance_figure.py OUT.png NAME=RUN[,RUN...] ...

For example: python tools/guidance_figure.py guidance.png unguided=runs/mixture2d_afm flow=runs/mixture2d_afm_flow
Draws the data and one panel for each name, and prints where the samples lie about the centres of their classes: the
mean and the deviation over the runs of a name, which differ by their seed; the first of them is drawn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.guidance_figure import GuidanceFigure, guidance_figure_command
from afm_scale.core.errors import RunError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, metavar="OUT.png")
    parser.add_argument("runs", nargs="+", type=_panel, metavar="NAME=RUN[,RUN...]")
    parser.add_argument("--samples", type=int, default=4500, metavar="N", help="of every run (default 4500)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of their noise (default 0)")
    options = parser.parse_args()
    request = GuidanceFigure(
        picture=options.picture, runs=dict(options.runs), num_samples=options.samples, seed=options.seed
    )
    try:
        return guidance_figure_command(request)
    except RunError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _panel(text: str) -> tuple[str, list[Path]]:
    name, equals, folders = text.partition("=")
    if not (name and equals and folders):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted NAME=RUN or NAME=RUN,RUN")
    return name, [Path(folder) for folder in folders.split(",")]


if __name__ == "__main__":
    raise SystemExit(main())
