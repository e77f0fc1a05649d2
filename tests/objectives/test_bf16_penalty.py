"""What rounding does to the finite differences of R1 and R2, on a discriminator that has learnt to tell digits apart.

With blocks in bf16 they would measure rounding errors; the precise call measures the gradient, to 2% and better.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afm_scale.core.random import KeyedDraws, Positions, tensor_generator
from afm_scale.core.types import Batch, Discriminator, Loss, Networks, Role
from afm_scale.data.source import DataSource
from afm_scale.data.table import build_source
from afm_scale.models.discriminator import DiTDiscriminator
from afm_scale.models.layers import Linear, initial_weights
from afm_scale.objectives.afm import AdversarialFlow, AFMConfig
from afm_scale.objectives.penalty import PenaltyConfig, judge
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.networks import build_networks
from tests.objectives.small import CPU

BATCH, STEPS, POINTS, SIZE = 32, 250, 8, 64
TOLERANCE = 0.02
SETTINGS = (
    f"data.global_batch={BATCH}", "model.discriminator.hidden_size=32", "model.discriminator.num_heads=2",
)
Weights = dict[str, Tensor]


def recipe(*overrides: str) -> RunConfig:
    return load(RunConfig, "digits_afm", (*SETTINGS, *overrides))


def network(weights: Weights | None = None, *overrides: str) -> DiTDiscriminator:
    discriminator = build_networks(recipe(*overrides))[Role.DISCRIMINATOR].to_empty(device="cpu")
    given = dict(initial_weights(discriminator, 0)) if weights is None else weights
    discriminator.load_state_dict(given)
    return discriminator


def lowered(weights: Weights, *overrides: str) -> DiTDiscriminator:
    discriminator = network(weights, *overrides).requires_grad_(False)
    discriminator.compute_blocks_in(torch.bfloat16)
    return discriminator


def digits() -> DataSource:
    return build_source(recipe().data, seed=0, rank=0, world_size=1, device=CPU)


@cache
def means() -> Tensor:
    """Of each class, [10, 1, 8, 8]."""
    batches = iter(digits())
    some = [next(batches) for _ in range(20)]
    x, y = torch.cat([batch.x for batch in some]), torch.cat([batch.y for batch in some])
    return torch.stack([x[y == label].mean(0) for label in range(10)])


def drawn(x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """In the place of a generator: the mean digit of the class, with some noise."""
    return means()[y] + 0.3 * x


def resolved(config: RunConfig) -> AFMConfig:
    return config.objective.resolved(config.parallel.precision)


def loss_of(config: RunConfig, discriminator: Discriminator, batch: Batch, step: int) -> Loss:
    objective = AdversarialFlow(resolved(config), lambda value: value, CPU)
    draws = KeyedDraws(0, step, "discriminator", positions=Positions(0, 1, BATCH))
    return objective.discriminator_loss(Networks(drawn, drawn, discriminator), batch, draws, step)


def trained(*overrides: str) -> Weights:
    """The weights of a discriminator after some hundred steps in float32."""
    discriminator, config, batches = network(None, *overrides), recipe(), iter(digits())
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    for step in range(STEPS):
        loss = loss_of(config, discriminator, next(batches), step)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.terms["logit_real"] - loss.terms["logit_fake"] > 0.1  # it tells them apart
    return discriminator.state_dict()


@pytest.fixture(scope="module")
def learnt() -> Weights:
    return trained()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return next(iter(digits()))


class Given:
    """`Draws` that give one noise."""

    def __init__(self, noise: Tensor) -> None:
        self.positions = Positions(0, 1, len(noise))
        self._noise = noise

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return self._noise


def ratios(
    discriminator: DiTDiscriminator, weights: Weights, batch: Batch, *overrides: str, precise: bool
) -> list[float]:
    """The mean square of the slopes at real and fake samples over the exact squared norm of the gradient, in float64.

    Along orthogonal directions of the length that noise has, whose mean square is that norm without any chance in it.
    """
    x, y, time = batch.x[:POINTS], batch.y[:POINTS], torch.zeros(POINTS)
    samples = (x, drawn(torch.randn(x.shape, generator=tensor_generator("fake")), time, time, y))
    square = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=tensor_generator("directions"))
    directions = SIZE**0.5 * torch.linalg.qr(square).Q.float().view(SIZE, 1, *x.shape[1:])
    noise = directions.expand(SIZE, POINTS, *x.shape[1:]).flatten(0, 1)
    many = [a.expand(SIZE, *a.shape).flatten(0, 1) for a in samples]
    config, t = PenaltyConfig(precise=precise, share=1.0), torch.zeros(len(noise))
    verdict = judge(config, discriminator, many, t, y.repeat(SIZE), Given(noise))
    exact, found = network(weights, *overrides).double(), []
    for at, slopes in zip(samples, (verdict.slope_real, verdict.slope_fake), strict=True):
        point = at.double().requires_grad_()
        (gradient,) = torch.autograd.grad(exact(point, time, y).sum(), point)
        found.append(float(slopes.double().square().mean() / gradient.flatten(1).square().sum(1).mean()))
    return found


def test_penalties_of_a_precise_call_are_the_squared_gradient(learnt: Weights, batch: Batch) -> None:
    assert ratios(lowered(learnt), learnt, batch, precise=True) == pytest.approx([1, 1], abs=TOLERANCE)


def test_they_are_for_weights_that_were_gathered_in_bf16_too(learnt: Weights, batch: Batch) -> None:
    gathered = {n: w.bfloat16().float() if n.startswith("blocks.") else w for n, w in learnt.items()}
    discriminator = lowered(gathered)
    for block in discriminator.blocks:
        block.to(torch.bfloat16)
    assert ratios(discriminator, gathered, batch, precise=True) == pytest.approx([1, 1], abs=TOLERANCE)


def in_tf32(x: Tensor) -> Tensor:
    """Rounded to 10 bits of mantissa, as a GPU does before it multiplies."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_they_are_with_products_of_the_blocks_in_tf32(
    learnt: Weights, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, layer, used = F.scaled_dot_product_attention, F.linear, []

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        used.append(x.dtype)
        return layer(in_tf32(x), in_tf32(weight), bias) if x.dtype == torch.float32 else layer(x, weight, bias)

    discriminator = lowered(learnt)
    plain = ratios(discriminator, learnt, batch, precise=True)
    for part in discriminator.blocks.modules():
        if isinstance(part, Linear):
            part.forward = lambda x, part=part: linear(x, part.weight.to(x.dtype), part.bias.to(x.dtype))
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: attention(*(
        in_tf32(given) if given.dtype == torch.float32 else given for given in qkv
    )))
    found = ratios(discriminator, learnt, batch, precise=True)
    assert found == pytest.approx([1, 1], abs=TOLERANCE)
    assert found != plain and set(used) == {torch.float32, torch.bfloat16}  # the rounding took place


def test_without_a_precise_call_rounding_would_be_most_of_the_penalty(learnt: Weights, batch: Batch) -> None:
    assert min(ratios(lowered(learnt), learnt, batch, precise=False)) > 1.3


def test_normalised_queries_and_keys_do_not_make_up_for_it(batch: Batch) -> None:
    normalised = "model.discriminator.qk_norm=true"
    weights = trained(normalised)
    discriminator = lowered(weights, normalised)
    assert min(ratios(discriminator, weights, batch, normalised, precise=False)) > 1.3
    assert ratios(discriminator, weights, batch, normalised, precise=True) == pytest.approx([1, 1], abs=TOLERANCE)


class Calls:
    """A discriminator that remembers how it was called: (samples, options)."""

    def __init__(self, discriminator: DiTDiscriminator) -> None:
        self.discriminator = discriminator
        self.found: list[tuple[int, dict[str, bool]]] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, **options: bool) -> Tensor:
        self.found.append((len(x), options))
        return self.discriminator(x, t, y, **options)


@pytest.mark.parametrize(("precision", "precise"), [
    ("fp32", None), ("tf32", None), ("fp64", None), ("bf16", None), ("fp8", None), ("bf16", False), ("fp32", True),
])
def test_there_is_a_precise_call_where_precision_is_reduced_unless_told_otherwise(
    learnt: Weights, batch: Batch, precision: str, precise: bool | None
) -> None:
    asked = "null" if precise is None else precise
    config = recipe(f"parallel.precision={precision}", f"objective.penalty.precise={asked}")
    calls = Calls(network(learnt))
    loss_of(config, calls, batch, 0)
    expected = [(5 * BATCH // 2, {})]
    if precision in ("bf16", "fp8") if precise is None else precise:
        expected = [(2 * 3 * BATCH // 4, {}), (BATCH, {"precise": True})]
    assert calls.found == expected


def test_in_float32_a_precise_call_changes_no_number(learnt: Weights, batch: Batch) -> None:
    one, two = (
        loss_of(recipe(f"objective.penalty.precise={precise}"), network(learnt), batch, 0).terms
        for precise in (False, True)
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-7)


def test_a_rank_without_samples_to_penalise_still_calls_d_precisely_and_back(learnt: Weights, batch: Batch) -> None:
    """As the others do, which gather D's weights with it."""
    calls = Calls(lowered(learnt).requires_grad_())
    config = resolved(recipe("parallel.precision=bf16", "objective.penalty.share=0.01"))
    objective = AdversarialFlow(config, lambda value: value, CPU)
    draws = KeyedDraws(0, 0, "discriminator", positions=Positions(1, 2, BATCH))  # the second of two ranks
    loss = objective.discriminator_loss(Networks(drawn, drawn, calls), batch, draws, 0)
    assert (loss.terms["r1"], loss.terms["r2"]) == (0, 0)
    assert calls.found[1] == (4, {"precise": True})
    passed = []
    for block in calls.discriminator.blocks:
        block.register_full_backward_hook(lambda module, into, out: passed.append(out[0].dtype))
    loss = objective.discriminator_loss(Networks(drawn, drawn, calls), batch, draws, 0)
    loss.total.backward()
    assert sorted(map(str, passed)) == ["torch.bfloat16"] * 2 + ["torch.float32"] * 2
