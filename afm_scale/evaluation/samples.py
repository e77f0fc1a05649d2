"""Evaluation while a generator trains: samples of its average against a stored reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..core.errors import ConfigError
from ..core.paths import OrName
from ..core.ranges import Count, Range, Seed
from ..parallel.agreement import agreed
from ..sampling.decoding import Decoder
from ..sampling.drawing import DrawnImages
from ..sampling.subject import Subject
from .features.extractor import Extractor, FeaturesConfig, InceptionConfig
from .images.sets import absent
from .measure import compare_on_rank_0, measure, read_reference_on_all, rehearse
from .measurement import OfGenerator, Tools
from .reference import Reference


@dataclass(frozen=True, kw_only=True)
class SampleEvaluationConfig(OfGenerator):
    """What is drawn, and what it is compared with. Classes come in turn, balanced."""

    kind: Literal["samples"] = "samples"
    every_steps: Count  # between two evaluations
    # an npz that `python -m afm_scale evaluate --write-reference` made, or ADM's; must be given to train
    reference: Path | None = None
    features: FeaturesConfig = InceptionConfig()  # what images are compared by
    num_samples: Annotated[int, Range(2, 100_000_000)] = 10_000  # drawn from the average
    members: Annotated[int, Range(0, 100_000_000)] = 10_000  # of the samples, for precision and recall; 0: neither
    neighbours: Annotated[int, Range(1, 1_000)] = 3  # k of precision and recall
    batch_size: Annotated[int, Range(1, 1_000_000)] = 32  # images that the extractor is given at a time, on each rank
    vae: Annotated[str, OrName()] | None = None  # decodes latents; null: data.vae, if it is a folder here
    seed: Seed = 0  # of the noises, the same every time

    def __post_init__(self) -> None:
        kept = min(self.members, self.num_samples)
        if 0 < kept <= self.neighbours:
            raise ConfigError(
                f"num_samples {self.num_samples} and members {self.members} are too few for "
                f"precision and recall with {self.neighbours} neighbours; use more samples, or members: 0"
            )

    def check_ready(self, check_extractor: Callable[[Any], None], *, may_be_open: bool = False) -> None:
        if self.reference is None and may_be_open:
            return  # the features' weights go with it
        if not self.named_reference.exists():
            raise absent(self.named_reference)
        check_extractor(self.features)

    @property
    def named_reference(self) -> Path:
        """Raises ConfigError if the recipe leaves it to its user, who has not named one."""
        if self.reference is None:
            raise ConfigError(
                "hooks.evaluation.reference is null: samples need something to be compared with; set "
                "hooks.evaluation.reference to an npz that `python -m afm_scale evaluate IMAGES --write-reference "
                "FILE` made, or to ADM's; or set hooks.evaluation=null"
            )
        return self.reference


@dataclass(frozen=True)
class SampleEvaluation:
    """Draws from the average, the same noise every time, and compares."""

    config: SampleEvaluationConfig
    extractor: Extractor
    reference: Reference
    decoder: Decoder | None

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Collective: the figures that the features and the reference allow."""
        config, place = self.config, subject.place
        drawing = subject.drawing(subject.stream(seed=config.seed), self.decoder)
        summary = measure(
            DrawnImages(drawing, config.num_samples, self.extractor.reads, about={}), self.extractor, place,
            num_members=config.members, batch_size=config.batch_size, progress=None,
        )
        figures = compare_on_rank_0(summary, self.reference, place, k=config.neighbours)
        return {name: value for name, value in figures.values().items() if value is not None}


def sample_evaluation(config: SampleEvaluationConfig, tools: Tools) -> SampleEvaluation:
    """Collective: reads everything that is needed, once. Raises, on every rank, the UserError that one of them met."""
    decoder, place = None, tools.place
    with agreed():
        path = config.named_reference
        extractor = tools.extractor_of(config.features, place.device)
        if extractor.reads == "images":
            decoder = tools.decoder_of(config.vae)
    reference = read_reference_on_all(path, extractor, place, batch_size=config.batch_size)
    with agreed():
        shape = tools.shape if decoder is None else decoder.shape
        rehearse(extractor, shape, reference, path, k=config.neighbours, device=place.device)
    return SampleEvaluation(config, extractor, reference, decoder)
