"""Sets of encoded images, in files or packed, decoded in a few threads; the first one says how the others must look."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...core.errors import DataError
from ...core.files import read_regular, remedy_of_reading
from ...core.random import permutation
from ...core.typed import to_mapping
from ...data.description import DESCRIPTION_NAME, ImageContent
from ...data.oddities import Stored, stored
from ...data.shards import PackedShards, SampleError
from ...data.transforms import ImageError, decode_in_thread, decoding_warnings
from ...packing.naming import SUFFIXES
from .stamp import check_complete

_CHANNELS = {"L": 1, "RGB": 3}
_FORMAT_OF = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
_THREADS = 8
_LARGEST_IMAGE = 2**30  # bytes of an encoded one
_CONVERT = "make them alike with tools/make_shards.py, which crops and converts"


@dataclass(frozen=True, slots=True)
class _Look:
    width: int
    height: int
    mode: str
    format: str

    def __str__(self) -> str:
        return f"{self.width} x {self.height} {self.mode} ({self.format})"


class EncodedImages(ABC):
    """What the sets (`image_sets.ImageSet`) below share; a subclass reads the bytes."""

    labels: Tensor | None = None

    def __init__(self, num_images: int) -> None:
        """Tries the first image, so `read` has to work by now. Raises DataError if the first image cannot be used."""
        self.num_images = num_images
        self._first, data = self.read(0)
        with decoding_warnings():
            self._look, _ = _decode(self._first, data)
        if self._look.mode not in _CHANNELS:
            raise DataError(
                f"{self._first} is {self._look}; wanted 8-bit RGB, or L for grey, as Pillow calls them: {_CONVERT}"
            )
        self.shape = (_CHANNELS[self._look.mode], self._look.height, self._look.width)

    @abstractmethod
    def read(self, index: int) -> tuple[str, bytes]:
        """(a name for messages, the encoded image); called from several threads. Raises DataError."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]: ...

    def batches(self, rank: int, world_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        own = range(rank, self.num_images, world_size)
        with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as pool:
            for start in range(0, len(own), batch_size):
                indices = own[start:start + batch_size]
                with decoding_warnings():  # not around the yield: they are not the business of who uses the images
                    images = list(pool.map(self._pixels, indices))
                yield torch.tensor(indices), channels_first(images)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        name, data = self.read(index)
        look, pixels = _decode(name, data)
        if look != self._look:
            raise DataError(
                f"{name} is {look}, but {self._first} is {self._look}; all images of a set must be alike: {_CONVERT}"
            )
        return pixels


def _decode(name: str, data: bytes) -> tuple[_Look, NDArray[np.uint8]]:
    """What it looks like, and [H, W, C] where the mode is L or RGB."""
    try:
        image = decode_in_thread(data)
    except ImageError as error:
        raise DataError(f"{name} {error.reason}; restore it or take it away") from None
    if image.mode in _CHANNELS:
        _refuse_odd(name, image, stored(image, data))
    pixels = np.asarray(image)
    look = _Look(image.width, image.height, image.mode, image.format or "no format")
    return look, pixels[..., None] if pixels.ndim == 2 else pixels


def _refuse_odd(name: str, image: Image.Image, about: Stored) -> None:
    """Raises DataError for what one program would show otherwise than another."""
    if about.orientation != 1:
        raise DataError(f"{name} lies on its side or is mirrored, as its EXIF orientation says: {_CONVERT}")
    has_frames = about.has_frames and image.format != "JPEG"  # behind which cameras write a smaller copy
    if has_frames or about.is_deep or "transparency" in image.info:
        what = "several frames" if has_frames else "16 bits a channel" if about.is_deep else "transparency"
        raise DataError(f"{name} has {what}, which would be left out: {_CONVERT}")


def channels_first(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """[B, C, H, W] of B arrays [H, W, C]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


class FolderImages(EncodedImages):
    """The image files of a folder and the folders in it, hidden ones left out; links are followed.

    If they all lie in one folder, their order is that of their names, so 000123.png is image 123. If they lie in
    several (one for each class, say), it is one fixed shuffle, so that the first n are a fair choice of all.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        """Raises DataError if there is no image, files are of several formats, or a stamp speaks of other images."""
        self.folder = folder
        names, self._num_others = image_files(folder)
        if not names:
            raise DataError(
                f"{folder} holds no image, among {self._num_others} files; wanted names that end in one of "
                f"{' '.join(sorted(_FORMAT_OF))}, or a data set packed by tools/make_shards.py"
            )
        self._stamp = check_complete(folder, names)
        by_format = {_format_of(name): name for name in names}
        if len(by_format) > 1:
            found = ", ".join(f"{kind} ({folder / name})" for kind, name in sorted(by_format.items()))
            raise DataError(f"{folder} holds mixed formats: {found}; all images of a set must be alike: {_CONVERT}")
        self._num_all = len(names)
        self._shuffled = len({os.path.dirname(name) for name in names}) > 1
        if self._shuffled:
            names = [names[index] for index in permutation(len(names), "order of a folder").tolist()]
        self.names = names[:limit]
        super().__init__(len(self.names))

    def read(self, index: int) -> tuple[str, bytes]:
        path = self.folder / self.names[index]
        try:
            return str(path), read_regular(path, _LARGEST_IMAGE)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; restore it or take it away") from None

    def describe(self) -> Mapping[str, Any]:
        digest = sha256()
        for name in self.names:
            size = (self.folder / name).stat().st_size
            digest.update(f"{size} {name}\n".encode(errors="surrogateescape"))
        return {
            "kind": "folder", "source": str(self.folder), "num_images": self.num_images, "out_of": self._num_all,
            "shape": list(self.shape), "format": self._look.format, "other_files": self._num_others,
            "order": "shuffled, because of several folders" if self._shuffled else "by name",
            "sha256_of_names_and_sizes": digest.hexdigest(),
            **({} if self._stamp is None else {"stamp": to_mapping(self._stamp)}),
        }


def _format_of(name: str) -> str | None:
    return _FORMAT_OF.get(os.path.splitext(name)[1].lower())


def image_files(folder: Path) -> tuple[list[str], int]:
    """The names of all image files under a folder, sorted, and how many other files there are."""
    names, num_others = [], 0
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status, entries = current.stat(), list(os.scandir(current))
        except OSError as error:
            raise DataError(f"{current} cannot be listed: {error.strerror}; {remedy_of_reading(error)}") from None
        if (status.st_dev, status.st_ino) in seen:
            raise DataError(f"{current} is a link to a folder that is read already; remove it")
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                pending.append(Path(entry.path))
            elif _format_of(entry.name) is not None and not _is_special(entry):
                names.append(Path(entry.path).relative_to(folder).as_posix())
            else:
                num_others += 1
    return sorted(names), num_others


def _is_special(entry: os.DirEntry[str]) -> bool:
    """A pipe would never end; a link to nothing is no such thing, and its error comes when it is read."""
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except FileNotFoundError:
        return False


class PackedImages(EncodedImages):
    """The images of a data set packed by tools/make_shards.py in the order of the shards, which is shuffled."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        """Raises DataError if it holds latents or images of several sizes, or is damaged."""
        self._shards = PackedShards(folder)
        self._lock = Lock()
        content = self._shards.description.content
        if not isinstance(content, ImageContent):
            raise DataError(f"{folder} holds {content.kind}; wanted images: give the data set they were made from")
        if content.size is None:
            raise DataError(f"{folder} holds originals of many sizes; pack them with --size, without --raw")
        self._shards.refuse_damage("restore it, or pack again")
        self.labels = self._shards.index.label[:limit]
        super().__init__(len(self.labels))
        if self.shape[1:] != (content.size, content.size):
            raise DataError(f"{self._first} is {self._look}; {folder / DESCRIPTION_NAME} says {content.size} pixels")

    def read(self, index: int) -> tuple[str, bytes]:
        place = self._shards.place(index)
        try:
            with self._lock:  # it keeps a table of open files
                return place, self._shards.read(index)
        except SampleError as error:
            raise DataError(f"{place}: {error.reason}; restore the shard, or pack again") from None

    def describe(self) -> Mapping[str, Any]:
        description = self._shards.description
        return {
            "kind": "packed data set", "source": str(self._shards.folder), "num_images": self.num_images,
            "out_of": description.num_samples, "shape": list(self.shape), "format": self._look.format,
            "index_sha256": description.index_sha256, "made": dict(description.made),
        }
