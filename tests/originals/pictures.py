"""Pictures that are told apart by their colours, and files of them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

COLOURS = ((220, 30, 30), (30, 200, 40), (40, 60, 230), (230, 210, 30), (200, 40, 220), (30, 210, 220), (240, 140, 40),
           (120, 120, 120))


def plain(number: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[number])


def cornered() -> Image.Image:
    """Its upper left quarter is red, its upper right one blue, what is below yellow: no turn of it looks the same."""
    image = Image.new("RGB", (24, 24), COLOURS[3])
    image.paste(COLOURS[0], (0, 0, 12, 12))
    image.paste(COLOURS[2], (12, 0, 24, 12))
    return image


def bytes_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(number: int, size: tuple[int, int] = (20, 20)) -> bytes:
    return bytes_of(plain(number, size))


def jpeg(number: int, **options: object) -> bytes:
    return bytes_of(plain(number), "JPEG", quality=95, **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with a chunk behind its header."""
    return data[:33] + chunk(kind, content) + data[33:]


def deep_png(number: int, channels: int = 3, extra: bytes = b"") -> bytes:
    """16 bits a channel; the lower ones are noise."""
    row = b"".join(struct.pack(">H", (value << 8) + 77) for value in COLOURS[number][:channels]) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * 20)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BASIC = {"ant/0.png": png(0), "ant/1.png": png(1), "bee/0.png": png(2), "cat/0.png": png(3)}
"""Three classes; the pictures are those of `LOOKS`."""
LOOKS = [("ant", plain(0)), ("ant", plain(1)), ("bee", plain(2)), ("cat", plain(3))]


def written(root: Path, files: dict[str, bytes], folder: str = "source") -> Path:
    for name, data in files.items():
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / folder
