"""Seconds of a step from its kernels, its collectives and a GPU's data sheet: a range, and never more than an estimate.

    kernel       max(operations / peak, bytes / bandwidth), each at a share of the data sheet
    collective   bytes (n - 1) / n over the slowest link between its n ranks; a sum of all ranks goes over it twice
    host         a time for each kernel, each of FSDP2's hooks and each kernel computed again, of a device that the host
                 waits for (a CPU); none for GPUs, which run behind it

The lower end hides collectives behind kernels, the higher end waits for every one of them. Where the figures are not a
data sheet's but rates that were reached, both ends are one: all of each rate, and waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .costs import Around, Cost
from .devices import Gpu


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is assumed at one end of the range, as shares of the data sheet."""

    products: float  # of the peak that matrix products and attention reach
    memory: float  # of the bandwidth
    links: float  # of a link's rate
    elementwise: float  # of the bytes of kernels without products that are moved: a compiler fuses some away
    hidden: bool  # whether collectives run behind kernels


def assumptions(*, compiled: bool, measured: bool = False) -> tuple[Assumptions, Assumptions]:
    """Of the lower and the higher end; `measured`: of a device whose figures are."""
    fused = 0.35 if compiled else 0.8
    if measured:
        reached = Assumptions(products=1, memory=1, links=1, elementwise=fused if compiled else 1, hidden=False)
        return reached, reached
    return (
        Assumptions(products=0.75, memory=0.9, links=0.85, elementwise=fused, hidden=True),
        Assumptions(products=0.4, memory=0.65, links=0.5, elementwise=min(1.0, 2 * fused), hidden=False),
    )


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A collective of one rank, `count` times."""

    kind: str
    count: int
    bytes: int  # of all
    ranks: int
    between_nodes: bool


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of one step, at one end."""

    products: float
    others: float
    collectives: float
    host: float
    total: float


def seconds_of(
    costs: Mapping[tuple[str, str], Counter[Cost]], sent: Sequence[Sent], gpu: Gpu, assumed: Assumptions, *, tf32: bool,
    around: Around,
) -> Seconds:
    """`tf32`: whether float32 products are rounded to it."""
    products = others = 0.0
    host = (around.hooks * gpu.hook + around.again * gpu.again) * 1e-6
    for kernels in costs.values():
        host += kernels.total() * gpu.host * 1e-6
        for cost, count in kernels.items():
            moved = cost.bytes / (gpu.bandwidth * 1e12 * assumed.memory)
            if cost.flops:
                peak = gpu.peak(_precision(cost.dtype, tf32)) * assumed.products
                products += count * max(cost.flops / peak, moved)
            else:
                others += count * moved * assumed.elementwise
    collectives = sum(_seconds(row, gpu, assumed) for row in sent)
    computed = products + others + host
    total = max(computed, collectives) if assumed.hidden else computed + collectives
    return Seconds(products=products, others=others, collectives=collectives, host=host, total=total)


def operations(costs: Mapping[tuple[str, str], Counter[Cost]]) -> dict[tuple[str, str], int]:
    """Of one rank, by mover and occasion."""
    return {where: sum(cost.flops * count for cost, count in kernels.items()) for where, kernels in costs.items()}


def by_link(sent: Iterable[Sent]) -> dict[tuple[str, str], int]:
    """Bytes by kind and link."""
    found: Counter[tuple[str, str]] = Counter()
    for row in sent:
        found[row.kind, "between nodes" if row.between_nodes else "inside a node"] += row.bytes
    return dict(found)


def _precision(dtype: torch.dtype, tf32: bool) -> str:
    return "bf16" if dtype.itemsize == 2 else "tf32" if tf32 else "fp32"


def _seconds(row: Sent, gpu: Gpu, assumed: Assumptions) -> float:
    if row.ranks < 2:
        return 0.0
    rate = (gpu.network if row.between_nodes else gpu.link) * 1e9 * assumed.links
    times = 2 if row.kind == "all-reduce" else 1
    return row.count * gpu.latency * 1e-6 + times * row.bytes * (row.ranks - 1) / row.ranks / rate
