"""Arithmetic and consistency of a recipe, checked before anything is built."""

from __future__ import annotations

from ..core.batch_size import microbatch_size
from ..core.errors import ConfigError
from ..core.types import Role
from ..models.dit import BackboneConfig
from ..objectives.described import Described
from ..parallel.precision import FP8_MULTIPLE, block_dtype
from .config import RunConfig


def check(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError, naming the settings, if the recipe cannot run on `world_size` ranks."""
    check_mesh(config, world_size)
    check_precision(config)
    check_deepspeed(config)
    microbatch = microbatch_size(
        config.data.global_batch, config.parallel.data_ranks(world_size), config.loop.accumulation
    )
    check_measured(config)
    check_objective(config, microbatch)


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


def check_objective(config: RunConfig, microbatch: int) -> None:
    """Everybody who learns or is asked is described, nobody else is, and the objective agrees."""
    objective, model = config.objective, config.model
    if objective.differentiates_forward and (reason := config.parallel.no_forward_derivative) is not None:
        raise ConfigError(f"objective.kind {objective.kind!r} takes derivatives in forward mode, but {reason}")
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
            global_batch=config.data.global_batch, microbatch=microbatch,
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
