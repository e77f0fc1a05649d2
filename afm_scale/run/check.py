"""Arithmetic and consistency of a recipe, checked before anything is built."""

from __future__ import annotations

from ..core.batch_size import microbatch_size
from ..core.errors import ConfigError
from ..core.types import Role
from ..models.generator import GeneratorConfig
from ..objectives.described import Described
from ..parallel.kinds import kind as parallel
from .config import RunConfig
from .phases import check_phases, configs_of_phases
from .pilot import check_reloads
from .prompts import check_told


def check(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError, naming the settings, if the recipe cannot run on `world_size` ranks."""
    config.parallel.check(world_size, described_for_plans(config))
    microbatch = microbatch_size(
        config.data.global_batch, config.parallel.data_ranks(world_size), config.loop.accumulation
    )
    check_measured(config)
    check_told(config.data, config.model)
    check_sizes(config)
    if config.pilot is not None:
        check_phases(config.pilot, config)
        check_reloads(config.pilot, config)
    for phase in configs_of_phases(config):
        check_objective(phase, microbatch)
    check_steps(config)


def described_for_plans(config: RunConfig) -> parallel.Described:
    """What the plan's demands are about: the networks that the recipe describes."""
    networks = [
        parallel.DescribedNetwork(
            f"model.{name}", network.kind, *(() if (size := network.block_size) is None else size)
        )
        for name, network in config.model.networks.items()
    ]
    return parallel.Described(networks=networks, compile_guides=config.model.compile_guides)


def check_measured(config: RunConfig) -> None:
    """The report and the evaluation have to fit what is trained: a classifier has accuracy, a generator samples."""
    learner, kind, report = config.objective.roles[0], config.objective.kind, config.report
    of_classifier, evaluation = learner is Role.CLASSIFIER, config.hooks.evaluation
    if report is not None and report.measures is not learner:
        wanted = "report={kind: classifier}" if of_classifier else "another kind"
        raise ConfigError(
            f"report.kind {report.kind!r} cannot measure what objective.kind {kind!r} trains; "
            f"set {wanted}, or report=null"
        )
    if evaluation is not None and evaluation.measures is not learner:
        raise ConfigError(
            f"hooks.evaluation.kind {evaluation.kind!r} cannot measure what objective.kind {kind!r} "
            f"trains; set hooks.evaluation.kind={'classifier' if of_classifier else 'samples'}, or "
            "hooks.evaluation=null"
        )
    for setting, chosen in (("report", report), ("hooks.evaluation", evaluation)):
        if chosen is not None:
            chosen.check(config.data, setting)
    if config.hooks.samples is not None and config.objective.prediction is None:
        raise ConfigError(f"hooks.samples draws images, which a {learner.value} has none of; set hooks.samples=null")


def check_sizes(config: RunConfig) -> None:
    """Of data of several sizes: every network takes all of them."""
    first, *others = config.data.shapes
    for name, network in config.model.networks.items():
        for shape in others:
            if not network.any_size:
                raise ConfigError(
                    f"model.{name} of kind {network.kind!r} is built for samples of one size, and data of kind "
                    f"{config.data.kind!r} have {list(first)} and {list(shape)}; choose data of one size, or a "
                    "generator of kind 'diffusers'"
                )
            network.check_shape(shape)


def check_steps(config: RunConfig) -> None:
    """A network that is told no times is for one step, wherever a sample is drawn."""
    generator, sampling = config.model.generator, config.sampling
    if isinstance(generator, GeneratorConfig) and generator.times == "none":
        for setting, steps in (("num_steps", [sampling.num_steps]), ("also_reported", sampling.also_reported)):
            if any(number > 1 for number in steps):
                raise ConfigError(
                    f"sampling.{setting}: found {max(steps)} network evaluations for a sample, but "
                    "model.generator.times 'none' tells the network nothing of where it is; wanted one, or times=source"
                )


def check_objective(config: RunConfig, microbatch: int) -> None:
    """Everybody who learns or is asked is described, nobody else is, and the objective agrees."""
    objective, model = config.objective, config.model
    if objective.differentiates_forward and (reason := config.parallel.no_forward_derivative) is not None:
        instead = objective.without_forward_derivative
        raise ConfigError(
            f"objective.kind {objective.kind!r} takes derivatives in forward mode, but {reason}"
            f"{', or ' * bool(instead)}{instead}"
        )
    network = model.generator
    if objective.differentiates_forward and network is not None and network.no_forward_derivative is not None:
        raise ConfigError(
            f"objective.kind {objective.kind!r} takes derivatives in forward mode, but "
            f"{network.no_forward_derivative}; {objective.without_forward_derivative or 'choose another objective'}"
        )
    if not (config.data.has_images or objective.image_free):
        raise ConfigError(
            f"objective.kind {objective.kind!r} learns from images, and data of kind {config.data.kind!r} have none; "
            "choose other data, or objective.kind=twin_flow with objective.image_free=true"
        )
    for role in objective.roles:
        if getattr(model, role.value) is None or getattr(config.optimizer, role.value) is None:
            raise ConfigError(
                f"objective.kind {objective.kind!r} needs model.{role.value} and optimizer.{role.value}; describe both"
            )
    described = {name for name in ("generator", "discriminator", "classifier", "flow") if getattr(model, name)}
    idle = described.difference(role.value for role in objective.roles)
    if "discriminator" in idle and objective.prediction is not None:
        raise ConfigError(
            f"objective.kind {objective.kind!r} is a game of one, but the recipe has a discriminator; "
            "set model.discriminator=null"
        )
    objective.check(
        Described(
            model=model, shape=config.data.shape, num_classes=config.data.num_classes,
            global_batch=config.data.global_batch, microbatch=microbatch, steps=config.loop.steps,
            precision=config.parallel.precision,
        )
    )
    for guide in objective.guides:
        if guide not in described:
            raise ConfigError(f"objective.kind {objective.kind!r} asks a frozen {guide}; describe it: model.{guide}")
    idle = idle.difference(objective.guides)
    if idle and objective.prediction is None:
        settings = " ".join(f"model.{name}=null" for name in ("generator", "discriminator", "flow") if name in idle)
        raise ConfigError(f"objective.kind {objective.kind!r} trains a classifier alone; set {settings}")
    if idle:
        raise ConfigError(
            f"objective.kind {objective.kind!r} has no guidance that could ask it; set model.{min(idle)}=null"
        )
