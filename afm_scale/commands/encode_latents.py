"""Encodes packed images into packed latents, alone or shared by the ranks of a launcher.

On several GPUs: python launchers/torchrun.py --standalone --nproc-per-node=8 tools/encode_latents.py SHARDS OUT ...
Stores, for every image and its mirror image, mean and standard deviation of the posterior as float16. Started again
after it was killed, it goes on. Exit code 0 if OUT is complete, 2 if something cannot be read or written.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..core.errors import DataError, UserError
from ..core.packages import require
from ..core.processes import shared_memory, starting_processes
from ..core.ranges import Range
from ..core.screen import say
from ..data.description import ImageContent, LatentContent, file_sha256
from ..data.images import decoded_image
from ..data.latents import MEMBERS
from ..data.members import TEXT
from ..data.shards import PackedShards, SampleError
from ..data.transforms import ImageError, to_pixels
from ..models.autoencoder import Autoencoder
from ..packing.writer import Packing
from ..parallel.agreement import agreed
from ..parallel.launch import Ranks, launch
from ..run.arguments import add_number, name_or_path, request_of
from .encoding import WriteShard, encode_all, encoding_plan


@dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """The command's arguments."""

    shards: Path
    out: Path
    vae: str
    name: str | None = None  # None: the last part of `vae`
    scale: float | None = None  # None: what the autoencoder's own description says
    shift: float | None = None  # the same
    batch_size: int = 32
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = None  # processes that decode, per rank; None: 4 with a GPU, else none beside the rank's own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("shards", type=Path, metavar="SHARDS", help="a folder that make_shards has packed")
    add("out", type=Path, metavar="OUT")
    add("--vae", type=name_or_path, required=True, help="a folder that diffusers' AutoencoderKL loads, or a hub name")
    add("--name", help="what training calls the autoencoder (data.vae); by default the folder's name")
    add_number(parser, "--scale", float, Range(above=0, high=1e6),
        help="a latent is scale * sample (default: as the VAE says)")
    add_number(parser, "--shift", float, Range(-1e6, 1e6),
        help="what is taken off a sample before (default: as the VAE says)")
    add_number(parser, "--batch-size", int, Range(1, 1_000_000), default=32, help="images encoded at once by each rank")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_number(parser, "--workers", int, Range(0, 1_024),
        help="processes of each rank that decode (4 with a GPU, else none)")


def run(options: argparse.Namespace) -> int:
    return encode_command(request_of(EncodeRequest, options))


@dataclass(frozen=True)
class _Job:
    request: EncodeRequest
    images: PackedShards
    size: int  # pixels of a side
    autoencoder: Autoencoder
    packing: Packing
    device: torch.device
    about: str  # all that the result depends on, a line for each

    def rows(self, shard: int) -> list[int]:
        """The sample numbers of a shard, in its order."""
        return torch.nonzero(self.images.index.shard == shard).flatten().tolist()

    def batches(self, shard: int) -> list[list[int]]:
        rows, step = self.rows(shard), self.request.batch_size
        return [rows[start:start + step] for start in range(0, len(rows), step)]

    @property
    def num_shards(self) -> int:
        return len(self.images.description.shards)

    def num_samples(self, shard: int) -> int:
        return self.images.description.shards[shard].num_samples

    def writer(self, shards: Sequence[int]) -> WriteShard:
        """Images are decoded ahead, in the order of these shards."""
        decoded = _decoded(self, [batch for shard in shards for batch in self.batches(shard)])
        return partial(_encode_shard, self, decoded)

    def finish(self) -> None:
        self.packing.finish(self.num_shards, self.images.description.class_names)


def encode_command(request: EncodeRequest) -> int:
    """Writes OUT, one shard of latents for each shard of images. A job that was killed goes on where it was.

    The result depends on the images, the autoencoder, its scale and shift, the precision, the batch size and the kind
    of device, not on the number of ranks. Raises UserError, the same one on every rank, for what cannot be read or
    written.
    """
    if request.batch_size < 1:
        raise UserError(f"--batch-size {request.batch_size} must be at least 1")
    if request.scale is not None and not (math.isfinite(request.scale) and request.scale > 0):
        raise UserError(f"--scale {request.scale} must be a number above 0")
    require("diffusers", "encoding latents", "latents")
    with launch(encoding_plan(request.device)) as ranks:
        with agreed():
            job = _prepare(request, ranks)
        encode_all(job, ranks, what="what is encoded", unit="image", doing="encoding")
        if ranks.rank == 0:
            say(f"{job.images.num_samples} samples and their mirror images encoded in {request.out}")
    return 0


def _prepare(request: EncodeRequest, ranks: Ranks) -> _Job:
    from ..models.diffusers import read_autoencoder

    images = PackedShards(request.shards)
    content = images.description.content
    if not isinstance(content, ImageContent) or content.size is None:
        held = "images of their original sizes" if isinstance(content, ImageContent) else content.kind
        raise DataError(
            f"{request.shards} holds {held}; wanted square images, as tools/make_shards.py --size packs them"
        )
    if content.channels != 3:
        raise DataError(f"{request.shards} holds grey images, an autoencoder encodes RGB; pack them without --grey")
    if ranks.rank == 0:
        images.refuse_damage("restore it, or pack the images again")
    found = read_autoencoder(request.vae)
    scale = found.scale if request.scale is None else request.scale
    shift = found.shift if request.shift is None else request.shift
    autoencoder = Autoencoder(found.network, scale=scale, shift=shift, precision=request.precision).to(ranks.device)
    blank = torch.zeros(1, 3, content.size, content.size, device=ranks.device)
    channels, height, width = autoencoder.moments(blank)[0].shape[1:]
    latents = LatentContent(
        shape=(channels, height, width), vae=request.name or found.name, vae_sha256=file_sha256(found.weights),
        scale=scale, shift=shift, texts=content.texts,
    )
    settings: dict[str, Any] = {
        "images_index_sha256": images.description.index_sha256, "images_made": dict(images.description.made),
        "precision": request.precision, "batch_size": request.batch_size, "device": ranks.device.type,
    }
    about = json.dumps({**asdict(latents), **settings}, indent=1)
    return _Job(
        request, images, content.size, autoencoder, Packing(request.out, settings, latents), ranks.device, about
    )


def _encode_shard(
    job: _Job, decoded: Iterator[Tensor | DataError], shard: int, advance: Callable[[int], object]
) -> None:
    index = job.images.index
    with job.packing.shard(shard) as writer:
        for rows in job.batches(shard):
            pixels = next(decoded)
            if isinstance(pixels, DataError):
                raise pixels
            x = pixels.to(job.device, non_blocking=True).to(torch.float32) / 127.5 - 1
            records = [_stored(job.autoencoder.moments(side), len(rows)) for side in (x, x.flip(-1))]
            for place, row in enumerate(rows):
                members = {}
                for member, record in zip(MEMBERS, records, strict=True):
                    if not np.isfinite(record[place]).all():
                        raise DataError(
                            f"{job.images.place(row)}: its latent ({member}) is not finite in float16; look at the "
                            "image, use --precision fp32, or another autoencoder"
                        )
                    members[f"{member}.npy"] = _npy(record[place])
                if job.images.description.content.texts:
                    members[TEXT] = job.images.read(row, 1)
                writer.add(int(index.key[row]), int(index.label[row]), members)
            advance(len(rows))


def _stored(moments: tuple[Tensor, Tensor], count: int) -> np.ndarray:
    """float16 [count, 2, C, H, W], without the padding of the batch."""
    return torch.stack(moments, dim=1)[:count].to(torch.float16).cpu().numpy()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _decoded(job: _Job, batches: list[list[int]]) -> Iterator[Tensor | DataError]:
    workers = job.request.workers
    workers = workers if workers is not None else 4 if job.device.type == "cuda" else 0
    loader = DataLoader(
        _Images(job.images, job.size, job.request.batch_size),
        sampler=batches,
        batch_size=None,  # an item is a whole batch
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,  # a fork would copy locks held by threads
        pin_memory=job.device.type == "cuda",
    )
    with starting_processes():
        return iter(loader)


@dataclass(frozen=True)
class _Images(Dataset):
    """From sample numbers to pixels; it is sent to every worker."""

    shards: PackedShards
    size: int
    batch_size: int

    def __getitem__(self, samples: list[int]) -> Tensor | DataError:
        """uint8 [batch_size, 3, S, S], the last batch of a shard filled up with black: one shape, one arithmetic.

        An error in the data is returned: raised, it would arrive wrapped in this process's traceback.
        """
        pixels = shared_memory((self.batch_size, 3, self.size, self.size)).zero_()
        for place, sample in zip(pixels, samples, strict=False):
            try:
                place.copy_(to_pixels(decoded_image(self.shards, sample, self.shards.read(sample)), self.size))
            except (SampleError, ImageError) as error:
                return DataError(f"{self.shards.place(sample)}: {error.reason}; restore the shard, or pack again")
        return pixels


def _as_it_is(pixels: Tensor | DataError) -> Tensor | DataError:
    return pixels
