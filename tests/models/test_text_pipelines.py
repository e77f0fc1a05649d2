"""The text sides of pipelines, tiny and with random weights, beside the pipelines of diffusers themselves."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from afm_scale.commands.encode_prompts import _sum_of
from afm_scale.core.errors import ConfigError
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


def clip(kind: type, seed: int) -> tuple[CLIPTokenizer, torch.nn.Module]:
    letters = sorted(set("".join(PROMPTS).lower()) - {" "})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    )
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=6, initializer_factor=5.0, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, kind(config)


def t5() -> tuple[T5Tokenizer, torch.nn.Module]:
    letters = sorted(set("".join(PROMPTS)) - {" "})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((one, -3.0) for one in letters)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    torch.manual_seed(2)
    config = T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return tokenizer, T5EncoderModel(config)


def sd3(folder: Path) -> None:
    (tokenizer, encoder), (tokenizer_2, encoder_2) = (clip(CLIPTextModelWithProjection, seed) for seed in (0, 1))
    tokenizer_3, encoder_3 = t5()
    StableDiffusion3Pipeline(
        transformer=None, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=encoder,
        tokenizer=tokenizer, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2, text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
    ).save_pretrained(folder)


def flux(folder: Path) -> None:
    (tokenizer, encoder), (tokenizer_2, encoder_2) = clip(CLIPTextModel, 0), t5()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=encoder, tokenizer=tokenizer,
        text_encoder_2=encoder_2, tokenizer_2=tokenizer_2, transformer=None,
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


@pytest.mark.parametrize(("folder", "kind", "tokens", "pooled"), [
    (sd3, StableDiffusion3Pipeline, 77 + 256, 12), (flux, FluxPipeline, 512, 8),
], indirect=["folder"])
def test_of_several_text_encoders_all_tokens_are_seen_as_in_the_pipeline(
    folder: Path, kind: type, tokens: int, pooled: int
) -> None:
    pipeline, found = reference(folder, kind), read(folder)
    encoded = found.encode(PROMPTS)
    assert encoded.embeddings.shape == (4, tokens, WIDTH) and encoded.pooled.shape == (4, pooled)
    with torch.no_grad():
        told = pipeline.encode_prompt(list(PROMPTS), *[None] * (len(found.files) // 2 - 1))
    embeddings, vectors = (told[0], told[2]) if kind is StableDiffusion3Pipeline else told[:2]
    assert torch.equal(encoded.embeddings, embeddings) and torch.equal(encoded.pooled, vectors)
    assert encoded.embeddings[0].ne(encoded.embeddings[1]).any() and encoded.pooled[0].ne(encoded.pooled[1]).any()
    _counts_are_of_what_is_looked_at(found)


@pytest.mark.parametrize("folder", [flux], indirect=True)
def test_each_text_encoder_is_part_of_what_embedded_and_a_missing_one_is_named(folder: Path, tmp_path: Path) -> None:
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
