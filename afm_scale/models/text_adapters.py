"""What pipelines of diffusers do with a prompt: which components that needs, and how their own code is called.

Another pipeline is a function like `_of_qwen_image` and a line in `PIPELINES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # folders; a pipeline with several has text_encoder_2 and so on


class Encoded(NamedTuple):
    """What a pipeline makes of prompts."""

    embeddings: Tensor  # [B, n, D]
    mask: Tensor  # [B, n] bool: tokens that its transformer looks at
    pooled: Tensor  # [B, P]; P is 0 where there is none


class Adapter(NamedTuple):
    """How a class of pipelines encodes."""

    encoders: Mapping[str, type]  # by folder, classes of transformers
    tokenizers: Mapping[str, type]
    template: Callable[[Any], str]  # of the pipeline; {} stands for the prompt
    longest: Callable[[Any], int]  # tokens of a prompt that the pipeline looks at, at most
    count: Callable[[Any, str], int]  # tokens that the pipeline would look at if it took any number
    encode: Callable[[Any, Sequence[str], torch.device], Encoded]
    all_seen: bool = False  # whether its transformer looks at what pads a prompt too


def _of_qwen_image() -> Adapter:
    def count(pipeline: Any, prompt: str) -> int:
        text = pipeline.prompt_template_encode.format(prompt)
        return len(pipeline.tokenizer(text).input_ids) - pipeline.prompt_template_encode_start_idx

    def encode(pipeline: Any, prompts: Sequence[str], device: torch.device) -> Encoded:
        embeddings, mask = pipeline.encode_prompt(
            list(prompts), device=device, max_sequence_length=pipeline.tokenizer_max_length
        )
        if mask is None:  # of prompts of one length
            mask = torch.ones(embeddings.shape[:2], device=embeddings.device)
        return Encoded(embeddings, mask.bool(), embeddings.new_empty(len(prompts), 0))

    return Adapter(
        {ENCODER: transformers.Qwen2_5_VLForConditionalGeneration}, {TOKENIZER: transformers.Qwen2Tokenizer},
        template=lambda pipeline: pipeline.prompt_template_encode,
        longest=lambda pipeline: pipeline.tokenizer_max_length, count=count, encode=encode,
    )


def _of_sana() -> Adapter:
    """Before a prompt stands the pipeline's own instruction, whose tokens are dropped but for the first; before the
    empty one nothing does, as before what the pipeline guides away from."""
    longest = 300

    def instruction(pipeline: Any) -> list[str]:
        return inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default

    @cache
    def dropped(pipeline: Any) -> int:
        """How many tokens of the instruction the pipeline drops: all but two."""
        return len(pipeline.tokenizer("\n".join(instruction(pipeline))).input_ids) - 2

    def count(pipeline: Any, prompt: str) -> int:
        text, before = prompt.lower().strip(), "\n".join(instruction(pipeline)) if prompt else ""
        return len(pipeline.tokenizer(before + text).input_ids) - (dropped(pipeline) if prompt else 0)

    def encode(pipeline: Any, prompts: Sequence[str], device: torch.device) -> Encoded:
        found = [
            pipeline.encode_prompt(
                list(alike), do_classifier_free_guidance=False, device=device, max_sequence_length=longest,
                complex_human_instruction=instruction(pipeline) if told else None,
            )[:2] for told, alike in groupby(prompts, key=bool)
        ]
        embeddings, mask = (torch.cat(one) for one in zip(*found, strict=True))
        return Encoded(embeddings, mask.bool(), embeddings.new_empty(len(prompts), 0))

    return Adapter(
        {ENCODER: transformers.Gemma2Model}, {TOKENIZER: transformers.GemmaTokenizer},
        template=lambda pipeline: "\n".join(instruction(pipeline)) + "{}", longest=lambda _: longest, count=count,
        encode=encode,
    )


def _of_z_image() -> Adapter:
    longest = 512

    def template(pipeline: Any) -> str:
        return pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": "{}"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )

    def count(pipeline: Any, prompt: str) -> int:
        return len(pipeline.tokenizer(template(pipeline).replace("{}", prompt)).input_ids)

    def encode(pipeline: Any, prompts: Sequence[str], device: torch.device) -> Encoded:
        found, _ = pipeline.encode_prompt(
            list(prompts), device=device, do_classifier_free_guidance=False, max_sequence_length=longest
        )
        embeddings = nn.utils.rnn.pad_sequence(found, batch_first=True)
        counts = torch.tensor([len(one) for one in found], device=embeddings.device)
        mask = torch.arange(embeddings.shape[1], device=embeddings.device) < counts[:, None]
        return Encoded(embeddings, mask, embeddings.new_empty(len(prompts), 0))

    return Adapter(
        {ENCODER: transformers.Qwen3Model}, {TOKENIZER: transformers.Qwen2Tokenizer}, template=template,
        longest=lambda _: longest, count=count, encode=encode,
    )


def _of_sd3() -> Adapter:
    """Tokens of both CLIPs side by side, then those of T5, all as they are padded; and both CLIPs' vectors."""
    of_t5 = 256

    def encode(pipeline: Any, prompts: Sequence[str], device: torch.device) -> Encoded:
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=of_t5
        )
        return _all_seen(embeddings, pooled)

    clip, t5 = transformers.CLIPTextModelWithProjection, transformers.T5EncoderModel
    return _of_clip_and_t5(
        [clip, clip, t5], lambda pipeline: pipeline.tokenizer_3, of_t5, encode,
        seen=lambda pipeline: pipeline.tokenizer_max_length + of_t5,
    )


def _of_flux() -> Adapter:
    """Tokens of T5 as they are padded, and CLIP's vector."""
    of_t5 = 512

    def encode(pipeline: Any, prompts: Sequence[str], device: torch.device) -> Encoded:
        embeddings, pooled, _ = pipeline.encode_prompt(list(prompts), None, device=device, max_sequence_length=of_t5)
        return _all_seen(embeddings, pooled)

    return _of_clip_and_t5(
        [transformers.CLIPTextModel, transformers.T5EncoderModel], lambda pipeline: pipeline.tokenizer_2, of_t5, encode,
        seen=lambda _: of_t5,
    )


def _of_clip_and_t5(
    encoders: Sequence[type], t5: Callable[[Any], Any], of_t5: int,
    encode: Callable[[Any, Sequence[str], torch.device], Encoded], *, seen: Callable[[Any], int],
) -> Adapter:
    """Of a pipeline whose last text encoder is T5 and others CLIP. Every prompt is of as many tokens, `seen`."""

    def count(pipeline: Any, prompt: str) -> int:
        of_clip = pipeline.tokenizer_max_length
        over = max(len(pipeline.tokenizer(prompt).input_ids) - of_clip, len(t5(pipeline)(prompt).input_ids) - of_t5)
        return seen(pipeline) + max(over, 0)

    ends = ["", *(f"_{number}" for number in range(2, len(encoders) + 1))]
    tokenizers = [transformers.CLIPTokenizer] * (len(encoders) - 1) + [transformers.T5Tokenizer]
    return Adapter(
        {ENCODER + end: encoder for end, encoder in zip(ends, encoders, strict=True)},
        {TOKENIZER + end: tokenizer for end, tokenizer in zip(ends, tokenizers, strict=True)},
        template=lambda _: "{}", longest=seen, count=count, encode=encode, all_seen=True,
    )


def _all_seen(embeddings: Tensor, pooled: Tensor) -> Encoded:
    return Encoded(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device), pooled)


PIPELINES: Mapping[str, Callable[[], Adapter]] = {
    "QwenImagePipeline": _of_qwen_image, "SanaPipeline": _of_sana, "ZImagePipeline": _of_z_image,
    "StableDiffusion3Pipeline": _of_sd3, "FluxPipeline": _of_flux,
}


def show_errors_alone() -> None:
    """Of what transformers says while it reads."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
