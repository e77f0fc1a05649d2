"""dataset.json: what a folder of packed shards holds, how it was made, and the sums that prove it whole.

    FOLDER/
        dataset.json            written last: a folder without it is unfinished
        index.safetensors       where every sample lies, its CRC-32 and its label (shards.SampleIndex)
        shard-000000.tar  .idx  WebDataset shards, and an index of each as wds2idx writes it
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from ..core.errors import ConfigError, DataError
from ..core.files import open_regular, read_regular, write_atomically
from ..core.ranges import Range, Text
from ..core.strict_json import parse_json
from ..core.typed import Mistake, build

FORMAT = "afm_scale data set"
FORMAT_VERSION = 1
DESCRIPTION_NAME = "dataset.json"
INDEX_NAME = "index.safetensors"
BLOCK_BYTES = 512  # of a tar: every member begins with one that names it, and fills its last one up
LARGEST_SAMPLE = 2**30  # bytes of one member
LISTED_NAMES = 1000
"""Files that are named with each change that they saw; all are counted."""

_LONGEST = 2**28  # bytes of dataset.json; it lists every file that was refused
_MOST = 2**40  # samples, or bytes of a shard in blocks
TEXT_BYTES = 2**16
"""Of the longest text of a sample, in UTF-8."""
RECORD_HEADER = 2**10
"""Bytes of the header of a record of embeddings, at most."""
_Sha256 = Annotated[str, Text(64, "[0-9a-f]{64}", "a SHA-256 in hexadecimal digits")]
_Name = Annotated[str, Text(4096)]  # of a class: of a folder or a file
_Printed = Annotated[str, Text(4096, r"[^\x00-\x1f\x7f\ud800-\udfff]+", "printable text")]
_Line = Annotated[str, Text(4096, r"[^\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]*", "printable text, of several lines maybe")]
_ShardName = Annotated[str, Text(200, r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar", "the name of a .tar in this folder")]
_Count = Annotated[int, Range(0, _MOST)]


@dataclass(frozen=True, kw_only=True)
class ImageContent:
    """One member a sample: an encoded RGB or grey image."""

    size: Annotated[int, Range(1, 16_384)] | None  # pixels of a side, cropped square; None: as large as the originals
    encoding: Literal["png", "jpeg", "original"]  # original: the bytes of the source, untouched
    channels: Literal[1, 3] = 3  # 1: all are grey; 3: RGB, and grey ones among originals
    texts: bool = False  # whether a second member is the text that belongs to the image, UTF-8
    kind: Literal["images"] = "images"

    @property
    def num_members(self) -> int:
        return 1 + self.texts


@dataclass(frozen=True, kw_only=True)
class LatentContent:
    """Two members a sample, of the image and of its mirror image: .npy float16 [2 (mean, deviation), C, H, W]."""

    shape: Annotated[tuple[int, int, int], Range(1, 65_536)]  # C, H, W
    vae: _Printed  # the name it was given
    vae_sha256: _Sha256  # of its weights
    scale: Annotated[float, Range(above=0, high=1e6)]  # a training latent is scale * (mean + deviation * normal)
    shift: Annotated[float, Range(-1e6, 1e6)] = 0.0  # what was taken off the encoder's mean, which decoding adds again
    texts: bool = False  # whether a third member is the text that belongs to the image, UTF-8
    kind: Literal["latents"] = "latents"

    def __post_init__(self) -> None:
        if self.num_bytes > LARGEST_SAMPLE:
            raise ConfigError(f"latents of shape {list(self.shape)} have more than {LARGEST_SAMPLE >> 20} MiB each")

    @property
    def num_members(self) -> int:
        return 2 + self.texts

    @property
    def num_bytes(self) -> int:
        """Of the values of one member, without the header."""
        return 2 * math.prod(self.shape) * 2


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """What embedded prompts. Embeddings of equal ones mean the same, and can be used together."""

    pipeline: _Printed  # its class in diffusers
    text_encoder_sha256: _Sha256  # of its files' names and sums
    tokenizer_sha256: _Sha256  # likewise
    template: _Line  # in which {} is the prompt; "{}": none
    precision: Literal["fp32", "bf16"]  # of the computation
    # to which all prompts were padded, where the transformer sees what pads them; null: it does not
    padded: Annotated[int, Range(1, 65_536)] | None = None

    def sha256(self) -> str:
        """The same for equal encoders alone; what older sets do not say counts where it says something."""
        told = asdict(self)
        if self.padded is None:
            del told["padded"]
        return sha256(json.dumps(told).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PromptContent:
    """Different prompts, and the empty one last: two members a sample, of the embedding and of the text, UTF-8.

    An embedding is a record of safetensors: `embeddings` [n, width] of the n tokens that are not masked, and, if there
    is one, `pooled` [pooled]. Beside the shards stands which of them each text of the source is (`prompts.ROWS_NAME`).
    """

    length: Annotated[int, Range(1, 65_536)]  # L, to which readers pad embeddings: n <= L
    width: Annotated[int, Range(1, 1_048_576)]  # D
    pooled: Annotated[int, Range(0, 1_048_576)]  # P; 0: the encoder gives none
    dtype: Literal["float32", "bfloat16"]
    encoder: PromptEncoder
    empty: _Line  # the text of the empty prompt
    num_texts: Annotated[int, Range(1, _MOST)]  # of the source, equal ones counted each time
    texts_sha256: _Sha256  # which texts, in their order (`prompts.sum_of_texts`)
    rows_sha256: _Sha256
    kind: Literal["prompts"] = "prompts"

    def __post_init__(self) -> None:
        if self.num_bytes > LARGEST_SAMPLE:
            raise ConfigError(f"embeddings of {self.length} x {self.width} have more than {LARGEST_SAMPLE >> 20} MiB")

    @property
    def num_members(self) -> int:
        return 2

    @property
    def num_bytes(self) -> int:
        """Of the longest record, without its header."""
        return (self.length * self.width + self.pooled) * {"float32": 4, "bfloat16": 2}[self.dtype]


Content = ImageContent | LatentContent | PromptContent
"""What a packed data set may hold."""
Kind = Literal["images", "latents", "prompts"]


@dataclass(frozen=True, kw_only=True)
class Shard:
    name: _ShardName  # "shard-000000.tar"
    num_samples: _Count
    num_bytes: Annotated[int, Range(2 * BLOCK_BYTES, _MOST * BLOCK_BYTES)]
    sha256: _Sha256
    idx_sha256: _Sha256

    @property
    def idx_name(self) -> str:
        return Path(self.name).with_suffix(".idx").name


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A file of the source that was left out."""

    name: str
    reason: str  # as the file's reader has it; of any length, as the name is


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that was done to images, which makes them look otherwise than they did or than they say."""

    how: str
    count: _Count  # images
    names: tuple[str, ...]  # of the first `LISTED_NAMES` of them


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of the files of a source. Raises ConfigError if the counts do not add up."""

    found: _Count  # files, folders apart
    packed: _Count
    changed: _Count  # of those that were packed, whatever was done to them
    left_out: _Count  # `refused` names them all
    changes: tuple[Change, ...]
    notes: tuple[str, ...]  # what was decided about the source as a whole

    def __post_init__(self) -> None:
        counts = [change.count for change in self.changes]
        if self.found != self.packed + self.left_out:
            raise ConfigError(f"{self.found} files were found, {self.packed} packed and {self.left_out} left out")
        if not max(counts, default=0) <= self.changed <= min(self.packed, sum(counts)):
            raise ConfigError(f"{self.changed} of {self.packed} images were changed, {counts} of them in each way")
        if any(len(change.names) != min(change.count, LISTED_NAMES) for change in self.changes):
            raise ConfigError("a change names more or fewer images than it counts")


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    content: Content
    num_samples: Annotated[int, Range(1, _MOST)]
    class_names: tuple[_Name, ...]
    class_counts: tuple[_Count, ...]  # samples of each class
    shards: tuple[Shard, ...]
    index_sha256: _Sha256
    made: Mapping[str, Any]  # the settings of the packing, for the reader's eye
    refused: tuple[Refused, ...] = ()
    account: Account | None = None  # None: packed before there was one, or made of a packed set

    def __post_init__(self) -> None:
        """Raises ConfigError if its numbers contradict each other."""
        held = sum(shard.num_samples for shard in self.shards)
        if held != self.num_samples:
            raise ConfigError(f"the shards hold {held} samples, num_samples is {self.num_samples}")
        if len(self.class_counts) != len(self.class_names) or sum(self.class_counts) != self.num_samples:
            raise ConfigError("class_counts do not add up to num_samples, or are not one for each class")
        account = self.account
        if account is not None and (account.packed, account.left_out) != (self.num_samples, len(self.refused)):
            raise ConfigError(
                f"the account has {account.packed} packed and {account.left_out} left out; there are "
                f"{self.num_samples} samples, and {len(self.refused)} refused files"
            )
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ConfigError("two shards have the same name")
        for shard in self.shards:
            # Of every sample a block that names each member, and two for its label; of the shard two at its end.
            fewest = BLOCK_BYTES * (shard.num_samples * (self.content.num_members + 2) + 2)
            if shard.num_bytes % BLOCK_BYTES or shard.num_bytes < fewest:
                raise ConfigError(
                    f"{shard.name} cannot have {shard.num_bytes} bytes and hold {shard.num_samples} samples"
                )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fingerprint(self) -> dict[str, str]:
        """As `SourceConfig` says of packed data: `index`, which holds a sum of every sample, and `classes`.

        The labels in the index are numbers: which classes they are is for the names, in their order, to say.
        """
        return {"index": self.index_sha256, "classes": sha256(json.dumps(self.class_names).encode()).hexdigest()}


def write_description(folder: Path, description: DatasetDescription) -> None:
    """Raises UserError if the file system refuses."""
    text = json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **asdict(description)}, indent=1) + "\n"
    write_atomically(folder / DESCRIPTION_NAME, lambda file: file.write(text.encode()))


def read_description(folder: Path) -> DatasetDescription:
    """Raises DataError if there is no complete data set of this version, or if what it says cannot be."""
    path = folder / DESCRIPTION_NAME
    try:
        plain = parse_json(read_regular(path, _LONGEST), file_names=True)
    except FileNotFoundError:
        state = "the packing is unfinished: run it again" if folder.is_dir() else "no such folder"
        raise DataError(f"{path} is not there ({state}); pack a data set with tools/make_shards.py") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; restore it, or pack the data set again") from None
    about = [plain.pop(name, None) for name in ("format", "version")] if isinstance(plain, dict) else []
    if repr(about) != repr([FORMAT, FORMAT_VERSION]):  # of values, == takes true and 1.0 for 1
        raise DataError(f"{path} is not of format '{FORMAT}', version {FORMAT_VERSION}; pack the data set again")
    try:
        return build(DatasetDescription, plain)
    except Mistake as mistake:
        raise DataError(f"{path} is damaged: {mistake}; restore it, or pack the data set again") from None


def read_content(folder: Path, kind: Kind) -> DatasetDescription:
    """The description of a data set whose content is of this kind. Raises DataError if there is none, or of another."""
    description = read_description(folder)
    check_content(folder, description, kind)
    return description


def check_content(folder: Path, description: DatasetDescription, kind: Kind) -> None:
    """Raises DataError if the data set holds another kind of content."""
    if description.content.kind != kind:
        raise DataError(
            f"{folder} holds {description.content.kind}, this source reads {kind}; change data.kind or data.folder"
        )


def file_sha256(path: Path) -> str:
    """Raises OSError if it cannot be read, or is no regular file."""
    digest = sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
