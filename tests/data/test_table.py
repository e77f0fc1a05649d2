"""What the table of sources promises, and what a packed data set says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import DataError
from afm_scale.data.description import ImageContent, LatentContent, read_description, write_description
from afm_scale.data.images import DaliConfig, WebDatasetConfig
from afm_scale.data.images_to_latents import ImagesToLatentsConfig
from afm_scale.data.latents import LatentsConfig
from afm_scale.data.order import PositionedSource
from afm_scale.data.source import Encoding
from afm_scale.data.table import SOURCES, build_source
from afm_scale.data.toys.digits import DigitsConfig
from afm_scale.data.toys.mnist import MnistConfig
from afm_scale.packing.writer import Packing
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.data.small import mnist_file, packed_images

PLACE = {"seed": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}


@pytest.mark.parametrize("config", SOURCES, ids=lambda config: config.kind)
def test_a_configuration_says_truly_whether_its_samples_have_positions(config: type) -> None:
    source = SOURCES[config]
    assert config.positioned == (isinstance(source, type) and issubclass(source, PositionedSource))
    assert config.decoding(on_gpu=False) and config.decoding(on_gpu=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("packed")
    packed_images(root / "squares", size=16)
    packed_images(root / "originals", size=16)
    description = read_description(root / "originals")
    content = ImageContent(size=None, encoding="original")
    write_description(root / "originals", replace(description, content=content))
    yield root


@pytest.mark.parametrize("config", [WebDatasetConfig, DaliConfig], ids=lambda config: config.kind)
def test_packed_images_say_their_size_and_classes(config: type, packed: Path) -> None:
    found = config(global_batch=4, folder=packed / "squares").resolved()
    assert (found.size, found.num_classes, found.shape) == (16, 3, (3, 16, 16)) and found.resolved() is found
    assert replace(found, folder=packed / "nowhere").resolved().size == 16


def test_originals_of_any_size_are_cropped_to_256_unless_the_recipe_says_otherwise(packed: Path) -> None:
    config = WebDatasetConfig(global_batch=4, folder=packed / "originals")
    assert config.resolved().size == 256
    assert replace(config, size=32).resolved() == replace(config, size=32, num_classes=3, channels=3)


def test_images_to_be_encoded_say_their_size_and_classes(packed: Path) -> None:
    config = ImagesToLatentsConfig(global_batch=4, folder=packed / "squares", vae="some", shape=(4, 2, 2))
    found = config.resolved()
    assert (found.size, found.num_classes, found.images().size) == (16, 3, 16)
    assert found.encoding == Encoding("some", 0.18215) and found.shape == (4, 2, 2)


def test_encoded_latents_say_all_that_a_recipe_may_leave_out(tmp_path: Path) -> None:
    content = LatentContent(shape=(2, 3, 4), vae="some", vae_sha256="0" * 64, scale=0.5)
    packing = Packing(tmp_path, {"seed": 0}, content)
    packing.begin()
    with packing.shard(0) as writer:
        writer.add(0, 0, {"plain.npy": b"0" * 200, "mirrored.npy": b"1" * 200})
    packing.finish(1, ["a", "b"])
    found = LatentsConfig(global_batch=4, folder=tmp_path).resolved()
    assert (found.shape, found.num_classes, found.encoding) == ((2, 3, 4), 2, Encoding("some", 0.5))
    assert replace(found, scale=0.4).resolved().scale == 0.4 and found.resolved() is found


def test_a_fingerprint_tells_data_from_others_wherever_they_lie(packed: Path, tmp_path: Path) -> None:
    def images(folder: Path, **changes: object) -> Mapping[str, str]:
        return WebDatasetConfig(global_batch=4, folder=folder, **changes).fingerprint()

    found = images(packed / "squares")
    copied = shutil.copytree(packed / "squares", tmp_path / "copied")
    assert found == images(copied, mirror=False, size=8) == DaliConfig(global_batch=4, folder=copied).fingerprint()
    description = read_description(copied)
    write_description(copied, replace(description, class_names=("class_1", "class_0", "class_2")))
    assert {name for name, value in images(copied).items() if value != found[name]} == {"classes"}
    packed_images(tmp_path / "again", size=8)
    assert {name for name, value in images(tmp_path / "again").items() if value != found[name]} == {"index"}


def test_a_toys_fingerprint_is_that_of_its_file(tmp_path: Path) -> None:
    file = mnist_file(tmp_path / "digits.npz")
    config = MnistConfig(global_batch=4, file=file)
    assert config.fingerprint() == {"file": sha256(file.read_bytes()).hexdigest()}
    assert replace(config, file=None).fingerprint() == {} == DigitsConfig(global_batch=4).fingerprint()
    with pytest.raises(DataError, match="data.file .*gone.* cannot be read"):
        replace(config, file=tmp_path / "gone").fingerprint()


def test_what_a_recipe_gives_is_still_compared_with_the_data(packed: Path) -> None:
    config = WebDatasetConfig(global_batch=4, folder=packed / "squares", num_classes=5).resolved()
    assert (config.size, config.num_classes) == (16, 5)
    with pytest.raises(DataError, match="has 3 classes, data.num_classes is 5; set data.num_classes=3"):
        build_source(config, **PLACE)


def test_a_data_set_that_must_say_it_and_is_not_there_or_of_another_kind_is_refused(packed: Path) -> None:
    with pytest.raises(DataError, match="nowhere/dataset.json is not there .no such folder.*make_shards"):
        WebDatasetConfig(global_batch=4, folder=packed / "nowhere").resolved()
    with pytest.raises(DataError, match="holds images, this source reads latents; change data.kind or data.folder"):
        LatentsConfig(global_batch=4, folder=packed / "squares").resolved()


def test_a_recipe_is_complete_with_kind_folder_and_batch(packed: Path) -> None:
    block = f"data={{kind: webdataset, folder: {packed / 'squares'}, global_batch: 8}}"
    config = load(RunConfig, "digits_afm", [block]).resolved()
    assert config.data.shape == (3, 16, 16) and config.data.num_classes == 3
