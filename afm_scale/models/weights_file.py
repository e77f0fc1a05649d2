"""Reads safetensors files, which hold named tensors and nothing that could be run."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.files import require_regular

CONFIG_NAME = "config.json"  # this and the next are what diffusers' save_pretrained writes
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"  # of weights in several files


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file on the CPU, by name. Raises ValueError, whose words go into a message, if it is none."""
    try:
        require_regular(path)
        return load_file(path)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from error
    # of a type that torch or this version of safetensors lacks, or a header that contradicts itself
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, MemoryError) as error:
        raise ValueError(f"it is no safetensors file: {' '.join(str(error).split())[:200]}") from error
