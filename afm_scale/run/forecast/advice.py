"""What would make a recipe fit, or faster: other layouts of it, each checked by the same estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...core.errors import UserError
from ..config import RunConfig
from .planning import Cluster, Plan, plan_of

_LARGER = 4  # times the ranks, at most, that more of them are proposed


@dataclass(frozen=True, kw_only=True)
class Change:
    """Settings that say another layout of the same training; `ranks` if there are to be more."""

    settings: tuple[str, ...]
    why: str
    ranks: int | None = None

    def __add__(self, other: Change) -> Change:
        return Change(
            settings=(*self.settings, *other.settings), why=f"{self.why}; {other.why}", ranks=other.ranks or self.ranks,
        )


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A layout and what it comes to; `refused` says why there is none."""

    change: Change
    plan: Plan | None
    refused: str = ""

    @property
    def seconds(self) -> float:
        """The middle of the estimated range, over all phases the longest."""
        return max(phase.middle for phase in self.plan.phases)


Loads = Callable[[Sequence[str]], RunConfig]
"""The recipe with these settings over it; raises UserError."""


def that_fit(config: RunConfig, cluster: Cluster, loaded: Loads) -> Iterator[Checked]:
    """Changes that save memory, the least costly first, each alone; if none is enough, one upon the other until it is.

    Ends at the first one that fits. Those before it are given too, with what they come to.
    """
    known = list(_savings(config, cluster))
    for change in known:
        found = check_change(change, cluster, loaded)
        yield found
        if found.plan is not None and found.plan.fits:
            return
    together: Change | None = None
    for change in known:
        tried = change if together is None else together + change
        if together is None:
            together = tried
            continue
        found = check_change(tried, cluster, loaded)
        if found.plan is None:
            continue
        together = tried
        yield found
        if found.plan.fits:
            return


def that_are_faster(config: RunConfig, cluster: Cluster, plan: Plan, loaded: Loads) -> Iterator[Checked]:
    """Changes that use the room there is, with those of them that fit and are faster."""
    before = Checked(change=Change(settings=(), why="as it is"), plan=plan).seconds
    for change in _spendings(config, cluster):
        found = check_change(change, cluster, loaded)
        if found.plan is not None and found.plan.fits and found.seconds < before:
            yield found


def search(config: RunConfig, cluster: Cluster, loaded: Loads) -> list[Checked]:
    """Layouts that no other one beats in both memory and time, the fastest first."""
    found = [one for one in (check_change(change, cluster, loaded) for change in _layouts(config, cluster)) if one.plan]
    return sorted(
        (one for one in found if not any(_beats(other, one) for other in found)), key=lambda one: one.seconds
    )


def check_change(change: Change, cluster: Cluster, loaded: Loads) -> Checked:
    if change.ranks is not None:
        nodes = max(cluster.nodes, change.ranks // cluster.per_node)
        cluster = replace(cluster, ranks=change.ranks, nodes=nodes)
    try:
        return Checked(change=change, plan=plan_of(loaded(change.settings), cluster))
    except UserError as error:
        return Checked(change=change, plan=None, refused=str(error))


def _beats(one: Checked, other: Checked) -> bool:
    mine, theirs = (one.plan.needed, one.seconds), (other.plan.needed, other.seconds)
    return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def _savings(config: RunConfig, cluster: Cluster) -> Iterator[Change]:
    """From what costs nothing but traffic to what costs machines."""
    parallel, several = config.parallel, cluster.ranks > 1
    if parallel.plan == "ddp" and several:
        yield Change(settings=("parallel.plan=fsdp2",), why="optimizer, gradients and average are sharded")
    if parallel.plan == "fsdp2" and parallel.fsdp2.replicas > 1:
        yield Change(settings=("parallel.fsdp2.replicas=1",), why="shards over all ranks instead of a node's")
    if parallel.plan in ("ddp", "fsdp2") and several and parallel.fsdp2.policy != "full":
        yield Change(
            settings=("parallel.plan=fsdp2", "parallel.fsdp2.policy=full"), why="blocks are gathered for each use alone"
        )
    if parallel.plan == "deepspeed" and parallel.deepspeed.stage < 3 and several:
        yield Change(settings=("parallel.deepspeed.stage=3",), why="weights are sharded too")
    deep = getattr(config.model.generator, "repetitions", 1) > 1
    order = ["none", "selective", *(["per_repetition"] if deep else []), "full"]
    at = order.index(parallel.recompute.kind) if parallel.recompute.kind in order else 0
    for kind in order[at + 1:]:
        yield Change(settings=(f"parallel.recompute={kind}",), why="less is kept for the backward, and computed again")
    per_rank = config.data.global_batch // (config.loop.accumulation * parallel.data_ranks(cluster.ranks))
    for times in (2, 4):
        if per_rank % times == 0:
            yield Change(
                settings=(f"loop.accumulation={config.loop.accumulation * times}",),
                why=f"1/{times} of the samples at a time, for one more forward of the generator",
            )
    if parallel.precision in ("fp32", "tf32"):
        yield Change(settings=("parallel.precision=bf16",),
                     why="blocks in bf16: other arithmetic, see docs/parallel.md for what it needs")
    if parallel.plan != "megatron" and several and cluster.per_node % 2 == 0:
        yield Change(settings=("parallel.plan=megatron", "parallel.megatron.tensor=2"),
                     why="two ranks share every block's work")
    times = 2
    while times <= _LARGER:
        yield Change(settings=(), why=f"{times} times the GPUs", ranks=cluster.ranks * times)
        times *= 2


def _spendings(config: RunConfig, cluster: Cluster) -> Iterator[Change]:
    parallel = config.parallel
    if parallel.recompute.kind != "none":
        yield Change(settings=("parallel.recompute=none",), why="nothing is computed twice")
    if config.loop.accumulation > 1:
        yield Change(settings=("loop.accumulation=1",), why="all samples at once")
    if parallel.plan == "fsdp2":
        if parallel.fsdp2.policy == "full":
            yield Change(settings=("parallel.fsdp2.policy=zero2",), why="weights are gathered once in a turn")
        if cluster.nodes > 1 and parallel.fsdp2.replicas == 1:
            yield Change(settings=(f"parallel.fsdp2.replicas={cluster.nodes}",), why="gathered inside of nodes")
    if parallel.precision in ("fp32", "tf32"):
        yield Change(settings=("parallel.precision=bf16",),
                     why="blocks in bf16: other arithmetic, see docs/parallel.md for what it needs")


def _layouts(config: RunConfig, cluster: Cluster) -> Iterator[Change]:
    kinds = ["none", "selective", "full"]
    if getattr(config.model.generator, "repetitions", 1) > 1:
        kinds.insert(2, "per_repetition")
    plans = [("parallel.plan=ddp",)]
    if cluster.ranks > 1:
        plans += [("parallel.plan=fsdp2", f"parallel.fsdp2.policy={policy}") for policy in ("zero2", "full")]
        if cluster.nodes > 1:
            plans.append(("parallel.plan=fsdp2", f"parallel.fsdp2={{policy: full, replicas: {cluster.nodes}}}"))
        plans.append(("parallel.plan=megatron", "parallel.megatron.tensor=2"))
    for plan in plans:
        for kind in kinds:
            yield Change(settings=(*plan, f"parallel.recompute={kind}"), why=f"recompute {kind}")


