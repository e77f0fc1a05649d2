"""How near a learned 1-D map is to the optimal transport: numbers, and the picture of the paper's 1-D experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...core.errors import DivergenceError
from ...core.files import write_atomically
from ...core.ranges import Count
from ...data.source import SourceConfig
from ...data.toys.mixture1d import GaussianMixture, Mixture1DConfig
from ...parallel.agreement import from_rank_0
from ...sampling.sampler import trajectory
from ...sampling.subject import Subject
from ..measurement import Findings, OfGenerator, check_shape
from ..statistics import Array, wasserstein1

NUM_LINES = 20
_NUM_NOISES = 8192
_INK, _LINE, _MODE, _FLOW = "#1c2833", "#c0392b", "#7f8c8d", "#5d9bd3"


@dataclass(frozen=True, kw_only=True)
class MixtureQuality:
    """Measures of a map x(z) of noise to samples. Means are over N(0, 1), by its quantiles instead of random draws."""

    w1: float  # Wasserstein-1 distance of the samples to the exact distribution
    rms_to_transport_map: float  # root mean square of x(z) - T(z), T the exact optimal map
    transport_cost: float  # mean of (x(z) - z)^2
    optimal_cost: float  # mean of (T(z) - z)^2
    split: tuple[int, ...]  # how many of the 20 lines from linspace(-2, 2) go to each mode; optimal: 7, 3, 3, 7
    monotone: bool  # no two of the 20 lines change places


def line_noise() -> Tensor:
    """Where the 20 lines of the picture begin: [20] float64."""
    return torch.linspace(-2, 2, NUM_LINES, dtype=torch.float64)


def quantile_noise(count: int = _NUM_NOISES) -> Tensor:
    """N(0, 1) without chance: its quantiles at (i + 1/2) / count, in order, [count] float64."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def measure_map(transport: Callable[[Tensor], Tensor], mixture: GaussianMixture) -> MixtureQuality:
    """Measures `transport`, which maps noise [N] float64 on the CPU to samples [N] of any float dtype.

    It is called twice, on 8,192 and on 20 values. Raises DivergenceError if a sample is not finite.
    """
    noise, lines = quantile_noise(), line_noise()
    x, ends = (transport(z).detach().to("cpu", torch.float64) for z in (noise, lines))
    if not (torch.isfinite(x).all() and torch.isfinite(ends).all()):
        raise DivergenceError("the generated samples are not finite numbers: the training had diverged")
    optimal = mixture.transport_map(noise)  # at the quantiles of the noise these are the quantiles of the data
    counts = torch.bincount(mixture.nearest_mode(ends), minlength=len(mixture.modes))
    return MixtureQuality(
        w1=wasserstein1(x.numpy(), optimal.numpy()),
        rms_to_transport_map=float((x - optimal).square().mean().sqrt()),
        transport_cost=float((x - noise).square().mean()),
        optimal_cost=float((optimal - noise).square().mean()),
        split=tuple(counts.tolist()),
        monotone=bool((ends.diff() >= 0).all()),
    )


def spread_of_map(x: Tensor, mixture: GaussianMixture) -> tuple[float, float]:
    """(diversity, modes) of samples x [N] of the map's `quantile_noise(N)`: 1 and 1 for the data themselves.

    Diversity is the mean distance of two samples over that of two of the data; 0: all alike. `modes` is exp(entropy of
    the shares of samples that are nearest each mode) over the number of modes: how many are used, as a share.
    """
    data = mixture.transport_map(quantile_noise(len(x)))
    shares = torch.bincount(mixture.nearest_mode(x), minlength=len(mixture.modes)).double() / len(x)
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(_mean_distance(x) / _mean_distance(data)), float(entropy.exp() / len(mixture.modes))


def _mean_distance(x: Tensor) -> Tensor:
    """Over all pairs of different numbers of x [N]: the gap between the i-th and the next in order is in i (N - i)."""
    count = len(x)
    below = torch.arange(1, count, dtype=torch.float64, device=x.device)
    return (x.double().sort().values.diff() * below * (count - below)).sum() * 2 / (count * (count - 1))


def draw_flow(path: Path, *, times: Tensor, lines: Tensor, samples: Tensor, mixture: GaussianMixture) -> None:
    """Draws the paper's picture to a PNG: the density of the flow, and the lines, from noise (left) to data (right).

    Args:
        times: [K + 1], from 1 (noise) down to 0 (data): where the generator of K steps was.
        lines: [20, K + 1], the positions at these times of what started at `line_noise()`.
        samples: [N, K + 1], the positions of N(0, 1) noise. Between two times everything moves straight.
    """
    knots, paths, flow = (value.detach().to("cpu", torch.float64).numpy() for value in (times, lines, samples))
    reach = max(3.0, 1.1 * float(np.abs(paths).max()))
    edges = np.linspace(-reach, reach, 301)

    from matplotlib.figure import Figure  # here: takes seconds, and every rank of a run imports this module

    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    noise_side, middle, data_side = figure.subplots(1, 3, sharey=True, width_ratios=(1, 6, 1))
    middle.imshow(
        _density(knots, flow, edges).T, origin="lower", aspect="auto", extent=(1, 0, -reach, reach),
        cmap="Blues", interpolation="bilinear", vmin=0, vmax=1,
    )
    middle.plot(knots, paths.T, color=_LINE, linewidth=0.9)
    middle.scatter(np.full(len(paths), knots[0]), paths[:, 0], s=9, color=_LINE, zorder=3, clip_on=False)
    middle.scatter(np.full(len(paths), knots[-1]), paths[:, -1], s=9, color=_LINE, zorder=3, clip_on=False)
    for mode in mixture.modes:
        middle.axhline(mode, color=_MODE, linewidth=0.6, linestyle=(0, (4, 4)))
    middle.set(xlim=(1, 0), xlabel="time", ylim=(-reach, reach), xticks=[1, 0.75, 0.5, 0.25, 0])
    middle.set_title("density of the flow and 20 of its paths", fontsize=10, color=_INK)

    axis = torch.linspace(-reach, reach, 2001, dtype=torch.float64)
    noise_density, data_density = torch.exp(-(axis**2) / 2) / np.sqrt(2 * np.pi), mixture.density(axis)
    for side, knot, exact, name in ((noise_side, 0, noise_density, "noise"), (data_side, -1, data_density, "data")):
        side.hist(flow[:, knot], bins=edges.tolist(), density=True, orientation="horizontal", color=_FLOW)
        side.plot(exact.numpy(), axis.numpy(), color=_INK, linewidth=0.8)
        side.set_title(name, fontsize=10, color=_INK)
        side.set(xticks=[])
        side.tick_params(left=False)
        side.spines[["top", "right", "bottom", "left"]].set_visible(False)
    noise_side.invert_xaxis()
    data_side.set_xlim(0, 1.3 * float(data_density.max()))
    noise_side.set_ylabel("x")
    write_atomically(path, lambda file: figure.savefig(file, dpi=160, format="png"))


def _density(knots: Array, flow: Array, edges: Array, num_columns: int = 240) -> Array:
    """[num_columns, bins] in [0, 1]: histograms of the flow at even times from 1 to 0, each scaled to its own peak."""
    columns = []
    for time in np.linspace(1, 0, num_columns):
        right = int(np.clip(np.searchsorted(-knots, -time), 1, len(knots) - 1))
        share = (knots[right - 1] - time) / (knots[right - 1] - knots[right])
        position = flow[:, right - 1] + share * (flow[:, right] - flow[:, right - 1])
        counts, _ = np.histogram(position, bins=edges)
        columns.append(np.sqrt(counts / max(counts.max(), 1)))  # the root, so that the thin parts show
    return np.stack(columns)


def _path_of(subject: Subject, noise: Tensor) -> Tensor:
    """Where noise [N] goes, [N, steps + 1]: from the noise itself to the samples."""
    x = noise.to(subject.place.device, subject.dtype).view(-1, 1, 1, 1)
    labels = torch.zeros(len(x), dtype=torch.int64, device=subject.place.device)
    points = trajectory(subject.told, x, labels, num_steps=subject.num_steps, prediction=subject.prediction)
    return torch.stack([point.flatten() for point in points], dim=1)


@dataclass(frozen=True, kw_only=True)
class MixtureReport(OfGenerator):
    """Compares the map with the exact optimal transport and draws the paper's picture of the flow."""

    kind: Literal["mixture1d"] = "mixture1d"
    distribution: GaussianMixture = GaussianMixture()  # of the data

    def check(self, data: SourceConfig, setting: str) -> None:
        check_shape(data, Mixture1DConfig.shape, Mixture1DConfig.num_classes, setting, self.kind)

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        quality = measure_map(lambda noise: _path_of(subject, noise)[:, -1], self.distribution)
        lines, samples = _path_of(subject, line_noise()), _path_of(subject, quantile_noise())
        if subject.place.rank == 0:
            times = torch.linspace(1, 0, subject.num_steps + 1)
            draw_flow(picture, times=times, lines=lines, samples=samples, mixture=self.distribution)
        return asdict(quality)


@dataclass(frozen=True, kw_only=True)
class MixtureEvaluation(OfGenerator):
    """The same comparison while a generator trains, and how much of the data its samples cover."""

    kind: Literal["mixture1d"] = "mixture1d"
    every_steps: Count  # between two evaluations
    distribution: GaussianMixture = GaussianMixture()  # of the data

    def check(self, data: SourceConfig, setting: str) -> None:
        check_shape(data, Mixture1DConfig.shape, Mixture1DConfig.num_classes, setting, self.kind)

    def figures(self, subject: Subject) -> dict[str, float]:
        """Collective: w1 and the costs, diversity, modes, and whether the map is monotone (1 or 0)."""
        samples, lines = _path_of(subject, quantile_noise())[:, -1], _path_of(subject, line_noise())[:, -1]

        def measure() -> dict[str, float]:
            ends = {len(samples): samples, len(lines): lines}
            found = asdict(measure_map(lambda noise: ends[len(noise)], self.distribution))
            diversity, modes = spread_of_map(samples.cpu(), self.distribution)
            numbers = {name: float(value) for name, value in found.items() if name != "split"}
            return {**numbers, "diversity": diversity, "modes": modes}

        return from_rank_0(subject.place.rank, measure)
