"""Folders of runs, written by hand: `from tests.evaluation.watching.runs import written`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from afm_scale.core.holder import Holder, create
from afm_scale.core.run_folder import RunFolder

START = {"kind": "start", "step": 0, "time": "2026-11-27T03:00:00.000+00:00", "world_size": 2, "plan": {"plan": "ddp"}}
HOLDER = Holder(host="node1", kernel="k", device=1, pid=4242, since="2026-11-27T03:00:00+00:00", ranks=2, job="",
                token="t")


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(
    path: Path, events: Iterable[Mapping[str, Any]] = (START,), rows: Iterable[Mapping[str, Any]] = (), *,
    steps: int = 100, seconds_since_beat: float | None = None,
) -> RunFolder:
    """A run of so many steps; it is held by a process that last beat so many seconds ago, or by none."""
    folder = RunFolder(path)
    folder.samples.mkdir(parents=True)
    folder.config.write_text(f"loop: {{steps: {steps}}}\n")
    folder.events.write_text(lines(events))
    folder.metrics.write_text(lines(rows))
    if seconds_since_beat is not None:
        assert create(path / ".held", HOLDER)
        beat = time.time() - seconds_since_beat
        os.utime(path / ".held", (beat, beat))
    return folder
