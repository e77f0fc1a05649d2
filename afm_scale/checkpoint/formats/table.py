"""The formats there are: adding one is a file and a line here. `--from auto` asks them in this order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...core.errors import CheckpointError
from .deepspeed import DEEPSPEED
from .diffusers import DIFFUSERS
from .dit import DIT
from .format import Format, Told
from .megatron import MEGATRON
from .native import NATIVE
from .official import OFFICIAL
from .safetensors import SAFETENSORS
from .sit import SIT
from .torch_file import TORCH
from .torch_reader import begins_as_torch

FORMATS: Mapping[str, Format] = {
    "native": NATIVE,
    "deepspeed": DEEPSPEED,
    "megatron": MEGATRON,
    "safetensors": SAFETENSORS,
    "torch": TORCH,
    "official": OFFICIAL,
    "dit": DIT,
    "sit": SIT,
    "diffusers": DIFFUSERS,
}

HOLD_ALL = frozenset({"native", "safetensors", "torch", "deepspeed", "megatron"})
"""Those that hold several networks and optimizers; the others are files of one network."""


def format_of(name: str, path: Path) -> Format:
    """The format of a name; 'auto': the first that recognises what lies at `path`. Raises CheckpointError for none."""
    if not path.exists():
        raise CheckpointError(f"there is no {path}; name a file or a folder")
    if name != "auto":
        return FORMATS[name]
    recognised = next((kind for kind in FORMATS.values() if kind.recognises(path)), None)
    if recognised is None:
        _refuse(path)
        raise CheckpointError(
            f"{path} is of no format that this program recognises; name another, or say which of "
            f"{', '.join(FORMATS)} it is by --from"
        )
    return recognised


def _refuse(path: Path) -> None:
    """Raises what the format has to say that a file is most like: what keys it lacks, or that it holds a program."""
    if path.is_file():
        with FORMATS["official" if begins_as_torch(path) else "safetensors"].source(path, Told()):
            pass
