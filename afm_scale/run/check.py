"""Arithmetic and consistency of a recipe, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..core.errors import ConfigError
from ..flow.times import AnyTimes
from ..models.discriminator import DiscriminatorConfig
from ..models.generator import GeneratorConfig
from ..objectives.afm import AFMConfig
from ..objectives.classification import ClassificationConfig
from .config import RunConfig


def check(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError, naming the settings, if the recipe cannot run on `world_size` ranks."""
    check_batch(config, world_size)
    if isinstance(config.objective, ClassificationConfig):
        return check_classification(config)
    if config.model.generator is None or config.optimizer.generator is None:
        raise ConfigError(
            f"objective.kind {config.objective.kind!r} needs model.generator and optimizer.generator; describe both"
        )
    if isinstance(config.objective, AFMConfig):
        check_adversarial(config, config.objective)
    elif config.model.discriminator is not None:
        raise ConfigError(
            f"objective.kind {config.objective.kind!r} is a game of one, but the recipe has a discriminator; "
            "set model.discriminator=null"
        )
    elif isinstance(config.model.generator, GeneratorConfig) and config.model.generator.times == "none":
        raise ConfigError(
            f"objective.kind {config.objective.kind!r} needs a generator that is told the time; "
            "set model.generator.times=source"
        )


def check_batch(config: RunConfig, world_size: int) -> None:
    """data.global_batch = ranks x microbatches x samples."""
    batch, parts = config.data.global_batch, world_size * config.loop.accumulation
    if batch < 1 or batch % parts:
        below, above = batch // parts * parts, (max(batch, 0) // parts + 1) * parts
        choices = f"{below} or {above}" if below > 0 else str(above)
        raise ConfigError(
            f"data.global_batch {batch} is not divisible by ranks {world_size} x loop.accumulation "
            f"{config.loop.accumulation} = {parts}; use data.global_batch={choices}, or change loop.accumulation"
        )


def check_adversarial(config: RunConfig, objective: AFMConfig) -> None:
    generator, discriminator = config.model.generator, config.model.discriminator
    if discriminator is None or config.optimizer.discriminator is None:
        raise ConfigError("objective.kind 'afm' needs model.discriminator and optimizer.discriminator; describe both")
    if objective.guidance is not None and config.model.classifier is None:
        raise ConfigError("objective.guidance needs a classifier; describe it under model.classifier")
    any_pair = isinstance(objective.times, AnyTimes)
    one_step = not any_pair and objective.times.steps == 1
    wanted = "both" if any_pair else "source"
    if isinstance(generator, GeneratorConfig) and not one_step and generator.times not in (wanted, "both"):
        raise ConfigError(
            f"objective.times {objective.times.kind!r} needs a generator that is told the time, "
            f"found model.generator.times {generator.times!r}; set model.generator.times={wanted}"
        )
    if isinstance(discriminator, DiscriminatorConfig) and not one_step and not discriminator.target_time:
        raise ConfigError(
            f"objective.times {objective.times.kind!r} needs a discriminator that is told the target time; "
            "set model.discriminator.target_time=true"
        )


def check_classification(config: RunConfig) -> None:
    if config.model.classifier is None or config.optimizer.classifier is None:
        raise ConfigError(
            "objective.kind 'classification' needs model.classifier and optimizer.classifier; describe both"
        )
    if config.model.classifier.weights is not None:
        raise ConfigError(
            "model.classifier.weights is for guidance; objective.kind 'classification' trains the classifier: set it "
            "to null (run.initialise_from starts from another run's weights)"
        )
    if config.model.generator is not None or config.model.discriminator is not None:
        raise ConfigError(
            "objective.kind 'classification' trains a classifier alone; set model.generator=null and "
            "model.discriminator=null"
        )
    if config.hooks.samples is not None:
        raise ConfigError("hooks.samples draws images, which a classifier has none of; set hooks.samples=null")


def first_mismatch(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first name at which weights do not fit a network, and how; None if all fit."""
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    needed = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    for name in sorted(found | needed):
        if found.get(name) != needed.get(name):
            return f"{name} is {found.get(name, 'missing')} there, {needed.get(name, 'not wanted')} here"
    return None
