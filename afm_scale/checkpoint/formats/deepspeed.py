"""DeepSpeed's folders: ZeRO of stage 1, 2 or 3 on any number of ranks, and universal checkpoints (stage 0 here).

    OUT/latest, OUT/global_stepN/...              the learner: what `engine.load_checkpoint(OUT)` loads
    OUT/discriminator/latest, ...                 another player's engine
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError
from .deepspeed_files import is_folder
from .deepspeed_reader import Folder
from .deepspeed_writer import UNIVERSAL, write_folder
from .format import Source, Told, Wanted
from .networks import Learned, marks, networks_of, source_of
from .output import new_folder


@dataclass(frozen=True)
class DeepSpeed:
    """Folders as `save_checkpoint` writes them, or `ds_to_universal` makes of them."""

    name: str = "deepspeed"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and is_folder(path)

    def source(self, path: Path, told: Told) -> Source:
        opening = ExitStack()
        try:
            folder = _opened(path, opening)

            def beside(other: Path) -> tuple[Learned, Mapping[str, Any]]:
                found = _opened(other, opening)
                return found.network, found.content

            return source_of(path, folder.network, folder.content, told, folder.step, opening.close, beside)
        except BaseException:
            opening.close()
            raise

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        if wanted.stage not in (UNIVERSAL, 1, 2, 3) or not 1 <= wanted.ranks <= 100_000:
            raise CheckpointError(
                f"stage {wanted.stage} on {wanted.ranks} ranks: wanted stage 1, 2 or 3 of ZeRO, or 0 for a universal "
                "checkpoint, on at least one rank"
            )
        networks, rest = networks_of(source, self.name)
        with new_folder(out) as partial:
            for i, network in enumerate(networks):
                folder = partial if i == 0 else partial / network.name
                folder.mkdir(exist_ok=True)
                others = [other.name for other in networks[1:]] if i == 0 else []
                said = marks(source, network, others, rest if i == 0 else {})
                write_folder(folder, network, source.about, said, wanted.ranks, wanted.stage)


DEEPSPEED = DeepSpeed()


def _opened(path: Path, opening: ExitStack) -> Folder:
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; name one of DeepSpeed's")
    try:
        folder = Folder(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; use another copy") from error
    opening.callback(folder.close)
    return folder
