"""Reads the text side of published pipelines with transformers. Imported only when one is named.

What a pipeline does with a prompt is its own code, in diffusers: an adapter here says which components that needs and
how it is called. Another pipeline is a function like `_of_qwen_image` and a line in `PIPELINES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.files import read_regular, require_regular
from ..core.strict_json import parse_json
from .autoencoder import PRECISIONS
from .diffusers import pipeline_of

INDEX_NAME = "model_index.json"
ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # folders; a pipeline with several has text_encoder_2 and so on
_WEIGHTS = "model.safetensors"
_IMPOSSIBLE = (
    OSError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, ImportError,
)


class Encoded(NamedTuple):
    """What a pipeline makes of prompts."""

    embeddings: Tensor  # [B, n, D]
    mask: Tensor  # [B, n] bool: tokens that its transformer looks at
    pooled: Tensor  # [B, P]; P is 0 where there is none


class Adapter(NamedTuple):
    """How a class of pipelines encodes."""

    encoder: type  # of transformers
    tokenizer: type
    template: Callable[[Any], str]  # of the pipeline; {} stands for the prompt
    longest: Callable[[Any], int]  # tokens of a prompt that the pipeline looks at, at most
    count: Callable[[Any, str], int]  # tokens that the pipeline would look at if it took any number
    encode: Callable[[Any, Sequence[str], torch.device], Encoded]


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
        transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2Tokenizer,
        template=lambda pipeline: pipeline.prompt_template_encode,
        longest=lambda pipeline: pipeline.tokenizer_max_length, count=count, encode=encode,
    )


def _of_sana() -> Adapter:
    """Before a prompt stands the pipeline's own instruction, whose tokens are dropped but for the first; before the
    empty one nothing does, as before what the pipeline guides away from."""
    longest = 300

    def instruction(pipeline: Any) -> list[str]:
        return inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default

    def count(pipeline: Any, prompt: str) -> int:
        text, before = prompt.lower().strip(), "\n".join(instruction(pipeline)) if prompt else ""
        return len(pipeline.tokenizer(before + text).input_ids) - max(len(pipeline.tokenizer(before).input_ids) - 2, 0)

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
        transformers.Gemma2Model, transformers.GemmaTokenizer,
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
        transformers.Qwen3Model, transformers.Qwen2Tokenizer, template=template, longest=lambda _: longest, count=count,
        encode=encode,
    )


PIPELINES: Mapping[str, Callable[[], Adapter]] = {
    "QwenImagePipeline": _of_qwen_image, "SanaPipeline": _of_sana, "ZImagePipeline": _of_z_image,
}


@dataclass(frozen=True)
class TextPipeline:
    """The text side of a pipeline, at work on a device."""

    name: str  # its class in diffusers
    width: int  # D
    pooled: int  # P
    files: tuple[Path, ...]  # of the text encoder, all that it is made of
    tokenizer_files: tuple[Path, ...]
    _pipeline: Any
    _adapter: Adapter
    _device: torch.device

    @property
    def template(self) -> str:
        return self._adapter.template(self._pipeline)

    @property
    def longest(self) -> int:
        """Tokens of a prompt that the pipeline looks at, at most."""
        return self._adapter.longest(self._pipeline)

    def count(self, prompt: str) -> int:
        """Tokens of a prompt, those included that the pipeline would cut off."""
        return self._adapter.count(self._pipeline, prompt)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Encoded:
        """As the pipeline encodes them in one batch, in the precision it was read in, on the device."""
        return self._adapter.encode(self._pipeline, prompts, self._device)


def read_text_pipeline(
    folder: Path, device: torch.device, *, precision: Literal["fp32", "bf16"] = "bf16"
) -> TextPipeline:
    """A folder as `save_pretrained` of a pipeline writes it, of which the text side alone is read.

    Weights are read from safetensors alone, and no code that lies in the folder is run. Raises ConfigError if there is
    no such pipeline, or none that has an adapter here.
    """
    name = _class_of(folder)
    if name not in PIPELINES:
        raise ConfigError(
            f"{folder / INDEX_NAME} names the class {name!r}; prompts are encoded by those of {', '.join(PIPELINES)}"
        )
    adapter = PIPELINES[name]()
    files, tokenizer_files = _files(folder / ENCODER), _files(folder / TOKENIZER)
    _check_weights(folder / ENCODER)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        tokenizer = adapter.tokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
        network, loading = adapter.encoder.from_pretrained(
            folder / ENCODER, dtype=PRECISIONS[precision], use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )
    except _IMPOSSIBLE as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{folder} cannot be read as the text side of a {name}: {reason}; restore it") from error
    lacking = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
    if lacking:  # which transformers would fill in with random numbers
        raise ConfigError(
            f"{folder / ENCODER} does not fit its config.json: {len(lacking)} tensors are missing or of another shape "
            f"({', '.join(lacking[:3])}); restore the folder"
        )
    network: nn.Module = network.requires_grad_(False).eval().to(device)
    pipeline = pipeline_of(name, text_encoder=network, tokenizer=tokenizer)
    try:
        with torch.no_grad():
            tried = adapter.encode(pipeline, [""], device)
    except _IMPOSSIBLE as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{folder}: the {name} cannot encode the empty prompt: {reason}; restore it") from error
    return TextPipeline(
        name, tried.embeddings.shape[-1], tried.pooled.shape[-1], files, tokenizer_files, pipeline, adapter, device
    )


def _class_of(folder: Path) -> str:
    path = folder / INDEX_NAME
    try:
        plain = parse_json(read_regular(path, 2**20))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be read ({reason}); wanted the folder of a pipeline, as diffusers' save_pretrained writes "
            f"it, with {ENCODER}/ and {TOKENIZER}/"
        ) from None
    name = plain.get("_class_name") if isinstance(plain, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"{path} names no class of pipelines (_class_name); restore it")
    return name[:200]


def _files(folder: Path) -> tuple[Path, ...]:
    """All files of a folder but hidden ones and texts about it, by name; each is a regular one."""
    try:
        found = sorted(
            path for path in folder.iterdir()
            if not path.is_dir() and path.suffix != ".md" and not path.name.startswith(".")
        )
        for path in found:
            require_regular(path)  # what transformers opens itself
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be read ({error.strerror}); wanted what save_pretrained writes"
        ) from None
    return tuple(found)


def _check_weights(folder: Path) -> None:
    """Raises ConfigError if weights are no safetensors, or an index leads out of the folder."""
    index = folder / f"{_WEIGHTS}.index.json"
    names = [_WEIGHTS]
    try:
        if index.exists():
            parts = parse_json(read_regular(index, 2**26))
            names = sorted(set(parts["weight_map"].values()))
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ValueError("it names files outside of its folder")
        for name in names:
            if not (folder / name).is_file():
                raise ValueError(f"{name} is not there; weights are read from safetensors alone")
    except _IMPOSSIBLE as error:
        raise ConfigError(f"{folder} holds no weights that can be read: {error}; restore it") from None
