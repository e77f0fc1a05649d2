"""Images encoded as they come, beside the same images encoded beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from afm_scale.commands.encode_latents import EncodeRequest, encode_command
from afm_scale.core.errors import ConfigError
from afm_scale.data.affine import AffineConfig
from afm_scale.data.images import ImageSource
from afm_scale.data.images_to_latents import ImagesToLatents, ImagesToLatentsConfig
from afm_scale.data.latents import LatentsConfig, LatentsSource
from afm_scale.data.source import DataSource, Skipped
from afm_scale.data.table import build_source
from afm_scale.data.transforms import decode_checked, to_pixels
from afm_scale.data.webdataset import WebDatasetSource
from afm_scale.models.autoencoder import Autoencoder
from afm_scale.models.encoding import build_encoder
from tests.data.small import packed_images
from tests.models.small_autoencoder import saved_autoencoder, small_autoencoder

SCALE = 0.4
PLACE = {
    "seed": 3, "rank": 0, "world_size": 1, "device": torch.device("cpu"), "encoder_of": build_encoder,
}
NUM = 12


class PlainImages(ImageSource):
    """Decodes in this process."""

    closed = False

    def decoded(self) -> Iterator[tuple[Tensor, Tensor, Sequence[Skipped]]]:
        for positions in self.cursor.upcoming():
            samples = self.order.indices(positions).tolist()
            pixels = torch.stack([to_pixels(decode_checked(self.shards.read(n)), self.config.size) for n in samples])
            yield pixels, self.shards.index.label[samples], [Skipped("here", "why", "there")]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """images, the autoencoder `tiny`, and latents."""
    root = tmp_path_factory.mktemp("encoded")
    packed_images(root / "images", num_samples=NUM)
    saved_autoencoder(root / "tiny")
    request = EncodeRequest(
        shards=root / "images", out=root / "latents", vae=str(root / "tiny"), scale=SCALE, batch_size=4, device="cpu"
    )
    assert encode_command(request) == 0
    return root


def config(folder: Path, **settings) -> ImagesToLatentsConfig:
    settings = {"shape": (4, 8, 8), "global_batch": 4, "precision": "fp32", **settings}
    return ImagesToLatentsConfig(
        folder=folder / "images", size=16, num_classes=3, vae=str(folder / "tiny"), scale=SCALE, workers=1,
        prefetch=1, **settings,
    )


def encoded_now(
    folder: Path, *, rank: int = 0, world_size: int = 1, **settings
) -> tuple[ImagesToLatents, PlainImages]:
    place = {"seed": 3, "rank": rank, "world_size": world_size, "device": "cpu"}
    chosen = config(folder, **settings)
    images = PlainImages(chosen.images(), **place)
    return ImagesToLatents(chosen, images, Autoencoder(small_autoencoder(), scale=SCALE).moments, **place), images


def encoded_before(folder: Path, **settings) -> LatentsSource:
    settings = {"folder": folder / "latents", "shape": (4, 8, 8), "num_classes": 3, "vae": "tiny", **settings}
    return LatentsSource(
        LatentsConfig(global_batch=4, scale=SCALE, **settings), seed=3, rank=0, world_size=1, device="cpu"
    )


def take(source: DataSource, turns: int) -> tuple[Tensor, Tensor]:
    batches = list(islice(source, turns))
    source.close()
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])


def test_encoded_now_or_beforehand_a_position_holds_the_same_latent(folder):
    now, labels = take(encoded_now(folder)[0], 6)
    before, labels_before = take(encoded_before(folder), 6)
    assert torch.equal(labels, labels_before) and now.dtype == torch.float32
    assert (now - before).abs().max() < 2**-10 * now.abs().max()  # half a unit in float16's last place, twice
    other_mirror, _ = take(encoded_before(folder, mirror=False), 6)
    assert (now - other_mirror).abs().max() > 0.01


def test_it_is_built_from_its_configuration(folder):
    source = build_source(config(folder), **PLACE)
    assert source.shape == (4, 8, 8) and source.num_classes == 3
    x, y = take(source, 3)
    expected, labels = take(encoded_now(folder)[0], 3)
    assert torch.equal(x, expected) and torch.equal(y, labels)


def test_its_images_are_moved_before_they_are_encoded(folder):
    place = {"seed": 3, "rank": 0, "world_size": 1, "device": "cpu"}
    chosen = config(folder, affine=AffineConfig(probability=1))
    images = WebDatasetSource(chosen.images(), **place)
    encode = Autoencoder(small_autoencoder(), scale=SCALE).moments
    expected, labels = take(ImagesToLatents(chosen, images, encode, **place), 2)
    found, found_labels = take(build_source(chosen, **PLACE), 2)
    assert torch.equal(found, expected) and torch.equal(found_labels, labels)
    plain, plain_labels = take(encoded_now(folder)[0], 2)
    assert torch.equal(plain_labels, labels) and (found - plain).abs().max() > 0.01


def test_ranks_and_a_resume_share_out_the_stream_of_one(folder):
    whole, _ = take(encoded_now(folder)[0], 6)
    first, _ = encoded_now(folder)
    list(islice(first, 2))
    assert first.state_dict() == {"consumed": 8}
    shares = []
    for rank in range(2):
        resumed, _ = encoded_now(folder, rank=rank, world_size=2)
        resumed.load_state_dict(first.state_dict())
        shares.append(take(resumed, 4)[0])
    rest = torch.stack(shares, dim=1).flatten(0, 1)
    assert (rest - whole[8:]).abs().max() < 1e-5  # the encoder may round otherwise at another batch size


def test_skips_and_closing_are_the_images_own(folder):
    source, images = encoded_now(folder)
    list(islice(source, 2))
    assert [one.place for one in source.take_skipped()] == ["here", "here"] and not source.take_skipped()
    source.close()
    assert images.closed


def test_an_encoder_of_another_latent_shape_is_refused(folder):
    with pytest.raises(ConfigError, match=r"latents of shape \[4, 8, 8\], data.shape is \[4, 2, 2\]; set data.shape"):
        encoded_now(folder, shape=(4, 2, 2))
