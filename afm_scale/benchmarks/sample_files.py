"""Made-up data sets of realistic cost, for timing sources: photograph-like JPEGs, and latents."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.description import ImageContent, LatentContent
from ..data.transforms import adm_crop
from ..packing.writer import Packing

NUM_CLASSES = 10
LATENT_SHAPE = (4, 32, 32)
_OCTAVES = ((4, 70.0), (16, 30.0), (64, 14.0), (160, 10.0))  # cells across, grey levels
_GRAIN = 6.0  # grey levels of noise in every pixel


def photograph(number: int, width: int, height: int) -> Image.Image:
    """Smooth structure at several scales, and grain: at 500 x 375 and quality 90 a JPEG of about 70 kB."""
    rng = np.random.default_rng(number)
    pixels = np.full((height, width, 3), 118.0, dtype=np.float32)
    for cells, strength in _OCTAVES:
        coarse = rng.normal(size=(3, cells * 3 // 4, cells)).astype(np.float32)
        for channel in range(3):
            smooth = Image.fromarray(coarse[channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[:, :, channel] += strength * np.asarray(smooth)
    pixels += _GRAIN * rng.normal(size=(height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_jpegs(num_images: int, *, width: int = 500, height: int = 375) -> list[bytes]:
    return [_encoded(photograph(number, width, height), "JPEG", quality=90) for number in range(num_images)]


def pack_originals(out: Path, jpegs: list[bytes], num_shards: int) -> None:
    """As tools/make_shards.py --raw does."""
    _pack(out, ImageContent(size=None, encoding="original"), [{"jpg": data} for data in jpegs], num_shards)


def pack_squares(out: Path, jpegs: list[bytes], size: int) -> None:
    """As tools/make_shards.py --size does."""
    squares = [{"png": _encoded(adm_crop(Image.open(io.BytesIO(data)), size), "PNG")} for data in jpegs]
    _pack(out, ImageContent(size=size, encoding="png"), squares, 1)


def pack_latents(out: Path, num_samples: int, num_shards: int) -> None:
    """Random numbers of the shape that ImageNet-256 has under sd-vae-ft-mse."""
    rng = np.random.default_rng(0)
    members = []
    for _ in range(num_samples):
        moments = np.abs(rng.normal(size=(2, 2, *LATENT_SHAPE))).astype(np.float16)
        members.append({"plain.npy": _npy(moments[0]), "mirrored.npy": _npy(moments[1])})
    content = LatentContent(shape=LATENT_SHAPE, vae="sd-vae-ft-mse", vae_sha256="0" * 64, scale=0.18215)
    _pack(out, content, members, num_shards)


def _pack(out: Path, content: ImageContent | LatentContent, members: list[dict[str, bytes]], num_shards: int) -> None:
    packing = Packing(out, {"made_by": "benchmark"}, content)
    packing.begin()
    for shard in range(num_shards):
        with packing.shard(shard) as writer:
            for key in range(shard * len(members) // num_shards, (shard + 1) * len(members) // num_shards):
                writer.add(key, key % NUM_CLASSES, members[key])
    packing.finish(num_shards, [str(label) for label in range(NUM_CLASSES)])


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
