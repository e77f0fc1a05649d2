"""Megatron's folders: tensor-parallel shards are joined and cut as the plan cuts them, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from afm_scale.checkpoint.formats.deepspeed import DEEPSPEED
from afm_scale.checkpoint.formats.format import Lazy, Source, Told, Wanted
from afm_scale.checkpoint.formats.megatron import MEGATRON, cut_of
from afm_scale.checkpoint.formats.table import format_of
from afm_scale.checkpoint.formats.torch_file import TORCH
from afm_scale.core.errors import CheckpointError

from .trained import STEP, same, source, values, with_code

SHAPES = {
    "pos_embed": (1, 4, 8), "x_embedder.proj.weight": (8, 1, 1, 1), "blocks.0.attn.qkv.weight": (24, 8),
    "blocks.0.attn.qkv.bias": (24,), "blocks.0.attn.proj.weight": (8, 8), "blocks.0.attn.proj.bias": (8,),
    "blocks.0.mlp.fc1.weight": (32, 8), "blocks.0.mlp.fc1.bias": (32,), "blocks.0.mlp.fc2.weight": (8, 32),
    "blocks.0.mlp.fc2.bias": (8,), "final_layer.linear.bias": (3,),
}


def transformer() -> Source:
    """A block that ranks can share, trained."""
    torch.manual_seed(1)
    tensors = {f"{group}.{name}": torch.randn(shape) for group in ("average", "generator")
               for name, shape in SHAPES.items()}
    for name, shape in SHAPES.items():
        if name != "pos_embed":
            tensors[f"optimizer.generator.{name}.step"] = torch.tensor(float(STEP))
            tensors[f"optimizer.generator.{name}.exp_avg_sq"] = torch.rand(shape)
    return Source(Path("memory"), {name: Lazy.of(tensor) for name, tensor in tensors.items()}, source().about)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("trained", [transformer, source])
def test_what_is_written_is_read_again_in_every_bit(
    trained: Callable[[], Source], ranks: int, tmp_path: Path
) -> None:
    MEGATRON.write(trained(), tmp_path / "out", Wanted(ranks=ranks))
    assert format_of("auto", tmp_path / "out") is MEGATRON
    with MEGATRON.source(tmp_path / "out", Told()) as found:
        assert same(values(found), values(trained()))
        assert (found.about.step, found.about.scalars) == (STEP, source().about.scalars)


def test_its_files_are_megatrons(tmp_path: Path) -> None:
    MEGATRON.write(transformer(), tmp_path / "out", Wanted(ranks=2))
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == str(STEP)
    file = tmp_path / "out" / f"iter_{STEP:07d}" / "mp_rank_01" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    assert content["args"].tensor_model_parallel_size == 2 and content["iteration"] == STEP
    whole = values(transformer())
    query, key, value = whole["generator.blocks.0.attn.qkv.weight"].chunk(3)
    assert content["model"]["blocks.0.attn.qkv.weight"].equal(torch.cat([query[4:], key[4:], value[4:]]))
    assert content["model"]["blocks.0.mlp.fc2.weight"].equal(whole["generator.blocks.0.mlp.fc2.weight"][:, 16:])
    weights = [torch.nn.Parameter(content["model"][name].clone()) for name in SHAPES if name != "pos_embed"]
    optimizer = torch.optim.AdamW(weights)
    optimizer.load_state_dict(content["optimizer"])
    moment = whole["optimizer.generator.blocks.0.attn.proj.weight.exp_avg_sq"]
    assert optimizer.state[weights[3]]["exp_avg_sq"].equal(moment[:, 4:])


@pytest.mark.filterwarnings("ignore")  # importing megatron-core says much
@pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")
def test_the_plan_cuts_weights_alike() -> None:
    from afm_scale.parallel.megatron import Slice

    for name, tensor in values(transformer()).items():
        cut = cut_of(name.removeprefix("generator."))
        if name.startswith("generator.") and cut is not None:
            one = transformer().with_tensors({name: Lazy.of(tensor)})
            parts = [Slice(*cut).part(tensor, rank, 2) for rank in range(2)]
            assert Slice(*cut).join(parts).equal(tensor) and one.read(name).equal(tensor)


@pytest.mark.parametrize("trained", [transformer, source])
def test_a_chain_of_conversions_changes_no_bit(trained: Callable[[], Source], tmp_path: Path) -> None:
    """One file -> ZeRO-3 of two ranks -> one file -> two shares -> ZeRO-1 of three ranks -> one file."""
    chain = ((TORCH, Wanted()), (DEEPSPEED, Wanted(ranks=2, stage=3)), (TORCH, Wanted()), (MEGATRON, Wanted(ranks=2)),
             (DEEPSPEED, Wanted(ranks=3, stage=1)), (MEGATRON, Wanted(ranks=4)), (DEEPSPEED, Wanted(stage=0)),
             (TORCH, Wanted()))
    at = trained()
    for i, (kind, wanted) in enumerate(chain):
        kind.write(at, tmp_path / str(i), wanted)
        at.close()
        at = kind.source(tmp_path / str(i), Told())
    assert same(values(at), values(trained()))
    assert at.about.scalars == trained().about.scalars
    at.close()


BAD = {
    "a rank is missing": (lambda file: file.parent.rename(file.parents[2] / "away"), "mp_rank_01 is missing"),
    "a file is missing": (lambda file: file.unlink(), "cannot be read"),
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:-200]), "is no file of torch's"),
    "code in it": (lambda file: with_code(file, file.parents[3] / "ran"), "Nothing in it was run"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_among_them_is_one_message_and_runs_nothing(case: str, tmp_path: Path) -> None:
    damage, told = BAD[case]
    MEGATRON.write(transformer(), tmp_path / "out", Wanted(ranks=4))
    damage(tmp_path / "out" / f"iter_{STEP:07d}" / "mp_rank_01" / "model_optim_rng.pt")
    with pytest.raises(CheckpointError, match=told):
        MEGATRON.source(tmp_path / "out", Told())
    assert not (tmp_path / "ran").exists()


def test_the_last_rank_missing_and_a_number_that_does_not_divide_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape("which 3 ranks cannot share equally")):
        MEGATRON.write(transformer(), tmp_path / "three", Wanted(ranks=3))
    assert not list(tmp_path.iterdir())
    MEGATRON.write(transformer(), tmp_path / "out", Wanted(ranks=2))
    last = tmp_path / "out" / f"iter_{STEP:07d}" / "mp_rank_01"
    last.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="1 ranks are there, it was written by 2"):
        MEGATRON.source(tmp_path / "out", Told())
