"""Operations counted against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from afm_scale.core.types import Role
from afm_scale.estimate.flops import FlopCounter, count_turn
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.counting import demand_of, step_flops
from afm_scale.run.load import load


def turn_flops(networks: dict[Role, nn.Module], moving: Role, loss: Callable[[], torch.Tensor]) -> int:
    counter = FlopCounter()
    count_turn(counter, networks, (moving,), lambda role: loss())
    return counter.total


def test_a_linear_layer_costs_two_operations_a_weight_and_twice_that_backward() -> None:
    layer = nn.Linear(32, 48, bias=False, device="meta")
    inputs = torch.empty(5, 32, device="meta", requires_grad=True)
    product = 2 * 5 * 32 * 48
    networks = {Role.GENERATOR: layer}
    assert turn_flops(networks, Role.GENERATOR, lambda: layer(inputs).sum()) == 3 * product
    assert turn_flops(networks, Role.DISCRIMINATOR, lambda: layer(inputs).sum()) == 2 * product  # frozen


def test_a_convolution_costs_twice_as_much_backward_whatever_its_groups() -> None:
    for groups in (1, 4, 16):
        layer = nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False, device="meta")
        inputs = torch.empty(2, 16, 8, 8, device="meta", requires_grad=True)
        product = 2 * 2 * 8 * 8 * 3 * 3 * 16 * 16 // groups
        found = turn_flops({Role.GENERATOR: layer}, Role.GENERATOR, lambda: layer(inputs).sum())  # noqa: B023
        assert found == 3 * product


def test_attention_is_counted() -> None:
    batch, heads, tokens, channels = 2, 4, 64, 16
    q = torch.empty(batch, heads, tokens, channels, device="meta")
    with FlopCounter() as counter:
        F.scaled_dot_product_attention(q, q, q)
    assert counter.total == 2 * (2 * batch * heads * tokens * tokens * channels)


def test_a_gradient_taken_inside_the_loss_is_counted_too() -> None:
    layer = nn.Linear(8, 8, bias=False, device="meta")
    x = torch.empty(3, 8, device="meta", requires_grad=True)

    def loss() -> torch.Tensor:
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        return (layer(x) * gradient.detach()).sum()

    product = 2 * 3 * 8 * 8
    # forward and input gradient, forward, input and weight gradient
    assert turn_flops({Role.GENERATOR: layer}, Role.GENERATOR, loss) == 5 * product


def test_a_flow_matching_step_of_a_dit_is_three_times_its_matrix_products() -> None:
    config = load(RunConfig, "flow_matching_xl2")
    width, depth, tokens = 1152, 28, 256
    block = 12 * width * width  # weights for each token: qkv 3, projection 1, MLP 8
    attention = 2 * tokens * width  # products for each token: q k and its values
    forward = 2 * depth * tokens * (block + attention)
    counted = step_flops(config)
    assert 1.0 < counted / (3 * forward) < 1.01  # modulation, embedders and the head come on top


def test_repeated_blocks_cost_as_often_as_they_run() -> None:
    shrunk = [f"model.{player}.{size}" for player in ("generator", "discriminator")
              for size in ("depth=2", "hidden_size=64", "num_heads=2")]
    two, three, four = (
        step_flops(load(RunConfig, "afm_deep56", [*shrunk, f"model.generator.repetitions={number}"]))
        for number in (2, 3, 4)
    )
    assert 0 < three - two == four - three


def test_the_demand_is_all_turns_samples_over_the_seconds_of_a_step() -> None:
    config = load(RunConfig, "digits_afm")
    given = demand_of(config, "digits_afm", step_seconds=0.5, gpu="h100", utilisation=0.5)
    assert given.images_per_second == 2 * config.data.global_batch / 0.5
    estimated = demand_of(config, "digits_afm", step_seconds=None, gpu="h100", utilisation=0.5)
    flops = step_flops(config)
    assert abs(estimated.images_per_second / (2 * 989e12 * 0.5 / flops) - 1) < 1e-9
    assert "estimated" in estimated.how
