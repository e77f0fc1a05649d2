"""What a recipe will cost on so many GPUs: its steps, taken here without computing anything, and a GPU's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ...core.errors import ConfigError
from ...estimate.devices import Gpu
from ...estimate.memory import Moment
from ...estimate.roofline import Seconds, Sent, assumptions, by_link, operations, seconds_of
from ..config import RunConfig
from ..phases import configs_of_phases, phases_of
from .dry_run import DryRun, dry_run

SLACK = 1.06  # of what tensors hold: blocks of 512 bytes and up, and holes between them
OUTSIDE = 1.5e9  # bytes: the CUDA context with its kernels and, among several GPUs, NCCL's buffers

CALIBRATED = 0.15  # to either side of an estimate that one timed recipe has put right


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the recipe is to run."""

    ranks: int
    nodes: int
    gpu: Gpu

    def __post_init__(self) -> None:
        if self.ranks % self.nodes:
            raise ConfigError(
                f"--ranks {self.ranks} cannot be spread evenly over --nodes {self.nodes}; give a number of nodes that "
                f"divides {self.ranks}"
            )

    @property
    def per_node(self) -> int:
        return self.ranks // self.nodes


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """A phase of the recipe: what its step takes, and how many there are."""

    name: str
    steps: int | None  # None: it ends by what evaluations say
    run: DryRun
    sent: Sequence[Sent]
    low: Seconds
    high: Seconds

    @property
    def middle(self) -> float:
        """Seconds of a step, the geometric mean of both ends."""
        return (self.low.total * self.high.total) ** 0.5

    @property
    def peak(self) -> Moment:
        return self.run.memory.peak


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All phases. `factor`: measured to estimated seconds of a step that was timed; None: nothing was."""

    cluster: Cluster
    phases: Sequence[PhasePlan]
    compiled: bool
    notes: Sequence[str]
    factor: float | None = None

    @property
    def largest(self) -> PhasePlan:
        return max(self.phases, key=lambda phase: phase.peak.total)

    @property
    def needed(self) -> float:
        """Bytes of a GPU."""
        return self.largest.peak.total * SLACK + OUTSIDE

    @property
    def fits(self) -> bool:
        return self.needed <= self.cluster.gpu.memory * 1e9


def plan_of(config: RunConfig, cluster: Cluster, *, warm_up: int = 1) -> Plan:
    """Takes a step of each phase whose objective is another one. Raises ConfigError as training would."""
    compiled = config.parallel.compiles_on("cuda")
    phases = []
    for phase, during, steps in zip(phases_of(config), configs_of_phases(config), _steps(config), strict=True):
        during = replace(during, pilot=None)
        run = _taken(_Asked(repr(_of_a_step(during)), during), cluster.ranks, int(cluster.gpu.memory * 1e9), warm_up)
        sent = [
            Sent(kind=row.kind, count=row.count, bytes=row.bytes, ranks=len(ranks),
                 between_nodes=len({rank // cluster.per_node for rank in ranks}) > 1)
            for row, ranks in run.traffic
        ]
        low, high = (
            seconds_of(
                run.costs, sent, cluster.gpu, assumed, tf32=config.parallel.precision not in ("fp32", "fp64"),
                around=run.around,
            ) for assumed in assumptions(compiled=compiled, measured=cluster.gpu.measured)
        )
        phases.append(PhasePlan(name=phase.name, steps=steps, run=run, sent=sent, low=low, high=high))
    return Plan(cluster=cluster, phases=phases, compiled=compiled, notes=_notes(config, compiled))


@dataclass(frozen=True)
class _Asked:
    """A configuration, equal to those whose steps are alike."""

    key: str
    config: RunConfig = field(compare=False)


@lru_cache(maxsize=64)
def _taken(asked: _Asked, ranks: int, memory: int, warm_up: int) -> DryRun:
    """Phases and pieces of advice come back to layouts that have been looked at."""
    return dry_run(asked.config, ranks, memory=memory, warm_up=warm_up)


def _of_a_step(config: RunConfig) -> tuple[Any, ...]:
    """All that says what a step holds, computes and sends."""
    chosen = (config.optimizer.generator, config.optimizer.discriminator, config.optimizer.classifier)
    optimizers = [one and (one.betas, one.optimism) for one in chosen]
    return config.objective, config.model, config.parallel, config.data, config.loop.accumulation, optimizers


def _steps(config: RunConfig) -> list[int | None]:
    """Of each phase, as far as the recipe says."""
    found: list[int | None] = []
    left = config.loop.steps
    phases = phases_of(config)
    for number, phase in enumerate(phases):
        until, steps = phase.until, None
        if until.updates is not None:
            steps = until.updates
        if until.epochs is not None:
            of_epochs = round(until.epochs * config.pilot.images_per_epoch / config.data.global_batch)
            steps = of_epochs if steps is None else min(steps, of_epochs)
        if steps is None and number + 1 == len(phases):
            steps = left
        if steps is not None:
            steps = min(steps, left)
            left -= steps
        found.append(steps)
    return found


def _notes(config: RunConfig, compiled: bool) -> list[str]:
    """What the estimate leaves out or takes in another way, for this recipe."""
    notes = []
    if compiled:
        notes.append("memory is that of blocks as they are; compiled ones keep as much or less")
    if config.parallel.precision == "fp8":
        notes.append("precision fp8 is taken as bf16, in memory and in time")
    if config.data.kind == "images_to_latents":
        notes.append("the autoencoder that encodes images while training is left out")
    if config.parallel.plan == "deepspeed" and config.parallel.deepspeed.offload_optimizer is not None:
        notes.append("what is offloaded to the host is counted with the rest: take the kind 'optimizer' off")
    if config.hooks.samples is not None:
        notes.append("drawing samples and evaluating are left out")
    return notes


def measured_to_estimated(config: RunConfig, cluster: Cluster, ranks: int, seconds: float) -> float:
    """How many times the middle of its estimate a step took: of a recipe that was timed on so many ranks."""
    timed = replace(cluster, ranks=ranks, nodes=max(1, ranks // cluster.per_node) if ranks >= cluster.per_node else 1)
    return seconds / plan_of(config, timed).phases[0].middle


def calibrated(plan: Plan, factor: float) -> Plan:
    """The same with seconds around the middle of the estimate times a factor that was measured."""
    phases = [
        replace(
            phase, low=replace(phase.low, total=phase.middle * factor * (1 - CALIBRATED)),
            high=replace(phase.high, total=phase.middle * factor * (1 + CALIBRATED)),
        ) for phase in plan.phases
    ]
    return replace(plan, phases=phases, factor=factor)


def answer_of(plan: Plan, config: RunConfig, price: float | None) -> dict[str, Any]:
    """Plain JSON values."""
    cluster, phases = plan.cluster, []
    for phase in plan.phases:
        memory = phase.run.memory
        phases.append({
            "name": phase.name, "steps": phase.steps,
            "memory": {
                "rest": _moment(memory.rest), "peak": _moment(memory.peak), "turns": [*map(_moment, memory.turns)],
            },
            "operations": {f"{mover} {when}": found for (mover, when), found in operations(phase.run.costs).items()},
            "traffic": [
                {"turn": row.turn, "phase": row.phase, "network": row.network, "kind": row.kind, "count": row.count,
                 "bytes": row.bytes, "ranks": len(ranks)} for row, ranks in phase.run.traffic
            ],
            "links": {f"{kind} {link}": size for (kind, link), size in by_link(phase.sent).items()},
            "seconds_per_step": [phase.low.total, phase.high.total],
            "gpu_hours": _hours(phase, cluster), "cost": _money(_hours(phase, cluster), price),
        })
    return {
        "estimate": True, "ranks": cluster.ranks, "nodes": cluster.nodes, "gpu_memory_bytes": cluster.gpu.memory * 1e9,
        "needed_bytes": plan.needed, "fits": plan.fits, "slack": SLACK, "outside_bytes": OUTSIDE,
        "plan": dict(plan.largest.run.described), "notes": list(plan.notes), "phases": phases,
        "measured_to_estimated": plan.factor,
    }


def _hours(phase: PhasePlan, cluster: Cluster) -> list[float] | None:
    if phase.steps is None:
        return None
    return [phase.steps * seconds.total * cluster.ranks / 3600 for seconds in (phase.low, phase.high)]


def _money(hours: Sequence[float] | None, price: float | None) -> list[float] | None:
    return None if hours is None or price is None else [price * one for one in hours]


def _moment(moment: Moment) -> Mapping[str, Any]:
    parts = {f"{network} {kind}": size for (network, kind), size in sorted(moment.parts.items())}
    return {"mover": moment.mover, "when": moment.occasion, "bytes": moment.total, "parts": parts}
