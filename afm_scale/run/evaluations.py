"""From `hooks.evaluation` to the callable that measures a run's average."""

from __future__ import annotations

from ..parallel.agreement import agreed
from ..parallel.plan import ParallelPlan
from ..train.evaluation import Evaluate
from .autoencoders import decoder_of
from .classifier_evaluation import ClassifierEvaluation, ClassifierEvaluationConfig
from .config import RunConfig
from .features import build_extractor
from .measure import read_reference_on_all, rehearse
from .sample_evaluation import SampleEvaluation, SampleEvaluationConfig


def build_evaluation(
    config: RunConfig, chosen: SampleEvaluationConfig | ClassifierEvaluationConfig, plan: ParallelPlan
) -> Evaluate:
    """Collective: reads everything that is needed, once. Raises, on every rank, the UserError that one of them met."""
    if isinstance(chosen, ClassifierEvaluationConfig):
        return ClassifierEvaluation(chosen, plan)
    decoder = None
    with agreed():
        extractor = build_extractor(chosen.features, plan.device)
        if extractor.reads == "images":
            decoder = decoder_of(config.data, chosen.vae, plan.device, setting="hooks.evaluation.vae")
    reference = read_reference_on_all(chosen.reference, extractor, plan.place, batch_size=chosen.batch_size)
    with agreed():
        shape = config.data.shape if decoder is None else decoder.shape
        rehearse(extractor, shape, reference, chosen.reference, k=chosen.neighbours, device=plan.device)
    return SampleEvaluation(chosen, plan, extractor, reference, decoder, config.sampling.num_steps)
