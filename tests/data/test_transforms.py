"""Decoding with all checks, and the crop that published figures are made with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from afm_scale.data.transforms import ImageError, adm_crop, decode_checked, to_pixels, to_rgb
from tests.data.small import encoded, picture


def plain_adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """guided-diffusion's center_crop_arr, step by step on arrays, but for the bicubic step itself."""
    pixels = np.asarray(image)
    while min(pixels.shape[:2]) >= 2 * size:
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.BOX))
    scale = size / min(pixels.shape[:2])
    height, width = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
    pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top:top + size, left:left + size]


@pytest.mark.parametrize("width, height", [(40, 30), (33, 57), (16, 16), (31, 200), (500, 375), (17, 16), (5, 9)])
def test_the_crop_is_that_of_adm(width, height):
    image = picture(1, width=width, height=height)
    cropped = adm_crop(image, 16)
    assert cropped.size == (16, 16)
    assert np.array_equal(np.asarray(cropped), plain_adm_crop(image, 16))


def test_halving_takes_the_mean_of_two_by_two_pixels():
    image = picture(3, width=32, height=32)
    blocks = np.asarray(image).astype(np.float64).reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(adm_crop(image, 16)) - blocks).max() <= 1  # Pillow rounds rows, then columns


def test_an_image_too_long_and_thin_is_refused():
    with pytest.raises(ImageError, match="too long and thin: 100000 x 1 would become 25600000 x 256"):
        adm_crop(Image.new("RGB", (100_000, 1)), 256)


def test_an_image_of_the_size_wanted_keeps_its_pixels():
    image = picture(5, width=16, height=16)
    pixels = to_pixels(image, 16)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 16, 16)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_three_channels(mode):
    grey = Image.new("L", (20, 20), 255)
    image = Image.new("I;16", (20, 20), 65535) if mode == "I;16" else grey.convert(mode)
    assert to_rgb(image).getpixel((3, 3)) == (255, 255, 255)
    assert to_pixels(image, 8).shape == (3, 8, 8)


def test_sixteen_bits_are_scaled_not_clipped():
    assert to_rgb(Image.new("I;16", (4, 4), 0x8000)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_keeps_its_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    data = encoded(image, "PNG", transparency=b"\x00\x10")
    assert to_rgb(decode_checked(data)).getpixel((0, 0)) == (10, 20, 30)


def test_floating_point_pixels_are_refused():
    with pytest.raises(ImageError, match="mode F"):
        to_rgb(Image.new("F", (4, 4)))


@pytest.mark.parametrize("kind, options", [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}),
])
@pytest.mark.parametrize("missing", [1, 2, 12, 100, 0.5])
def test_an_image_cut_short_is_refused_however_little_is_missing(kind, options, missing):
    data = encoded(picture(1, width=120, height=90), kind, **options)
    assert decode_checked(data).format == kind
    cut = int(len(data) * missing) if isinstance(missing, float) else missing
    with pytest.raises(ImageError, match="corrupt or truncated"):
        decode_checked(data[:-cut])


def test_a_flipped_bit_anywhere_in_the_pixels_of_a_png_is_found():
    data = encoded(picture(1), "PNG")
    start = data.index(b"IDAT")
    for position in range(start, len(data) - 12, 37):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(ImageError):
            decode_checked(bytes(damaged))


@pytest.mark.parametrize("data, reason", [
    (b"", "is empty"), (b"\0" * 1000, "nothing but zero bytes"), (b"%!PS-Adobe-3.0 EPSF", "not an image of a known"),
    (b"<html>404</html>", "not an image of a known format"),
])
def test_what_is_no_image_is_refused_with_the_reason(data, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode_checked(data)
    assert caught.value.reason == str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    data = encoded(Image.new("1", (20_000, 10_000)))
    assert len(data) < 100_000
    with pytest.raises(ImageError, match=f"more than {Image.MAX_IMAGE_PIXELS} pixels"):
        decode_checked(data)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encoded(picture(2), "JPEG")
    assert to_pixels(decode_checked(data + b"trailer"), 8).equal(to_pixels(decode_checked(data), 8))
