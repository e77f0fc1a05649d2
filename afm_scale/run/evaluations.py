"""From `hooks.evaluation` to the callable that measures a run's average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.measurement import Tools
from ..evaluation.table import EVALUATIONS
from ..parallel.plan import ParallelPlan
from ..train.evaluation import Evaluate
from ..train.state import TrainState
from .autoencoders import decoder_of
from .config import RunConfig
from .features import build_extractor


def build_evaluation(config: RunConfig, chosen: Any, plan: ParallelPlan) -> Evaluate:
    """Collective: reads everything that is needed, once. Raises, on every rank, the UserError that one of them met."""
    place, num_steps = plan.place, config.sampling.num_steps
    tools = Tools(
        place=place, shape=config.data.shape, extractor_of=build_extractor,
        decoder_of=lambda vae: decoder_of(config.data, vae, place.device, setting="hooks.evaluation.vae"),
    )
    evaluation = EVALUATIONS[type(chosen)](chosen, tools)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        return evaluation(state.subject(plan, num_steps))

    return evaluate
