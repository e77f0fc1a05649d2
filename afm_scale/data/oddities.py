"""What a library does to an image in silence, or cannot do: known here, so that it is said, and not called damage."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from PIL import Image

ORIENTATION = 0x0112  # the tag of EXIF and of TIFF
STORED_ORIENTATION = "stored orientation"  # in `info` of a TIFF, which Pillow turns upright and takes the tag away
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_BACK = _TURNS | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # chunks whose length Pillow limits; none of them holds pixels
_STARTS = {
    "JPEG": (b"\xff\xd8\xff",), "PNG": (_PNG,), "GIF": (b"GIF8",), "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",), "WEBP": (b"RIFF",),
}
_JPEG_KINDS = {0xC3: "without loss", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical",
               0xC9: "coded arithmetically", 0xCA: "coded arithmetically", 0xCB: "coded arithmetically"}
_SRGB_GAMMA = 1 / 2.2
_EXIF = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # of `info`, where Pillow looks for tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How an image is stored, as far as decoded pixels do not show it."""

    orientation: int  # 1 to 8, as EXIF counts; 1: upright
    is_upright: bool  # whether Pillow has turned it already
    has_frames: bool  # more than one picture
    is_deep: bool  # more than 8 bits a channel
    has_profile: bool  # its numbers mean other colours than those of sRGB

    def upright(self, image: Image.Image) -> Image.Image:
        """The image as it is to be looked at."""
        turn = None if self.is_upright else _TURNS.get(self.orientation)
        return image if turn is None else image.transpose(turn)

    def as_stored(self, image: Image.Image) -> Image.Image:
        """The image as its rows lie in the file."""
        turn = _TURNS_BACK.get(self.orientation) if self.is_upright else None
        return image if turn is None else image.transpose(turn)


def stored(image: Image.Image, data: bytes) -> Stored:
    """Of an image that was decoded from these bytes, and is still the object that Pillow opened."""
    turned, orientation = STORED_ORIENTATION in image.info, 1
    if turned:
        orientation = image.info[STORED_ORIENTATION]
    elif not _EXIF.isdisjoint(image.info):
        orientation = image.getexif().get(ORIENTATION, 1)
    return Stored(
        orientation=orientation if orientation in _TURNS else 1, is_upright=turned,
        has_frames=bool(getattr(image, "is_animated", False)),  # formats of one picture have no such attribute
        is_deep=_is_deep(image, data), has_profile=_has_profile(image),
    )


def _is_deep(image: Image.Image, data: bytes) -> bool:
    if data.startswith(_PNG):
        return data[24:25] == b"\x10"
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)), default=8) > 8
    if image.format == "PPM":
        words = re.sub(rb"#[^\n]*", b"", data[:512]).split()[3:4]
        return data[:2] in (b"P2", b"P3", b"P5", b"P6") and bool(words) and words[0].isdigit() and int(words[0]) > 255
    return image.mode.startswith("I;16")


def _has_profile(image: Image.Image) -> bool:
    profile = image.info.get("icc_profile") or b""
    named = b"sRGB" in profile or b"s\0R\0G\0B" in profile
    gamma = image.info.get("gamma", _SRGB_GAMMA)
    return bool(profile) and not named or (not profile and abs(gamma - _SRGB_GAMMA) > 0.01 and "srgb" not in image.info)


def without_notes(data: bytes) -> bytes | None:
    """A PNG without its texts and its colour profile; None if there are none.

    Raises ValueError if a chunk is cut short or its sum is wrong.
    """
    if not data.startswith(_PNG):
        return None
    kept, position, kind = [_PNG], len(_PNG), b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise ValueError("it is cut short")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or zlib.crc32(data[position + 4:end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError(f"the chunk at byte {position} is damaged or cut short")
        if kind not in _NOTES:
            kept.append(data[position:end])
        position = end
    return b"".join(kept) if sum(map(len, kept)) < position else None


def begins_as(data: bytes) -> str | None:
    """The format whose files begin like this."""
    return next((kind for kind, starts in _STARTS.items() if data.startswith(starts)), None)


def unread_kind(data: bytes) -> str | None:
    """What makes a JPEG, which may be whole, one that is not read; None if it is an ordinary one, or none."""
    position = 2
    while data.startswith(b"\xff\xd8") and position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_KINDS:
            return _JPEG_KINDS[marker]
        if 0xC0 <= marker <= 0xC2:
            return f"of {data[position + 4]} bits a channel" if data[position + 4] != 8 else None
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None
