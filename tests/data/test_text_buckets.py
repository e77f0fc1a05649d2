"""Buckets of latents with prompts: every batch is of one size with its own texts, and what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from afm_scale.checkpoint.manifest import newest_complete
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.errors import ConfigError, DataError
from afm_scale.data.description import LatentContent
from afm_scale.data.prompts import Prompts
from afm_scale.data.table import build_source
from afm_scale.data.text_buckets import Bucket, TextBucketsConfig
from afm_scale.packing.writer import Packing
from afm_scale.run.check import check_sizes
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.data.small import npy, packed_prompts
from tests.models.large.small import CLASS, SETTINGS
from tests.program import end, train_forked

TEXTS = ["a dog", "a cat", "two dogs", "no dog at all"]
SHAPES = {"square": (4, 4, 4), "wide": (4, 2, 8)}
COUNTS = {"square": 17, "wide": 9}
BATCH = 8


def rows_of(name: str) -> list[int]:
    return [(number * 7 + len(name)) % len(TEXTS) for number in range(COUNTS[name])]


def latents(folder: Path, name: str) -> Path:
    """Sample n is full of n, without deviation."""
    content = LatentContent(shape=SHAPES[name], vae="some", vae_sha256="0" * 64, scale=0.5, texts=True)
    packing = Packing(folder, {}, content)
    packing.begin()
    with packing.shard(0) as writer:
        for number, row in enumerate(rows_of(name)):
            values = npy(np.stack([np.full(SHAPES[name], number), np.zeros(SHAPES[name])]).astype(np.float16))
            writer.add(number, 0, {"plain.npy": values, "mirrored.npy": values, "txt": TEXTS[row].encode()})
    packing.finish(1, ["images with texts"])
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TextBucketsConfig:
    root = tmp_path_factory.mktemp("text_buckets")
    for name in SHAPES:
        latents(root / name, name)
        packed_prompts(root / f"{name}_prompts", TEXTS, rows=rows_of(name), width=12)
    return TextBucketsConfig(
        global_batch=BATCH, folder=root / "square", embeddings=root / "square_prompts",
        others=(Bucket(folder=root / "wide", embeddings=root / "wide_prompts"),),
    )


def source(config: TextBucketsConfig, rank: int = 0, world_size: int = 1):
    return build_source(config, seed=5, rank=rank, world_size=world_size, device=torch.device("cpu"))


def read(of: object, count: int) -> list[tuple[tuple[int, ...], list[int], torch.Tensor]]:
    """(shape, numbers of the latents, embeddings) of so many turns."""
    return [
        (tuple(batch.x.shape[1:]), (2 * batch.x.flatten(1)[:, 0]).long().tolist(),
         batch.conditions.rows(batch.y).embeddings)
        for batch in islice(of, count)
    ]


def test_every_batch_is_of_one_size_and_has_the_prompts_of_its_own_latents(config: TextBucketsConfig) -> None:
    assert config.resolved().shapes == tuple(SHAPES.values())
    one, seen = source(config), dict.fromkeys(SHAPES.values(), 0)
    prompts = {name: Prompts(part.embeddings) for name, part in zip(SHAPES, config.resolved().parts(), strict=True)}
    for shape, numbers, told in read(one, 15):
        name = next(name for name in SHAPES if SHAPES[name] == shape)
        rows = [rows_of(name)[number] for number in numbers]
        assert torch.equal(told, prompts[name].conditions(rows).embeddings[:-1])
        seen[shape] += 1
    assert min(seen.values()) >= 4
    one.close()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one_rank_and_a_stream_goes_on_where_it_was(
    config: TextBucketsConfig, world_size: int
) -> None:
    one = source(config)
    read(one, 5)
    whole, state = read(one, 8), {"consumed": 5 * BATCH}
    shares = []
    for rank in range(world_size):
        share = source(config, rank, world_size)
        share.load_state_dict(state)
        shares.append(read(share, 8))
        share.close()
    for (shape, numbers, _), parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert {part[0] for part in parts} == {shape}
        assert [number for row in zip(*(part[1] for part in parts), strict=True) for number in row] == numbers
    one.close()


def test_what_does_not_fit_the_packed_data_is_refused(config: TextBucketsConfig) -> None:
    (wide,) = config.others
    for others, error, wanted in [
        ((), ConfigError, "no other size"),
        ((replace(wide, folder=config.folder),), ConfigError, "twice"),
        ((replace(wide, shape=(4, 4, 8)),), DataError, r"\[4, 2, 8\].*data.others\[0\].shape is \[4, 4, 8\]"),
        ((replace(wide, embeddings=config.embeddings),), DataError, "9 latents.*17 texts"),
    ]:
        with pytest.raises(error, match=wanted):
            source(replace(config, others=others))
    with pytest.raises(ConfigError, match="wide has 9"):
        source(replace(config, global_batch=10))


def test_a_network_that_is_built_for_one_size_is_refused_data_of_several(config: TextBucketsConfig) -> None:
    run = load(RunConfig, "digits_flow_matching", [])
    with pytest.raises(ConfigError, match="one size.*'text_buckets'"):
        check_sizes(replace(run, data=config.resolved()))


def test_two_ranks_train_on_several_sizes_and_go_on_bit_for_bit(config: TextBucketsConfig, tmp_path: Path) -> None:
    (wide,) = config.others
    data = f"kind: text_buckets, global_batch: {BATCH}, folder: {config.folder}, embeddings: {config.embeddings}"
    recipe = (
        "digits_twin_flow", "report=null", "hooks.samples=null", "hooks.metrics.tensorboard=false",
        "objective.warm_up_steps=1", "average.decay=0", "optimizer.generator.learning_rate=1e-2",
        f"data={{{data}, others: [{{folder: {wide.folder}, embeddings: {wide.embeddings}}}]}}",
        f"model.generator={{kind: diffusers, class_name: {CLASS}, config: {json.dumps(SETTINGS)}}}",
    )
    for folder, steps in (("whole", (6,)), ("parts", (3, 6))):
        for until in steps:
            code, _, stderr = end(train_forked(recipe, tmp_path / folder, f"loop.steps={until}", ranks=2))
            assert code == 0, stderr
    whole, parts = (
        read_tensors(newest_complete(tmp_path / folder / "checkpoints")) for folder in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
