"""The formats there are: adding one is a file and a line here. `--from auto` asks them in this order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...core.errors import CheckpointError
from .dit import DIT
from .format import Format
from .native import NATIVE
from .official import OFFICIAL
from .safetensors import SAFETENSORS
from .sit import SIT
from .torch_file import TORCH

FORMATS: Mapping[str, Format] = {
    "native": NATIVE,
    "safetensors": SAFETENSORS,
    "torch": TORCH,
    "official": OFFICIAL,
    "dit": DIT,
    "sit": SIT,
}

HOLD_ALL = frozenset({"native", "safetensors", "torch", "deepspeed", "megatron"})
"""Those that hold several networks and optimizers; the others are files of one network."""


def format_of(name: str, path: Path) -> Format:
    """The format of a name; 'auto': the first that recognises what lies at `path`. Raises CheckpointError for none."""
    if name != "auto":
        return FORMATS[name]
    recognised = next((kind for kind in FORMATS.values() if kind.recognises(path)), None)
    if recognised is None:
        raise CheckpointError(
            f"{path} is of no format that this program recognises; name another, or say which of "
            f"{', '.join(FORMATS)} it is by --from"
        )
    return recognised
