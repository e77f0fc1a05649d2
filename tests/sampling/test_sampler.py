from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.place import Place
from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.flow.path import Prediction
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.sampling.sampler import TILE, SampleStream, generate, generate_on_all, sample, trajectory
from tests.ranks import run_ranks

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")


def stream(**changes: object) -> SampleStream:
    values = {"seed": 4, "shape": SHAPE, "labels": tuple(range(3)), "num_steps": 2, "prediction": Prediction.V}
    return SampleStream(**{**values, **changes})


def network() -> nn.Module:
    config = GeneratorConfig(hidden_size=32, depth=2, num_heads=2, patch_size=2, times="both")
    module = DiTGenerator(config, SHAPE, 3)
    draw = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=draw) / 5)
    return module


class Counted:
    """A generator that notes how often it is called, and with how many samples."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.network = network()

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs[0]))
        return self.network(*inputs)


def images_of(start: int, count: int, rank: int = 0, world_size: int = 1) -> dict[int, Tensor]:
    tiles = generate(network(), stream(), start=start, count=count, place=Place(rank, world_size))
    return {int(index): image for tile in tiles for index, image in zip(tile.indices, tile.images, strict=True)}


def test_the_times_are_those_of_equal_steps_from_noise_to_data() -> None:
    seen = []

    def velocity(x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((s.tolist(), t.tolist()))
        return torch.ones_like(x)

    noise = torch.randn(2, *SHAPE)
    end = sample(velocity, noise, torch.zeros(2, dtype=torch.int64), num_steps=4, prediction=Prediction.V)
    assert seen == [([1.0] * 2, [0.75] * 2), ([0.75] * 2, [0.5] * 2), ([0.5] * 2, [0.25] * 2), ([0.25] * 2, [0.0] * 2)]
    torch.testing.assert_close(end, noise - 1)


def test_one_step_of_x_prediction_is_one_call() -> None:
    noise, labels, model = torch.randn(2, *SHAPE), torch.tensor([0, 2]), network()
    end = sample(model, noise, labels, num_steps=1, prediction=Prediction.X)
    assert torch.equal(end, model(noise, torch.ones(2), torch.zeros(2), labels))
    assert not end.requires_grad


def test_the_trajectory_begins_with_the_noise_and_ends_with_the_sample() -> None:
    noise, labels, model = torch.randn(2, *SHAPE), torch.tensor([0, 2]), network()
    points = list(trajectory(model, noise, labels, num_steps=3, prediction=Prediction.V))
    assert len(points) == 4
    assert torch.equal(points[0], noise)
    assert torch.equal(points[-1], sample(model, noise, labels, num_steps=3, prediction=Prediction.V))


def test_gradients_stay_enabled_between_the_points_of_a_trajectory() -> None:
    for _ in trajectory(network(), torch.randn(1, *SHAPE), torch.tensor([0]), num_steps=2, prediction=Prediction.V):
        assert torch.is_grad_enabled()


def test_an_image_is_that_of_its_own_noise_and_label() -> None:
    found = images_of(40, 1)[40]
    noise = KeyedDraws(4, "sample", positions=Positions(40, 1, 1)).normal("noise", SHAPE)
    expected = sample(network(), noise, torch.tensor([40 % 3]), num_steps=2, prediction=Prediction.V)
    torch.testing.assert_close(found, expected[0])


def test_labels_repeat_the_given_list() -> None:
    tiles = list(generate(
        network(), stream(labels=(2, 2, 1)), start=1, count=5, place=Place()
    ))
    assert [tile.labels.tolist() for tile in tiles] == [[2, 1, 2, 2, 1]]


def test_random_labels_are_those_of_seed_and_number_alone() -> None:
    drawn = stream(labels=(2, 5, 7), random_labels=True)
    labels = drawn.labels_of(torch.arange(3000))
    assert set(labels.tolist()) == {2, 5, 7}
    assert min(labels.bincount()[[2, 5, 7]].tolist()) > 900  # 1,000 each, with a deviation of 26
    assert torch.equal(drawn.labels_of(torch.arange(70, 90)), labels[70:90])
    assert len(drawn.labels_of(torch.arange(0))) == 0
    others = stream(labels=(2, 5, 7), random_labels=True, seed=5).labels_of(torch.arange(3000))
    assert not torch.equal(others, labels)


def test_what_decodes_is_given_whole_tiles_and_only_those_that_are_wanted() -> None:
    seen = []

    def decode(images: Tensor) -> Tensor:
        seen.append(len(images))
        return 2 * images

    for rank in range(2):
        tiles = list(generate(
            network(), stream(), start=30, count=40, place=Place(rank, 2), decode=decode
        ))
        every = images_of(30, 40)
        for tile in tiles:
            for index, image in zip(tile.indices.tolist(), tile.images, strict=True):
                assert torch.equal(image, 2 * every[index])
    assert seen == [TILE] * 3


@pytest.mark.parametrize(("start", "count"), [(0, 1), (7, 90), (31, 2), (32, 32), (99, 1)])
def test_an_image_has_the_same_bits_whatever_is_asked_for_beside_it(start: int, count: int) -> None:
    every = images_of(0, 100)
    found = images_of(start, count)
    assert sorted(found) == list(range(start, start + count))
    assert all(torch.equal(image, every[index]) for index, image in found.items())


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    assert images_of(5, 0) == {}


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_images_without_overlap_and_with_the_same_bits(world_size: int) -> None:
    every = images_of(10, 120)
    shares = [images_of(10, 120, rank, world_size) for rank in range(world_size)]
    assert sorted(index for share in shares for index in share) == sorted(every)
    assert all(torch.equal(image, every[index]) for share in shares for index, image in share.items())


def test_every_rank_calls_the_network_equally_often_with_full_tiles() -> None:
    for rank in range(3):
        counted = Counted()
        for _ in generate(counted, stream(), start=3, count=40, place=Place(rank, 3)):
            pass
        assert counted.sizes == [TILE] * 2  # two tiles for three ranks: one round of two steps


def test_ranks_that_share_a_network_draw_the_same_tiles_and_keep_different_ones() -> None:
    every, kept, sizes = images_of(10, 250), [], []
    for rank in range(4):
        counted = Counted()
        for tile in generate(
            counted, stream(), start=10, count=250, place=Place(rank, 4, group_size=2)
        ):
            kept += tile.indices.tolist()
        sizes.append(len(counted.sizes))
    assert sorted(kept) == sorted(every)
    assert sizes == [2 * 5] * 4  # nine tiles for two pairs: five rounds of two steps


def test_another_seed_gives_other_images() -> None:
    first, second = (stream(seed=seed).tile(network(), 0, CPU) for seed in (0, 1))
    assert not torch.allclose(first, second)


def _on_all(count: int) -> tuple[Tensor, Tensor]:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return generate_on_all(
        network(), stream(), start=5, count=count, place=Place(rank, world_size)
    )


def test_two_ranks_together_hold_the_images_of_one() -> None:
    alone, labels = generate_on_all(network(), stream(), start=5, count=70, place=Place())
    assert labels.tolist() == [index % 3 for index in range(5, 75)]
    for images, found_labels in run_ranks(2, _on_all, 70):
        assert torch.equal(images, alone)
        assert torch.equal(found_labels, labels)


def test_steps_may_be_unequal() -> None:
    seen = []

    def velocity(x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((s[0].item(), t[0].item()))
        return torch.ones_like(x)

    noise, labels = torch.randn(2, *SHAPE), torch.zeros(2, dtype=torch.int64)
    end = sample(velocity, noise, labels, num_steps=2, prediction=Prediction.V, between=(0.35,))
    assert seen == [(1.0, pytest.approx(0.35)), (pytest.approx(0.35), 0.0)]
    torch.testing.assert_close(end, noise - 1)


def test_with_fresh_noise_every_step_goes_to_the_data_and_back_to_its_time() -> None:
    noise, fresh, labels, model = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.tensor([0, 2]), network()
    asked = []

    def renoise(index: int) -> Tensor:
        asked.append(index)
        return fresh

    end = sample(
        model, noise, labels, num_steps=2, prediction=Prediction.V, between=(0.55,), renoise=renoise
    )
    one, at, zero = torch.ones(2), torch.full((2,), 0.55), torch.zeros(2)
    with torch.no_grad():
        data = noise - model(noise, one, zero, labels)
        x = (1 - 0.55) * data + 0.55 * fresh
        expected = x - 0.55 * model(x, at, zero, labels)
    torch.testing.assert_close(end, expected)
    assert asked == [0], "the last step ends at the data"


def test_fresh_noise_is_keyed_by_the_image_and_one_step_has_none() -> None:
    def images(**changes: object) -> Tensor:
        tiles = generate(network(), stream(**changes), start=0, count=40, place=Place(0, 1))
        return torch.cat([tile.images for tile in tiles])

    both = images(renoises=True)
    assert not torch.allclose(both, images()) and torch.equal(both, images(renoises=True))
    assert torch.equal(images(renoises=True, num_steps=1), images(num_steps=1))
    assert torch.equal(both[32:], stream(renoises=True).tile(network(), 1, CPU)[:8])
