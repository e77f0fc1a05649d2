"""What a run has to offer to the hooks that watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.manager import CheckpointConfig, CheckpointManager
from ...core.run_folder import RunFolder
from ...parallel.plan import ParallelPlan
from ..evaluation import Evaluate, Listener
from ..failures import Failures
from ..state import TrainState
from .events import EventLog
from .hook import Hook
from .utilisation import CountOperations


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Everything a hook is built from beside its own settings. The last ones are how hooks work for each other."""

    plan: ParallelPlan
    folder: RunFolder
    run_id: str  # of this run and no other, wherever its folder lies: 16 hexadecimal digits
    events: EventLog
    failures: Failures
    total_steps: int
    seed: int
    sampling_steps: int  # of one sample of the average network
    checkpoint: CheckpointConfig
    manager: CheckpointManager
    evaluate: Callable[[Any], Evaluate]  # from what `hooks.evaluation` says; collective
    operations: CountOperations  # of a step, for each image of its batch; some seconds for a large network
    wants_noise: bool = False  # whether figures of the noise itself are wanted with the first evaluation
    notes: dict[str, float] = field(default_factory=dict)  # numbers, as on every rank, for the next row
    listeners: list[Listener] = field(default_factory=list)  # to evaluations, on every rank; after the hook's own
    before_save: list[Callable[[TrainState], None]] = field(default_factory=list)  # collective; raise to prevent it


@dataclass(frozen=True)
class HookKind:
    """An entry of the table of hooks. `build` answers None where there is nothing to do, on this rank or in this run.

    A hook with a `config` has a section of the recipe, hooks.NAME; its default None keeps it off until a recipe names
    it, and `build` is not called then. One without is built in every run, with None for its settings.
    """

    build: Callable[[Any, Surroundings], Hook | None]
    config: Any = None  # a dataclass
    default: Any = None
