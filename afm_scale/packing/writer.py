"""Writes shards so that the same input gives the same bytes, and a packing that was killed goes on where it was.

Every shard is a unit of work: its tar and idx appear under their names when they are complete, and a record of it in
OUT/.packing/ last of all. `finish` joins the records into the index and dataset.json.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save

from ..core.errors import DataError
from ..core.files import read_regular, require_regular, write_atomically, written_atomically
from ..core.strict_json import parse_json
from ..core.typed import Mistake, build
from ..data.description import (
    DESCRIPTION_NAME,
    INDEX_NAME,
    Content,
    DatasetDescription,
    Refused,
    Shard,
    read_description,
    write_description,
)
from ..data.index import SampleIndex
from .accounts import Tally, account_of
from .records import About, about_in, damaged

SETTINGS_NAME = "settings.json"
_LABEL_BYTES = 4  # int32, little-endian: readers that want one dense tensor of labels (DALI) need a fixed width


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def scratch_folder(out: Path) -> Path:
    """Where a packing keeps what it needs until it is finished."""
    return out / ".packing"


def refuse_other_contents(out: Path) -> None:
    """Raises DataError if there is something at `out` that is neither a data set, nor one in the making, nor empty."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a data set is a folder: choose another name")
    if not out.is_dir() or (out / DESCRIPTION_NAME).exists():
        return
    scratch = scratch_folder(out)
    others = [path.name for path in out.iterdir() if path != scratch]
    if others and not (scratch / SETTINGS_NAME).exists():
        raise DataError(f"{out} is not empty and holds no packing ({others[0]!r} is there); choose another folder")


class ShardWriter:
    """One tar of samples, and its index as it grows."""

    def __init__(self, file: BinaryIO) -> None:
        self.refused: list[Refused] = []
        self.tally = Tally()
        self._file = file
        self._digest = sha256()
        self._num_bytes = 0
        self._rows: list[tuple[int, int]] = []  # key, label
        self._members: list[list[tuple[str, int, int, int]]] = []  # per sample: extension, offset, size, CRC-32

    def add(
        self, key: int, label: int, members: Mapping[str, bytes], *, name: str = "", changes: Sequence[str] = ()
    ) -> None:
        """One sample: its members by file extension, and its label as a member `cls`, all named after the key.

        Args:
            name: of the file of the source.
            changes: what was done to it, in words.
        """
        self.tally.add(name, changes)
        placed = []
        for extension, data in members.items():
            offset = self._member(f"{key:09d}.{extension}", data)
            placed.append((extension, offset, len(data), zlib.crc32(data)))
        label_bytes = label.to_bytes(_LABEL_BYTES, "little", signed=True)
        placed.append(("cls", self._member(f"{key:09d}.cls", label_bytes), _LABEL_BYTES, 0))
        self._rows.append((key, label))
        self._members.append(placed)

    def refuse(self, name: str, reason: str) -> None:
        """Notes a file of the source that is left out."""
        self.refused.append(Refused(name=name, reason=reason))

    def end(self) -> None:
        self._write(b"\0" * 2 * tarfile.BLOCKSIZE)

    def idx(self) -> bytes:
        """The text of the index, as wds2idx writes it."""
        lines = [f"v1.2 {len(self._rows)}"]
        for (key, _), placed in zip(self._rows, self._members, strict=True):
            lines.append(" ".join(f"{extension} {offset} {size} {key:09d}.{extension}"
                                  for extension, offset, size, _ in placed))
        return ("\n".join(lines) + "\n").encode()

    def shard(self, number: int) -> Shard:
        return Shard(
            name=shard_name(number), num_samples=len(self._rows), num_bytes=self._num_bytes,
            sha256=self._digest.hexdigest(), idx_sha256=sha256(self.idx()).hexdigest(),
        )

    def index(self, number: int, num_members: int) -> SampleIndex:
        rows = torch.tensor(self._rows, dtype=torch.int64).view(len(self._rows), 2)
        places = [[member[1:] for member in placed[:-1]] for placed in self._members]  # without the label
        members = torch.tensor(places, dtype=torch.int64).view(len(self._rows), num_members, 3)
        offset, size, crc32 = (column.contiguous() for column in members.unbind(-1))
        key, label = (column.contiguous() for column in rows.unbind(-1))
        return SampleIndex(torch.full_like(key, number), key, label, offset, size, crc32)

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # its defaults hold no time, no user and no machine
        info.size = len(data)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._num_bytes
        self._write(data + b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)


class Packing:
    """A data set in the making. Can be pickled: several processes may write different shards of it."""

    def __init__(self, out: Path, settings: Mapping[str, Any], content: Content) -> None:
        """`settings` are JSON values that the result depends on. Raises DataError if `out` holds something else."""
        self.out = out
        self._settings = dict(settings)
        self._content = content
        self._records = scratch_folder(out)

    def begin(self) -> DatasetDescription | None:
        """The finished data set if the same settings have made it already; otherwise makes or finds the folder.

        To be called by one process, before any shard is written.
        """
        wanted = {"content": asdict(self._content), "settings": self._settings}
        wanted = json.loads(json.dumps(wanted))
        if (self.out / DESCRIPTION_NAME).exists():
            done = read_description(self.out)
            found = {"content": asdict(done.content), "settings": dict(done.made)}
            self._refuse_others(wanted, json.loads(json.dumps(found)))
            shutil.rmtree(self._records, ignore_errors=True)
            return done
        path = self._records / SETTINGS_NAME
        if path.exists():
            self._refuse_others(wanted, self._settings_of(path))
        else:
            refuse_other_contents(self.out)
            text = json.dumps(wanted, indent=1)
            write_atomically(path, lambda file: file.write(text.encode()))
        return None

    def _refuse_others(self, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        for part in ("content", "settings"):
            for name in sorted(wanted[part].keys() | found[part].keys()):
                here, there = wanted[part].get(name), found[part].get(name)
                if here != there:
                    raise DataError(
                        f"{self.out} was packed with {name} {there!r}, now it is {here!r}; "
                        "use the same settings, or another folder"
                    )

    def _settings_of(self, path: Path) -> Mapping[str, Any]:
        """The settings of the packing that is being made here. Raises DataError if the file is damaged."""
        try:
            found = build(dict[str, dict[str, Any]], parse_json(read_regular(path), file_names=True))
            if found.keys() == {"content", "settings"}:
                return found
            reason = f"it holds {', '.join(map(repr, sorted(found)))[:200]}"
        except OSError as error:
            reason = error.strerror
        except (ValueError, Mistake) as error:
            reason = str(error)
        raise damaged(path, reason)

    def is_written(self, number: int) -> bool:
        """Whether a shard is there as its record says; one that is not has to be written again."""
        try:
            shard = about_in(self._record(number)).shard
            tar, idx = self.out / shard_name(number), self.out / shard.idx_name
            require_regular(tar)
            found = (tar.name, tar.stat().st_size, sha256(read_regular(idx)).hexdigest())
            return found == (shard.name, shard.num_bytes, shard.idx_sha256)
        except (DataError, OSError):
            return False

    @contextmanager
    def shard(self, number: int) -> Iterator[ShardWriter]:
        """Fill the writer inside the block; the shard is there when the block ends. Raises UserError on a full disk."""
        path = self.out / shard_name(number)
        with written_atomically(path) as file:
            writer = ShardWriter(file)
            yield writer
            writer.end()
        write_atomically(path.with_suffix(".idx"), lambda file: file.write(writer.idx()))
        about = asdict(About(
            shard=writer.shard(number), refused=tuple(writer.refused), changes=writer.tally.changes,
            num_changed=writer.tally.num_changed,
        ))
        tensors = writer.index(number, self._content.num_members).tensors()
        record = save(tensors, metadata={"about": json.dumps(about)})
        write_atomically(self._record(number), lambda file: file.write(record))

    def finish(
        self, num_shards: int, class_names: Sequence[str], refused: Sequence[Refused] = (),
        notes: Sequence[str] | None = None,
    ) -> DatasetDescription:
        """Joins the records of all shards.

        Args:
            refused: what was left out before any shard was written.
            notes: what was decided about the source, for its account; None: there is none to give.
        """
        records = [self._record(number) for number in range(num_shards)]
        abouts = [about_in(record) for record in records]
        parts = [SampleIndex.read(record) for record in records]
        for record, about, part in zip(records, abouts, parts, strict=True):
            # Of the same packing, so that they can be joined and counted; the whole is looked at below.
            if part.offset.shape != (about.shard.num_samples, self._content.num_members):
                raise damaged(record, f"it holds members of shape {list(part.offset.shape)}")
            if bool(((part.label < 0) | (part.label >= len(class_names))).any()):
                raise damaged(record, f"it holds labels of none of {len(class_names)} classes")
        index = SampleIndex.concatenate(parts)
        if len(index.label) == 0:
            raise DataError(f"no sample is left to pack: {self._why(abouts, refused)}")
        content = save(index.tensors())
        left_out = (*refused, *(one for about in abouts for one in about.refused))
        tally = Tally()
        for about in abouts:
            tally.add_all(about.changes, about.num_changed)
        description = DatasetDescription(
            content=self._content,
            num_samples=len(index.label),
            class_names=tuple(class_names),
            class_counts=tuple(torch.bincount(index.label, minlength=len(class_names)).tolist()),
            shards=tuple(about.shard for about in abouts),
            index_sha256=sha256(content).hexdigest(),
            made=self._settings,
            refused=left_out,
            account=None if notes is None else account_of(
                tally, num_packed=len(index.label), num_left_out=len(left_out), notes=notes
            ),
        )
        if problem := next(index.problems(description), None):
            raise damaged(self._records, f"the index of its records {problem}")
        write_atomically(self.out / INDEX_NAME, lambda file: file.write(content))
        write_description(self.out, description)
        shutil.rmtree(self._records)
        return description

    @staticmethod
    def _why(abouts: list[About], refused: Sequence[Refused]) -> str:
        left_out = [*refused, *(one for about in abouts for one in about.refused)]
        reasons = [f"{one.name}: {one.reason}" for one in left_out]
        return "; ".join(reasons[:3]) or "the source is empty"

    def _record(self, number: int) -> Path:
        return self._records / f"shard-{number:06d}.safetensors"
