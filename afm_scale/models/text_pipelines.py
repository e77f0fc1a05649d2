"""Reads the text side of published pipelines. Imported only when one is named.

What a pipeline does with a prompt is its own code, in diffusers; `text_adapters.py` says how that is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.files import require_regular
from ..core.strict_json import read_mapping
from ..core.weight_index import read_weight_index
from .autoencoder import PRECISIONS
from .diffusers import pipeline_of
from .text_adapters import ENCODER, PIPELINES, TOKENIZER, Adapter, Encoded, show_errors_alone
from .weights_file import CONFIG_NAME

INDEX_NAME = "model_index.json"
_WEIGHTS, _OTHER_WEIGHTS = "model.safetensors", "transformers_weights"
_ADAPTERS = "adapter_config.json"
_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_OWN_ATTENTION = (None, "eager", "sdpa")  # any other is another program's, or is fetched from where it names and run
_IMPOSSIBLE = (
    OSError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, ImportError,
)


@dataclass(frozen=True)
class TextPipeline:
    """The text side of a pipeline, at work on a device."""

    name: str  # its class in diffusers
    width: int  # D
    pooled: int  # P
    files: tuple[Path, ...]  # of the text encoders, all that they are made of
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

    @property
    def all_seen(self) -> bool:
        """Whether its transformer looks at what pads a prompt: then all have `longest` tokens."""
        return self._adapter.all_seen

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
    files, tokenizer_files = (
        tuple(path for part in parts for path in _files(folder / part))
        for parts in (adapter.encoders, adapter.tokenizers)
    )
    for part in adapter.encoders:
        _check_weights(folder / part)
    show_errors_alone()
    components: dict[str, Any] = {
        part: _encoder(folder, part, kind, precision).to(device) for part, kind in adapter.encoders.items()
    }
    for part, kind in adapter.tokenizers.items():
        with _readable(folder / part):
            components[part] = kind.from_pretrained(folder / part, local_files_only=True)
    pipeline = pipeline_of(name, **components)
    try:
        with torch.no_grad():
            tried = adapter.encode(pipeline, [""], device)
    except _IMPOSSIBLE as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{folder}: the {name} cannot encode the empty prompt: {reason}; restore it") from error
    return TextPipeline(
        name, tried.embeddings.shape[-1], tried.pooled.shape[-1], files, tokenizer_files, pipeline, adapter, device
    )


def _encoder(folder: Path, part: str, kind: type, precision: Literal["fp32", "bf16"]) -> nn.Module:
    with _readable(folder / part):
        network, loading = kind.from_pretrained(
            folder / part, dtype=PRECISIONS[precision], use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )
    lacking = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
    if lacking:  # which transformers would fill in with random numbers
        raise ConfigError(
            f"{folder / part} does not fit its config.json: {len(lacking)} tensors are missing or of another shape "
            f"({', '.join(lacking[:3])}); restore the folder"
        )
    return network.requires_grad_(False).eval()


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except _IMPOSSIBLE as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{folder} cannot be read as a part of its pipeline: {reason}; restore it") from error


def _class_of(folder: Path) -> str:
    path = folder / INDEX_NAME
    try:
        name = read_mapping(path, 2**20).get("_class_name")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be read ({reason}); wanted the folder of a pipeline, as diffusers' save_pretrained writes "
            f"it, with {ENCODER}/ and {TOKENIZER}/"
        ) from None
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
    """Raises ConfigError if transformers would read what is no safetensors, or lies elsewhere."""
    index = folder / f"{_WEIGHTS}.index.json"
    names = [_WEIGHTS]
    try:
        if (folder / _ADAPTERS).exists():  # by which transformers takes the base that they name, wherever it lies
            raise ValueError(f"{_ADAPTERS} is there; give weights that adapters are merged into")
        _check_settings(read_mapping(folder / CONFIG_NAME))
        if index.exists():
            names = sorted(set(read_weight_index(index).values()))
        for name in names:
            if not (folder / name).is_file():
                raise ValueError(f"{name} is not there; weights are read from safetensors alone")
    except _IMPOSSIBLE as error:
        raise ConfigError(f"{folder} holds no weights that can be read: {error}; restore it") from None


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for what a config.json, or a part of it, would have transformers read or fetch beside it."""
    if settings.get(_OTHER_WEIGHTS) is not None:  # may name a pickle
        raise ValueError(f"{CONFIG_NAME} names weights by {_OTHER_WEIGHTS}; give them as {_WEIGHTS}")
    if settings.get("quantization_config") is not None:
        raise ValueError(f"{CONFIG_NAME} says that weights are quantised; give them in fp32, bf16 or fp16")
    for name in _ATTENTION:
        if settings.get(name) not in _OWN_ATTENTION:
            raise ValueError(
                f"{CONFIG_NAME} has {name}: {str(settings[name])[:80]!r}; wanted eager or sdpa, or no such entry"
            )
    for part in settings.values():
        if isinstance(part, Mapping):
            _check_settings(part)
