"""One file that torch.load reads: a dict of state dicts by whose they are, and what else is known as a JSON text.

    {"afm_scale": TEXT, "average": {NAME: tensor}, "generator": {...}, "optimizer.generator": {...}, ...}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...core.errors import CheckpointError
from ..names import group_of
from .about import about_from, about_to
from .format import Lazy, Source, Told, Wanted
from .output import new_file
from .torch_reader import TorchFile
from .torch_writer import write_torch

_ABOUT = "afm_scale"


@dataclass(frozen=True)
class Torch:
    """A file of this program's, for those who have torch and no more."""

    name: str = "torch"

    def recognises(self, path: Path) -> bool:
        try:
            with TorchFile(path) as file:
                return isinstance(file.content, dict) and isinstance(file.content.get(_ABOUT), str)
        except CheckpointError:
            return False

    def source(self, path: Path, told: Told) -> Source:
        file = TorchFile(path)
        try:
            content = file.content
            if not isinstance(content, dict) or not isinstance(content.get(_ABOUT), str):
                raise CheckpointError(
                    f"{path} is a file of torch's that this program did not write; say of which format it is, such as "
                    "--from official"
                )
            about = about_from(path, content[_ABOUT])
            tensors: dict[str, Lazy] = {}
            for group, named in content.items():
                if group == _ABOUT:
                    continue
                if not isinstance(named, dict) or not all(isinstance(lazy, Lazy) for lazy in named.values()):
                    raise CheckpointError(f"{path}: {str(group):.80} is no state dict; use another copy of the file")
                tensors |= {f"{group}.{name}": lazy for name, lazy in named.items()}
            return Source(path, tensors, about, file.close)
        except BaseException:
            file.close()
            raise

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        content: dict[str, object] = {_ABOUT: about_to(source.about)}
        for name, lazy in source.tensors.items():
            group = group_of(name)
            content.setdefault(group, {})[name.removeprefix(f"{group}.")] = lazy
        with new_file(out) as file:
            write_torch(file, content, out.stem or "archive")


TORCH = Torch()
