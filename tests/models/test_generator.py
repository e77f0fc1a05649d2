from __future__ import annotations

from typing import Literal

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import build
from afm_scale.core.types import NO_CLASS
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, at_start, awake, inputs

Told = Literal["none", "source", "both"]


def generator(times: Told, repetitions: int = 1) -> DiTGenerator:
    return DiTGenerator(GeneratorConfig(**SIZE, times=times, repetitions=repetitions), SHAPE, NUM_CLASSES)


def by_hand(network: DiTGenerator, x: torch.Tensor, conditions: list[torch.Tensor], last: torch.Tensor) -> torch.Tensor:
    """The stack of blocks once for each condition, the hidden state carried, then the final layer."""
    tokens = network.x_embedder(x) + network.pos_embed
    for condition in conditions:
        for block in network.blocks:
            tokens = block(tokens, condition)
    return network.unpatchify(network.final_layer(tokens, last))


@pytest.mark.parametrize(("times", "repetitions"), [("none", 1), ("source", 1), ("both", 1), ("none", 2)])
def test_the_output_is_zero_at_the_start(times: Told, repetitions: int) -> None:
    output = at_start(generator(times, repetitions))(*inputs())
    assert output.shape == (4, *SHAPE)
    assert not output.any()


def test_a_one_step_generator_is_conditioned_on_the_class_alone() -> None:
    network, (x, s, t, y) = awake(generator("none")), inputs()
    label = network.y_embedder.embedding_table.weight[y]
    torch.testing.assert_close(network(x, s, t, y), by_hand(network, x, [label], label), rtol=1e-12, atol=1e-12)
    assert not hasattr(network, "t_embedder")


def test_a_k_step_generator_is_also_told_the_source_time() -> None:
    network, (x, s, t, y) = awake(generator("source")), inputs()
    condition = network.y_embedder(y) + network.t_embedder(s)
    torch.testing.assert_close(network(x, s, t, y), by_hand(network, x, [condition], condition), rtol=1e-12, atol=1e-12)
    assert not hasattr(network, "t_tgt_embedder")


def test_an_any_step_generator_is_told_both_times_by_embedders_of_their_own() -> None:
    network, (x, s, t, y) = awake(generator("both")), inputs()
    condition = network.y_embedder(y) + network.t_embedder(s) + network.t_tgt_embedder(t)
    torch.testing.assert_close(network(x, s, t, y), by_hand(network, x, [condition], condition), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network.t_embedder(s), network.t_tgt_embedder(s))


@pytest.mark.parametrize(("repetitions", "times"), [(2, (1.0, 0.5)), (4, (1.0, 0.75, 0.5, 0.25))])
def test_a_deep_generator_runs_its_blocks_once_for_each_time_and_ends_on_the_class(
    repetitions: int, times: tuple[float, ...]
) -> None:
    network, (x, s, t, y) = awake(generator("none", repetitions)), inputs()
    label = network.y_embedder(y)
    conditions = [label + network.t_embedder(torch.full((4,), time)) for time in times]
    torch.testing.assert_close(network(x, s, t, y), by_hand(network, x, conditions, label), rtol=1e-11, atol=1e-11)


def test_a_deep_generator_has_the_parameters_of_a_k_step_one() -> None:
    sizes = [{name: p.shape for name, p in g.named_parameters()} for g in (generator("none", 4), generator("source"))]
    assert sizes[0] == sizes[1]


def test_a_sample_does_not_depend_on_the_others_in_its_batch() -> None:
    network, (x, s, t, y) = awake(generator("both")), inputs()
    alone = network(x[2:3], s[2:3], t[2:3], y[2:3])
    torch.testing.assert_close(network(x, s, t, y)[2:3], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("times", ["source", "both"])
def test_a_deep_generator_that_is_told_times_is_refused(times: Told) -> None:
    with pytest.raises(ConfigError, match=f"needs times 'none', found '{times}'"):
        generator(times, 2)


def test_less_than_one_repetition_is_refused() -> None:
    with pytest.raises(ConfigError, match="repetitions: found 0, wanted a whole number from 1"):
        build(GeneratorConfig, {**SIZE, "times": "none", "repetitions": 0})


def test_samples_without_a_class_have_the_last_row_of_the_label_table() -> None:
    config = GeneratorConfig(**SIZE, times="source", null_class=True)
    network, (x, s, t, y) = awake(DiTGenerator(config, SHAPE, NUM_CLASSES)), inputs()
    table = network.y_embedder.embedding_table.weight
    assert len(table) == NUM_CLASSES + 1
    untold = y.clone()
    untold[1::2] = NO_CLASS
    condition = table[torch.where(untold == NO_CLASS, NUM_CLASSES, y)] + network.t_embedder(s)
    expected = by_hand(network, x, [condition], condition)
    torch.testing.assert_close(network(x, s, t, untold), expected, rtol=1e-12, atol=1e-12)


def test_a_generator_without_a_null_class_refuses_samples_without_a_class() -> None:
    x, s, t, y = inputs()
    with pytest.raises(IndexError):
        awake(generator("source"))(x, s, t, torch.full_like(y, NO_CLASS))
