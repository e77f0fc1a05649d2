"""Prompts that were embedded and packed, given to a transformer of their pipeline."""

from __future__ import annotations

import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from afm_scale.commands.encode_prompts import EncodeRequest, encode_command
from afm_scale.core.conditions import Conditions
from afm_scale.core.errors import ConfigError, DataError
from afm_scale.data.description import PromptEncoder
from afm_scale.data.prompts import Prompts
from afm_scale.data.prompts_alone import PromptsConfig
from tests.models.large.classes import CLASSES, network, plain, samples
from tests.models.small_pipeline import as_diffusers_reads_it, small_pipeline

TEXTS = ["a thick seven, upright", "a seven, upright", "an eight, slanted to the right"]
TIMES = torch.tensor([0.25, 0.0, 1.0])
WIDTHS = {
    "qwen_image": {"joint_attention_dim": 64},
    "sd3": {"joint_attention_dim": 64, "pooled_projection_dim": 56}, "sana": {"caption_channels": 64},
    "flux": {"joint_attention_dim": 64, "pooled_projection_dim": 24}, "z_image": {"cap_feat_dim": 64},
}


def request(kind: str, folder: Path) -> EncodeRequest:
    (folder / "prompts.txt").write_text("\n".join(TEXTS) + "\n")
    return EncodeRequest(
        prompts=folder / "prompts.txt", out=folder / "out", pipeline=small_pipeline(kind), batch_size=3,
        precision="fp32", device="cpu",
    )


def of_diffusers(kind: str, pipeline) -> Conditions:
    """What the pipeline's own encode_prompt makes of the texts in one batch, and its mask if it has one."""
    if kind == "sana":
        told = signature(pipeline.__call__).parameters["complex_human_instruction"].default
        embeddings, mask, *_ = pipeline.encode_prompt(list(TEXTS), complex_human_instruction=told)
        return Conditions(embeddings, mask.bool(), embeddings.new_empty(3, 0))
    if kind == "qwen_image":
        embeddings, mask = pipeline.encode_prompt(list(TEXTS))
        return Conditions(embeddings, mask.bool(), embeddings.new_empty(3, 0))
    if kind == "z_image":
        found, _ = pipeline.encode_prompt(list(TEXTS))
        mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in found], batch_first=True)
        return Conditions(pad_sequence(found, batch_first=True), mask, found[0].new_empty(3, 0))
    found = pipeline.encode_prompt(list(TEXTS), *[None] * (2 if kind == "sd3" else 1))
    return Conditions(found[0], torch.ones(found[0].shape[:2], dtype=torch.bool), found[2 if kind == "sd3" else 1])


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_packed_prompts_give_the_velocity_that_the_pipelines_own_embeddings_give(kind, tmp_path) -> None:
    asked = request(kind, tmp_path)
    encode_command(asked)
    told = Prompts(asked.out).conditions(range(3)).rows(torch.arange(3))
    theirs = of_diffusers(kind, as_diffusers_reads_it(asked.pipeline))
    ours, (x, _) = network(kind, config=CLASSES[kind].settings | WIDTHS[kind]), samples(kind)
    wanted = CLASSES[kind].velocity(plain(kind, ours, **WIDTHS[kind]), x, TIMES, theirs)
    found = ours(x, TIMES, TIMES, told)
    if kind == "sana":  # of 300 tokens there, of the longest prompt's here: sums of another length round otherwise
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5) and told.shape.length < 30
    else:
        assert torch.equal(found, wanted)
    assert (ours(x, TIMES, TIMES, told.rows(torch.tensor([1, 2, 0]))) - found).abs().max() > 1e-3


def test_prompts_whose_padding_is_seen_are_of_the_pipelines_length_alone(tmp_path) -> None:
    asked = request("flux", tmp_path)
    with pytest.raises(ConfigError, match="--length 100 is less than the 512 tokens of every prompt .*leave --length"):
        encode_command(replace(asked, length=100))
    encode_command(replace(asked, length=512))
    assert Prompts(asked.out).content.encoder.padded == 512
    config = PromptsConfig(embeddings=asked.out, shape=(4, 8, 8), global_batch=2, length=600)
    with pytest.raises(DataError, match="padded to 512 tokens, all of .* data.length is 600; set data.length=512"):
        config.checked(Prompts(asked.out))


def test_what_embedded_older_prompts_keeps_its_sum() -> None:
    encoder = PromptEncoder(
        pipeline="QwenImagePipeline", text_encoder_sha256="a" * 64, tokenizer_sha256="b" * 64, template="{}",
        precision="bf16",
    )
    assert encoder.sha256() == "97e2fcf10007c84736d8c9a2e2c59c520a5d174c467c86a75913bf2d954283ea"
    assert replace(encoder, padded=512).sha256() != encoder.sha256()


def test_a_chat_template_that_the_description_could_not_say_is_refused_before_anything_is_embedded(tmp_path) -> None:
    pipeline = shutil.copytree(small_pipeline("z_image"), tmp_path / "pipeline")
    (pipeline / "tokenizer" / "chat_template.jinja").write_text("{{ 'a' * 5000 }}{{ messages[0].content }}")
    with pytest.raises(ConfigError, match="these prompts could not be described: .*template"):
        encode_command(replace(request("z_image", tmp_path), pipeline=pipeline))
    assert not (tmp_path / "out").exists()
