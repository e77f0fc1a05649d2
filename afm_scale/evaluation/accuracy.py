"""How often a time-conditioned classifier is right, by how much noise it looks through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import DivergenceError
from ..core.files import write_atomically
from ..core.random import KeyedDraws, Positions
from ..core.types import Batch, Classifier
from ..flow.path import interpolate

_INK, _LINE, _CHANCE = "#1c2833", "#c0392b", "#7f8c8d"


@dataclass(frozen=True, kw_only=True)
class AccuracyByTime:
    """Shares of the samples whose own class was the likeliest to the classifier."""

    num_samples: int
    clean: float  # at t = 0
    buckets: tuple[float, ...]  # of K: t uniform in [k / K, (k + 1) / K), each sample once in every one

    @property
    def overall(self) -> float:
        """t uniform in [0, 1), as the classifier is trained: the mean of the buckets."""
        return sum(self.buckets) / len(self.buckets)

    def figures(self) -> dict[str, float]:
        """The figures by name: accuracy, accuracy_t0, accuracy_t0.0-0.1, ..."""
        num_buckets = len(self.buckets)
        digits = next((places for places in (1, 2) if 10**places % num_buckets == 0), 3)
        edges = [f"{number / num_buckets:.{digits}f}" for number in range(num_buckets + 1)]
        named = {f"accuracy_t{edges[k]}-{edges[k + 1]}": share for k, share in enumerate(self.buckets)}
        return {"accuracy": self.overall, "accuracy_t0": self.clean, **named}


@torch.no_grad()
def accuracy_by_time(
    classifier: Classifier, batches: Iterable[tuple[Positions, Batch]], *, num_samples: int, num_buckets: int = 10,
    seed: int = 0, sum_over_ranks: Callable[[Tensor], Tensor] = lambda value: value,
) -> AccuracyByTime:
    """Shows the classifier every sample at t = 0 and once in every bucket of time.

    Time and noise are a function of (seed, number of the sample, number of the bucket) alone. So the result depends
    neither on the batches nor on the ranks, but for the rounding of the network where two classes are equally likely.

    Args:
        batches: the samples that fall to this rank and their numbers. Over all ranks the numbers below `num_samples`
            come once each; what has a higher one only fills a batch and is not counted. A sharded classifier wants
            equally many batches from every rank.
        sum_over_ranks: returns the sum of every rank's int64 tensor, on every rank.

    Raises DivergenceError if the logits are not finite.
    """
    counts: list[Tensor] = []
    for positions, batch in batches:
        counted = positions.below(num_samples)
        row = [batch.y.new_tensor(counted), batch.y.new_tensor(0)]
        for x_t, t in _at_all_times(batch, positions, num_buckets, seed):
            logits = classifier(x_t, t)[:counted]
            row[1] += (~torch.isfinite(logits)).sum()
            row.append((logits.argmax(dim=1) == batch.y[:counted]).sum())
        counts.append(torch.stack(row))
    total, not_finite, clean, *right = sum_over_ranks(torch.stack(counts).sum(0)).tolist()
    assert total == num_samples, f"{total} samples came, {num_samples} were meant to"
    if not_finite:
        raise DivergenceError("the classifier's logits are not finite numbers: the training had diverged")
    return AccuracyByTime(
        num_samples=num_samples, clean=clean / total, buckets=tuple(count / total for count in right)
    )


def _at_all_times(batch: Batch, positions: Positions, num_buckets: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x_t [B, C, H, W], t [B]) at t = 0, then in every bucket."""
    draws = KeyedDraws("accuracy by time", seed, positions=positions, device=batch.x.device)
    yield batch.x, torch.zeros(len(batch.y), device=batch.x.device)
    for bucket in range(num_buckets):
        t = draws.uniform(f"time {bucket}", bucket / num_buckets, (bucket + 1) / num_buckets)
        z = draws.normal(f"noise {bucket}", batch.x.shape[1:]).to(batch.x.dtype)
        yield interpolate(batch.x, z, t), t


def draw_accuracy(path: Path, found: AccuracyByTime, *, num_classes: int, title: str) -> None:
    """Draws the accuracy against the time to a PNG, with that of guessing."""
    from matplotlib.figure import Figure  # here: takes seconds, and every rank of a run imports this module

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    edges = [number / len(found.buckets) for number in range(len(found.buckets) + 1)]
    axes.stairs(found.buckets, edges, baseline=None, color=_LINE, linewidth=1.6, label="mean of a bucket")
    axes.plot([0], [found.clean], "o", color=_LINE, markersize=5, clip_on=False, label="clean, t = 0")
    axes.axhline(1 / num_classes, color=_CHANCE, linewidth=0.8, linestyle=(0, (4, 4)), label="guessing")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="time: 0 is data, 1 is noise", ylabel="accuracy")
    axes.set_title(title, fontsize=10, color=_INK)
    axes.legend(frameon=False, fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, dpi=160, format="png"))
