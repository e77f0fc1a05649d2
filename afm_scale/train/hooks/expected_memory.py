"""What the run's memory was expected to be, said once at the start, and whether it was so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from ...core.ranges import Range
from ...core.screen import note
from ..state import TrainState
from .hook import QuietHook, StepReport
from .surroundings import Surroundings

_AFTER_STEPS = 3  # of this process, before memory is looked at: the first make buffers that stay


@dataclass(frozen=True, kw_only=True)
class ExpectedMemoryConfig:
    """`plan` in a process beside the run, on rank 0: one line when it is ready, and a warning where it was wrong."""

    where: Literal["gpu", "anywhere"] = "gpu"  # anywhere: on a CPU too, where there is nothing to compare it with
    tolerance: Annotated[float, Range(above=0, high=10)] = 0.1  # of the measured peak; a warning beyond it


class ExpectedMemoryHook(QuietHook):
    """Nobody waits for it: the estimate is made while training begins."""

    def __init__(self, config: ExpectedMemoryConfig, around: Surroundings) -> None:
        self._config, self._device, self._ranks = config, around.plan.device, around.plan.world_size
        self._recipe = around.folder.config
        self._working: subprocess.Popen[bytes] | None = None
        self._expected: int | None = None
        self._steps = 0

    def on_start(self, state: TrainState) -> None:
        self._working = subprocess.Popen(
            [sys.executable, "-m", "afm_scale", "plan", str(self._recipe), "--ranks", str(self._ranks), "--json",
             "--gpu", f"{{memory: {_memory(self._device) / 1e9}, tflops: 1, bandwidth: 1}}"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=_alone(),
        )

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self._steps += 1
        if self._working is not None and self._working.poll() is not None:
            self._say()
        if self._expected is not None and self._steps >= _AFTER_STEPS:
            self._compare()

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if self._working is None:
            return
        if error is None and self._config.where == "anywhere":
            self._say()
        else:
            self._working.kill()
            self._working.communicate()

    def _say(self) -> None:
        assert self._working is not None
        out, _ = self._working.communicate()
        code, self._working = self._working.returncode, None
        if code != 0:
            note("expected memory: it could not be estimated; `plan` says why")
            return
        phase = max(json.loads(out)["phases"], key=lambda phase: phase["memory"]["peak"]["bytes"])
        memory = phase["memory"]
        self._expected = memory["peak"]["bytes"]
        note(
            f"expected memory (estimate): {self._expected / 2**30:.2f} GiB of tensors on rank 0 at the peak, in the "
            f"{memory['peak']['mover']}'s {memory['peak']['when']}; {memory['rest']['bytes'] / 2**30:.2f} GiB between "
            "steps"
        )

    def _compare(self) -> None:
        expected, self._expected = self._expected, None
        if self._device.type != "cuda":
            return  # a CPU's process holds more than its tensors, and nothing counts those
        measured = torch.cuda.max_memory_allocated(self._device)
        if abs(expected / measured - 1) > self._config.tolerance:
            note(
                f"warning: the peak of memory is {measured / 2**30:.2f} GiB, and {expected / 2**30:.2f} GiB were "
                "expected: the estimates of `plan` are off by as much for this recipe"
            )


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 80 * 10**9


def _alone() -> dict[str, str]:
    """The environment without what launchers tell ranks."""
    theirs = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS")
    return {name: value for name, value in os.environ.items() if name not in theirs}


def build(config: ExpectedMemoryConfig, around: Surroundings) -> ExpectedMemoryHook | None:
    if around.plan.rank != 0 or (config.where == "gpu" and around.plan.device.type != "cuda"):
        return None
    return ExpectedMemoryHook(config, around)
