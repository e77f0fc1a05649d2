"""Latents with prompts, and prompts alone: which belong to which, order across ranks, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.data.description import LatentContent
from afm_scale.data.prompts import Prompts
from afm_scale.data.prompts_alone import PromptsConfig
from afm_scale.data.table import build_source
from afm_scale.data.text_latents import TextLatentsConfig
from afm_scale.packing.verify import verify
from afm_scale.packing.writer import Packing
from tests.data.small import npy, packed_latents, packed_prompts

TEXTS = ["a dog", "a cat", "two dogs", "no dog at all"]
ROWS = [0, 1, 0, 2, 3, 0, 1, 1, 2, 3, 0, 2]  # which of them latent n has
BATCH = 8


def latents(folder: Path, said: list[str]) -> Path:
    """Sample n is full of n, without deviation."""
    content = LatentContent(shape=(1, 2, 2), vae="some", vae_sha256="0" * 64, scale=0.5, texts=True)
    packing = Packing(folder, {}, content)
    packing.begin()
    for shard in range(2):
        with packing.shard(shard) as writer:
            for number in range(shard * 6, min(shard * 6 + 6, len(said))):
                values = npy(np.stack([np.full((1, 2, 2), number), np.zeros((1, 2, 2))]).astype(np.float16))
                members = {"plain.npy": values, "mirrored.npy": values, "txt": said[number].encode()}
                writer.add(number, 0, members)
    packing.finish(2, ["images with texts"])
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TextLatentsConfig:
    root = tmp_path_factory.mktemp("text_latents")
    latents(root / "latents", [TEXTS[row] for row in ROWS])
    packed_prompts(root / "prompts", TEXTS, rows=ROWS, pooled=3, dtype="bfloat16")
    return TextLatentsConfig(global_batch=BATCH, folder=root / "latents", embeddings=root / "prompts")


def source(config, rank: int = 0, world_size: int = 1):
    return build_source(config, seed=5, rank=rank, world_size=world_size, device=torch.device("cpu"))


def same(found, wanted) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_every_latent_comes_with_the_prompt_of_its_own_text(config):
    assert list(verify(config.folder)) == []
    one, prompts, seen = source(config), Prompts(config.embeddings), []
    for batch in islice(one, 3):  # two epochs
        samples = (2 * batch.x[:, 0, 0, 0]).long().tolist()
        seen += samples
        assert batch.y.tolist() == [*range(BATCH)] and batch.conditions.embeddings.dtype == torch.bfloat16
        assert same(batch.conditions, prompts.conditions([ROWS[sample] for sample in samples]))
    assert sorted(seen) == sorted([*range(12)] * 2)
    one.close()


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_together_read_what_one_does_and_go_on_where_it_was(config, world_size):
    for chosen in (config, PromptsConfig(global_batch=BATCH, embeddings=config.embeddings, shape=(1, 2, 2))):
        whole = source(chosen)
        wanted = list(islice(whole, 6))
        ranks = [source(chosen, rank, world_size) for rank in range(world_size)]
        for one in ranks:
            one.load_state_dict({"consumed": 2 * BATCH})
        for rank, one in enumerate(ranks):
            for batch, part in zip(wanted[2:], one, strict=False):
                assert torch.equal(part.x.nan_to_num(7), batch.x[rank::world_size].nan_to_num(7))
                rows = torch.cat((batch.y[rank::world_size], torch.tensor([-1])))
                assert same(part.conditions, batch.conditions.rows(rows))
        for one in (whole, *ranks):
            one.close()


def test_prompts_alone_have_every_text_once_an_epoch_and_no_image(config):
    alone = PromptsConfig(global_batch=12, embeddings=config.embeddings, shape=(2, 3, 3))
    batch = next(iter(source(alone)))
    assert batch.x.shape == (12, 2, 3, 3) and batch.x.isnan().all() and batch.conditions.pooled.shape == (13, 3)
    table = Prompts(config.embeddings).conditions(range(4)).pooled
    rows = [int((table[:4] == pooled).all(1).nonzero()) for pooled in batch.conditions.pooled[:12]]
    assert sorted(rows) == sorted(ROWS) and torch.equal(batch.conditions.pooled[12], table[4])
    assert not alone.draws_latents and alone.encoding is None
    latent = replace(alone, vae="some", scale=2.0)
    assert latent.draws_latents and tuple(latent.encoding) == ("some", 2.0, 0.0)
    with pytest.raises(ConfigError, match="data.vae is 'some' and data.scale None"):
        replace(alone, vae="some")


def test_what_stands_with_both_folders_is_read(config):
    resolved = config.resolved()
    assert (resolved.shape, resolved.vae, resolved.scale) == ((1, 2, 2), "some", 0.5)
    assert (resolved.num_classes, *resolved.prompt_shape) == (4, 5, 4, 3)
    assert resolved.fingerprint().keys() == {"index", "classes", "prompts", "texts", "text_encoder"}
    assert not resolved.mirror and resolved.draws_latents


def test_latents_and_prompts_that_do_not_belong_together_are_refused(config, tmp_path):
    def refused(words: str, **change: Path) -> None:
        with pytest.raises(DataError, match=words):
            source(replace(config, **change))

    said = [TEXTS[row] for row in ROWS]
    latents(tmp_path / "fewer", said[:11])
    latents(tmp_path / "other", [*said[:11], "a cow"])
    latents(tmp_path / "order", [said[1], said[0], *said[2:]])
    packed_latents(tmp_path / "without")
    refused("holds 11 latents, .*prompts was made of 12 texts; make the prompts of these", folder=tmp_path / "fewer")
    for name in ("other", "order"):
        refused("are not those that .*prompts was made of, or are in another order", folder=tmp_path / name)
    refused("holds latents without texts; encode images that make_shards --texts", folder=tmp_path / "without")
    refused("holds prompts, this source reads latents", folder=config.embeddings)
    refused("holds latents, this source reads prompts", embeddings=config.folder)


def test_a_damaged_prompt_is_told_with_its_place(config, tmp_path):
    packed_prompts(tmp_path / "prompts", TEXTS, rows=ROWS, pooled=3)
    path = tmp_path / "prompts" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[520] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="shard-000000.tar, sample 000000000: the bytes are not those"):
        source(replace(config, embeddings=tmp_path / "prompts"))
