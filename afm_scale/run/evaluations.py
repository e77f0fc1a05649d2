"""From `hooks.evaluation` to the callable that measures a run's average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..evaluation.measurement import Evaluation, Tools
from ..evaluation.table import EVALUATIONS
from ..flow.path import Prediction
from ..parallel.plan import ParallelPlan
from ..train.evaluation import Evaluate
from ..train.state import TrainState
from .autoencoders import decoder_of
from .config import RunConfig
from .features import build_extractor


@dataclass(frozen=True)
class OfAverage:
    """Measures the average of a run, or noise in its place."""

    evaluation: Evaluation
    plan: ParallelPlan
    num_steps: int

    def __call__(self, state: TrainState) -> Mapping[str, float]:
        return self.evaluation(state.subject(self.plan, self.num_steps))

    def of_noise(self, state: TrainState) -> Mapping[str, float]:
        subject = state.subject(self.plan, num_steps=1)
        return self.evaluation(replace(subject, network=Unmoved(), prediction=Prediction.X))


class Unmoved(nn.Module):
    """A generator that returns what it is given."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x


def build_evaluation(config: RunConfig, chosen: Any, plan: ParallelPlan) -> Evaluate:
    """Collective: reads everything that is needed, once. Raises, on every rank, the UserError that one of them met."""
    place, num_steps = plan.place, config.sampling.num_steps
    tools = Tools(
        place=place, shape=config.data.shape, extractor_of=build_extractor,
        decoder_of=lambda vae: decoder_of(config.data, vae, place.device, setting="hooks.evaluation.vae"),
    )
    return OfAverage(EVALUATIONS[type(chosen)](chosen, tools), plan, num_steps)


class Evaluations:
    """What measures a run's average, built once however many want it."""

    def __init__(self, config: RunConfig, plan: ParallelPlan) -> None:
        self._config, self._plan = config, plan
        self._built: Evaluate | None = None

    def of(self, chosen: Any) -> Evaluate:
        """By `hooks.evaluation`, which is `chosen`. As `build_evaluation`; collective the first time."""
        if self._built is None:
            self._built = build_evaluation(self._config, chosen, self._plan)
        return self._built

    def measure(self, state: TrainState) -> Mapping[str, float]:
        """Collective; see `Evaluate`."""
        return self.of(self._config.hooks.evaluation)(state)
