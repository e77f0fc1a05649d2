"""Replays recorded losses of alpha-Flow, MeanFlow and TwinFlow on a network that is a formula, in float64.

    F(x, t, r, y) = a0 x + a1 cos(2t) x + a2 sin(3r) tanh(x) + b[y] (1 + a3 t r) + a4 (t - r) x^2 + a5 sin(t) cos(x)

The last row of b is that of samples without a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.random import Positions
from ..core.types import NO_CLASS, PUBLISHED, Batch, Networks, Role, networks_of
from ..flow.mean_velocity import MixedVelocity
from ..flow.path import expand_times
from ..objectives.alpha_flow import AlphaFlow, AlphaFlowConfig
from ..objectives.curriculum import ConstantAlpha
from ..objectives.intervals import IntervalRegression
from ..objectives.mean_flow import MeanFlow, MeanFlowConfig
from ..objectives.twin_flow import TARGET, TwinFlow, TwinFlowConfig
from ..objectives.weighting import AdaptiveWeight, RobustWeight
from ..ops.average import average_

Errors = Iterator[tuple[str, float]]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Formula:
    """F; a [6], b [classes + 1, C]."""

    a: Tensor
    b: Tensor

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        t, r = expand_times(t, x), expand_times(r, x)
        label = self.b[y.masked_fill(y == NO_CLASS, len(self.b) - 1)][:, :, None, None]
        a = self.a
        return (
            a[0] * x + a[1] * torch.cos(2 * t) * x + a[2] * torch.sin(3 * r) * torch.tanh(x)
            + label * (1 + a[3] * t * r) + a[4] * (t - r) * x**2 + a[5] * torch.sin(t) * torch.cos(x)
        )

    def learning(self) -> Formula:
        return Formula(self.a.clone().requires_grad_(), self.b.clone().requires_grad_())


@dataclass(frozen=True)
class RecordedDraws:
    """`Draws` that return what a case recorded: of the whole batch, or of the last or first rows of it."""

    recorded: Mapping[str, Tensor]
    positions: Positions

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return self.recorded[name]

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        return self.recorded[name]


def errors_of(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Errors:
    """(kind of quantity, largest absolute error) for everything that the cases record."""
    for name, case in content["cases"].items():
        prefix = f"{name}."
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        yield from _CASES[case["kind"]](case, found)


def _alpha_flow(case: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Errors:
    """At alpha = 0 MeanFlow has to say the same."""
    draws = RecordedDraws({"source noise": tensors["noise"]}, Positions(0, 1, len(tensors["x"])))
    low, high = case["guidance_range"]
    common = {
        "times": lambda draws: (tensors["t"], tensors["r"]), "class_dropout": 0.0,
        "flow_matching_share": case["flow_matching_rows"] / len(tensors["x"]),
        "guidance": MixedVelocity(omega=case["omega"], kappa=case["kappa"], low=low, high=high),
        "weight": AdaptiveWeight(power=1.0, eps=case["adaptive_eps"], reduction="mean"),
    }
    config = AlphaFlowConfig(**common, alpha=ConstantAlpha(value=case["alpha"]), clamp=case["clamp"])
    yield from _regression(AlphaFlow(config, lambda value: value, _CPU), tensors, draws)
    if case["alpha"] == 0:
        yield from _regression(MeanFlow(MeanFlowConfig(**common), lambda value: value, _CPU), tensors, draws)


def _regression(objective: IntervalRegression, tensors: Mapping[str, Tensor], draws: RecordedDraws) -> Errors:
    network = Formula(tensors["a"], tensors["b"]).learning()
    found = objective.compared(_networks(network, {}), Batch(tensors["x"], tensors["y"]), draws, 0)
    for kind, ours, theirs in (
        ("velocity", found.velocity, "velocity"), ("target", found.target, "target"),
        ("prediction", found.prediction, "prediction"), ("weight", found.weight, "weight"),
        ("loss rows", found.loss, "loss"), ("loss rows", found.flow_matching, "trajectory_flow_matching"),
        ("loss rows", found.consistency, "trajectory_consistency"),
    ):
        yield kind, _error(ours, tensors[theirs])
    yield from _gradients(network, found.loss.mean(), tensors)


def _twin_flow(case: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Errors:
    count = len(tensors["x"])
    network, averages, decay = Formula(tensors["a"], tensors["b"]).learning(), {}, case["target_decay_of_this_update"]
    if decay is not None:
        average = Formula(tensors["ema_a"].clone(), tensors["ema_b"].clone())
        average_([average.a, average.b], [network.a.detach(), network.b.detach()], 1 - decay)
        yield "target average", _error(average.a, tensors["ema_a_after"])
        yield "target average", _error(average.b, tensors["ema_b_after"])
        averages[TARGET] = average
    robust = {"l2": None, "barron_reweighting": RobustWeight(scale=1e-3)}[case["loss"]["type"]]
    objective = TwinFlow(TwinFlowConfig(
        order=case["order"], guidance_weight=case["guidance_weight"], class_dropout=0.0, robust=robust,
        rectification_weight=case["rectification_weight"], **({"target": None} if decay is None else {}),
    ), lambda value: value, _CPU)
    draws = RecordedDraws({
        "noise of own samples": _at_the_end(tensors["draw.normal.0"], count), "source noise": tensors["draw.normal.1"],
        "noise of rectification": tensors["draw.normal.2"], "target time, far": tensors["draw.uniform.0"],
        "target time, near": tensors["draw.uniform.1"], "time": tensors["draw.uniform_time.0"],
        "time of rectification": tensors["draw.uniform_time.1"],
    }, Positions(0, 1, count))
    batch = Batch(tensors["x"], tensors["y"])
    nets = _networks(network, averages)
    found = objective.compared(nets, batch, draws)
    # What is recorded as the velocity is that before guidance.
    plain = TwinFlow(TwinFlowConfig(guidance_weight=0.0, class_dropout=0.0, target=None), lambda value: value, _CPU)
    yield "velocity", _error(plain.compared(nets, batch, draws).found.velocity, tensors["velocity"])
    for kind, ours, theirs in (
        ("sample", found.found.x, "x_t"), ("times", found.t, "t"), ("times", found.r, "target_time"),
        ("prediction", found.prediction, "prediction"), ("target", found.target, "target"),
        ("loss rows", found.loss, "loss_rows"), ("rectified target", found.rectified, "rectified_target"),
        ("loss rows", found.rectification, "rectification_rows"),
    ):
        yield kind, _error(ours, tensors[theirs])
    total = objective.loss(Role.GENERATOR, nets, batch, draws, 0).total
    yield "total", _error(total, tensors["total"])
    yield from _gradients(network, total, tensors)


def _networks(network: Formula, averages: Mapping[str, Formula]) -> Networks:
    return networks_of({Role.GENERATOR: network}, {PUBLISHED: network, **averages}, {})


def _gradients(network: Formula, total: Tensor, tensors: Mapping[str, Tensor]) -> Errors:
    for found, name in zip(torch.autograd.grad(total, (network.a, network.b)), ("a", "b"), strict=True):
        yield "gradients", _error(found, tensors[f"grad_{name}"])


def _at_the_end(rows: Tensor, count: int) -> Tensor:
    """Recorded for the last rows alone; the others draw nothing that is used."""
    return torch.cat((rows.new_full((count - len(rows), *rows.shape[1:]), torch.nan), rows))


def _error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"a recorded tensor of {list(theirs.shape)} where {list(ours.shape)} belongs")
    return (ours.double() - theirs.double()).abs().max().item()


_CASES = {"alpha_flow": _alpha_flow, "twinflow": _twin_flow}
