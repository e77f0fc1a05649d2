"""What objectives demand of the rest of a recipe: each raises ConfigError, with the setting that would meet it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.arithmetic import Precision, block_dtype
from ..core.errors import ConfigError
from ..flow.guidance import Guidance
from .described import Described, ModelDescription

Times = Literal["none", "source", "both"]

LEAST_IN_BF16 = 0.02
"""The shortest step of time over which outputs of blocks in bf16 are compared: half of a difference is noise there."""


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


def tokens_left(described: Described, share: float) -> None:
    """A discriminator that looks at a share of its tokens has some, and keeps one at least."""
    discriminator = described.model.discriminator
    if share == 1 or discriminator is None:
        return
    found = discriminator.num_tokens(described.shape)
    if found == 0:
        raise ConfigError(
            f"objective.token_share {share:g} drops tokens of the discriminator, but one of kind "
            f"{discriminator.kind!r} sees a sample at once; set objective.token_share=1"
        )
    if round(share * found) < 1:
        raise ConfigError(
            f"objective.token_share {share:g} leaves the discriminator none of the {found} token(s) of a sample; "
            f"wanted at least {1 / found:.3g}"
        )


def no_class_taken(model: ModelDescription, class_dropout: float) -> None:
    """A generator some of whose samples are shown without their class can be told so."""
    generator = model.generator
    if class_dropout > 0 and not generator.takes_no_class:
        raise ConfigError(
            f"objective.class_dropout {class_dropout:g} hides the class of some samples, which the generator "
            f"cannot be told; set model.generator.{generator.no_class_setting}=true"
        )


def no_class_learnt(class_dropout: float, asked_by: str | None) -> None:
    """Who is asked for a velocity without a class has been shown samples without one."""
    if asked_by is not None and class_dropout == 0:
        raise ConfigError(
            f"{asked_by} asks the generator about samples without a class, of which objective.class_dropout 0 shows it "
            "none; set objective.class_dropout=0.1"
        )


def precise_differences(found: Precision, allowed: Sequence[Precision], setting: str, instead: str) -> None:
    """A difference of two calls of a network is divided by a small time, and the rounding of the calls with it."""
    if found not in allowed:
        raise ConfigError(
            f"{setting} divides a difference of the generator's outputs by a small time, of which parallel.precision "
            f"{found!r} leaves little but rounding; set parallel.precision={allowed[0]}, or {instead}"
        )


def wide_enough(found: Precision, width: float, setting: str, instead: str) -> None:
    """Steps over a small share of time are not for blocks in bf16, whose rounding is 0.4% of an output."""
    if width < LEAST_IN_BF16 and block_dtype(found) is not None:
        precise_differences(found, ("tf32", "fp32"), f"{setting} of {width:g}", instead)


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


def turns_apart(one_pass: bool, discriminator_steps: int) -> None:
    """Only a player with a turn of its own may have several."""
    if one_pass and discriminator_steps > 1:
        raise ConfigError(
            f"objective.discriminator_steps is {discriminator_steps}, and objective.update one_pass moves both players "
            "at once; set objective.update=alternating, or objective.discriminator_steps=1"
        )


def images_to_begin_with(image_free: bool, warm_up_steps: int, steps: int) -> None:
    """Updates of flow matching before the rest have images to match, and leave some updates to the rest."""
    if image_free and warm_up_steps > 0:
        raise ConfigError(
            f"objective.warm_up_steps {warm_up_steps} are of flow matching, which needs images, and "
            "objective.image_free has none; set objective.warm_up_steps=0"
        )
    if warm_up_steps >= steps > 0:
        raise ConfigError(
            f"objective.warm_up_steps {warm_up_steps} is not less than loop.steps {steps}: the run would be flow "
            "matching alone; set objective.warm_up_steps lower"
        )
