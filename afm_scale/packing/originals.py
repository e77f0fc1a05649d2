"""Where originals come from: image files in class folders, listed in one order whatever they are stored in.

Every file of a source is in its listing once: as an original, or left out with the reason. Names inside a source are
looked at, never followed: a link, or a path that leads out of the source, is refused and listed.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from ..core.errors import DataError
from ..core.files import open_regular, remedy_of_reading
from ..data.description import Refused
from ..data.transforms import ImageError
from .classes import Folders, Layout, classes_of, with_parents
from .naming import SIDE_FILES, composed, is_image, may_hold_images, refuse_path, suffix_of, why_ignored

TEXT_SUFFIX = ".txt"
WITH_TEXTS = "images with texts"  # the one class that they are of
_LARGEST_BYTES = 1 << 30  # of one image; an archive may claim any size
_IS_LINK = "is a link"


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
    text: Original | None = None  # what is said of it, where images have texts


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
    notes: Sequence[str] = ()  # what was decided about the whole of it, and could be decided otherwise

    def digest(self) -> str:
        """A digest of the names, sizes and classes: another one means that the source has changed."""
        lines = [f"{one.size} {one.label} {one.name}" for one in self.originals]
        lines += [f"{one.text.size} text {one.text.name}" for one in self.originals if one.text is not None]
        lines += [f"refused {one.name} {one.reason}" for one in self.refused]
        return sha256("\n".join([*self.class_names, "", *lines]).encode(errors="surrogateescape")).hexdigest()


def listing(
    found: Iterable[Found], refused: Iterable[Refused], reader: Reader, *, folders: Iterable[str] = (),
    notes: Iterable[str] = (), layout: Layout | None = None,
) -> Listing:
    """Sorts the files of a source into classes by the folders they lie in.

    Args:
        folders: those that the source names by themselves; they may be empty.

    Raises DataError if it is not clear which folders are classes (`classes.classes_of`), or if something that may hold
    images would be left out without a look.
    """
    layout = layout or Layout()
    refusals, links, images, texts = [], set(), {}, {}
    inside = composed(posixpath.normpath(layout.within)) if layout.within is not None else ""

    def path_of(name: str) -> str | None:
        """The path below the part that is packed; None if it lies elsewhere."""
        path = posixpath.normpath(name)  # "./a/b" is "a/b"
        if not inside or inside == ".":
            return path
        return path[len(inside) + 1:] if composed(path).startswith(f"{inside}/") else None

    present = Counter()  # of images, usable or not, by folder
    known = {path for folder in folders if (path := path_of(folder)) not in (None, ".") and not why_ignored(path)}
    for one in refused:
        refusals.append(one)
        path = path_of(one.name)
        if path is None or why_ignored(path) or refuse_path(one.name.replace("\0", "")):
            continue
        known.add(posixpath.dirname(path))
        present[posixpath.dirname(path)] += is_image(path)
        if one.reason == _IS_LINK and not is_image(path):
            links.add(path)
    containers, notes = [], list(notes)
    for one in found:
        path = path_of(one.name)
        ignored = "lies outside of --within" if path is None else why_ignored(path)
        reason = ignored or _unwanted(path, one.size)
        if not ignored:
            known.add(posixpath.dirname(path))
            present[posixpath.dirname(path)] += is_image(path)
            if may_hold_images(path):
                containers.append(path)
            if posixpath.basename(path).lower() in SIDE_FILES and len(notes) < 20:
                notes.append(f"{one.name} is not read: the folders alone say which class an image is of")
        if layout.texts and not ignored and suffix_of(path) == TEXT_SUFFIX:
            texts[posixpath.splitext(path)[0]] = one
            continue
        if reason is not None:
            refusals.append(Refused(name=one.name, reason=reason))
            continue
        if path in images:
            refusals.append(Refused(name=images[path].name, reason="is named twice: the later one is used"))
        images[path] = one
    if inside and not known:
        raise DataError(f"--within {layout.within} is no folder of the source; wanted one that holds class folders")
    every = with_parents(known)
    _refuse_containers(containers, every)
    if layout.texts:
        refusals.sort(key=lambda one: (one.name, one.reason))
        return Listing(
            originals=_with_texts(images, texts), class_names=(WITH_TEXTS,), refused=refusals, reader=reader,
            notes=(*notes, *_alike(images)),
        )
    classes = classes_of(Folders(images=+present, all=every | {""}, links=frozenset(links)), layout)
    originals = []
    for path, one in sorted(images.items()):
        label = classes.number_of.get(posixpath.dirname(path))
        if label is not None:
            originals.append(Original(name=one.name, label=label, size=one.size, place=one.place))
        elif layout.classes is not None:
            refusals.append(Refused(name=one.name, reason="lies in no folder that --classes names"))
        else:
            refusals.append(Refused(name=one.name, reason="lies in no class folder"))
    refusals.sort(key=lambda one: (one.name, one.reason))
    notes += [*classes.notes, *_alike(images)]
    return Listing(
        originals=originals, class_names=classes.names, refused=refusals, reader=reader, notes=tuple(notes)
    )


def _with_texts(images: Mapping[str, Found], texts: Mapping[str, Found]) -> list[Original]:
    """By name. Raises DataError if an image has no text or a text no image: which belong together would be a guess."""
    stems = {posixpath.splitext(path)[0] for path in images}
    lacking = [one.name for path, one in sorted(images.items()) if posixpath.splitext(path)[0] not in texts]
    alone = [one.name for stem, one in sorted(texts.items()) if stem not in stems]
    if lacking or alone:
        told = [
            f"{len(those)} of {len(all_of_them)} {what}, such as {those[0]!r}" for those, all_of_them, what in (
                (lacking, images, "images have no text beside them"), (alone, texts, "texts have no image"),
            ) if those
        ]
        raise DataError(
            f"{'; '.join(told)}: wanted NAME{TEXT_SUFFIX} beside every NAME.jpg; give them one, or take them away"
        )
    originals = []
    for path, one in sorted(images.items()):
        text = texts[posixpath.splitext(path)[0]]
        said = Original(name=text.name, label=0, size=text.size, place=text.place)
        originals.append(Original(name=one.name, label=0, size=one.size, place=one.place, text=said))
    return originals


def _unwanted(path: str, size: int) -> str | None:
    if not is_image(path):
        return f"is not an image by its name ({posixpath.splitext(path)[1] or 'no extension'})"
    if size > _LARGEST_BYTES:
        return f"is larger than {_LARGEST_BYTES >> 20} MiB"
    return None


def _refuse_containers(containers: Sequence[str], folders: frozenset[str]) -> None:
    """An archive beside the folder that it was unpacked to is left out; any other might be a class that is lost."""
    names = {posixpath.basename(folder).casefold() for folder in folders}
    unknown = [path for path in containers if posixpath.basename(path).split(".")[0].casefold() not in names]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise DataError(
            f"{unknown[0]!r}{more} in the source may hold images ({suffix_of(unknown[0])}), and is not looked into: "
            "unpack it there or take it away, or pack it by itself"
        )


def _alike(images: Iterable[str]) -> list[str]:
    """Images that differ in the extension alone may be an image and its mask, or one image twice."""
    stems = Counter(posixpath.splitext(path)[0] for path in images)
    twice = [stem for stem, count in stems.items() if count > 1]
    if not twice:
        return []
    return [f"{len(twice)} pairs of images differ in the extension alone, such as {min(twice)!r}; all are taken"]


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


@dataclass(frozen=True, kw_only=True)
class Files:
    """What lies in a folder and the folders in it, by names relative to it."""

    found: Sequence[Found]
    refused: Sequence[Refused]
    folders: Sequence[str]


def files_in(folder: Path) -> Files:
    """Raises DataError if a folder in it cannot be listed."""
    found: list[Found] = []
    refused: list[Refused] = []
    folders: list[str] = []
    pending = [""]
    while pending:
        current = pending.pop()
        try:
            entries = list(os.scandir(folder / current))
        except OSError as error:
            where, remedy = folder / current, remedy_of_reading(error)
            raise DataError(f"{where} cannot be listed: {error.strerror}; {remedy}") from None
        for entry in entries:
            name = f"{current}/{entry.name}" if current else entry.name
            if entry.is_symlink():
                refused.append(Refused(name=name, reason=_IS_LINK))
            elif entry.is_dir():
                pending.append(name)
                folders.append(name)
            elif stat.S_ISREG((status := entry.stat()).st_mode):
                found.append(Found(name=name, size=status.st_size))
            else:
                refused.append(Refused(name=name, reason="is a device, a pipe or a socket"))
    return Files(found=found, refused=refused, folders=folders)


def list_folder(folder: Path, files: Files | None = None, layout: Layout | None = None) -> Listing:
    """Raises DataError as `files_in` and `listing`."""
    files = files or files_in(folder)
    return listing(files.found, files.refused, FolderReader(folder), folders=files.folders, layout=layout)
