"""Small image folders and packed data sets: `from tests.data.small import image_folder, packed_images`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from afm_scale.data.description import DatasetDescription, ImageContent, LatentContent, PromptContent, PromptEncoder
from afm_scale.data.embeddings import Embedding, EmbeddingRecords
from afm_scale.data.prompts import CLASS_NAMES, ROWS_NAME, sum_of_texts
from afm_scale.packing.writer import Packing


def picture(number: int, *, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth RGB picture that differs for every number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_folder(root: Path, *, num_classes: int = 3, per_class: int = 4, kind: str = "JPEG", **size: int) -> Path:
    """root/class_0/0.jpg ...; returns root."""
    suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
    for label in range(num_classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            image = picture(label * per_class + index, **size)
            (folder / f"{index}.{suffix}").write_bytes(encoded(image, kind))
    return root


def packed_images(
    out: Path, *, num_samples: int = 12, num_shards: int = 3, num_classes: int = 3, size: int = 16
) -> DatasetDescription:
    """Shards of square PNGs written directly; sample n is picture(n), of class n mod num_classes."""
    packing = Packing(out, {"seed": 0}, ImageContent(size=size, encoding="png"))
    packing.begin()
    for shard in range(num_shards):
        with packing.shard(shard) as writer:
            for number in range(shard * num_samples // num_shards, (shard + 1) * num_samples // num_shards):
                image = picture(number, width=size, height=size)
                writer.add(number, number % num_classes, {"png": encoded(image)})
    return packing.finish(num_shards, [f"class_{label}" for label in range(num_classes)])


def npy(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def packed_latents(out: Path, members: Sequence[bytes] = (), *, num_shards: int = 3) -> DatasetDescription:
    """Latents of shape [1, 2, 2] and three classes: sample n is `members[n]` twice, or of twelve full of n."""
    content = LatentContent(shape=(1, 2, 2), vae="some", vae_sha256="0" * 64, scale=0.5)
    given = members or [npy(np.full((2, 1, 2, 2), number, np.float16)) for number in range(12)]
    packing = Packing(out, {"seed": 0}, content)
    packing.begin()
    for shard in range(num_shards):
        with packing.shard(shard) as writer:
            for number in range(shard * len(given) // num_shards, (shard + 1) * len(given) // num_shards):
                writer.add(number, number % 3, {f"{name}.npy": given[number] for name in ("plain", "mirrored")})
    return packing.finish(num_shards, [f"class_{label}" for label in range(3)])


def mnist_file(path: Path, *, count: int = 200, seed: int = 0) -> Path:
    """An .npz as `data.kind: mnist` reads them: every class is a bar of its own place and width, with some noise."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) * 10 // count).astype(np.uint8)
    images = rng.integers(0, 40, size=(count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        left = 2 + 2 * int(label) + int(rng.integers(0, 2))
        image[4:24, left:left + 3 + int(label) % 3] = rng.integers(180, 256)
    np.savez(path, images=images, labels=labels)
    return path


def packed_prompts(
    out: Path, texts: Sequence[str], *, seed: int = 0, length: int = 5, width: int = 4, pooled: int = 0,
    rows: Sequence[int] | None = None, encoder: str = "0", dtype: str = "float32",
) -> DatasetDescription:
    """Different texts with random numbers for embeddings, of 1 to `length` tokens; `rows`: which each text is."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(list(range(len(texts)) if rows is None else rows))
    encoded_texts = [texts[number].encode() for number in numbers.tolist()]
    file = save({"row": numbers})
    content = PromptContent(
        length=length, width=width, pooled=pooled, dtype=dtype, empty="", num_texts=len(numbers),
        encoder=PromptEncoder(
            pipeline="SomePipeline", text_encoder_sha256=encoder * 64, tokenizer_sha256="0" * 64, template="{}",
            precision="fp32",
        ),
        texts_sha256=sum_of_texts(
            torch.tensor([len(text) for text in encoded_texts]), torch.tensor([crc32(text) for text in encoded_texts])
        ),
        rows_sha256=sha256(file).hexdigest(),
    )
    records, packing = EmbeddingRecords(content), Packing(out, {}, content)
    packing.begin()
    with packing.shard(0) as writer:
        for number, text in enumerate([*texts, ""]):
            tokens = torch.randn(1 + number % length, width, generator=generator).to(records.dtype)
            record = records.write(Embedding(tokens, torch.randn(pooled, generator=generator).to(records.dtype)))
            writer.add(number, int(number == len(texts)), {"safetensors": record, "txt": text.encode()})
    (out / ROWS_NAME).write_bytes(file)
    return packing.finish(1, CLASS_NAMES)


def slanted_digits_file(path: Path, *, count: int = 300, seed: int = 0) -> Path:
    """As `mnist_file`, of bars whose slant and thickness differ from image to image, ten classes in turn."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 28, 28), np.uint8)
    labels = (np.arange(count) // 10 % 10).astype(np.uint8)  # of every ten in a row eight are for training
    for image, label in zip(images, labels, strict=True):
        width, shear = int(rng.integers(2, 7)), rng.uniform(-0.5, 0.5)
        for row in range(4, 24):
            left = 10 + int(label) // 3 - round(shear * (row - 14))
            image[row, left:left + width] = rng.integers(150, 256, size=width)
    np.savez(path, images=images, labels=labels)
    return path
