"""What lies in a folder of DeepSpeed's: names of files, what they may name, and tensors that are read in parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.errors import CheckpointError
from ...core.files import read_regular
from ..pickled import Made, Name
from .format import Lazy
from .torch_reader import TorchFile

LATEST = ("latest", "latest_universal")
FRAGMENT = Name("deepspeed.utils.tensor_fragment", "fragment_address")
SCALER = Name("deepspeed.runtime.fp16.loss_scaler", "LossScaler")
STAGE = Name("deepspeed.runtime.zero.config", "ZeroStageEnum")
_WITH_ATTRIBUTES = Name("torch._tensor", "_rebuild_from_type_v2")
ADMITTED = {
    SCALER: "the scale of losses; not read",
    Name("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): "likewise, under fp16",
    STAGE: "the stage of ZeRO, a number",
    FRAGMENT: "where a parameter lies in a flat partition: two numbers",
    _WITH_ATTRIBUTES: "a tensor that DeepSpeed gave attributes; they are left out",
    Name("torch", "Tensor"): "the type of such a tensor",
    Name("torch.nn.parameter", "Parameter"): "likewise",
}
"""What DeepSpeed's files name beyond those of torch alone, and what for. Nothing of it is ever called."""

OF_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{2})_optim_states\.pt")
OF_MODEL = re.compile(r"(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{2})_model_states\.pt")


class StateFile(TorchFile):
    """A file whose tensors can be read in parts, as flat vectors."""

    def __init__(self, path: Path) -> None:
        self._made: dict[int, tuple[Lazy, Made]] = {}
        super().__init__(path, ADMITTED)

    def lazy(self, made: Made) -> Lazy:
        lazy = super().lazy(made)
        self._made[id(lazy)] = lazy, made
        return lazy

    def tensor(self, value: Any) -> Lazy:
        """Raises CheckpointError if it is none."""
        if isinstance(value, Made) and value.of == _WITH_ATTRIBUTES and len(value.arguments) == 4:
            kind, arguments = value.arguments[0], value.arguments[2]
            if isinstance(kind, Name) and isinstance(arguments, tuple):
                try:
                    return self.lazy(Made(kind, arguments))
                except ValueError as error:
                    raise CheckpointError(f"{self.path} is damaged: {error}; use another copy of it") from error
        if not isinstance(value, Lazy):
            raise CheckpointError(f"{self.path} is damaged: no tensor where one was wanted; use another copy of it")
        return value

    def part(self, lazy: Lazy, start: int, count: int) -> Tensor:
        """`count` numbers of a flat tensor, from number `start` on."""
        _, made = self._made[id(lazy)]
        storage, first, *_ = made.arguments
        return super().lazy(Made(made.of, (storage, first + start, (count,), (1,), *made.arguments[4:]))).read()


def tag_in(path: Path) -> Path:
    """The folder of files: `path` itself, or the one that its `latest` names."""
    for name in LATEST:
        try:
            tag = read_regular(path / name, 1000).decode().strip()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path / name} cannot be read: {error}; name the folder of a step") from error
        folder = path / checked_name(path, tag)
        if not folder.is_dir():
            raise CheckpointError(f"{path} is torn: {name} names {tag:.80}, which is not there; name a step's folder")
        return folder
    return path


def is_folder(path: Path) -> bool:
    """Whether DeepSpeed's files lie there, by their names."""
    try:
        tag = tag_in(path)
        return tag.is_dir() and any(OF_MODEL.fullmatch(found.name) for found in tag.iterdir())
    except CheckpointError:
        return True  # and is torn, which opening it says
    except OSError:
        return False


def checked_name(path: Path, name: str) -> str:
    """A name within a folder."""
    if not re.fullmatch(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]{1,250}", name):
        raise CheckpointError(f"{path} is damaged: {name[:80]!r} is no name of a file; use another copy")
    return name


def by_rank(folder: Path, form: re.Pattern[str]) -> list[Path]:
    """In the order of their ranks. Raises CheckpointError if one is missing, or if there is model parallelism."""
    found = {}
    for path in folder.iterdir():
        if match := form.fullmatch(path.name):
            if match[2] != "00":
                raise CheckpointError(
                    f"{folder} holds {path.name}: its weights are cut by model parallelism too, which this program "
                    "does not read; make it a universal checkpoint first (deepspeed.checkpoint.ds_to_universal)"
                )
            rank = int(match[1] or 0)
            if match[1] is None or rank not in found:  # a universal checkpoint of ours has both, for either stage
                found[rank] = path
    for rank in range(max(found, default=-1) + 1):
        if rank not in found:
            last = found[max(found)].name
            raise CheckpointError(f"{folder} is torn: the file of rank {rank} is missing beside {last}")
    return [found[rank] for rank in sorted(found)]
