"""What objectives demand of the rest of a recipe: each raises ConfigError, with the setting that would meet it."""

from __future__ import annotations

from typing import Literal

from ..core.errors import ConfigError
from ..flow.guidance import Guidance
from .described import ModelDescription

Times = Literal["none", "source", "both"]


def times_told(model: ModelDescription, needed: Times, *, by: str) -> None:
    """The generator is told the times that `by`, a setting, needs; a discriminator the target, if any is needed."""
    found = model.generator.times
    if needed != "none" and found not in (needed, "both", "gated"):
        raise ConfigError(
            f"{by} needs a generator that is told the time, found model.generator.times {found!r}; "
            f"set model.generator.times={needed}"
        )
    if needed != "none" and model.discriminator is not None and not model.discriminator.target_time:
        raise ConfigError(
            f"{by} needs a discriminator that is told the target time; set model.discriminator.target_time=true"
        )


def intervals_told(model: ModelDescription, *, by: str, negative: bool = False) -> None:
    """The generator is told both times, and their sign where `negative` ones are shown to it."""
    found = model.generator.times
    if found not in ("both", "gated"):
        raise ConfigError(
            f"{by} needs a generator that is told both times, found model.generator.times {found!r}; set "
            "model.generator.times=gated"
        )
    if negative and not model.generator.negative_times:
        raise ConfigError(
            f"{by} shows the generator negative times, whose sign it is not told; set model.generator.times=gated "
            "model.generator.negative_times=true"
        )


def no_class_taken(model: ModelDescription, class_dropout: float) -> None:
    """A generator some of whose samples are shown without their class can be told so."""
    generator = model.generator
    if class_dropout > 0 and not generator.takes_no_class:
        raise ConfigError(
            f"objective.class_dropout {class_dropout:g} hides the class of some samples, which the generator "
            f"cannot be told; set model.generator.{generator.no_class_setting}=true"
        )


def guides_fit(model: ModelDescription, guidance: Guidance | None) -> None:
    """What guides must be there, and what is there must guide."""
    asked = None if guidance is None else guidance.guide
    found = "null" if guidance is None else f"of kind {guidance.kind!r}"
    if asked == "flow" and model.flow is None:
        raise ConfigError(
            f"objective.guidance {found} needs a flow model; set model.flow to the folder of a run of "
            "objective 'flow_matching' with class_dropout"
        )
    if asked == "classifier" and model.classifier is None:
        raise ConfigError(f"objective.guidance {found} needs a classifier; describe it under model.classifier")
    if model.flow is not None and asked != "flow":
        raise ConfigError(
            f"model.flow is set, but nothing asks it: objective.guidance is {found}; set model.flow=null, or guide by "
            "objective.guidance.kind velocity"
        )
    if model.classifier is not None and asked != "classifier":
        raise ConfigError(
            f"model.classifier is described, but nothing asks it: objective.guidance is {found}; set "
            "model.classifier=null, or guide by objective.guidance.kind flow or plain"
        )
