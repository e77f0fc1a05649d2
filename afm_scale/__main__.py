"""`python -m afm_scale COMMAND ...`. The commands are in commands/table.py; how each ends, in commands/ending.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, by default that of the command line, and returns its exit code.

    A program that has lost other ranks in it ends by `commands.ending.leave`: threads may still wait for them.
    """
    from .commands import ending

    return ending.run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    from .core import stopping

    stopping.begin(sys.argv[1:])  # before anything else is imported: a signal may come at any time
    from .commands import ending

    ending.main()
