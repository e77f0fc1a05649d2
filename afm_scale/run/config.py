"""The configuration of a run, composed of those beside the parts, and the tables of parts to choose from.

Adding an objective or a plan is one line in the table here; a source, in `sources.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Union

from ..checkpoint.manager import CheckpointConfig
from ..models.classifier import ClassifierConfig, DiTClassifier
from ..models.discriminator import DiscriminatorConfig, DiTDiscriminator
from ..models.generator import DiTGenerator, GeneratorConfig
from ..models.mlp import MLPClassifier, MLPClassifierConfig, MLPConfig, MLPDiscriminator, MLPGenerator
from ..objectives.afm import AdversarialFlow, AFMConfig
from ..objectives.classification import Classification, ClassificationConfig
from ..objectives.flow_matching import FlowMatching, FlowMatchingConfig
from ..parallel.config import ParallelConfig
from ..parallel.ddp import DDPPlan
from ..parallel.fsdp2 import FSDP2Plan
from ..parallel.optim import OptimizerConfig
from ..sampling.sampler import SamplingConfig
from ..train.average import AverageConfig
from ..train.hooks.console import ConsoleConfig
from ..train.hooks.divergence import DivergenceConfig
from ..train.hooks.metrics import MetricsConfig
from ..train.hooks.samples import SamplesConfig
from ..train.loop import LoopConfig
from .classifier_evaluation import ClassifierEvaluationConfig
from .report import ReportConfig
from .sample_evaluation import SampleEvaluationConfig
from .sources import AnySource

OBJECTIVES = {AFMConfig: AdversarialFlow, FlowMatchingConfig: FlowMatching, ClassificationConfig: Classification}
GENERATORS = {GeneratorConfig: DiTGenerator, MLPConfig: MLPGenerator}
CLASSIFIERS = {ClassifierConfig: DiTClassifier, MLPClassifierConfig: MLPClassifier}
DISCRIMINATORS = {DiscriminatorConfig: DiTDiscriminator, MLPConfig: MLPDiscriminator}
PLANS = {"ddp": DDPPlan, "fsdp2": FSDP2Plan}

AnyObjective = Union[tuple(OBJECTIVES)]  # noqa: UP007
AnyGenerator = Union[tuple(GENERATORS)]  # noqa: UP007
AnyClassifier = Union[tuple(CLASSIFIERS)]  # noqa: UP007
AnyDiscriminator = Union[tuple(DISCRIMINATORS)]  # noqa: UP007


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where a run lives, and what a new run starts from (its own checkpoints always come first)."""

    folder: Path
    resume_from: Path | None = None  # a checkpoint to continue, state and step count included
    initialise_from: Path | None = None  # a checkpoint whose weights alone are taken; the run starts at step 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    generator: AnyGenerator | None = None  # null where a classifier is trained
    discriminator: AnyDiscriminator | None = None
    classifier: AnyClassifier | None = None  # frozen, for guidance; or the one that is trained
    flow: Path | None = None  # frozen, for guidance: a checkpoint (or a run's folder) of objective 'flow_matching'
    compile_guides: bool | None = None  # torch.compile of the frozen two, block by block; null: on a GPU


@dataclass(frozen=True, kw_only=True)
class OptimizersConfig:
    generator: OptimizerConfig | None = None
    discriminator: OptimizerConfig | None = None
    classifier: OptimizerConfig | None = None


@dataclass(frozen=True, kw_only=True)
class HooksConfig:
    console: ConsoleConfig = ConsoleConfig()
    metrics: MetricsConfig = MetricsConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    samples: SamplesConfig | None = None
    evaluation: SampleEvaluationConfig | ClassifierEvaluationConfig | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One recipe, resolved."""

    run: FolderConfig
    loop: LoopConfig
    data: AnySource
    model: ModelConfig
    objective: AnyObjective
    optimizer: OptimizersConfig
    average: AverageConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    hooks: HooksConfig = HooksConfig()
    sampling: SamplingConfig = SamplingConfig()
    report: ReportConfig | None = None
