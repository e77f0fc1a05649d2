"""Where originals come from: image files in class folders, listed in one order whatever they are stored in.

A class is a folder that directly holds images; folders above all of them are left out of its name. Names inside a
source are looked at, never followed: a link, or a path that leads out of the source, is refused and listed.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from ..core.errors import DataError
from ..core.files import open_regular, remedy_of_reading
from ..data.description import Refused
from ..data.transforms import ImageError

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
}
"""How files of a format (as Pillow calls it) are named, the usual one first."""

_IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
_LARGEST_BYTES = 1 << 30  # of one image; an archive may claim any size


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file that might be an original, under the name it has in its source."""

    name: str
    size: int  # bytes
    place: int = 0  # what its reader finds it by


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    name: str
    label: int
    size: int  # bytes
    place: int


class Reader(Protocol):
    """Reads originals in any order. Can be pickled: every process opens its own files."""

    def read(self, original: Original) -> bytes:
        """Raises ImageError if this one cannot be read, DataError if the source is no longer what was listed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All that a source holds."""

    originals: Sequence[Original]  # by name
    class_names: Sequence[str]
    refused: Sequence[Refused]  # by name
    reader: Reader

    def digest(self) -> str:
        """A digest of the names, sizes and classes: another one means that the source has changed."""
        lines = [f"{one.size} {one.label} {one.name}" for one in self.originals]
        lines += [f"refused {one.name} {one.reason}" for one in self.refused]
        return sha256("\n".join([*self.class_names, "", *lines]).encode(errors="surrogateescape")).hexdigest()


def listing(found: Iterable[Found], refused: Iterable[Refused], reader: Reader) -> Listing:
    """Sorts the files of a source into classes by the folders they lie in."""
    refusals = list(refused)
    images: dict[str, Found] = {}
    for one in found:
        name = posixpath.normpath(one.name)  # "./a/b" is "a/b"
        if reason := _unwanted(name, one.size):
            refusals.append(Refused(name=one.name, reason=reason))
            continue
        if name in images:
            refusals.append(Refused(name=images[name].name, reason="is named twice: the later one is used"))
        images[name] = one
    folders = {posixpath.dirname(name) for name in images}
    class_of = _class_names(folders)
    class_names = sorted(class_of.values())
    labels = {name: label for label, name in enumerate(class_names)}
    originals = []
    for name, one in sorted(images.items()):
        folder = posixpath.dirname(name)
        if folder in class_of:
            label = labels[class_of[folder]]
            originals.append(Original(name=one.name, label=label, size=one.size, place=one.place))
        else:
            refusals.append(Refused(name=one.name, reason="lies in no class folder"))
    refusals.sort(key=lambda one: (one.name, one.reason))
    return Listing(originals=originals, class_names=class_names, refused=refusals, reader=reader)


def _unwanted(name: str, size: int) -> str | None:
    if "/." in f"/{name}" or "__MACOSX/" in f"{name}/":
        return "is a hidden file"
    suffix = posixpath.splitext(name)[1]
    if suffix.lower() not in _IMAGE_SUFFIXES:
        return f"is not an image by its name ({suffix or 'no extension'})"
    if size > _LARGEST_BYTES:
        return f"is larger than {_LARGEST_BYTES >> 20} MiB"
    return None


def _class_names(folders: set[str]) -> dict[str, str]:
    """The name of the class by folder. A folder above all others is no class, nor is the source itself."""
    folders = folders - {""}
    while folders:
        top = posixpath.commonpath(folders)
        if top not in folders:
            return {folder: posixpath.relpath(folder, top or ".") for folder in folders}
        if len(folders) == 1:
            return {top: posixpath.basename(top)}
        folders.remove(top)
    return {}


def refuse_path(name: str) -> str | None:
    """Why a name of an archive's member is not used: it leads out of the archive."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":"):
        return "has an absolute path"
    return "has a path with '..'" if ".." in parts else None


@dataclass(frozen=True)
class FolderReader:
    folder: Path

    def read(self, original: Original) -> bytes:
        try:
            with open_regular(self.folder / original.name) as file:
                data = file.read(original.size + 1)
        except PermissionError as error:
            raise ImageError(f"cannot be read: {error.strerror}") from None
        except OSError as error:
            raise changed(self.folder / original.name, error.strerror or str(error)) from None
        if len(data) != original.size:
            raise changed(self.folder / original.name, f"its size is no longer {original.size} bytes")
        return data


def changed(path: Path, how: str) -> DataError:
    return DataError(f"{path}: {how}; the source must stay as it is while it is packed: restore it and run again")


def list_folder(folder: Path) -> Listing:
    """Raises DataError if a folder in it cannot be listed."""
    found: list[Found] = []
    refused: list[Refused] = []
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            raise DataError(f"{current} cannot be listed: {error.strerror}; {remedy_of_reading(error)}") from None
        for entry in entries:
            name = Path(entry.path).relative_to(folder).as_posix()
            if entry.is_symlink():
                refused.append(Refused(name=name, reason="is a link"))
            elif entry.is_dir():
                pending.append(Path(entry.path))
            elif stat.S_ISREG((status := entry.stat()).st_mode):
                found.append(Found(name=name, size=status.st_size))
            else:
                refused.append(Refused(name=name, reason="is a device, a pipe or a socket"))
    return listing(found, refused, FolderReader(folder))
