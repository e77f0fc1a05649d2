"""The reports and evaluations a recipe may choose, by `report.kind` and `hooks.evaluation.kind`: a new one is a line.

A report is its configuration, which is called (`measurement.Report`). An evaluation is built once, then called often.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.kinds import one_of
from .classifiers import ClassifierEvaluation, ClassifierEvaluationConfig, ClassifierReport
from .measurement import Evaluation, Figures, Tools
from .samples import SampleEvaluationConfig, sample_evaluation
from .toys.captioned_mnist import CaptionedMnistEvaluation, CaptionedMnistReport
from .toys.digits import DigitsEvaluation, DigitsReport
from .toys.mixture1d import MixtureEvaluation, MixtureReport
from .toys.mixture2d import Mixture2DEvaluation, Mixture2DReport
from .toys.mnist import MnistEvaluation, MnistReport

REPORTS: dict[type, str] = {
    DigitsReport: "quality of generated digits",
    MnistReport: "quality of generated digits of 28x28 pixels",
    CaptionedMnistReport: "how generated digits follow their captions",
    MixtureReport: "distance of a map in one dimension from the optimal transport",
    Mixture2DReport: "how samples in the plane lie about the centres of their classes",
    ClassifierReport: "accuracy of a classifier by time",
}


def _of_itself(chosen: Figures, tools: Tools) -> Evaluation:
    """One that needs nothing but its configuration."""
    return chosen.figures


EVALUATIONS: dict[type, Callable[..., Evaluation]] = {
    SampleEvaluationConfig: sample_evaluation,
    ClassifierEvaluationConfig: ClassifierEvaluation,
    DigitsEvaluation: _of_itself,
    MnistEvaluation: _of_itself,
    CaptionedMnistEvaluation: _of_itself,
    MixtureEvaluation: _of_itself,
    Mixture2DEvaluation: _of_itself,
}

AnyReport = one_of(REPORTS)
AnyEvaluation = one_of(EVALUATIONS)
