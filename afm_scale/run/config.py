"""The configuration of a run, composed of those beside the parts. Kinds are chosen from the tables in their rooms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..checkpoint.formats.table import FORMATS
from ..checkpoint.manager import CheckpointConfig
from ..core.kinds import one_of
from ..core.schedules import AverageConfig
from ..data.table import AnySource
from ..evaluation.table import AnyEvaluation, AnyReport
from ..models.table import CLASSIFIERS, DISCRIMINATORS, GENERATORS
from ..objectives.table import OBJECTIVES
from ..parallel.config import ParallelConfig
from ..parallel.optim import OptimizerConfig
from ..sampling.sampler import SamplingConfig
from ..train.hooks.table import hooks_config
from ..train.loop import LoopConfig
from ..train.pilot.config import PilotConfig

AnyObjective = one_of(OBJECTIVES)
AnyGenerator = one_of(GENERATORS)
AnyClassifier = one_of(CLASSIFIERS)
AnyDiscriminator = one_of(DISCRIMINATORS)

HooksConfig = hooks_config(__name__, evaluation=AnyEvaluation)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where a run lives, and what a new run starts from (its own checkpoints always come first)."""

    folder: Path  # of the run
    resume_from: Path | None = None  # a checkpoint to continue, state and step count included
    initialise_from: Path | None = None  # a checkpoint, of any format: its weights alone are taken, at step 0
    initialise_format: Literal[tuple(("auto", *FORMATS))] = "auto"  # that checkpoint's, if it does not show
    accept_changes: tuple[str, ...] = ()  # settings (or sections) that may differ from the checkpoint's all the same


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    generator: AnyGenerator | None = None  # null where a classifier is trained
    discriminator: AnyDiscriminator | None = None  # null in a game of one
    classifier: AnyClassifier | None = None  # frozen, for guidance; or the one that is trained
    flow: Path | None = None  # frozen, for guidance: a checkpoint (or a run's folder) of objective 'flow_matching'
    compile_guides: bool | None = None  # torch.compile of the frozen two, block by block; null: on a GPU

    def resolved(self) -> ModelConfig:
        """The same with what its networks leave to files. Raises ConfigError if these are not there."""
        return self._each(lambda network: network.resolved())

    def without_files(self) -> ModelConfig:
        """The same as far as sizes are concerned, its networks beginning without files."""
        return self._each(lambda network: network.without_files())

    @property
    def networks(self) -> dict[str, Any]:
        """Those that are described here, by name; `flow` is described by its own run."""
        found = {"generator": self.generator, "discriminator": self.discriminator, "classifier": self.classifier}
        return {name: network for name, network in found.items() if network is not None}

    def _each(self, change: Callable[[Any], Any]) -> ModelConfig:
        return replace(self, **{name: change(network) for name, network in self.networks.items()})


@dataclass(frozen=True, kw_only=True)
class OptimizersConfig:
    generator: OptimizerConfig | None = None  # of the player; null where it does not learn
    discriminator: OptimizerConfig | None = None  # likewise
    classifier: OptimizerConfig | None = None  # likewise


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One recipe."""

    run: FolderConfig
    loop: LoopConfig
    data: AnySource  # where samples come from
    model: ModelConfig  # the networks: those that learn, and those that guide
    objective: AnyObjective  # what is learnt: one paper's equations
    optimizer: OptimizersConfig  # of each network that learns
    average: AverageConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    hooks: HooksConfig = HooksConfig()  # what watches a run: nothing here changes a weight
    pilot: PilotConfig | None = None  # what intervenes: phases, failures; null: nothing does
    sampling: SamplingConfig = SamplingConfig()
    report: AnyReport | None = None  # what the average is measured by at the end

    def resolved(self) -> RunConfig:
        """The same with what a packed data set, or a folder of weights, says of itself where the recipe leaves it out.

        Commands begin with it. Raises DataError or ConfigError if one that must say it is not there.
        """
        evaluation = self.hooks.evaluation
        return replace(
            self, data=self.data.resolved(), model=self.model.resolved(), report=self.report and self.report.resolved(),
            hooks=replace(self.hooks, evaluation=evaluation and evaluation.resolved()),
        )
