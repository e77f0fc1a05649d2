from __future__ import annotations

import torch

from afm_scale.core.conditions import Conditions, Given
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


def table(rows: int) -> Conditions:
    """Row i is full of i, but for the last, the empty prompt, which is full of -1."""
    numbers = torch.cat((torch.arange(rows - 1), torch.tensor([-1]))).double()
    mask = torch.ones(rows, 2, dtype=torch.bool)
    return Conditions(numbers[:, None, None].expand(rows, 2, 3), mask, numbers[:, None].expand(rows, 1))


def asked(x: torch.Tensor, s: torch.Tensor, t: torch.Tensor, y: Conditions) -> torch.Tensor:
    assert y.embeddings.dtype == y.pooled.dtype == x.dtype and y.mask.dtype == torch.bool
    assert torch.equal(y.embeddings[:, 1, 2], y.pooled[:, 0])
    return y.pooled[:, 0]


def test_labels_of_any_part_of_a_batch_stand_for_rows_of_its_conditions_and_hidden_ones_for_the_empty_prompt() -> None:
    batch = Batch(torch.zeros(6, 1, 1, 1, dtype=torch.float32), torch.tensor([4, 2, 0, 1, 3, 2]), table(6))
    part = batch.every(1, 2)
    nets = networks_of({Role.GENERATOR: asked}, {PUBLISHED: asked, "target": asked}, {"flow": asked})
    told, t = nets.given(part.conditions), torch.zeros(3)
    hidden = without_class(part.y, torch.tensor([False, True, False]))
    for network in (told.generator, told.average, told.averages["target"], told.frozen["flow"]):
        assert network(part.x, t, t, part.y).tolist() == [2, 1, 2]
        assert network(part.x, t, t, hidden).tolist() == [2, -1, 2]
        assert network(part.x.double(), t, t, without_class(part.y)).tolist() == [-1, -1, -1]


def test_a_discriminator_is_told_conditions_where_its_labels_are_and_a_classifier_none() -> None:
    def discriminator(x, t, y, precise=False, order=None, share=1.0):
        return y.pooled[:, 0] + precise * 10

    guide = object()
    nets = networks_of(
        {Role.GENERATOR: asked, Role.DISCRIMINATOR: discriminator}, {PUBLISHED: asked}, {"classifier": guide},
    ).given(table(4))
    x, t = torch.zeros(2, 1, 1, 1), torch.zeros(2)
    assert nets.discriminator(x, t, torch.tensor([2, -1]), precise=True).tolist() == [12, 9]
    assert nets.classifier is guide and nets.frozen["classifier"] is guide


def test_where_there_are_no_conditions_networks_are_called_as_they_are() -> None:
    nets = networks_of({Role.GENERATOR: asked}, {PUBLISHED: asked}, {})
    assert nets.given(None) is nets and not isinstance(nets.generator, Given)
