"""A tiny pipeline that encodes text: python -m tests.models.small_pipeline FOLDER [--captions FILE] [--seed N]

The classes are those of Qwen-Image's text side, a Qwen2.5-VL and its tokenizer, of some 100,000 weights, for tests and
for captioned digits (docs/text.md), whose captions --captions writes, one a line. A random transformer that does not
learn still tells captions apart: what it makes of a token depends on that token, and on those before it.

The tokenizer is trained on the words of the pipeline's own template and of the captions, until each is one token. So
the template has as many tokens as with the published tokenizer, which the pipeline drops by number. Other texts are
spelled in bytes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from afm_scale.data.toys.captions import every_caption

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
WIDTH = 64  # of an embedded token


def tiny_text_pipeline(folder: Path, *, seed: int = 0) -> Path:
    """A folder as diffusers' `save_pretrained` writes it: scheduler, tokenizer and text encoder of a QwenImagePipeline.
    """
    others = dict.fromkeys(("vae", "transformer"))
    template = QwenImagePipeline(scheduler=None, text_encoder=None, tokenizer=None, **others).prompt_template_encode
    tokenizer = _tokenizer(template)
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=_encoder(tokenizer, seed), tokenizer=tokenizer,
        **others,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _tokenizer(template: str) -> Qwen2Tokenizer:
    for token in SPECIAL:
        template = template.replace(token, "{}")
    training = Tokenizer(models.BPE())
    training.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False, initial_alphabet=alphabet)
    training.train_from_iterator([*template.split("{}"), *every_caption()], trainer)
    found = json.loads(training.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=found["vocab"], merges=[tuple(pair) for pair in found["merges"]], additional_special_tokens=list(SPECIAL)
    )


def _encoder(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration(config).eval()


@cache
def _made() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="pipeline_", ignore_cleanup_errors=True)
    tiny_text_pipeline(Path(folder.name) / "tiny")
    return folder


def small_pipeline() -> Path:
    """The folder of one that is made once for a session of tests; not to be written to."""
    return Path(_made().name) / "tiny"


def as_diffusers_reads_it(folder: Path) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(folder, transformer=None, vae=None, local_files_only=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=Path, metavar="FILE", help="written too: all captions of digits")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args()
    tiny_text_pipeline(options.folder, seed=options.seed)
    if options.captions is not None:
        options.captions.write_text("\n".join(every_caption()) + "\n")
