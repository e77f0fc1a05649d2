"""Originals in parquet files: a column of image bytes and a column `label`, as Hugging Face data sets have them."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, BinaryIO

import pyarrow
import pyarrow.parquet

from ..core.errors import DataError
from ..core.files import read_regular, require_regular, write_atomically
from ..core.ranges import Range
from ..core.strict_json import parse_json
from ..core.typed import Mistake, build
from ..data.description import Refused
from .archives import SpanReader
from .classes import Layout
from .naming import split_of_file, why_ignored
from .originals import Files, Listing, Original
from .unpacking import scratch_path

_ROWS_AT_ONCE = 64
_USUAL_NAMES = ("image", "img", "jpg", "png", "bytes")
_USUAL_TEXTS = ("text", "caption", "prompt")
_MOST_CLASSES = 1 << 20  # where no names say how many there are


@dataclass(frozen=True, kw_only=True)
class _Columns:
    image: str
    nested: bool  # struct of bytes and path
    class_names: tuple[str, ...] | None  # where the file knows them
    told: str


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What a parquet file holds, its image bytes apart; kept in the scratch folder."""

    class_names: tuple[str, ...] | None
    rows: tuple[tuple[str, int | None, Annotated[int, Range(0)], Annotated[int, Range(0)]], ...]  # label, size, place
    refused: tuple[tuple[str, str], ...]  # name, reason
    num_bytes: Annotated[int, Range(0)]
    columns: str  # which one the images are of, and which are not read, for the account


def list_parquet(
    paths: Sequence[Path], scratch: Path, layout: Layout | None = None, beside: Files | None = None
) -> Listing:
    """The images of parquet files with the same columns; their bytes are first copied into `scratch`.

    Args:
        beside: all that lies in the folder, if it is one that was given.

    Raises DataError if a file is damaged, has no such columns, the files disagree about the classes, are of several
    splits, or some of their number are missing.
    """
    layout = layout or Layout()
    files = _of_one_split(paths, layout.within)
    _refuse_missing_parts(files)
    parts = [_spooled(path, scratch) for path in files]
    names = {None if part["class_names"] is None else tuple(part["class_names"]) for part in parts}
    if len(names) > 1:
        raise DataError(f"{files[0].parent}: the parquet files name different classes; pack them one by one")
    known = names.pop()
    rows = [(number, *row) for number, part in enumerate(parts) for row in part["rows"]]
    limit = _MOST_CLASSES if known is None else len(known)
    starts = list(accumulate((part["num_bytes"] for part in parts[:-1]), initial=0))
    refused = [Refused(name=name, reason=reason) for part in parts for name, reason in part["refused"]]
    originals = []
    for number, name, label, size, place in rows:
        if label is None or not 0 <= label < limit:
            refused.append(Refused(name=name, reason=f"has no label in 0 to {limit - 1}: {label}"))
        else:
            originals.append(Original(name=name, label=label, size=size, place=starts[number] + place))
    if layout.classes is not None:
        known = _named(layout.classes, known, originals)
    if known is None:
        known = tuple(str(label) for label in range(1 + max((one.label for one in originals), default=-1)))
    refused += _others(files, paths, beside)
    refused.sort(key=lambda one: (one.name, one.reason))
    copies = [scratch_path(path, scratch, ".images") for path in files]
    return Listing(
        originals=originals, class_names=known, refused=refused, reader=_Parts(copies, starts),
        notes=tuple(dict.fromkeys(part["columns"] for part in parts)),
    )


def _of_one_split(files: Sequence[Path], wanted: str | None) -> Sequence[Path]:
    """Raises DataError if the files are of several splits and none is wanted, or one that there is not."""
    splits = {path: split_of_file(path.name) for path in files}
    if wanted is not None:
        chosen = [path for path, split in splits.items() if split == wanted.lower()]
        if not chosen:
            raise DataError(f"--within {wanted} is the split of no parquet file here, such as {files[0].name}")
        return chosen
    if len(set(splits.values())) > 1:
        names = sorted({str(split) for split in splits.values() if split})
        raise DataError(
            f"{files[0].parent} holds parquet files of several splits ({', '.join(names)}, by names such as "
            f"{files[0].name}); pack one of them: --within {names[0]}, or give the file itself"
        )
    return files


def _refuse_missing_parts(files: Sequence[Path]) -> None:
    """Of files named ...-00003-of-00010.parquet all have to be there, if there are several."""
    matches = [match for path in files if (match := re.fullmatch(r"(.*)-([0-9]+)-of-([0-9]+)[.].*", path.name))]
    if len(files) == 1:
        return  # given by itself: part of a set, and known to be
    for stem, total in {(match[1], int(match[3])) for match in matches}:
        there = {int(match[2]) for match in matches if (match[1], int(match[3])) == (stem, total)}
        missing = next((number for number in range(total) if number not in there), None)
        if missing is not None:
            raise DataError(f"{files[0].parent} lacks the parquet file {stem}-{missing:05d}-of-{total:05d}; get it too")


def _named(wanted: tuple[str, ...], known: tuple[str, ...] | None, originals: Sequence[Original]) -> tuple[str, ...]:
    """The names of the classes as --classes has them. Raises DataError if they do not fit."""
    if known is not None and known != wanted:
        raise DataError("the parquet files name their classes, and --classes names others or in another order")
    most = max((one.label for one in originals), default=-1)
    if most >= len(wanted):
        raise DataError(f"--classes names {len(wanted)} classes, and there are labels up to {most}")
    return wanted


def _others(files: Sequence[Path], paths: Sequence[Path], beside: Files | None) -> list[Refused]:
    """What lies beside the files that are read."""
    read = {path.name for path in files}
    left = [Refused(name=path.name, reason="is of another split than --within") for path in paths if path not in files]
    if beside is None:
        return left
    done = read | {one.name for one in left}
    for one in beside.found:
        if one.name not in done:
            left.append(Refused(name=one.name, reason=why_ignored(one.name) or "is none of the parquet files"))
    return left + [one for one in beside.refused if one.name not in read]


def texts_of(path: Path, column: str | None) -> list[str | None]:
    """A column of texts, row by row; None: of the usual name. Raises DataError for a damaged file or no such column."""
    file = _opened(path)
    try:
        schema = file.schema_arrow
        kinds = {field.name: field.type for field in schema}
        texts = [name for name, kind in kinds.items() if pyarrow.types.is_string(kind)
                 or pyarrow.types.is_large_string(kind)]
        chosen = column or next((name for name in _USUAL_TEXTS if name in texts), None)
        if chosen not in texts:
            found = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
            raise DataError(f"{path} has the columns {found}; name one of texts with --column")
        return file.read(columns=[chosen])[chosen].to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {error}; get it again") from None
    finally:
        file.close()


class _Parts:
    """Several files one after the other, as if they were one."""

    def __init__(self, paths: Sequence[Path], starts: Sequence[int]) -> None:
        self._paths, self._starts = tuple(paths), tuple(starts)
        self._readers = [SpanReader(path) for path in paths]

    def __reduce__(self) -> tuple:
        return _Parts, (self._paths, self._starts)

    def read(self, original: Original) -> bytes:
        number = bisect_right(self._starts, original.place) - 1
        place = original.place - self._starts[number]
        return self._readers[number].read(
            Original(name=original.name, label=original.label, size=original.size, place=place)
        )


def _spooled(path: Path, scratch: Path) -> dict:
    """What the parquet file holds, once its image bytes lie one after the other in the scratch folder."""
    listed = scratch_path(path, scratch, ".json")
    if listed.exists():
        try:
            return vars(build(_Content, parse_json(read_regular(listed, None), file_names=True)))
        except (OSError, ValueError, Mistake) as error:
            raise DataError(f"{listed} is damaged: {error}; remove the folder {scratch}, and pack again") from None
    images = scratch_path(path, scratch, ".images")
    content: dict = {}
    write_atomically(images, lambda target: content.update(_copy(path, target)))
    text = json.dumps(content).encode()
    write_atomically(listed, lambda file: file.write(text))
    return content


def _copy(path: Path, target: BinaryIO) -> dict:
    rows: list[tuple[str, int | None, int, int]] = []
    refused: list[tuple[str, str]] = []
    place = 0
    columns, batches = _read(path)
    for number, (value, label) in enumerate(batches):
        data, inner = value, None
        if columns.nested:
            data, inner = (value or {}).get("bytes"), (value or {}).get("path")
        name = f"{path.name}/{number:09d}" + (f"/{Path(inner).name}" if inner else "")
        if data is None:
            refused.append((name, "has no image bytes"))
            continue
        target.write(data)
        rows.append((name, label, len(data), place))
        place += len(data)
    names = None if columns.class_names is None else list(columns.class_names)
    return {"class_names": names, "rows": rows, "refused": refused, "num_bytes": place, "columns": columns.told}


def _read(path: Path) -> tuple[_Columns, Iterator[tuple]]:
    file = _opened(path)
    columns = _columns(path, file.schema_arrow)
    return columns, _values(path, file, columns)


def _opened(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        require_regular(path)
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file: {error}; get it again") from None


def _values(path: Path, file: pyarrow.parquet.ParquetFile, columns: _Columns) -> Iterator[tuple]:
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[columns.image, "label"]):
            yield from zip(batch[columns.image].to_pylist(), batch["label"].to_pylist(), strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {error}; get it again") from None
    finally:
        file.close()


def _columns(path: Path, schema: pyarrow.Schema) -> _Columns:
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    images = [field.name for field in schema if _is_bytes(field.type) or _is_struct(field.type)]
    images = [name for name in _USUAL_NAMES if name in images] or images
    if not images or "label" not in schema.names or not pyarrow.types.is_integer(schema.field("label").type):
        raise DataError(
            f"{path} has the columns {found}; wanted one of image bytes (binary, or a struct of bytes and path) and "
            "an integer column 'label'"
        )
    if len(images) > 1 and images[0] not in _USUAL_NAMES:
        raise DataError(f"{path} has several columns of bytes ({', '.join(images)}); name the one of images 'image'")
    nested = _is_struct(schema.field(images[0]).type)
    others = [name for name in schema.names if name not in (images[0], "label")]
    told = f"images are those of the column {images[0]!r}, classes those of 'label'"
    told += f"; not read: {', '.join(others)}" if others else ""
    return _Columns(image=images[0], nested=nested, class_names=_class_names(schema.metadata or {}), told=told)


def _is_bytes(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _is_struct(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """The names of the classes, which the Hugging Face library writes beside the columns; None if it has not."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
