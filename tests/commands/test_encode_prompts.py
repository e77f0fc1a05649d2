"""tools/encode_prompts.py: what is stored, by how many ranks, where it goes on, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from afm_scale.commands.encode_prompts import EncodeRequest, encode_command
from afm_scale.core.errors import ConfigError, DataError, UserError
from afm_scale.data.description import read_description
from afm_scale.data.prompts import Prompts
from afm_scale.packing.verify import verify
from tests.data.small import packed_images
from tests.models.small_pipeline import as_diffusers_reads_it, small_pipeline
from tests.program import ForkedRanks, end

LINES = ["a seven, upright", "a thick seven, upright", "an eight {} <|im_end|>", "a seven, upright", "a zebra"]
DIFFERENT = [LINES[number] for number in (0, 1, 2, 4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> EncodeRequest:
    """Prompts embedded by one rank: two shards of two prompts, and one of the empty prompt."""
    root = tmp_path_factory.mktemp("made")
    (root / "prompts.txt").write_text("\n".join(LINES) + "\n")
    request = EncodeRequest(
        prompts=root / "prompts.txt", out=root / "out", pipeline=small_pipeline(), batch_size=2, per_shard=2,
        precision="fp32", device="cpu",
    )
    assert encode_command(request) == 0
    return request


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def copied(folder: Path) -> Path:
    shutil.copytree(small_pipeline(), folder)
    return folder


def test_what_is_stored_is_what_the_pipeline_itself_makes_of_the_prompts(made):
    pipeline, prompts = as_diffusers_reads_it(made.pipeline), Prompts(made.out)
    found = prompts.conditions(range(4))
    assert found.embeddings.shape == (5, prompts.shape.length, 64) and found.pooled.shape == (5, 0)
    for first, batch in ((0, DIFFERENT[:2]), (2, DIFFERENT[2:]), (4, [""])):
        with torch.no_grad():
            embeddings, mask = pipeline.encode_prompt(batch)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        for place in range(len(batch)):
            row, count = first + place, int(mask[place].sum())
            assert torch.equal(found.mask[row].nonzero().flatten(), torch.arange(count))
            assert torch.equal(found.embeddings[row, :count], embeddings[place, :count])
            assert not found.embeddings[row, count:].any()
    with torch.no_grad():
        alone, _ = pipeline.encode_prompt(DIFFERENT[0])  # not padded to the length of another
    assert torch.allclose(found.embeddings[0, :alone.shape[1]], alone[0], atol=1e-5)
    assert (found.embeddings[0] - found.embeddings[1]).abs().max() > 0.1


def test_each_prompt_is_embedded_once_and_every_text_says_which_it_is(made):
    prompts = Prompts(made.out)
    assert prompts.num_prompts == 4 and prompts.rows.tolist() == [0, 1, 2, 0, 3]
    assert list(prompts.texts()) == DIFFERENT
    assert read_description(made.out).class_counts == (4, 1)
    assert list(verify(made.out)) == []


def test_the_description_says_what_embedded_them(made, tmp_path):
    description = read_description(made.out)
    encoder = description.content.encoder
    assert encoder.pipeline == "QwenImagePipeline" and "{}" in encoder.template
    assert description.content.length == description.made["longest_prompt"]
    other = copied(tmp_path / "other")
    weights = other / "text_encoder" / "model.safetensors"
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    encode_command(replace(made, pipeline=other, out=tmp_path / "out"))
    changed = read_description(tmp_path / "out").content.encoder
    assert changed.text_encoder_sha256 != encoder.text_encoder_sha256 and changed.sha256() != encoder.sha256()
    assert changed.tokenizer_sha256 == encoder.tokenizer_sha256
    with pytest.raises(DataError, match="was packed with encoder .*, now it is"):
        encode_command(replace(made, pipeline=other))


def test_longer_prompts_are_cut_and_counted(made, tmp_path, capsys):
    encode_command(replace(made, length=9, out=tmp_path / "out"))
    whole, cut = Prompts(made.out).conditions(range(4)), Prompts(tmp_path / "out").conditions(range(4))
    longer = int((whole.mask.sum(1) > 9).sum())
    assert 0 < longer < 4 and read_description(tmp_path / "out").made["prompts_cut"] == longer
    assert f"{longer} of them are longer, and were cut to 9 tokens" in capsys.readouterr().out
    assert torch.equal(cut.embeddings, whole.embeddings[:, :9]) and torch.equal(cut.mask, whole.mask[:, :9])


def test_in_half_precision_the_encoders_own_numbers_are_kept(made, tmp_path):
    encode_command(replace(made, precision="bf16", out=tmp_path / "out"))
    half, single = (Prompts(folder).conditions(range(4)).embeddings for folder in (tmp_path / "out", made.out))
    assert half.dtype == torch.bfloat16 and (half.float() - single).abs().max() < 0.1 * single.abs().max()


def test_what_was_cut_short_goes_on_and_ends_with_the_same_bytes(made, tmp_path):
    out = tmp_path / "out"
    plain = json.loads((made.out / "dataset.json").read_text())
    in_the_way = out / ".packing" / "shard-000001.safetensors" / "another"  # the record of the second shard
    in_the_way.mkdir(parents=True)
    settings = {"content": plain["content"], "settings": plain["made"]}
    (out / ".packing" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="could not write .*shard-000001.safetensors"):
        encode_command(replace(made, out=out))
    written = (out / "shard-000000.tar").stat().st_mtime_ns
    shutil.rmtree(in_the_way.parent)
    for _ in range(2):  # goes on; finds that it is finished
        assert encode_command(replace(made, out=out)) == 0
        assert contents(out) == contents(made.out)
        assert (out / "shard-000000.tar").stat().st_mtime_ns == written


@pytest.mark.long
def test_two_ranks_write_the_same_bytes_as_one(made, tmp_path):
    words = ["encode_prompts", made.prompts, tmp_path / "out", "--pipeline", made.pipeline, "--batch-size", "2",
             "--per-shard", "2", "--precision", "fp32", "--device", "cpu"]
    code, stdout, stderr = end(ForkedRanks([str(word) for word in words], 2))
    assert code == 0, stderr
    assert stdout.count("4 different prompts of 5, and the empty one, embedded") == 1
    assert contents(tmp_path / "out") == contents(made.out)


def test_damaged_prompts_are_found_and_told(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    rows = load_file(out / "rows.safetensors")["row"]
    save_file({"row": rows.flip(0)}, out / "rows.safetensors")
    with pytest.raises(DataError, match="rows.safetensors is not the file that dataset.json describes"):
        Prompts(out).rows  # noqa: B018
    shard = bytearray((out / "shard-000001.tar").read_bytes())
    shard[2000] ^= 1
    (out / "shard-000001.tar").write_bytes(shard)
    assert {problem.file for problem in verify(out)} == {"rows.safetensors", "shard-000001.tar"}
    with pytest.raises(DataError, match="shard-000001.tar, sample 000000002: the bytes are not those"):
        Prompts(tmp_path / "out")


def _no_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def _another_class(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def _no_weights(folder: Path) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))


def _fewer_weights(folder: Path) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, weights, metadata={"format": "pt"})


def _index_of(name: str) -> Callable[[Path], object]:
    content = json.dumps({"weight_map": {"a": name}})
    return lambda folder: (folder / "text_encoder" / "model.safetensors.index.json").write_text(content)


def _weights_of_another_name(folder: Path) -> None:
    """As transformers reads them, `adapter_model.bin` by unpickling."""
    _settings(lambda settings: settings.update(transformers_weights="adapter_model.bin"))(folder)
    path = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(path), path.with_name("adapter_model.bin"))


def _settings(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / "text_encoder" / "config.json"
        change(settings := json.loads(path.read_text()))
        path.write_text(json.dumps(settings))

    return harm


def _adapters(folder: Path) -> None:
    base = shutil.copytree(folder / "text_encoder", folder.parent / "elsewhere")
    (folder / "text_encoder" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))


def _torn_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(("harm", "words"), [
    (lambda folder: shutil.rmtree(folder), "model_index.json cannot be read .*wanted the folder of a pipeline"),
    (_no_encoder, "text_encoder cannot be read .No such file"),
    (_another_class, "names the class 'StableDiffusionPipeline'; prompts are encoded by those of QwenImagePipeline"),
    (_no_weights, "model.safetensors is not there; weights are read from safetensors alone"),
    (_fewer_weights, "does not fit its config.json: 2 tensors are missing"),
    (_index_of("../../model.safetensors"), "names '../../model.safetensors', which is no safetensors file beside it"),
    (_index_of("pytorch_model.bin"), "names 'pytorch_model.bin', which is no safetensors file beside it"),
    (_weights_of_another_name, "config.json names weights by transformers_weights"),
    (_settings(lambda settings: settings.update(attn_implementation="someone/attention")),
     "config.json has attn_implementation: 'someone/attention'; wanted eager or sdpa"),
    (_settings(lambda settings: settings["text_config"].update(_attn_implementation={"": "someone/attention"})),
     "config.json has _attn_implementation: .*wanted eager or sdpa"),
    (_settings(lambda settings: settings.update(quantization_config={"quant_method": "torchao"})),
     "config.json says that weights are quantised; give them in fp32, bf16 or fp16"),
    (_adapters, "adapter_config.json is there; give weights that adapters are merged into"),
    (_torn_tokenizer, "cannot be read as a part of its pipeline"),
])
def test_a_pipeline_that_cannot_be_used_is_refused_with_the_reason(made, tmp_path, harm, words):
    harm(copied(tmp_path / "pipeline"))
    with pytest.raises(ConfigError, match=words):
        encode_command(replace(made, pipeline=tmp_path / "pipeline", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_prompts_that_cannot_be_used_are_refused_with_the_place(made, tmp_path):
    def refused(name: str, words: str, **change: object) -> None:
        with pytest.raises(UserError, match=words):
            encode_command(replace(made, prompts=tmp_path / name, out=tmp_path / "out", **change))

    (tmp_path / "blank.txt").write_text("a seven\n\nan eight\n")
    (tmp_path / "nothing.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("façade\n".encode("latin-1"))
    packed_images(tmp_path / "images")
    refused("blank.txt", "blank.txt, line 2 has no text")
    refused("nothing.txt", "there is no text; wanted prompts")
    refused("latin.txt", "is no text in UTF-8")
    refused("images", "holds images without texts; wanted a packed set with texts")
    refused("absent.txt", "absent.txt cannot be read: No such file")
    refused("blank.txt", "--column text is of a parquet file", column="text")
    with pytest.raises(ConfigError, match="--length 2000 is more than the 1024 tokens that a QwenImagePipeline looks"):
        encode_command(replace(made, length=2000, out=tmp_path / "out"))
    with pytest.raises(DataError, match="holds embedded prompts already"):
        encode_command(replace(made, prompts=made.out, out=tmp_path / "out"))
