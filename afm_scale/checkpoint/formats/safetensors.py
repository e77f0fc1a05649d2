"""safetensors with a config.json beside: a folder, sharded with an index above a size, or one file.

A single part (the average alone) has its network's own names; several have this program's (`checkpoint/names.py`).
config.json is what else is known, in plain JSON; a file's metadata hold the same, so that it may travel alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError
from ...core.strict_json import parse_json, read_mapping
from ...core.weight_index import read_weight_index
from ..names import group_of
from .about import FORMAT, from_plain_about, plain_of
from .format import Lazy, Source, Told, Wanted
from .output import new_file, new_folder, require_free, write_json
from .safetensors_file import SafetensorsFile, cannot_hold, write_safetensors

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_IN_HEAD = "afm_scale"  # name of config.json's text among a file's metadata


@dataclass(frozen=True)
class Safetensors:
    """Of this program's: a folder with config.json, or one file."""

    name: str = "safetensors"

    def recognises(self, path: Path) -> bool:
        try:
            if path.is_dir():
                return read_mapping(path / CONFIG).get("format") == FORMAT
            with SafetensorsFile(path) as file:
                return _IN_HEAD in file.metadata
        except (CheckpointError, OSError, ValueError):
            return False

    def source(self, path: Path, told: Told) -> Source:
        with ExitStack() as opening:
            if path.is_dir():
                config, tensors = _read(read_mapping, path / CONFIG), _of_folder(path, opening)
            else:
                file = opening.enter_context(SafetensorsFile(path))
                config, tensors = _in_head(file), dict(file.tensors)
            about, part = from_plain_about(path, config), config.get("part")
            if part is not None:
                if not isinstance(part, str) or not 0 < len(part) <= 200:
                    raise CheckpointError(f"{path} does not say which part it holds; use another copy")
                tensors = {f"{part}.{name}": lazy for name, lazy in tensors.items()}
            return Source(path, tensors, about, opening.pop_all().close)

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        if (problem := cannot_hold(source.tensors)) is not None:
            raise CheckpointError(f"{problem}, which safetensors does not know; use --to torch, or another --dtype")
        if out.suffix != ".safetensors":
            with new_folder(out) as folder:
                write_folder(source, folder, wanted)
            return
        tensors, config, head = _described(source)
        require_free(out.with_name(CONFIG))
        with new_file(out) as file:
            write_safetensors(file, tensors, head)
            write_json(out.with_name(CONFIG), config)


SAFETENSORS = Safetensors()


def write_folder(source: Source, folder: Path, wanted: Wanted) -> None:
    """Into a folder that is there, and whose completion is the caller's affair."""
    tensors, config, head = _described(source)
    write_shards(folder, tensors, head, wanted.shard_bytes)
    write_json(folder / CONFIG, config)


def _described(source: Source) -> tuple[dict[str, Lazy], dict[str, Any], dict[str, str]]:
    """Tensors by the names that they are to have, config.json, and the metadata of a file."""
    part, tensors = single_part(source.tensors)
    config = plain_of(source.about) | {"part": part}
    return tensors, config, {"format": "pt", _IN_HEAD: json.dumps(config)}


def single_part(tensors: Mapping[str, Lazy]) -> tuple[str | None, dict[str, Lazy]]:
    """Whose the tensors are and the tensors by their own names, if they are one's; else None and all as they are."""
    groups = {group_of(name) for name in tensors}
    if len(groups) != 1:
        return None, dict(tensors)
    (part,) = groups
    return part, {name.removeprefix(f"{part}."): lazy for name, lazy in tensors.items()}


def write_shards(
    folder: Path, tensors: Mapping[str, Lazy], head: Mapping[str, str], most_bytes: int, *, stem: str = "model"
) -> None:
    """STEM.safetensors, or several files of at most so many bytes (a larger tensor has its own) and an index."""
    shards: list[dict[str, Lazy]] = [{}]
    filled = 0
    for name, lazy in tensors.items():
        if shards[-1] and filled + lazy.entry.num_bytes > most_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = lazy
        filled += lazy.entry.num_bytes
    if len(shards) == 1:
        with new_file(folder / f"{stem}.safetensors") as file:
            write_safetensors(file, shards[0], head)
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        with new_file(folder / file_name) as file:
            write_safetensors(file, shard, head)
        places |= dict.fromkeys(shard, file_name)
    total = sum(lazy.entry.num_bytes for lazy in tensors.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _of_folder(path: Path, opening: ExitStack) -> dict[str, Lazy]:
    """The tensors of model.safetensors, or of the files of the index."""
    return tensors_of_folder(path, opening, WEIGHTS, INDEX)


def tensors_of_folder(path: Path, opening: ExitStack, weights: str, index: str) -> dict[str, Lazy]:
    """The tensors of the file `weights` of a folder, or of those of its index; they stay open in `opening`.

    Raises CheckpointError if the index and the files do not say the same.
    """
    if not (path / index).exists():
        return dict(opening.enter_context(SafetensorsFile(path / weights)).tensors)
    places = _read(read_weight_index, path / index)
    tensors: dict[str, Lazy] = {}
    for file_name in sorted(set(places.values())):
        found = opening.enter_context(SafetensorsFile(path / file_name)).tensors
        listed = {name for name, place in places.items() if place == file_name}
        if listed != found.keys():
            raise CheckpointError(
                f"{path / file_name} does not hold what {index} says ({min(listed ^ found.keys())[:80]}); "
                "use another copy"
            )
        tensors |= found
    return {name: tensors[name] for name in places}


def _in_head(file: SafetensorsFile) -> dict[str, Any]:
    if _IN_HEAD not in file.metadata:
        raise CheckpointError(f"{file.path} was not written by this program; say of which format it is by --from")
    try:
        content = parse_json(file.metadata[_IN_HEAD])
    except ValueError as error:
        raise CheckpointError(f"{file.path} is damaged: {str(error):.200}; use another copy") from error
    return content if isinstance(content, dict) else {}


def _read(reader: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    try:
        return reader(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; name another folder") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {str(error):.200}; use another copy") from error
