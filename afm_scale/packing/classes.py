"""Which folders of a source are classes, and their numbers: decided once for all of it, and told.

The class folders are those directly in one folder, the root: the source itself, or what lies in it alone. Whatever
makes that doubtful (images at other depths, folders without images, splits, links) is an error that says how to decide.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import ConfigError, DataError
from ..core.files import read_regular
from ..data.description import DESCRIPTION_NAME, read_description
from .naming import composed, natural, split_of

_WAYS_OUT = (
    "give --classes FILE with the class folders in the order of their numbers, one a line, or --within FOLDER to pack "
    "a part of the source"
)
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the user says of a source."""

    within: str | None = None  # the folder in it that is packed, or the split of its parquet files
    classes: tuple[str, ...] | None = None  # class folders in the order of their numbers
    texts: bool = False  # images are of no classes, and each has a text beside it, of its name but for the suffix .txt

    def __post_init__(self) -> None:
        if self.texts and self.classes is not None:
            raise ConfigError("--texts packs images with texts and without classes; leave out --classes")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The folders of a source, in its own names without what is ignored; '' is the source itself."""

    images: Mapping[str, int]  # images by the folder they lie in, those that turn out unusable too
    all: frozenset[str]  # with those that hold no image, and all that they lie in
    links: frozenset[str] = frozenset()  # which may lead to folders


@dataclass(frozen=True, kw_only=True)
class Classes:
    names: tuple[str, ...]  # by number
    number_of: Mapping[str, int]  # by folder that holds images
    notes: tuple[str, ...] = field(default=())  # what was decided that another program decides otherwise


def read_classes(path: Path) -> tuple[str, ...]:
    """The names that --classes gives: one a line, or those of a packed data set, by its folder or its dataset.json.

    Raises DataError if it cannot be read, or holds what cannot be the name of a class or one name twice.
    """
    if path.is_dir() or path.name == DESCRIPTION_NAME:
        return read_description(path if path.is_dir() else path.parent).class_names
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"--classes {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--classes {path} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    names = [line.rstrip("/") for line in lines]
    while names and not names[-1].strip():
        names.pop()
    blank = next((number for number, name in enumerate(names, start=1) if not name.strip()), None)
    if not names or blank is not None:
        what = f"its line {blank} is blank, and would be a class" if names else "it holds no name"
        raise DataError(f"--classes {path}: {what}; wanted the names of the class folders, one a line")
    twice = next((name for name, count in Counter(map(composed, names)).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"--classes {path} names {twice!r} twice; a class has one number")
    return tuple(names)


def with_parents(folders: Iterable[str]) -> frozenset[str]:
    """The folders and all that they lie in."""
    found: set[str] = set()
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = posixpath.dirname(folder)
    return frozenset(found)


def classes_of(folders: Folders, layout: Layout) -> Classes:
    """Raises DataError where the level of the classes, or which folders are classes, is doubtful."""
    children: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(folders.all - {""}):
        children[posixpath.dirname(folder)].append(folder)
    roots = [""]
    while len(only := children[roots[-1]]) == 1 and children[only[0]]:
        roots.append(only[0])
    if layout.classes is not None:
        return _as_said(folders, layout.classes, roots)
    root = roots[-1]
    level = children[root]
    if not level or not any(folders.images.values()):
        return Classes(names=(), number_of={})
    inside = _inside(folders.images, level)
    _refuse_doubts(folders, root, level, inside)
    named = {folder: composed(posixpath.relpath(folder, root or ".")) for folder in level}
    names, notes = _ordered(sorted(named.values()))
    numbers = {name: number for number, name in enumerate(names)}
    inner = {posixpath.relpath(found, folder) for folder, held in inside.items() for found in held} - {"."}
    if inner:
        notes.append(f"the images of a class lie in its folder {min(inner)!r}, which is no part of its name")
    of = {found: numbers[named[folder]] for folder, held in inside.items() for found in held}
    return Classes(names=names, number_of=of, notes=tuple(notes))


def _inside(images: Mapping[str, int], level: Sequence[str]) -> dict[str, list[str]]:
    """The folders that hold images in each of the class folders, itself among them."""
    found: dict[str, list[str]] = {folder: [] for folder in level}
    for folder in sorted(images):
        above = folder
        while above and above not in found:
            above = posixpath.dirname(above)
        if above:
            found[above].append(folder)
    return found


def _refuse_doubts(folders: Folders, root: str, level: Sequence[str], inside: Mapping[str, list[str]]) -> None:
    splits = [folder for folder in level if split_of(folder)]
    if len(splits) > 1 or any(not str(split_of(folder)).startswith("train") for folder in splits):
        raise DataError(f"{_told(splits)} would be a class, and is named as a split is; pack one split (--within "
                        f"{splits[0]}), or, if these are classes, give --classes FILE with one a line")
    links = sorted(link for link in folders.links if posixpath.dirname(link) == root)
    if links:
        raise DataError(f"{_told(links)} is a link among the class folders, and links are not followed; put what it "
                        "leads to in its place, or take it away")
    empty = [folder for folder in level if not inside[folder]]
    if empty:
        raise DataError(f"{_told(empty)} lies among the class folders and holds no image: a class would be lost, or "
                        f"one too many be made; take it away, or {_WAYS_OUT}")
    depths = {posixpath.relpath(found, folder) for folder, held in inside.items() for found in held}
    if len(depths) > 1:
        deep = [found for folder, held in inside.items() for found in held if found != folder]
        raise DataError(f"images lie at different depths, such as in {_told(deep)}, with class folders such as "
                        f"{level[0]!r}: which folders are classes is not clear; {_WAYS_OUT}")
    beside, held = folders.images.get(root, 0), sum(folders.images[one] for found in inside.values() for one in found)
    if beside >= held:
        raise DataError(f"{beside} images lie beside the class folders ({_told(level)}), which hold {held}: they would "
                        f"be left out; sort them into folders, or {_WAYS_OUT}")
    twice = [name for name, count in Counter(map(composed, level)).items() if count > 1]
    if twice:
        raise DataError(f"two folders are named {twice[0]!r}, with accents written in two ways; join them")


def _ordered(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The names by their numbers, and what is to be said about that. Raises DataError if two are one number."""
    notes = []
    by_text, by_number = tuple(sorted(names)), tuple(sorted(names, key=natural))
    if all(name.isdigit() and name.isascii() for name in names):
        twice = [number for number, count in Counter(map(int, names)).items() if count > 1]
        if twice:
            raise DataError(f"two class folders are named {twice[0]}, with and without zeros before it; join them")
        if by_number != by_text:
            notes.append(_difference("class folders are ordered as numbers", by_number, by_text))
        moved = next((name for number, name in enumerate(by_number) if int(name) != number), None)
        if moved is not None:
            notes.append(
                f"the class folder {moved!r} has number {by_number.index(moved)}: numbers begin at 0, without gaps; "
                "--classes FILE gives others"
            )
        return by_number, notes
    if by_number != by_text:
        notes.append(_difference("class folders are ordered as texts", by_text, by_number))
    alike = [name for name, count in Counter(name.casefold().strip() for name in names).items() if count > 1]
    if alike:
        notes.append(f"two classes differ in capitals or blanks alone: {alike[0]!r}")
    return by_text, notes


def _difference(what: str, chosen: Sequence[str], other: Sequence[str]) -> str:
    number = next(number for number, pair in enumerate(zip(chosen, other, strict=True)) if pair[0] != pair[1])
    return f"{what}: number {number} is {chosen[number]!r}, and not {other[number]!r}; --classes FILE orders otherwise"


def _as_said(folders: Folders, wanted: Sequence[str], roots: Sequence[str]) -> Classes:
    """An image is of the class of the deepest folder above it that is named."""
    for root in roots:
        here = {composed(posixpath.relpath(folder, root or ".")): folder for folder in sorted(folders.all)
                if folder and (not root or folder.startswith(f"{root}/"))}
        if any(composed(name) in here for name in wanted):
            break
    else:
        raise DataError(f"--classes names {wanted[0]!r} and others, and no such folder is in the source, which has "
                        f"{_told(sorted(folders.all - {''}) or ['none'])}")
    number_of_class = {here[composed(name)]: number for number, name in enumerate(wanted) if composed(name) in here}
    linked = sorted(folders.links & {posixpath.join(root, name) for name in wanted})
    if linked:
        raise DataError(f"--classes names {linked[0]!r}, which is a link, and links are not followed")
    inside = _inside(folders.images, list(number_of_class))
    of = {found: number_of_class[folder] for folder, held in inside.items() for found in held}
    absent = [name for name in wanted if composed(name) not in here]
    left = sorted(folder for folder, count in folders.images.items() if count and folder and folder not in of)
    if absent and left:
        raise DataError(f"--classes names {_told(absent)}, which is no folder, and does not name {_told(left)}, which "
                        "holds images; put the name right, or take one of them away")
    notes = [f"the class {name!r} of --classes has no folder: it keeps its number, without an image" for name in absent]
    return Classes(names=tuple(map(composed, wanted)), number_of=of, notes=tuple(notes))


def _told(folders: Sequence[str]) -> str:
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    return ", ".join(map(repr, folders[:_SHOWN])) + more
