"""Evaluation while a generator trains: samples of its average against a stored reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..core.errors import ConfigError
from ..core.types import Role
from ..evaluation.features.extractor import Extractor, FeaturesConfig, InceptionConfig
from ..evaluation.reference import Reference
from ..parallel.plan import ParallelPlan
from ..sampling.decoding import Decoder
from ..sampling.drawing import DrawnImages
from ..train.state import TrainState
from .measure import compare_on_rank_0, measure


@dataclass(frozen=True, kw_only=True)
class SampleEvaluationConfig:
    """What is drawn, and what it is compared with. Classes come in turn, balanced."""

    measures: ClassVar[Role] = Role.GENERATOR
    kind: Literal["samples"] = "samples"
    every_steps: int
    reference: Path  # an npz that `python -m afm_scale evaluate --write-reference` made, or ADM's
    features: FeaturesConfig = InceptionConfig()
    num_samples: int = 10_000
    members: int = 10_000  # of the samples, for precision and recall; 0: neither
    neighbours: int = 3
    batch_size: int = 32  # images that the extractor is given at a time, on each rank
    vae: str | None = None  # decodes latents; null: data.vae, if it is a folder here
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every_steps", "num_samples", "neighbours", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        kept = min(self.members, self.num_samples)
        if self.num_samples < 2 or self.members < 0 or 0 < kept <= self.neighbours:
            raise ConfigError(
                f"num_samples {self.num_samples} and members {self.members} are too few for a covariance, or for "
                f"precision and recall with {self.neighbours} neighbours; use more samples, or members: 0"
            )

    def resolved(self) -> SampleEvaluationConfig:
        return self

    def check(self, data: Any, setting: str) -> None:
        """Any data will do."""


@dataclass(frozen=True)
class SampleEvaluation:
    """A `train.evaluation.Evaluate`: draws from the average, the same noise every time, and compares."""

    config: SampleEvaluationConfig
    plan: ParallelPlan
    extractor: Extractor
    reference: Reference
    decoder: Decoder | None
    num_steps: int

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The figures that the features and the reference allow."""
        config, plan = self.config, self.plan
        subject = state.subject(plan, self.num_steps)
        drawing = subject.drawing(subject.stream(seed=config.seed), self.decoder)
        summary = measure(
            DrawnImages(drawing, config.num_samples, self.extractor.reads, about={}), self.extractor, plan.place,
            num_members=config.members, batch_size=config.batch_size, progress=None,
        )
        figures = compare_on_rank_0(summary, self.reference, plan.place, k=config.neighbours)
        return {name: value for name, value in figures.values().items() if value is not None}
