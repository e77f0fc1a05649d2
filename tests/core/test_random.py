from __future__ import annotations

import math

import pytest
import torch

from afm_scale.core.random import KeyedDraws, Positions, permutation, philox, tensor_generator

NUM_SAMPLES = 4000


def draws(count: int = 6, *context: object, offset: int = 0, stride: int = 1) -> KeyedDraws:
    return KeyedDraws(*(context or (0, 3, "generator")), positions=Positions(offset, stride, count))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_known_answers(counter: str, key: str, expected: str) -> None:
    words = [torch.tensor([int(word, 16)]) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    assert [f"{word.item():08x}" for word in philox(words, (low, high))] == expected.split()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_sample_draws_the_same_numbers_whatever_ranks_and_microbatches(world_size: int, accumulation: int) -> None:
    whole = draws(24)
    expected = {"normal": whole.normal("noise", (2, 3)), "uniform": whole.uniform("time", 0.2, 0.7)}
    for rank in range(world_size):
        mine = Positions(rank, world_size, 24 // world_size)
        for micro in range(accumulation):
            part = KeyedDraws(0, 3, "generator", positions=mine.every(micro, accumulation))
            share = slice(rank + micro * world_size, None, world_size * accumulation)
            assert torch.equal(part.normal("noise", (2, 3)), expected["normal"][share])
            assert torch.equal(part.uniform("time", 0.2, 0.7), expected["uniform"][share])


def test_the_same_name_gives_the_same_numbers_again() -> None:
    one = draws()
    assert torch.equal(one.normal("noise", (5,)), one.normal("noise", (5,)))


def test_different_names_steps_roles_seeds_and_samples_are_uncorrelated() -> None:
    base = draws(NUM_SAMPLES).normal("noise", ())
    others = {
        "name": draws(NUM_SAMPLES).normal("other noise", ()),
        "step": draws(NUM_SAMPLES, 0, 4, "generator").normal("noise", ()),
        "role": draws(NUM_SAMPLES, 0, 3, "discriminator").normal("noise", ()),
        "seed": draws(NUM_SAMPLES, 1, 3, "generator").normal("noise", ()),
        "next sample": base.roll(1),
        "second value": draws(NUM_SAMPLES).normal("noise", (2,))[:, 1],
        "third value": draws(NUM_SAMPLES).normal("noise", (3,))[:, 2],
        "far sample": draws(NUM_SAMPLES, offset=1 << 33).normal("noise", ()),
    }
    for what, other in others.items():
        correlation = (base.double() * other.double()).mean() * math.sqrt(NUM_SAMPLES)  # N(0, 1) if independent
        assert abs(correlation) < 4, what


def test_normals_have_the_moments_and_the_tails_of_a_normal_distribution() -> None:
    values = draws(NUM_SAMPLES).normal("noise", (25,)).double().flatten()
    assert values.isfinite().all()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = values.pow(power).mean() - expected
        assert abs(error) < 4 * math.sqrt(variance / len(values)), f"moment {power}"
    share_beyond_two = (values.abs() > 2).double().mean().item()
    assert share_beyond_two == pytest.approx(0.0455, abs=4 * math.sqrt(0.0455 / len(values)))


def test_uniforms_fill_their_interval_evenly() -> None:
    values = draws(NUM_SAMPLES).uniform("time", -1, 3, (25,)).double().flatten()
    assert values.min() >= -1 and values.max() < 3
    counts = torch.histc(values, bins=20, min=-1, max=3)
    expected = len(values) / 20
    chi_squared = ((counts - expected).square() / expected).sum().item()
    assert chi_squared < 43.8  # 19 degrees of freedom, 0.1%


def test_draws_are_float32_of_the_shape_asked_for() -> None:
    assert draws(5).normal("noise", (3, 1, 7)).shape == (5, 3, 1, 7)
    assert draws(5).normal("noise", ()).shape == (5,)
    assert draws(5).uniform("time").shape == (5,)
    assert draws(5).normal("noise", (2,)).dtype == draws(5).uniform("time").dtype == torch.float32


@pytest.mark.parametrize(("offset", "stride", "count"), [(0, 1, 7), (2, 3, 5), (5, 6, 1), (1, 4, 0)])
def test_positions_below_a_limit_are_counted_as_by_hand(offset: int, stride: int, count: int) -> None:
    mine = [offset + stride * index for index in range(count)]
    for limit in range(40):
        below = Positions(offset, stride, count).below(limit)
        assert below == sum(position < limit for position in mine)
        assert all(position < limit for position in mine[:below])


@pytest.mark.parametrize("accumulation", [1, 2, 3, 5])
def test_microbatches_hold_every_position_of_a_rank_once(accumulation: int) -> None:
    mine = Positions(1, 3, 7)
    parts = [mine.every(start, accumulation) for start in range(accumulation)]
    held = [part.offset + part.stride * index for part in parts for index in range(part.count)]
    assert sorted(held) == [1, 4, 7, 10, 13, 16, 19]


def test_every_microbatch_knows_the_size_of_the_global_batch() -> None:
    assert {Positions(rank, 3, 8).every(micro, 4).total for rank in range(3) for micro in range(4)} == {24}


@pytest.mark.parametrize("num_items", [1, 2, 5, 1000])
def test_a_permutation_holds_every_item_once(num_items: int) -> None:
    assert torch.equal(permutation(num_items, 0, "epoch", 0).sort().values, torch.arange(num_items))


def test_a_permutation_depends_on_its_context_alone() -> None:
    assert torch.equal(permutation(1000, 0, "epoch", 1), permutation(1000, 0, "epoch", 1))
    fixed_points = (permutation(1000, 0, "epoch", 1) == permutation(1000, 0, "epoch", 2)).sum()
    assert fixed_points < 8  # Poisson(1) for independent permutations
    assert (permutation(1000, 0, "epoch", 1) == torch.arange(1000)).sum() < 8


def test_a_tensor_generator_repeats_itself_and_differs_between_names() -> None:
    first, again, other = (torch.rand(8, generator=tensor_generator(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
