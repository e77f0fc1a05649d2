"""What the end of a run that lost a rank comes to: whether starting it again goes on."""

from __future__ import annotations

import os

from ..checkpoint.manifest import newest_complete, read_manifest
from ..core.errors import EXIT_FAILURE, EXIT_GO_ON, EXIT_LOST_RANK, RunError
from ..core.run_folder import RunFolder


def after_loss(folder: RunFolder) -> tuple[int, str]:
    """The exit code, and what a person is told beside the cause.

    75 if a whole checkpoint is there to go on from, and this start of the run or the one before it has made one: a
    machine may fail before the first save after a start. If neither has, starting again would come to the same: 1. The
    starts that launchers/torchrun.py makes by itself count too; it is told 76, tries again while it may, and ends with
    75 afterwards.
    """
    try:
        newest = newest_complete(folder.checkpoints)
        if newest is None:
            return EXIT_FAILURE, "; there is no checkpoint to go on from"
        step = read_manifest(newest).step
        starts = [event.get("step", 0) for event in folder.read_events() if event["kind"] == "start"]
    except (RunError, OSError) as error:
        return EXIT_FAILURE, f"; whether there is a checkpoint to go on from is not known ({error})"
    before = starts[-2:]
    if before and step <= before[0]:
        return EXIT_FAILURE, (
            f"; neither of the last two starts has got beyond {newest}: find out why before starting it again"
        )
    by_ours = "AFM_SCALE_LAUNCHER_PID" in os.environ
    return EXIT_LOST_RANK if by_ours else EXIT_GO_ON, f"; run the same command again to go on from {newest}"
