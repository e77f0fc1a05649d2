"""Latents encoded once by tools/encode_latents.py: training draws the posterior sample and the mirror image."""

from __future__ import annotations

import io
import math
import threading
import tokenize
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.paths import OrName
from ..core.random import KeyedDraws, Positions
from ..core.ranges import Range
from ..core.types import Batch
from .description import LatentContent, file_sha256, read_content
from .images import mirrored_at, open_shards, read_or_substitute
from .order import EpochOrder, StreamCursor
from .shards import SampleError
from .source import Encoding, Skipped, SourceConfig, filled

MEMBERS = ("plain", "mirrored")  # of the image, and of its mirror image; each [2 (mean, deviation), C, H, W]
_EXPONENT = 0x7C00  # of a float16: all its bits are set in infinities and NaN alone
_BAD_HEADER = (ValueError, SyntaxError, TypeError, tokenize.TokenError, MemoryError, RecursionError)
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # in a folder that diffusers' save_pretrained has written


@dataclass(frozen=True, kw_only=True)
class LatentsConfig(SourceConfig):
    """A folder of encoded latents.

    What is left out of `shape`, `num_classes`, `vae`, `scale` and `shift`, `resolved` reads from the folder's
    dataset.json; what is given is compared with it when the source is built.
    """

    draws_latents: ClassVar[bool] = True
    folder: Path  # of the encoded latents, with its dataset.json
    kind: Literal["latents"] = "latents"
    shape: Annotated[tuple[int, int, int], Range(1, 65_536)] | None = None  # C, H, W; null: as encoded
    num_classes: Annotated[int, Range(1, 10_000_000)] | None = None  # null: as encoded
    vae: Annotated[str, OrName()] | None = None  # the name they were encoded under, or the autoencoder's folder
    scale: Annotated[float, Range(above=0, high=1e6)] | None = None  # of a training latent; null: as encoded
    shift: Annotated[float, Range(-1e6, 1e6)] | None = None  # taken off the encoder's latents; null: as encoded, or 0
    mirror: bool = True  # every draw of the image or of its mirror image, evenly likely
    on_error: Literal["stop", "skip"] = "stop"  # a sample that cannot be read: end the run, or use another one
    prefetch: Annotated[int, Range(1, 1_024)] = 2  # turns read ahead, in a thread

    def resolved(self) -> LatentsConfig:
        if None not in (self.shape, self.num_classes, self.vae, self.scale):
            return self
        description = read_content(self.folder, "latents")
        content = description.content
        return filled(
            self, shape=content.shape, num_classes=description.num_classes, vae=content.vae, scale=content.scale,
            shift=content.shift,
        )

    def fingerprint(self) -> Mapping[str, str]:
        return read_content(self.folder, "latents").fingerprint()

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return "read from the disk, nothing to decode"

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.vae, self.scale, self.shift or 0.0)

    @property
    def num_labels(self) -> int | None:
        """Classes that the folder must have; None: its labels are not used."""
        return self.num_classes


def posterior_sample(mean: Tensor, deviation: Tensor, scale: float, *, seed: int, positions: Positions) -> Tensor:
    """scale * (mean + deviation * normal), [B, C, H, W] float32, the noise a function of the stream position alone."""
    draws = KeyedDraws("posterior", seed, positions=positions, device=mean.device)
    return draws.normal("posterior", mean.shape[1:]).mul_(deviation).add_(mean).mul_(scale)


class Records:
    """Takes .npy records of one shape apart, parsing a header only when it differs from the one before.

    Nothing is made of what a header says: it is compared with what is wanted, and the values are the bytes behind it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._header: bytes | None = None
        self.num_bytes = math.prod(shape) * 2

    def values(self, data: bytes) -> memoryview:
        """The values' bytes, finite float16 in C order. Raises ValueError if the record holds anything else."""
        if self._header is None or not data.startswith(self._header):
            self._header = self._parse(data)
        if len(data) != len(self._header) + self.num_bytes:
            raise ValueError(f"the record has {len(data)} bytes, wanted {len(self._header) + self.num_bytes}")
        values = memoryview(data)[len(self._header):]
        if not _all_finite(values):
            raise ValueError("the record holds numbers that are not finite")
        return values

    def _parse(self, data: bytes) -> bytes:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"the record is of .npy version {version}, wanted (1, 0)")
        try:
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        except _BAD_HEADER as error:
            raise ValueError(f"the header of the record is none: {' '.join(str(error).split())[:200]}") from None
        if (shape, fortran_order, dtype) != (self._shape, False, np.dtype("<f2")):
            order = " in Fortran order" if fortran_order else ""
            raise ValueError(f"the record is {dtype} {list(shape)}{order}, wanted float16 {list(self._shape)}")
        return data[:file.tell()]


def _all_finite(values: memoryview) -> bool:
    """Whether float16 are; by the bits of their exponents, which is three times as fast as by numbers."""
    return int((np.frombuffer(values, "<u2") & _EXPONENT).max()) != _EXPONENT


@dataclass(frozen=True, slots=True)
class _Turn:
    moments: Tensor  # [B, 2, C, H, W] float16 on the CPU, pinned if they are to travel
    told: Any  # what else is read of the samples: labels [B]
    skipped: list[Skipped]


class LatentsSource:
    """A `DataSource` of posterior samples. One thread reads ahead; the noise is drawn on the device."""

    def __init__(
        self, config: LatentsConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        """Raises ConfigError or DataError if the data set does not fit the configuration."""
        self.shape, self.num_classes = config.shape, config.num_classes
        self._config = config
        self._seed = seed
        self._device = torch.device(device)
        self._cursor = StreamCursor(global_batch=config.global_batch, rank=rank, world_size=world_size)
        self._shards = open_shards(
            config.folder, kind="latents", num_classes=config.num_labels, on_error=config.on_error, check=rank == 0
        )
        content = self._shards.description.content
        assert isinstance(content, LatentContent)
        _check_encoding(config, content, compare_weights=rank == 0)
        self._order = EpochOrder(self._shards.num_samples, seed=seed)
        self._records = Records((2, *config.shape))
        self._skipped: list[Skipped] = []
        self._closing = threading.Event()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="latents")

    def __iter__(self) -> Iterator[Batch]:
        ahead: deque[Future[_Turn]] = deque()
        for positions in self._cursor.upcoming():
            ahead.append(self._reader.submit(self._read, positions))
            if len(ahead) > self._config.prefetch:
                yield self._hand_out(ahead.popleft())

    def _hand_out(self, future: Future[_Turn]) -> Batch:
        turn = future.result()  # an error of the thread is raised here, at the turn it belongs to
        positions = self._cursor.take()
        self._skipped.extend(turn.skipped)
        mean, deviation = turn.moments.to(self._device, non_blocking=True).to(torch.float32).unbind(1)
        x = posterior_sample(mean, deviation, self._config.scale, seed=self._seed, positions=positions)
        return self._batch(x, turn.told)

    def _read(self, positions: Positions) -> _Turn:
        """Reads one turn, in the thread that reads ahead."""
        pinned = self._device.type == "cuda"
        moments = torch.empty(positions.count, 2, *self.shape, dtype=torch.float16, pin_memory=pinned)
        rows = moments.view(positions.count, -1).view(torch.uint8).numpy()
        samples = self._order.indices(positions).tolist()
        mirrored = mirrored_at(positions, seed=self._seed).tolist() if self._config.mirror else [False] * len(samples)
        skipped: list[Skipped] = []
        for row, (sample, member) in enumerate(zip(samples, mirrored, strict=True)):
            if self._closing.is_set():
                break  # nobody will ask for this turn
            samples[row], values, refused = read_or_substitute(
                self._shards, sample, lambda number, member=int(member): self._values(number, member),
                seed=self._seed, on_error=self._config.on_error,
            )
            rows[row] = np.frombuffer(values, np.uint8)
            skipped += refused
        return _Turn(moments, self._told(samples), skipped)

    def _told(self, samples: Sequence[int]) -> Any:
        """What is read of samples besides their latents, on the CPU, in the thread that reads ahead."""
        labels = self._shards.index.label[samples]
        return labels.pin_memory() if self._device.type == "cuda" else labels

    def _batch(self, x: Tensor, told: Any) -> Batch:
        return Batch(x, told.to(self._device, non_blocking=True))

    def _values(self, sample: int, member: int) -> memoryview:
        data = self._shards.read(sample, member)
        try:
            return self._records.values(data)
        except ValueError as error:
            raise SampleError(self._shards.place(sample), str(error)) from None

    def state_dict(self) -> dict[str, int]:
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Before iteration: what has been read ahead belongs to the old position."""
        self._cursor.load_state_dict(state)

    def take_skipped(self) -> Sequence[Skipped]:
        taken, self._skipped = self._skipped, []
        return taken

    def close(self) -> None:
        self._closing.set()
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._shards.close()


def _check_encoding(config: LatentsConfig, content: LatentContent, *, compare_weights: bool) -> None:
    """Raises DataError if the latents are of another shape, scale or autoencoder than the configuration says."""
    if content.shape != config.shape:
        raise DataError(
            f"{config.folder} holds latents of shape {list(content.shape)}, data.shape is {list(config.shape)}; "
            f"set data.shape={list(content.shape)}, or encode images of another size"
        )
    if content.scale != config.scale:
        raise DataError(
            f"{config.folder} was encoded for scale {content.scale}, data.scale is {config.scale}; "
            f"set data.scale={content.scale}, or encode again with --scale {config.scale}"
        )
    if content.shift != (config.shift or 0.0):
        raise DataError(
            f"{config.folder} was encoded with the shift {content.shift}, data.shift is {config.shift}; "
            f"set data.shift={content.shift}, or encode again with --shift {config.shift}"
        )
    folder = Path(config.vae)
    if not folder.is_dir():
        if content.vae != config.vae:
            raise DataError(
                f"{config.folder} was encoded with the autoencoder {content.vae!r}, data.vae is {config.vae!r}; "
                f"set data.vae={content.vae}, or encode again with --name {config.vae}"
            )
    elif compare_weights:
        _check_weights(config.folder, folder / WEIGHTS_NAME, content)


def _check_weights(data: Path, weights: Path, content: LatentContent) -> None:
    if not weights.is_file():
        raise DataError(f"data.vae is a folder without {WEIGHTS_NAME} ({weights}); give the folder of the autoencoder")
    found = file_sha256(weights)
    if found != content.vae_sha256:
        raise DataError(
            f"{data} was encoded with weights of SHA-256 {content.vae_sha256} ({content.vae!r}), {weights} has "
            f"{found}; give the autoencoder it was encoded with as data.vae, or encode again with "
            f"--vae {weights.parent}"
        )
