"""dataset.json: what a folder of packed shards holds, how it was made, and the sums that prove it whole.

    FOLDER/
        dataset.json            written last: a folder without it is unfinished
        index.safetensors       where every sample lies, its CRC-32 and its label (shards.SampleIndex)
        shard-000000.tar  .idx  WebDataset shards, and an index of each as wds2idx writes it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ..core.errors import DataError
from ..core.files import open_regular, write_atomically

FORMAT = "afm_scale data set"
FORMAT_VERSION = 1
DESCRIPTION_NAME = "dataset.json"
INDEX_NAME = "index.safetensors"


@dataclass(frozen=True, kw_only=True)
class ImageContent:
    """One member a sample: an encoded RGB or grey image."""

    size: int | None  # pixels of a side, cropped square; None: as large as the originals
    encoding: Literal["png", "jpeg", "original"]  # original: the bytes of the source, untouched
    kind: Literal["images"] = "images"

    @property
    def num_members(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class LatentContent:
    """Two members a sample, of the image and of its mirror image: .npy float16 [2 (mean, deviation), C, H, W]."""

    shape: tuple[int, int, int]  # C, H, W
    vae: str  # the name it was given
    vae_sha256: str  # of its weights
    scale: float  # a training latent is scale * (mean + deviation * normal)
    kind: Literal["latents"] = "latents"

    @property
    def num_members(self) -> int:
        return 2


@dataclass(frozen=True, kw_only=True)
class Shard:
    name: str  # "shard-000000.tar"
    num_samples: int
    num_bytes: int
    sha256: str
    idx_sha256: str

    @property
    def idx_name(self) -> str:
        return Path(self.name).with_suffix(".idx").name


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A file of the source that was left out."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    content: ImageContent | LatentContent
    num_samples: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]  # samples of each class
    shards: tuple[Shard, ...]
    index_sha256: str
    made: Mapping[str, Any]  # the settings of the packing, for the reader's eye
    refused: tuple[Refused, ...] = ()

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
    """Raises DataError if there is no complete data set of this version."""
    path = folder / DESCRIPTION_NAME
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError:
        state = "the packing is unfinished: run it again" if folder.is_dir() else "no such folder"
        raise DataError(f"{path} is not there ({state}); pack a data set with tools/make_shards.py") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; restore it, or pack the data set again") from None
    if not isinstance(plain, dict) or (plain.get("format"), plain.get("version")) != (FORMAT, FORMAT_VERSION):
        raise DataError(f"{path} is not of format '{FORMAT}', version {FORMAT_VERSION}; pack the data set again")
    try:
        description = _from_plain(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); pack the data set again") from None
    names = [shard.name for shard in description.shards]
    unsafe = [name for name in names if Path(name).name != name or not name.endswith(".tar")]
    if unsafe:
        raise DataError(
            f"{path} names a shard outside its folder, or no .tar: {unsafe[0]!r}; pack the data set again"
        )
    return description


def read_content(folder: Path, kind: Literal["images", "latents"]) -> DatasetDescription:
    """The description of a data set whose content is of this kind. Raises DataError if there is none, or of another."""
    description = read_description(folder)
    check_content(folder, description, kind)
    return description


def check_content(folder: Path, description: DatasetDescription, kind: Literal["images", "latents"]) -> None:
    """Raises DataError if the data set holds another kind of content."""
    if description.content.kind != kind:
        raise DataError(
            f"{folder} holds {description.content.kind}, this source reads {kind}; change data.kind or data.folder"
        )


def _from_plain(plain: Mapping[str, Any]) -> DatasetDescription:
    content = dict(plain["content"])
    if content["kind"] == "latents":
        content["shape"] = tuple(content["shape"])
    contents = {"images": ImageContent, "latents": LatentContent}
    description = DatasetDescription(
        content=contents[content["kind"]](**content),
        num_samples=int(plain["num_samples"]),
        class_names=tuple(map(str, plain["class_names"])),
        class_counts=tuple(map(int, plain["class_counts"])),
        shards=tuple(Shard(**{**shard, "name": str(shard["name"])}) for shard in plain["shards"]),
        index_sha256=str(plain["index_sha256"]),
        made=dict(plain["made"]),
        refused=tuple(Refused(**refused) for refused in plain["refused"]),
    )
    if sum(shard.num_samples for shard in description.shards) != description.num_samples:
        raise ValueError(f"the shards hold {sum(s.num_samples for s in description.shards)} samples, "
                         f"num_samples is {description.num_samples}")
    if sum(description.class_counts) != description.num_samples or len(description.class_counts) != len(
        description.class_names
    ):
        raise ValueError("class_counts do not add up to num_samples, or are not one for each class")
    return description


def file_sha256(path: Path) -> str:
    """Raises OSError if it cannot be read, or is no regular file."""
    digest = sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
