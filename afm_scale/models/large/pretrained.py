"""The weights of a folder that diffusers' `save_pretrained` wrote, read one tensor at a time.

Nothing but safetensors is read, in one file or in several with an index; no rank ever holds more than one tensor of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...core.errors import ConfigError
from ...core.files import open_regular, require_regular
from ...core.strict_json import read_mapping
from ...core.weight_index import read_weight_index
from ..weights_file import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME

_FLOATS = {"F64", "F32", "F16", "BF16"}
_SETTING = "model.generator.weights"
_BLOCKS, _BLOCK = 256, 4096  # of a file, and bytes of each


def read_settings(folder: Path, class_name: str) -> dict[str, Any]:
    """What its config.json says of a transformer of this class. Raises ConfigError if it is another's, or not there."""
    plain = _read(read_mapping, folder, CONFIG_NAME)
    if plain.get("_class_name") != class_name:
        raise ConfigError(
            f"{_SETTING} {folder} is of class {plain.get('_class_name')!r}, model.generator.class_name is "
            f"{class_name!r}; give the folder of that class: the 'transformer' of a pipeline"
        )
    return {key: value for key, value in plain.items() if not key.startswith("_")}


class Pretrained:
    """Tensors by name. Whether they are those of a network is looked at once, when the first one is read."""

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes`: of the network's tensors, by the names that they are to have in the folder."""
        self._folder = folder
        self._shapes = shapes
        self._files: dict[str, Path] | None = None

    def read(self, name: str) -> Tensor:
        """The whole tensor, float32 on the CPU. Raises ConfigError for what is missing, of another shape or not finite.
        """
        if self._files is None:
            self._files = self._checked()
        path = self._files[name]
        try:
            require_regular(path)
            with safe_open(path, framework="pt") as file:
                value = file.get_tensor(name).to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
        if not bool(value.isfinite().all()):
            raise ConfigError(f"{_SETTING} {path} cannot be used: {name} holds values that are not finite; restore it")
        return value

    def _checked(self) -> dict[str, Path]:
        """Which file each tensor is in."""
        found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        for path in _paths(self._folder):
            try:
                require_regular(path)
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  (it is no mapping)
                        part = file.get_slice(name)
                        found[name] = path, tuple(part.get_shape()), part.get_dtype()
            except (OSError, SafetensorError) as error:
                raise _damaged(path, error) from error
        for name in sorted(found.keys() | self._shapes.keys()):
            there = found[name][1] if name in found else "missing"
            here = self._shapes.get(name, "not wanted")
            if there != here:
                raise ConfigError(
                    f"{_SETTING} {self._folder} does not fit model.generator.config: {name} is {there} there, {here} "
                    "here; describe the network that the weights are of (config=null takes their own config.json)"
                )
            if found[name][2] not in _FLOATS:
                raise ConfigError(
                    f"{_SETTING} {self._folder} cannot be used: {name} is of {found[name][2]}, wanted floats of 16 to "
                    "64 bits"
                )
        return {name: path for name, (path, _, _) in found.items()}


def digest_of(folder: Path) -> str:
    """What tells the weights of a folder from others, by a read of 1 MiB a file however large it is.

    SHA-256 of the sizes of its files and of 256 blocks of 4 KiB, spread evenly over each. Raises ConfigError if they
    are not there.
    """
    digest = hashlib.sha256()
    for path in _paths(folder):
        try:
            with open_regular(path) as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(size.to_bytes(8, "big"))
                for index in range(_BLOCKS):
                    file.seek(index * max(size - _BLOCK, 0) // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
        except OSError as error:
            raise _damaged(path, error) from error
    return digest.hexdigest()


def _paths(folder: Path) -> list[Path]:
    if not (folder / INDEX_NAME).exists():
        if not (folder / WEIGHTS_NAME).exists():
            raise ConfigError(
                f"{_SETTING} {folder} has no {WEIGHTS_NAME} and no {INDEX_NAME}; wanted a transformer's folder with "
                "weights in safetensors, as diffusers' save_pretrained writes it"
            )
        return [folder / WEIGHTS_NAME]
    return [folder / name for name in sorted(set(_read(read_weight_index, folder, INDEX_NAME).values()))]


def _read(reader: Callable[[Path], dict[str, Any]], folder: Path, name: str) -> dict[str, Any]:
    try:
        return reader(folder / name)
    except OSError as error:
        raise ConfigError(
            f"{_SETTING} {folder}: {name} cannot be read: {error.strerror}; give a transformer's folder, as diffusers' "
            "save_pretrained writes it"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{_SETTING} {folder}: {name} cannot be used: {error}; restore it") from error


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return ConfigError(f"{_SETTING} {path} cannot be read: {reason}; restore it")
