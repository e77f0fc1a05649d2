from __future__ import annotations

import torch

from afm_scale.core.random import Positions
from afm_scale.core.types import PUBLISHED, Batch, Role, networks_of, without_class


def test_microbatches_of_samples_are_in_step_with_microbatches_of_positions() -> None:
    mine = Positions(offset=2, stride=3, count=7)
    numbers = torch.arange(mine.count) * mine.stride + mine.offset  # each sample is its position
    batch = Batch(numbers.view(-1, 1, 1, 1).double(), numbers)
    for start in range(3):
        part, positions = batch.every(start, 3), mine.every(start, 3)
        expected = torch.arange(positions.count) * positions.stride + positions.offset
        assert torch.equal(part.y, expected)
        assert torch.equal(part.x.flatten(), expected.double())


def test_the_networks_of_a_game_are_found_by_their_names() -> None:
    generator, discriminator, average, target, guide = (object() for _ in range(5))
    nets = networks_of(
        {Role.GENERATOR: generator, Role.DISCRIMINATOR: discriminator}, {PUBLISHED: average, "target": target},
        {"classifier": guide},
    )
    assert (nets.generator, nets.discriminator, nets.average) == (generator, discriminator, average)
    assert nets.classifier is guide and nets.frozen["classifier"] is guide and nets.averages["target"] is target


def test_a_classifier_that_is_trained_is_no_guide() -> None:
    learns = object()
    nets = networks_of({Role.CLASSIFIER: learns}, {PUBLISHED: object()}, {})
    assert nets.classifier is learns and nets.generator is None and not nets.frozen


def test_a_class_is_hidden_where_it_is_said_or_everywhere() -> None:
    y = torch.tensor([2, 0, 1])
    assert without_class(y).tolist() == [-1, -1, -1]
    assert without_class(y, torch.tensor([True, False, True])).tolist() == [-1, 0, -1]
    assert y.tolist() == [2, 0, 1]
