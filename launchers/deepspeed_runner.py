"""DeepSpeed's launcher, but what it finds wrong with its options or hosts is one message and exit code 2.

`python launchers/deepspeed_runner.py` takes what `deepspeed` takes. It ends as that does where it has started ranks.
"""

from __future__ import annotations

import logging
import subprocess
import sys


def main() -> None:
    from deepspeed.launcher import runner
    from deepspeed.utils import logger

    logger.addFilter(lambda record: record.levelno != logging.ERROR)  # what it raises as well
    try:
        runner.main()
    except (AssertionError, OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"error: DeepSpeed's launcher: {said}; put its options or the hostfile right", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
