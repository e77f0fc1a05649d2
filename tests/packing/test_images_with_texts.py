"""make_shards --texts and encode_latents: images with the texts beside them, and what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from afm_scale.commands.encode_latents import EncodeRequest, encode_command
from afm_scale.core.errors import ConfigError, DataError
from afm_scale.data.shards import PackedShards
from afm_scale.packing.classes import Layout
from afm_scale.packing.recode import Recode
from afm_scale.packing.shards import MakeShardsConfig, make_shards
from afm_scale.packing.texts import read_texts
from afm_scale.packing.verify import verify
from tests.data.small import encoded, picture
from tests.models.small_autoencoder import saved_autoencoder


def originals(folder: Path, num: int = 6) -> Path:
    """Images of two folders, of which the text says the number."""
    for number in range(num):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(encoded(picture(number)))
        (place / f"{number}.txt").write_text(f"picture {number}, größer")
    return folder


def pack(source: Path, out: Path, **layout: object):
    return make_shards(MakeShardsConfig(
        source=source, out=out, recode=Recode(size=16), num_shards=2, layout=Layout(texts=True, **layout)
    ))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    pack(originals(root / "originals"), root / "out")
    return root


def test_every_image_is_packed_with_the_text_beside_it(packed):
    shards = PackedShards(packed / "out")
    assert shards.description.content.texts and shards.description.class_names == ("images with texts",)
    texts = [shards.read(number, 1).decode() for number in range(6)]
    assert sorted(texts) == [f"picture {number}, größer" for number in range(6)]
    for number, text in enumerate(texts):
        image = Recode(size=16)("x.png", encoded(picture(int(text.split()[1].rstrip(",")))))
        assert shards.read(number) == image.data
    assert list(read_texts(packed / "out").texts) == texts and list(verify(packed / "out")) == []


def test_a_tar_as_webdataset_has_them_is_packed_to_the_same_bytes(packed, tmp_path):
    with tarfile.open(tmp_path / "originals.tar", "w") as tar:
        tar.add(packed / "originals", arcname="")
    pack(tmp_path / "originals.tar", tmp_path / "out")
    for path in (packed / "out").glob("shard-*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_latents_keep_the_texts_of_their_images(packed, tmp_path):
    saved_autoencoder(tmp_path / "vae")
    request = EncodeRequest(shards=packed / "out", out=tmp_path / "latents", vae=str(tmp_path / "vae"), device="cpu")
    assert encode_command(request) == 0
    images, latents = read_texts(packed / "out"), read_texts(tmp_path / "latents")
    assert images == latents and PackedShards(tmp_path / "latents").description.content.num_members == 3
    assert list(verify(tmp_path / "latents")) == []


def test_images_without_texts_and_texts_without_images_are_refused_in_one_message(tmp_path):
    source = originals(tmp_path / "originals")
    (source / "a" / "1.txt").unlink()
    (source / "b" / "more.txt").write_text("an image that is not there")
    with pytest.raises(DataError, match=(
        "1 of 6 images have no text beside them, such as 'a/1.png'; 1 of 6 texts have no image, such as 'b/more.txt': "
        "wanted NAME.txt beside every NAME.jpg"
    )):
        pack(source, tmp_path / "out")


def test_an_image_whose_text_is_blank_or_no_text_is_left_out_and_listed(tmp_path):
    source = originals(tmp_path / "originals")
    (source / "a" / "1.txt").write_text(" \n")
    (source / "b" / "2.txt").write_bytes(b"gr\xf6\xdfer")
    done = pack(source, tmp_path / "out")
    assert done.num_samples == 4
    assert sorted((one.name, one.reason[:20]) for one in done.refused) == [
        ("a/1.png", "its text is blank"), ("b/2.png", "the text is not UTF-"),
    ]


def test_texts_do_not_go_with_classes(tmp_path):
    with pytest.raises(ConfigError, match="--texts packs images with texts and without classes"):
        Layout(texts=True, classes=("a",))
    with pytest.raises(DataError, match="holds no images with texts"):
        (tmp_path / "empty").mkdir()
        pack(tmp_path / "empty", tmp_path / "out")
