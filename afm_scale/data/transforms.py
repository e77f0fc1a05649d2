"""From the bytes of an image to square pixels: the full check, and the crop of the published figures."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..core.errors import DataError
from .oddities import ORIENTATION, STORED_ORIENTATION, begins_as, unread_kind, without_notes

# Only what is worth training on: some of Pillow's other readers start programs (EPS) or fetch parts of other files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
                  MemoryError, struct.error, zlib.error)

_ENDS = {"JPEG": (b"\xff\xd9", b"\xff\xda"), "PNG": (b"IEND\xaeB`\x82", b"IEND")}  # the last marker, and one before it
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG that say its size
_MOST_SEGMENTS = 1000  # before them


class ImageError(DataError):
    """An image that cannot be used; `reason` says why, for a list of such images."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def stated_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the header of a JPEG or PNG has it; (0, 0) if none is found. Nothing is decoded."""
    if data.startswith(b"\x89PNG") and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    position = 2  # of the segments of a JPEG: a marker, a length, and what is passed over unless it is the frame's
    for _ in range(_MOST_SEGMENTS):
        if not data.startswith(b"\xff\xd8") or position + 9 > len(data) or data[position] != 0xFF:
            break
        marker = data[position + 1]
        length, height, width = struct.unpack_from(">HxHH", data, position + 2)
        if marker in _FRAMES:
            return width, height
        position += 2 + length
    return (0, 0)


@contextmanager
def decoding_warnings() -> Iterator[None]:
    """Warnings as decoding wants them. They are settings of the process: one thread sets them for all that decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on odd metadata, which is not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_checked(data: bytes) -> Image.Image:
    """`decode_in_thread` with `decoding_warnings`, for a process that decodes in one thread."""
    with decoding_warnings():
        return decode_in_thread(data)


def decode_in_thread(data: bytes) -> Image.Image:
    """The image, read to its last pixel, in the mode it is stored in; its `format` is the true one.

    The bytes must be complete: an image that is cut short is refused, whatever can be seen of it. Damage inside the
    compressed pixels of a JPEG has no checksum to be found by, and passes if the decoder does.

    To be called inside `decoding_warnings`, which any one thread has entered.

    Raises ImageError if it is not an image, is corrupt or truncated, or has more pixels than Pillow deems safe.
    """
    if not data.strip(b"\0"):
        raise ImageError("holds nothing but zero bytes" if data else "is empty")
    image = _loaded(data)
    if image.format == "MPO":  # a JPEG followed by further pictures, as some cameras write it
        image.format = "JPEG"
    # The end of a JPEG must come after its last scan: thumbnails, which have an end of their own, lie before it.
    end, after = _ENDS.get(image.format or "", (b"", b""))
    if not data.endswith(end) and end not in data[data.rfind(after):]:  # nearly all end at once: no search of the scan
        raise ImageError(f"is corrupt or truncated: the end of the {image.format} is missing")
    return image


def _loaded(data: bytes) -> Image.Image:
    """Raises ImageError. What is only too much for Pillow, or of a kind it does not read, is not called damaged."""
    try:
        return _opened(data)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except MemoryError:
        raise ImageError("needs more memory than there is") from None
    except UnidentifiedImageError:
        begins = begins_as(data)
        if begins is None:
            raise ImageError(f"is not an image of a known format ({', '.join(FORMATS)})") from None
        failed: Exception = ValueError(f"begins as {begins} does, and is not one that Pillow knows")
    except _DECODE_ERRORS as error:
        failed = error
    try:  # texts and colour profiles of a PNG may be longer than Pillow takes
        if (shorter := without_notes(data)) is not None:
            return _opened(shorter)
    except _DECODE_ERRORS as error:
        failed = error
    if (kind := unread_kind(data)) is not None:
        raise ImageError(f"is a JPEG of a kind that is not read ({kind}): {failed}")
    unsure = ", or of a kind that is not read" if begins_as(data) in ("TIFF", "BMP") else ""
    raise ImageError(f"is corrupt or truncated{unsure}: {failed}")


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.format == "TIFF":  # loading turns it by its tag, and takes the tag away
        image.info[STORED_ORIENTATION] = image.tag_v2.get(ORIENTATION, 1)
    image.load()
    if image.format == "PNG":  # the sums of its chunks, which are not compared while it is decoded
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; transparency is dropped, as ADM does. Raises ImageError for modes that have no such reading."""
    if image.mode == "RGB":
        return image  # convert() would copy it
    if image.mode.startswith("I;16"):  # Pillow would clip to 255 instead of scaling
        grey = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"has pixels of mode {image.mode}, whose range is not known")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"cannot be converted to RGB: {error}") from None


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `size` pixels, as in ADM (guided-diffusion, center_crop_arr).

    Halved with BOX while the shorter side is at least twice the size, then BICUBIC to the size, then cut.

    Raises ImageError if the image is so long and thin that it would have to be blown up beyond all reason.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    width, height = refuse_thin(*image.size, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def refuse_thin(width: int, height: int, size: int) -> tuple[int, int]:
    """The sides of an image whose shorter side is made `size` pixels long.

    Raises ImageError if it would have to be blown up beyond all reason, or has no pixels.
    """
    if min(width, height) < 1:
        raise ImageError("has no pixels")
    scale = size / min(width, height)
    wide, high = round(width * scale), round(height * scale)
    if wide * high > max(Image.MAX_IMAGE_PIXELS or 0, size * size):
        raise ImageError(f"is too long and thin: {width} x {height} would become {wide} x {high}")
    return wide, high


def to_pixels(image: Image.Image, size: int) -> Tensor:
    """uint8 [3, size, size], RGB, channels last in memory. An image of that size is taken as it is, others cropped."""
    image = to_rgb(image)
    if image.size != (size, size):
        image = adm_crop(image, size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
