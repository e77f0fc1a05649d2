"""Which images a set of samples is made of: a stamp beside them, so that sets are neither mixed nor measured as one.

    FOLDER/sampled.json               written before the first image
        000000.png 000001.png ...     as many as it says, when the set is complete
    FILE.npz                          has it as an array, bytes of JSON

Folders without one are measured as they are: real images, or samples of another program.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np

from ...core.errors import DataError, UserError
from ...core.files import explained_write, open_in_place, read_regular, refuse_to_replace, write_atomically
from ...core.ranges import Range
from ...core.strict_json import parse_json
from ...core.typed import Mistake, build, to_mapping
from ...data.npz import Npz
from ...sampling.sheets import STAMP

STAMP_NAME = "sampled.json"
_LARGEST_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Two sets with the same one are the same images, wherever they and the checkpoint lie."""

    checkpoint: str  # SHA-256 of its manifest
    step: Annotated[int, Range(0)]
    seed: int
    labels: str  # balanced, random, or classes as they were given: 0,1,2
    num_steps: Annotated[int, Range(1)]
    shape: tuple[int, int, int]  # C, H, W
    decoded_by: str | None = None
    between: tuple[float, ...] | None = None  # the times between the steps; null: equal ones
    renoised: bool = False  # with fresh noise between the steps
    num: Annotated[int, Range(1)]

    def others(self, names: Collection[str]) -> list[str]:
        """Those of the names that are not of its images, sorted."""
        return sorted(name for name in names if not self._is_of(name))

    def first_missing(self, names: Collection[str]) -> str | None:
        """None if all are there."""
        return next((name for name in map(name_of, range(self.num)) if name not in names), None)

    def _is_of(self, name: str) -> bool:
        match = re.fullmatch("([0-9]{6,18})[.]png", name)
        return match is not None and int(match[1]) < self.num and name == name_of(int(match[1]))

    def to_bytes(self) -> bytes:
        return json.dumps(to_mapping(self), indent=1).encode() + b"\n"

    def differs(self, other: Stamp) -> str:
        """What of the other is not as here, in words; of the number of images nothing is said. Empty: nothing."""
        mine, theirs = to_mapping(self), to_mapping(other)
        names = [field.name for field in fields(self) if field.name != "num"]
        return ", ".join(
            f"{name} {str(mine[name])[:16]} and not {str(theirs[name])[:16]}"
            for name in names if mine[name] != theirs[name]
        )


def name_of(number: int) -> str:
    return f"{number:06d}.png"


def read_stamp(folder: Path) -> Stamp | None:
    """None if the folder has none. Raises DataError for one that cannot be read."""
    path = folder / STAMP_NAME
    try:
        return _parsed(read_regular(path, _LARGEST_BYTES), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; restore it, or draw the images anew") from None


def stamp_in(npz: Npz) -> Stamp | None:
    """The same of an npz."""
    member = npz.members.get(STAMP)
    if member is None:
        return None
    place = f"{npz.path}, array {STAMP!r}"
    if member.dtype != np.uint8 or len(member.shape) != 1 or member.shape[0] > _LARGEST_BYTES:
        raise DataError(f"{place} is {member}; wanted bytes; draw the images anew")
    return _parsed(npz.read(STAMP).tobytes(), place)


def _parsed(content: bytes, place: object) -> Stamp:
    try:
        return build(Stamp, parse_json(content))
    except (Mistake, ValueError) as error:
        raise DataError(f"{place} is damaged ({error}); restore it, or draw the images anew") from None


def check_complete(folder: Path, names: Collection[str]) -> Stamp | None:
    """The stamp of a folder that holds the images it speaks of, by their names, and no others; None if it has none.

    Raises DataError otherwise.
    """
    stamp = read_stamp(folder)
    if stamp is None:
        return None
    others, missing = stamp.others(names), stamp.first_missing(frozenset(names))
    if others:
        raise DataError(
            f"{folder} holds {len(others)} image(s) that are not of the set of {stamp.num:,} which {STAMP_NAME} speaks "
            f"of, such as {others[0]}: figures of a mixture mean nothing; take them away, or draw into another folder"
        )
    if missing is not None:
        raise DataError(
            f"{folder} is unfinished: {len(names):,} of {stamp.num:,} images are there, and {missing} is not; run the "
            "same sample command again"
        )
    return stamp


def claim_folder(folder: Path, stamp: Stamp, names: Collection[str]) -> None:
    """Stamps a folder, so that images of this set alone are written into it; `names` are of the images there.

    The same set is drawn again, or as a longer one. Raises UserError, having changed nothing, if there are others.
    """
    found = read_stamp(folder)
    if found is None and names:
        raise UserError(
            f"--out {folder} holds {len(names):,} image(s) already, and no {STAMP_NAME} says which they are; choose "
            "another folder, or remove them"
        )
    if found is not None:
        differs = found.differs(stamp)
        if differs:
            raise UserError(f"--out {folder} holds another set of images: {differs}; choose another folder")
        if found.num > stamp.num:
            raise UserError(
                f"--out {folder} holds {found.num:,} images of this set; for {stamp.num:,} choose another folder"
            )
        others = found.others(names)
        if others:
            raise UserError(f"--out {folder} holds images of another set, such as {others[0]}; choose another folder")
    if found is not None:
        write_atomically(folder / STAMP_NAME, lambda file: file.write(stamp.to_bytes()))
    elif not _create(folder / STAMP_NAME, stamp.to_bytes()):
        raise UserError(f"--out {folder} was taken by another sample command just now; choose another folder")


def _create(path: Path, content: bytes) -> bool:
    """Writes a file where there is none; of several processes that do so at once, one is told that it did."""
    with explained_write(path):
        try:
            descriptor = open_in_place(path, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
    return True


def check_replaceable(path: Path, stamp: Stamp) -> None:
    """Raises UserError if an npz is there that holds anything but this set, of whatever length."""
    refuse_to_replace(path)
    if not path.exists():
        return
    try:
        found = stamp_in(Npz(path))
    except DataError as error:
        raise UserError(f"--npz {path} is there, and is not of this set: {error}; choose another name") from None
    if found is None:
        raise UserError(f"--npz {path} is there, and does not say what it holds; choose another name, or remove it")
    differs = found.differs(stamp)
    if differs:
        raise UserError(f"--npz {path} holds another set of images: {differs}; choose another name, or remove it")
