"""Arithmetic and consistency of a recipe, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..core.errors import ConfigError
from ..flow.guidance import VelocityGuidance
from ..flow.times import AnyTimes
from ..models.discriminator import DiscriminatorConfig
from ..models.dit import BackboneConfig
from ..models.generator import GeneratorConfig
from ..objectives.afm import AFMConfig
from ..objectives.classification import ClassificationConfig
from ..objectives.flow_matching import FlowMatchingConfig
from ..parallel.precision import FP8_MULTIPLE, block_dtype
from .classifier_evaluation import ClassifierEvaluationConfig, ClassifierReport, check_samples
from .config import RunConfig


def check(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError, naming the settings, if the recipe cannot run on `world_size` ranks."""
    check_mesh(config, world_size)
    check_precision(config)
    check_deepspeed(config)
    check_batch(config, config.parallel.data_ranks(world_size))
    check_report(config)
    check_evaluation(config)
    if isinstance(config.objective, ClassificationConfig):
        return check_classification(config)
    if config.model.generator is None or config.optimizer.generator is None:
        raise ConfigError(
            f"objective.kind {config.objective.kind!r} needs model.generator and optimizer.generator; describe both"
        )
    if isinstance(config.objective, AFMConfig):
        check_adversarial(config, config.objective)
    else:
        check_flow_matching(config, config.objective)


def check_mesh(config: RunConfig, world_size: int) -> None:
    """ranks = replicas x shards."""
    replicas = config.parallel.fsdp2.replicas
    if config.parallel.plan == "fsdp2" and world_size % replicas:
        fitting = [number for number in range(1, world_size + 1) if world_size % number == 0]
        raise ConfigError(
            f"parallel.fsdp2.replicas {replicas} does not divide the {world_size} rank(s), which are to be "
            f"replicas of as many shards each; use {' or '.join(map(str, fitting))}, or a number of ranks that "
            f"{replicas} divides"
        )
    if config.parallel.plan == "megatron":
        check_tensor_parallelism(config, world_size)


def check_tensor_parallelism(config: RunConfig, world_size: int) -> None:
    """ranks = shares of the batch x `tensor`, which also divides every network's heads."""
    parts, model = config.parallel.megatron.tensor, config.model
    setting = f"parallel.megatron.tensor {parts}"
    if world_size % parts:
        fitting = [number for number in range(1, world_size + 1) if world_size % number == 0]
        raise ConfigError(
            f"{setting} does not divide the {world_size} rank(s), of which so many neighbours each are to share their "
            f"work; use {' or '.join(map(str, fitting))}, or a number of ranks that {parts} divides"
        )
    if config.parallel.precision == "fp8":
        raise ConfigError(
            "parallel.precision fp8 is not for parallel.plan 'megatron', whose layers multiply by themselves; set "
            "parallel.precision=bf16"
        )
    for name in ("generator", "discriminator", "classifier"):
        network = getattr(model, name)
        if network is not None and not isinstance(network, BackboneConfig):
            raise ConfigError(
                f"parallel.plan 'megatron' shares the work of blocks, but model.{name} of kind {network.kind!r} has "
                "none; set parallel.plan=ddp"
            )
        if network is not None and network.num_heads % parts:
            raise ConfigError(
                f"{setting} does not divide model.{name}.num_heads {network.num_heads}, of which every rank is to have "
                f"as many; use a number of heads that {parts} divides, or another parallel.megatron.tensor"
            )


def check_precision(config: RunConfig) -> None:
    """bf16 and fp8 are of blocks, which small networks have none of."""
    precision, model = config.parallel.precision, config.model
    if block_dtype(precision) is None:
        return
    for name in ("generator", "discriminator", "classifier"):
        network = getattr(model, name)
        if network is not None and not isinstance(network, BackboneConfig):
            raise ConfigError(
                f"parallel.precision {precision!r} lowers the blocks of a network, but model.{name} of kind "
                f"{network.kind!r} has none; set parallel.precision to fp32 or tf32"
            )
        if precision == "fp8" and network is not None and network.hidden_size % FP8_MULTIPLE:
            raise ConfigError(
                f"parallel.precision fp8 multiplies matrices of widths divisible by {FP8_MULTIPLE}, but "
                f"model.{name}.hidden_size is {network.hidden_size}; change it, or set parallel.precision=bf16"
            )


def check_deepspeed(config: RunConfig) -> None:
    """What ZeRO cannot do together with other settings; its own are checked where they are read."""
    parallel = config.parallel
    if parallel.plan != "deepspeed":
        return
    if parallel.precision == "fp64":
        raise ConfigError(
            "parallel.precision fp64 is not for parallel.plan 'deepspeed': ZeRO moves float32 copies of the weights; "
            "set parallel.precision=fp32, or parallel.plan=fsdp2"
        )
    if not parallel.hooks_in_blocks:
        return
    if parallel.recompute.kind == "selective":
        raise ConfigError(
            "parallel.recompute 'selective' keeps some results of a block by their order, but parallel.deepspeed.stage "
            "3 gathers weights inside of the block, in another order when it is computed again; set "
            "parallel.recompute=full, or parallel.deepspeed.stage=2"
        )
    for setting, wanted in (
        ("parallel.compile", parallel.compile), ("model.compile_guides", config.model.compile_guides)
    ):
        if wanted:
            raise ConfigError(
                f"{setting} is true, but parallel.deepspeed.stage 3 gathers weights by hooks inside of the blocks, "
                f"which cannot be compiled with them; set {setting}=false, or parallel.deepspeed.stage=2"
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


def check_report(config: RunConfig) -> None:
    """A classifier has an accuracy, a generator has samples."""
    of_classifier, report = isinstance(config.objective, ClassificationConfig), config.report
    if report is None:
        return
    if isinstance(report, ClassifierReport) is not of_classifier:
        wanted = "report={kind: classifier}" if of_classifier else "another kind"
        raise ConfigError(
            f"report.kind {report.kind!r} cannot measure what objective.kind {config.objective.kind!r} trains; "
            f"set {wanted}, or report=null"
        )
    if isinstance(report, ClassifierReport):
        check_samples(report, config.data, "report")


def check_evaluation(config: RunConfig) -> None:
    """Like the report's, the kind of evaluation has to fit what is trained."""
    of_classifier, chosen = isinstance(config.objective, ClassificationConfig), config.hooks.evaluation
    if chosen is None:
        return
    if isinstance(chosen, ClassifierEvaluationConfig) is not of_classifier:
        raise ConfigError(
            f"hooks.evaluation.kind {chosen.kind!r} cannot measure what objective.kind {config.objective.kind!r} "
            f"trains; set hooks.evaluation.kind={'classifier' if of_classifier else 'samples'}, or "
            "hooks.evaluation=null"
        )
    if isinstance(chosen, ClassifierEvaluationConfig):
        check_samples(chosen, config.data, "hooks.evaluation")


def check_adversarial(config: RunConfig, objective: AFMConfig) -> None:
    generator, discriminator = config.model.generator, config.model.discriminator
    if discriminator is None or config.optimizer.discriminator is None:
        raise ConfigError("objective.kind 'afm' needs model.discriminator and optimizer.discriminator; describe both")
    check_guides(config, objective)
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


def check_guides(config: RunConfig, objective: AFMConfig) -> None:
    """What guides must be there, and what is there must guide."""
    guidance, model = objective.guidance, config.model
    asks_flow = isinstance(guidance, VelocityGuidance)
    found = "null" if guidance is None else f"of kind {guidance.kind!r}"
    if asks_flow and model.flow is None:
        raise ConfigError(
            "objective.guidance of kind 'velocity' needs a flow model; set model.flow to the folder of a run of "
            "objective 'flow_matching' with class_dropout"
        )
    if guidance is not None and not asks_flow and model.classifier is None:
        raise ConfigError(f"objective.guidance {found} needs a classifier; describe it under model.classifier")
    if model.flow is not None and not asks_flow:
        raise ConfigError(
            f"model.flow is set, but nothing asks it: objective.guidance is {found}; set model.flow=null, or guide by "
            "objective.guidance.kind velocity"
        )
    if model.classifier is not None and (guidance is None or asks_flow):
        raise ConfigError(
            f"model.classifier is described, but nothing asks it: objective.guidance is {found}; set "
            "model.classifier=null, or guide by objective.guidance.kind flow or plain"
        )


def check_flow_matching(config: RunConfig, objective: FlowMatchingConfig) -> None:
    generator, model = config.model.generator, config.model
    if model.discriminator is not None:
        raise ConfigError(
            "objective.kind 'flow_matching' is a game of one, but the recipe has a discriminator; "
            "set model.discriminator=null"
        )
    if model.classifier is not None or model.flow is not None:
        name = "flow" if model.classifier is None else "classifier"
        raise ConfigError(f"objective.kind 'flow_matching' has no guidance that could ask it; set model.{name}=null")
    if isinstance(generator, GeneratorConfig) and generator.times == "none":
        raise ConfigError(
            "objective.kind 'flow_matching' needs a generator that is told the time; set model.generator.times=source"
        )
    knows_none = generator.null_class if isinstance(generator, GeneratorConfig) else generator.conditional
    if objective.class_dropout > 0 and not knows_none:
        setting = "null_class" if isinstance(generator, GeneratorConfig) else "conditional"
        raise ConfigError(
            f"objective.class_dropout {objective.class_dropout:g} hides the class of some samples, which the generator "
            f"cannot be told; set model.generator.{setting}=true"
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
    others = [name for name in ("generator", "discriminator", "flow") if getattr(config.model, name) is not None]
    if others:
        settings = " ".join(f"model.{name}=null" for name in others)
        raise ConfigError(f"objective.kind 'classification' trains a classifier alone; set {settings}")
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
