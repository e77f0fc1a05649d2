"""Pictures a person can look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..core.files import write_atomically

_GAP = 2  # pixels between images
BACKGROUND = 96  # grey: black and white images both show against it
_LABEL_WIDTH = 7  # pixels per character of Pillow's built-in font, generously


def to_uint8(x: Tensor) -> Tensor:
    """Values in [-1, 1] (clipped) as uint8 in [0, 255]: 127.5 (x + 1), halves rounded up. Any shape."""
    return ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8)


def image_grid(
    images: Tensor, *, columns: int, upscale: int = 1, row_labels: Sequence[str] | None = None
) -> Image.Image:
    """A sheet of images, row by row.

    Args:
        images: [N, C, H, W]; uint8, or floating point in [-1, 1]. One channel is grey, three are red, green, blue;
            of four (latents) the first three are shown, which is no true colour but tells shapes.
        columns: images per row; the last row may be shorter.
        upscale: every pixel becomes a square this wide, so that small images can be seen.
        row_labels: one text per row, at its left.
    """
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    pixels = pixels[:, :3].cpu().repeat_interleave(upscale, dim=2).repeat_interleave(upscale, dim=3)
    num_images, channels, height, width = pixels.shape
    rows = -(-num_images // columns)
    left = _LABEL_WIDTH * max(len(label) for label in row_labels) + 2 * _GAP if row_labels else 0
    size = (left + _GAP + columns * (width + _GAP), _GAP + rows * (height + _GAP))
    sheet = Image.new("RGB", size, (BACKGROUND,) * 3)
    for number, image in enumerate(pixels.expand(-1, max(3, channels), -1, -1).permute(0, 2, 3, 1)):
        row, column = divmod(number, columns)
        corner = (left + _GAP + column * (width + _GAP), _GAP + row * (height + _GAP))
        sheet.paste(Image.fromarray(image.contiguous().numpy()), corner)
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(row_labels or ()):
        draw.text((2 * _GAP, _GAP + row * (height + _GAP) + height // 2), label, fill="white", anchor="lm")
    return sheet


def save_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG that is complete or absent. Raises UserError if the file system refuses."""
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
