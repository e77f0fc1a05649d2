"""A tiny pipeline that encodes text: python -m tests.models.small_pipeline FOLDER [--kind K] [--captions FILE]

The classes are those of a published pipeline's text side; by itself of Qwen-Image's, a Qwen2.5-VL and its tokenizer,
of some 100,000 weights, for tests and for captioned digits (docs/text.md), whose captions --captions writes, one a
line. A random transformer that does not learn still tells captions apart: what it makes of a token depends on that
token, and on those before it.

The tokenizers are trained on the words of the pipeline's own template and of the captions, until each is one token. So
the template has as many tokens as with the published tokenizer, which the pipeline drops by number. Other texts are
spelled in bytes or letters.
"""

from __future__ import annotations

import argparse
import inspect
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from afm_scale.data.toys.captions import every_caption
from tests.models.small_encoders import (
    CHAT,
    SPECIAL,
    WIDTH,
    clip,
    clip_tokenizer,
    gemma,
    gemma_tokenizer,
    qwen3,
    qwen_tokenizer,
    t5,
    t5_tokenizer,
)


def tiny_text_pipeline(folder: Path, *, kind: str = "qwen_image", seed: int = 0) -> Path:
    """A folder as diffusers' `save_pretrained` writes it: scheduler, tokenizers and text encoders of a pipeline."""
    class_name, make = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        components = make()
    pipeline = with_nothing_else(class_name, scheduler=FlowMatchEulerDiscreteScheduler(), **components)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def with_nothing_else(class_name: str, **components: Any) -> Any:
    """A pipeline of diffusers that has these components, and None for all others that its class asks for."""
    kind = getattr(diffusers, class_name)
    others = set(inspect.signature(kind).parameters) - components.keys()
    return kind(**components, **dict.fromkeys(others))


def _qwen_image() -> dict[str, Any]:
    template = with_nothing_else("QwenImagePipeline").prompt_template_encode
    for token in SPECIAL:
        template = template.replace(token, "{}")
    tokenizer = qwen_tokenizer([*template.split("{}"), *every_caption()])
    return {"tokenizer": tokenizer, "text_encoder": _encoder(tokenizer)}


def _sd3() -> dict[str, Any]:
    one, three = clip_tokenizer(every_caption()), t5_tokenizer(every_caption())
    two = clip_tokenizer(every_caption())
    return {
        "tokenizer": one, "text_encoder": clip(one, projected=True), "tokenizer_2": two,
        "text_encoder_2": clip(two, projected=True, width=32), "tokenizer_3": three, "text_encoder_3": t5(three),
    }


def _flux() -> dict[str, Any]:
    one, two = clip_tokenizer(every_caption()), t5_tokenizer(every_caption())
    return {
        "tokenizer": one, "text_encoder": clip(one, projected=False), "tokenizer_2": two, "text_encoder_2": t5(two),
    }


def _sana() -> dict[str, Any]:
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    tokenizer = gemma_tokenizer(["\n".join(instruction), *every_caption()])
    return {"tokenizer": tokenizer, "text_encoder": gemma(tokenizer)}


def _z_image() -> dict[str, Any]:
    tokenizer = qwen_tokenizer(["user\n", "assistant\n", *every_caption()], CHAT)
    return {"tokenizer": tokenizer, "text_encoder": qwen3(tokenizer)}


KINDS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "qwen_image": ("QwenImagePipeline", _qwen_image),
    "sd3": ("StableDiffusion3Pipeline", _sd3),
    "flux": ("FluxPipeline", _flux),
    "sana": ("SanaPipeline", _sana),
    "z_image": ("ZImagePipeline", _z_image),
}


def _encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "initializer_range": 0.2, "tie_word_embeddings": True, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        },
        tie_word_embeddings=True, **{
            name: tokenizer.convert_tokens_to_ids(token) for name, token in (
                ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
                ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
            )
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


@cache
def _made(kind: str) -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="pipeline_", ignore_cleanup_errors=True)
    tiny_text_pipeline(Path(folder.name) / "tiny", kind=kind)
    return folder


def small_pipeline(kind: str = "qwen_image") -> Path:
    """The folder of one that is made once for a session of tests; not to be written to."""
    return Path(_made(kind).name) / "tiny"


def as_diffusers_reads_it(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder, transformer=None, vae=None, local_files_only=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=tuple(KINDS), default="qwen_image", help="whose classes")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="written too: all captions of digits")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args()
    tiny_text_pipeline(options.folder, kind=options.kind, seed=options.seed)
    if options.captions is not None:
        options.captions.write_text("\n".join(every_caption()) + "\n")
