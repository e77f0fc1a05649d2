from __future__ import annotations

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import build
from afm_scale.data.toys.synthetic import SyntheticLatents, SyntheticLatentsConfig


def source(rank: int = 0, world_size: int = 1, **changes: object) -> SyntheticLatents:
    config = SyntheticLatentsConfig(**{"global_batch": 8} | changes)
    return SyntheticLatents(config, seed=0, rank=rank, world_size=world_size, device="cpu")


def test_latents_are_standard_normal_and_labels_evenly_likely() -> None:
    batch = next(iter(source(global_batch=8000, shape=(1, 2, 2), num_classes=3)))
    assert batch.x.shape == (8000, 1, 2, 2) and batch.x.dtype == torch.float32
    assert abs(batch.x.mean()) < 0.02 and abs(batch.x.std() - 1) < 0.02
    assert batch.y.dtype == torch.int64
    assert (torch.bincount(batch.y) / 8000 - 1 / 3).abs().max() < 0.02


def test_the_defaults_are_imagenet_latents() -> None:
    latents = source()
    batch = next(iter(latents))
    assert batch.x.shape[1:] == latents.shape == (4, 32, 32) and latents.num_classes == 1000
    assert batch.y.max() >= 10  # more than a few classes occur


def test_two_ranks_share_the_stream_of_one() -> None:
    one, parts = iter(source()), [iter(source(rank, 2)) for rank in range(2)]
    for _ in range(2):
        whole = next(one)
        for rank, part in enumerate(parts):
            batch = next(part)
            assert torch.equal(batch.x, whole.x[rank::2]) and torch.equal(batch.y, whole.y[rank::2])


@pytest.mark.parametrize("wrong", [{"shape": [4, 0, 32]}, {"num_classes": 0}])
def test_sizes_below_one_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="found 0, wanted a whole number from 1 to"):
        build(SyntheticLatentsConfig, {"global_batch": 4, **wrong})


TEXT = {"length": 3, "width": 4, "pooled": 2}


def test_with_prompts_every_sample_has_the_one_of_its_class_whatever_the_number_of_ranks() -> None:
    config = build(SyntheticLatentsConfig, {"global_batch": 8, "shape": [1, 2, 2], "num_classes": 5, "text": TEXT})
    assert config.prompt_shape == (3, 4, 2)
    prompts, labels = config.prompts(), next(iter(source(shape=(1, 2, 2), num_classes=5))).y
    assert prompts.shape == config.prompt_shape and len(prompts.mask) == 6
    assert prompts.mask.sum(1).tolist() == [1, 2, 3, 1, 2, 1] and not prompts.embeddings[~prompts.mask].any()
    for rank in range(2):
        batch = next(iter(SyntheticLatents(config, seed=0, rank=rank, world_size=2, device="cpu")))
        assert len(batch.conditions.mask) == len(batch) + 1  # the empty prompt comes last
        for found, wanted in zip(batch.conditions.rows(batch.y), prompts.rows(labels[rank::2]), strict=True):
            assert torch.equal(found, wanted)
        for found, wanted in zip(batch.conditions, prompts, strict=True):
            assert torch.equal(found[-1], wanted[-1])


def test_without_prompts_there_are_none() -> None:
    config = SyntheticLatentsConfig(global_batch=8)
    assert config.prompts() is None and config.prompt_shape is None and next(iter(source())).conditions is None
