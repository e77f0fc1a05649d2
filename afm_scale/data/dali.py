"""Images decoded by NVIDIA DALI at exact positions: by nvJPEG where there is a GPU, in threads on the CPU elsewhere.

The order is ours: a callback hands DALI the encoded bytes of one turn after another, read at the positions of the
cursor, and DALI decodes them ahead of time. DALI's own checkpoint is not used: it restores only an identical pipeline,
and goes on silently on undefined data when the number of ranks has changed. A resumed run, on any number of ranks,
starts the callback at its position instead.

The pixels are nearly those of `transforms.adm_crop`. DALI's decoder on the CPU gives Pillow's pixels bit for bit. On a
GPU DALI also resizes; on the CPU its antialiased cubic filter is slower than Pillow's, so there torch resizes, whose
filter for uint8 is Pillow's made fast. `tools/benchmark.py data` measures the difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.math as dali_math
import nvidia.dali.types as dali_types
import torch
import torch.nn.functional as F
from nvidia.dali import Pipeline, pipeline_def
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image
from torch import Tensor

from ..core.errors import DataError
from ..core.random import Positions
from .images import DaliConfig, ImageSource, decoded_image, read_or_substitute
from .shards import SampleError
from .source import Skipped
from .transforms import ImageError, decode_checked, refuse_thin, stated_size, to_rgb

_HALVINGS = 6  # in DALI's graph, which has no loops: for originals of up to 2**7 times the size
_ONE_PIXEL = np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8)


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a batch in flight was made of, or the error that keeps it from being made."""

    samples: list[int]  # substitutes in their places
    labels: Tensor | None = None  # [B] int64
    skipped: Sequence[Skipped] = ()
    error: DataError | None = None


class DaliSource(ImageSource):
    """Decodes in `config.workers` threads, `config.prefetch` turns ahead.

    There is one stream: a second iterator ends the first.
    """

    def __init__(
        self, config: DaliConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        """Raises ConfigError or DataError if the data set does not fit the configuration."""
        super().__init__(config, seed=seed, rank=rank, world_size=world_size, device=device)
        self._on_gpu = self.device.type == "cuda"
        self._crop = self.shards.description.content.size is None
        self._in_flight: deque[_Turn] = deque()  # after `_start` the matter of the reading thread alone
        self._pipeline: Pipeline | None = None
        self._reader: ThreadPoolExecutor | None = None  # one thread: reads, runs DALI, copies
        self._croppers: ThreadPoolExecutor | None = None

    def decoded(self) -> Iterator[tuple[Tensor, Tensor, Sequence[Skipped]]]:
        """Raises DataError at the turn of a sample that cannot be read, unless those are skipped.

        Packing has decoded every image, and its bytes are compared with their sum; if DALI still fails, the DataError
        names the samples, and may come as many turns early as are decoded ahead.
        """
        self._stop()
        self._start()
        pipeline, submit = self._pipeline, partial(self._reader.submit, self._next)
        ahead: deque[Future] = deque([submit()])
        while True:
            assert self._pipeline is pipeline, "the source was closed, or iterated over anew"
            ahead.append(submit())
            yield ahead.popleft().result()

    def close(self) -> None:
        self._stop()
        self.shards.close()

    def _start(self) -> None:
        threads = self.config.workers
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="dali")
        self._croppers = ThreadPoolExecutor(threads, thread_name_prefix="dali-crop")
        upcoming = self.cursor.upcoming()
        positions = next(upcoming)  # the position is taken now, before the first batch moves the cursor
        self._pipeline = _pipeline(
            self._encoded(positions, upcoming), size=self.config.size, crop=self._crop and self._on_gpu,
            on_gpu=self._on_gpu, batch_size=positions.count, num_threads=threads,
            prefetch_queue_depth=self.config.prefetch, device_id=(self.device.index or 0) if self._on_gpu else None,
        )

    def _stop(self) -> None:
        for pool in (self._reader, self._croppers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._reader = self._croppers = None
        self._pipeline = None  # DALI ends its threads and frees its buffers when the pipeline goes
        self._in_flight.clear()

    def _encoded(self, positions: Positions, later: Iterator[Positions]) -> Iterator[list[np.ndarray]]:
        """The encoded bytes of one turn after another; what they are goes to `_in_flight`."""
        while True:
            try:
                turn, encoded = self._read_turn(positions)
            except DataError as error:  # DALI would report it as many turns early as it reads ahead
                turn, encoded = _Turn([], error=error), [_ONE_PIXEL] * positions.count
            self._in_flight.append(turn)
            yield encoded
            positions = next(later)

    def _read_turn(self, positions: Positions) -> tuple[_Turn, list[np.ndarray]]:
        samples, encoded, skipped = [], [], []
        for wanted in self.order.indices(positions).tolist():
            used, data, passed_over = read_or_substitute(
                self.shards, wanted, self._read, seed=self.seed, on_error=self.config.on_error
            )
            samples.append(used)
            encoded.append(np.frombuffer(data, np.uint8))
            skipped.extend(passed_over)
        return _Turn(samples, self.shards.index.label[samples], skipped), encoded

    def _read(self, sample: int) -> bytes:
        """What DALI decodes to the pixels Pillow sees. Raises SampleError."""
        data, size = self.shards.read(sample), self.config.size
        if _decodes_alike(data) and _is_safe(stated_size(data), size, crop=self._crop):
            return data
        try:
            image = to_rgb(decoded_image(self.shards, sample, data))
            refuse_thin(*image.size, size)
        except ImageError as error:
            raise SampleError(self.shards.place(sample), error.reason) from None
        return f"P6 {image.width} {image.height} 255\n".encode() + image.tobytes()

    def _next(self) -> tuple[Tensor, Tensor, Sequence[Skipped]]:
        """The next turn, in the reading thread, copied out of DALI's buffers, which a later one overwrites."""
        try:
            (images,) = self._pipeline.run()
        except RuntimeError as error:
            raise DataError(self._why(str(error))) from None
        turn = self._in_flight.popleft()
        if turn.error is not None:
            raise turn.error
        if self._on_gpu:
            return self._from_gpu(images), turn.labels, turn.skipped
        pixels = torch.empty((len(turn.samples), 3, self.config.size, self.config.size), dtype=torch.uint8)
        for _ in self._croppers.map(partial(self._fill, images), pixels, range(len(pixels))):
            pass  # the results are nothing, but errors come out here
        return pixels, turn.labels, turn.skipped

    def _fill(self, images, place: Tensor, number: int) -> None:
        image = np.array(images.at(number), copy=False)
        place.copy_(crop_decoded(image, self.config.size) if self._crop else torch.from_numpy(image).permute(2, 0, 1))

    def _from_gpu(self, images) -> Tensor:
        dense = images.as_tensor()
        rows = torch.empty(dense.shape(), dtype=torch.uint8, device=self.device)  # [B, S, S, 3]
        stream = torch.cuda.current_stream(self.device)
        feed_ndarray(dense, rows, cuda_stream=stream)
        pixels = rows.permute(0, 3, 1, 2).contiguous()
        stream.synchronize()  # this thread's stream may not be the trainer's
        return pixels

    def _why(self, reason: str) -> str:
        """Which sample DALI could not decode, as far as Pillow can tell."""
        samples = list(dict.fromkeys(sample for turn in self._in_flight for sample in turn.samples))
        places, broken = list(map(self.shards.place, samples)), []
        for sample, place in zip(samples, places, strict=True):
            try:
                to_rgb(decode_checked(self.shards.read(sample)))
            except (SampleError, ImageError) as error:
                broken.append(f"{place} {error.reason}")
        if broken:
            return f"{'; '.join(broken)}; pack the data set again"

        found = " ".join(reason.partition("encountered:")[2].split()) or " ".join(reason.split())
        return (
            f"DALI could not decode an image that Pillow can read ({found[:300]}); it is one of: {', '.join(places)}; "
            "pack the data set without --raw, or set data.kind=webdataset"
        )


def crop_decoded(image: np.ndarray, size: int) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, size, size], as `transforms.adm_crop` but for torch's bicubic in Pillow's place."""
    if min(image.shape[:2]) >= 2 * size:
        halved = Image.fromarray(image)
        while min(halved.size) >= 2 * size:
            halved = halved.resize((halved.width // 2, halved.height // 2), Image.Resampling.BOX)
        image = np.array(halved)
    scale = size / min(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if (height, width) != image.shape[:2]:
        # One image at a time with its channels last: torch's fast path for uint8.
        pixels = F.interpolate(pixels[None], size=(height, width), mode="bicubic", antialias=True)[0]
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top:top + size, left:left + size]


def _decodes_alike(data: bytes) -> bool:
    """JPEG, and PNG of 8 bits without a palette, with their ends.

    DALI reads other kinds otherwise than Pillow (16 bits), or not (GIF).

    Those few are decoded by Pillow, in the callback.
    """
    bit_depth, colour_type = data[24:25], data[25:26]  # of a PNG's header
    return (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")) or (
        data.startswith(b"\x89PNG\r\n\x1a\n") and bit_depth == b"\x08" and colour_type != b"\x03"
        and data.endswith(b"IEND\xaeB`\x82")
    )


def _is_safe(found: tuple[int, int], size: int, *, crop: bool) -> bool:
    """Whether DALI, which would ask for whatever memory an image claims to need, may decode one of this size."""
    if not crop:
        return found == (size, size)
    try:
        refuse_thin(*found, size)
    except ImageError:
        return False
    return 0 < found[0] * found[1] <= (Image.MAX_IMAGE_PIXELS or 0)


@pipeline_def(enable_conditionals=True)
def _pipeline(batches: Iterator[list[np.ndarray]], *, size: int, crop: bool, on_gpu: bool):
    """Encoded images -> uint8 [H, W, 3] of any size, or with `crop` [S, S, 3], cropped as ADM crops."""
    encoded = fn.external_source(source=batches, batch=True, dtype=dali_types.UINT8, ndim=1)
    # Pillow turns no image by its EXIF tag, and smooths the chroma it enlarges.
    image = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", output_type=dali_types.RGB, adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )
    if crop:
        shape = fn.peek_image_shape(encoded, adjust_orientation=False)
        height, width = shape[0], shape[1]
        for _ in range(_HALVINGS):
            if dali_math.min(height, width) >= 2 * size:
                image = _halved(image, height, width)
                height, width = height // 2, width // 2
        image = _cropped(image, height, width, size)
    return image


def _halved(image, height, width):
    """Halves both sides as Pillow's BOX does: means of two pixels, rows first, halves rounded up.

    The middle pixel of an odd side is left out.

    (Pillow counts that middle pixel too where a single mean of three falls on it.)
    """
    if height % 2 == 1:
        image = fn.cat(image[:height // 2], image[height // 2 + 1:], axis=0)
    if width % 2 == 1:
        image = fn.cat(image[:, :width // 2], image[:, width // 2 + 1:], axis=1)
    whole, rows, columns = height // 2 * 2, height // 2, width // 2
    for shape in (fn.stack(whole, columns), fn.stack(rows, columns)):
        means = fn.resize(
            image, size=fn.cast(shape, dtype=dali_types.FLOAT), interp_type=dali_types.INTERP_LINEAR, antialias=False,
            dtype=dali_types.FLOAT,
        )
        image = fn.cast(means + 0.25, dtype=dali_types.UINT8)
    return image


def _cropped(image, height, width, size: int):
    """The centre square of the image resized to `size` pixels on its shorter side; only the square is computed."""
    shorter = dali_math.min(height, width)
    starts, ends = [], []
    for side in (height, width):
        resized = dali_math.floor(side * size / shorter + 0.5)
        start = dali_math.floor((resized - size) / 2)
        starts.append(start * side / resized)
        ends.append((start + size) * side / resized)
    return fn.resize(
        image, size=[size, size], roi_start=fn.stack(*starts), roi_end=fn.stack(*ends),
        interp_type=dali_types.INTERP_CUBIC, antialias=True, subpixel_scale=False,
    )
