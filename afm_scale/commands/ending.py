"""The last words of a process that ends with an error."""

from __future__ import annotations

import os
import sys
import time

from ..core.errors import RunError

PATIENCE_SECONDS = 10.0  # for rank 0 to speak: it may still be importing when another rank has met the same mistake


def tell(error: RunError, *, patience: float = PATIENCE_SECONDS) -> int:
    """Prints the error and returns the exit code. Rank 0 speaks for all, once.

    Another rank waits first: launchers kill the ranks that are left as soon as one has ended, and rank 0 has to be
    heard before. If this one is still there afterwards the error was its own, and it speaks, unless all had agreed.
    """
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if rank == "0":
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(patience)
        if not error.is_of_all_ranks:
            print(f"error on rank {rank}: {error}", file=sys.stderr, flush=True)
    return error.exit_code
