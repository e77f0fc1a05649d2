"""The text sides of pipelines, tiny and with random weights, beside the pipelines of diffusers themselves."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, ZImagePipeline
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer, Qwen2Tokenizer, Qwen3Config, Qwen3Model

from afm_scale.models.text_pipelines import TextPipeline, read_text_pipeline
from tests.models.small_pipeline import small_pipeline

PROMPTS = ["a seven, upright", "A thick seven, slanted to the right ", "", "seven " * 600]
WIDTH = 16
_SMALL = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 4096,
}
CHAT = "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}<|im_start|>"


def sana(folder: Path) -> None:
    """Its tokens are characters: the instruction that it puts before prompts is of some thousand."""
    told = "".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = sorted(set(told + "".join(PROMPTS).lower() + "\n\u2581"))
    tokenizer = GemmaTokenizer(vocab={token: number for number, token in enumerate([*special, *letters])}, merges=[])
    torch.manual_seed(0)
    encoder = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), query_pre_attn_scalar=8, **_SMALL))
    SanaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=None, transformer=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)


def z_image(folder: Path) -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained(small_pipeline() / "tokenizer", local_files_only=True)
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    encoder = Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **_SMALL))
    ZImagePipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=None, transformer=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pipeline")
    request.param(made)
    return made


def read(folder: Path) -> TextPipeline:
    return read_text_pipeline(folder, torch.device("cpu"), precision="fp32")


def reference(folder: Path, kind: type) -> object:
    return kind.from_pretrained(folder, vae=None, transformer=None, local_files_only=True)


@pytest.mark.parametrize("folder", [sana], indirect=True)
def test_sana_looks_at_prompts_with_its_instruction_and_at_none_without(folder: Path) -> None:
    pipeline, found = reference(folder, SanaPipeline), read(folder)
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


@pytest.mark.parametrize("folder", [z_image], indirect=True)
def test_z_image_looks_at_prompts_in_its_tokenizers_conversation(folder: Path) -> None:
    pipeline, found = reference(folder, ZImagePipeline), read(folder)
    encoded = found.encode(PROMPTS)
    with torch.no_grad():
        wanted, _ = pipeline.encode_prompt(list(PROMPTS))
    for row, tokens in enumerate(wanted):
        assert torch.equal(encoded.embeddings[row, : len(tokens)], tokens)
        assert int(encoded.mask[row].sum()) == len(tokens) and bool(encoded.mask[row, : len(tokens)].all())
    _counts_are_of_what_is_looked_at(found)


def _counts_are_of_what_is_looked_at(found: TextPipeline) -> None:
    looked_at = found.encode(PROMPTS).mask.sum(1).tolist()
    counts = [found.count(prompt) for prompt in PROMPTS]
    assert [min(count, found.longest) for count in counts] == looked_at
    assert counts[-1] > found.longest and "{}" in found.template
