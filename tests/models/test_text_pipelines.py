"""The text sides of pipelines, tiny and with random weights, beside the pipelines of diffusers themselves."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch

from afm_scale.commands.encode_prompts import _sum_of
from afm_scale.core.errors import ConfigError
from afm_scale.models.text_pipelines import TextPipeline, read_text_pipeline
from tests.models.small_encoders import CLIP_WIDTH, WIDTH
from tests.models.small_pipeline import as_diffusers_reads_it, small_pipeline

PROMPTS = ["a seven, upright", "A thick seven, slanted to the right ", "", "seven " * 600]


def read(folder: Path) -> TextPipeline:
    return read_text_pipeline(folder, torch.device("cpu"), precision="fp32")


def test_sana_looks_at_prompts_with_its_instruction_and_at_none_without() -> None:
    pipeline, found = as_diffusers_reads_it(small_pipeline("sana")), read(small_pipeline("sana"))
    told = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    encoded = found.encode(PROMPTS)
    assert encoded.embeddings.shape == (4, 300, WIDTH) and encoded.pooled.shape == (4, 0)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            positive, mask, negative, no_mask = pipeline.encode_prompt([prompt or "a"], complex_human_instruction=told)
        wanted, looked_at = (positive, mask) if prompt else (negative, no_mask)  # what is guided away from has none
        torch.testing.assert_close(encoded.embeddings[row], wanted[0])  # in batches of another size
        assert torch.equal(encoded.mask[row], looked_at[0].bool())
    _counts_are_of_what_is_looked_at(found)


def test_z_image_looks_at_prompts_in_its_tokenizers_conversation() -> None:
    pipeline, found = as_diffusers_reads_it(small_pipeline("z_image")), read(small_pipeline("z_image"))
    encoded = found.encode(PROMPTS)
    with torch.no_grad():
        wanted, _ = pipeline.encode_prompt(list(PROMPTS))
    for row, tokens in enumerate(wanted):
        assert torch.equal(encoded.embeddings[row, : len(tokens)], tokens)
        assert int(encoded.mask[row].sum()) == len(tokens) and bool(encoded.mask[row, : len(tokens)].all())
    _counts_are_of_what_is_looked_at(found)


@pytest.mark.parametrize(("kind", "tokens", "pooled"), [
    ("sd3", 77 + 256, CLIP_WIDTH + 32), ("flux", 512, CLIP_WIDTH),
])
def test_of_several_text_encoders_all_tokens_are_seen_as_in_the_pipeline(kind: str, tokens: int, pooled: int) -> None:
    pipeline, found = as_diffusers_reads_it(small_pipeline(kind)), read(small_pipeline(kind))
    encoded = found.encode(PROMPTS)
    assert encoded.embeddings.shape == (4, tokens, WIDTH) and encoded.pooled.shape == (4, pooled)
    with torch.no_grad():
        told = pipeline.encode_prompt(list(PROMPTS), *[None] * (len(found.files) // 2 - 1))
    embeddings, vectors = (told[0], told[2]) if kind == "sd3" else told[:2]
    assert torch.equal(encoded.embeddings, embeddings) and torch.equal(encoded.pooled, vectors)
    assert encoded.embeddings[0].ne(encoded.embeddings[1]).any() and encoded.pooled[0].ne(encoded.pooled[1]).any()
    _counts_are_of_what_is_looked_at(found)


def test_each_text_encoder_is_part_of_what_embedded_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = small_pipeline("flux")
    assert [path.parent.name for path in read(folder).files] == ["text_encoder"] * 2 + ["text_encoder_2"] * 2
    other = shutil.copytree(folder, tmp_path / "other")
    before = _sum_of(read(other).files)
    assert before == _sum_of(read(folder).files)
    config = json.loads((other / "text_encoder_2" / "config.json").read_text())
    (other / "text_encoder_2" / "config.json").write_text(json.dumps(config | {"dropout_rate": 0.2}))
    assert _sum_of(read(other).files) != before
    shutil.rmtree(other / "text_encoder_2")
    with pytest.raises(ConfigError, match="text_encoder_2"):
        read(other)


def _counts_are_of_what_is_looked_at(found: TextPipeline) -> None:
    looked_at = found.encode(PROMPTS).mask.sum(1).tolist()
    counts = [found.count(prompt) for prompt in PROMPTS]
    assert [min(count, found.longest) for count in counts] == looked_at
    assert counts[-1] > found.longest and "{}" in found.template
