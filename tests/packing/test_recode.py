"""What becomes of one image, and that whoever reads it afterwards sees the same."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.data.description import LISTED_NAMES, Account, Change, ImageContent, read_description
from afm_scale.data.images import DaliConfig, ImagesConfig, WebDatasetConfig
from afm_scale.data.table import build_source
from afm_scale.data.transforms import decode_checked, to_pixels
from afm_scale.evaluation.images.sets import open_images
from afm_scale.packing.accounts import Tally, account_of
from afm_scale.packing.recode import ON_BACKGROUND, TURNED, Recode
from afm_scale.packing.writer import Packing
from tests.data.small import encoded, packed_images, picture
from tests.originals.of_images import TURNS, exif, rgba
from tests.originals.pictures import cornered, deep_png


def test_every_orientation_applied_is_what_pillow_shows_and_ignored_what_is_stored():
    for number in range(1, 9):
        data = encoded(cornered(), "PNG", exif=exif(number))
        applied, ignored = (
            Image.open(io.BytesIO(Recode(size=24, orientation=how)("0.png", data).data)) for how in ("apply", "ignore")
        )
        assert np.array_equal(np.asarray(ignored), np.asarray(cornered()))
        turned = cornered() if number == 1 else cornered().transpose(Image.Transpose(TURNS[number]))
        assert np.array_equal(np.asarray(applied), np.asarray(turned))


def test_transparency_is_mixed_with_the_background_by_its_share():
    image = Image.new("RGBA", (4, 4), (200, 100, 0, 128))
    stored = Recode(size=4, background="#000000")("0.png", encoded(image)).data
    assert np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - [100, 50, 0]).max() <= 1


@pytest.mark.parametrize("data, changes", [
    (encoded(picture(0), "JPEG"), ()), (encoded(picture(0)), ()), (encoded(picture(0).convert("P")), ()),
    (deep_png(0), ()), (encoded(rgba()), (ON_BACKGROUND,)), (encoded(picture(0), exif=exif(6)), (TURNED,)),
], ids=["JPEG", "PNG", "palette", "16 bits", "RGBA", "turned"])
def test_raw_keeps_the_bytes_unless_they_show_something_else_than_is_wanted(data, changes):
    done = Recode(raw=True)("0.jpg" if data.startswith(b"\xff") else "0.png", data)
    assert done.changes == changes and (done.data == data) == (not changes)
    seen = to_pixels(decode_checked(done.data), 16)  # as every source of images sees it
    wanted = Image.open(io.BytesIO(Recode(size=16)("0.jpg" if data.startswith(b"\xff") else "0.png", data).data))
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), np.asarray(wanted))


@pytest.mark.parametrize("settings, told", [
    ({"background": "glass"}, "--background is 'glass'"), ({"background": "#ffffff00"}, "--background"),
    ({"min_size": 0}, "--min-size is 0"), ({"raw": True, "grey": True}, "--grey encodes anew"),
])
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        Recode(**settings)


def packed_grey(folder):
    packing = Packing(folder, {"seed": 0}, ImageContent(size=8, encoding="png", channels=1))
    packing.begin()
    with packing.shard(0) as writer:
        for number in range(4):
            done = Recode(size=8, grey=True)("0.png", encoded(picture(number, width=8, height=8)))
            writer.add(number, 0, {"png": done.data})
    return packing.finish(1, ["one"])


@pytest.mark.parametrize("config", [WebDatasetConfig, DaliConfig], ids=lambda config: config.kind)
def test_grey_sets_give_one_channel_to_whoever_reads_them(tmp_path, config: type[ImagesConfig]):
    if config is DaliConfig:
        pytest.importorskip("nvidia.dali")
    packed_grey(tmp_path)
    chosen = config(global_batch=4, folder=tmp_path, workers=1, prefetch=1, mirror=False).resolved()
    assert chosen.shape == (1, 8, 8)
    place = {"seed": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}
    source = build_source(chosen, **place)
    try:
        x = ((next(iter(source)).x + 1) * 127.5).round().to(torch.uint8)
    finally:
        source.close()
    images = open_images(tmp_path)
    assert images.shape == (1, 8, 8)
    (_, seen), = images.batches(0, 1, 4)
    assert {one.numpy().tobytes() for one in x} == {one.numpy().tobytes() for one in seen}


def test_grey_sets_and_coloured_recipes_do_not_go_together(tmp_path):
    packed_grey(tmp_path / "grey")
    packed_images(tmp_path / "rgb", size=8)
    place = {"seed": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}
    for name, channels, classes in (("grey", 3, 1), ("rgb", 1, 3)):
        config = WebDatasetConfig(
            global_batch=2, folder=tmp_path / name, size=8, num_classes=classes, channels=channels
        )
        with pytest.raises(DataError, match=f"data.channels is {channels}; set data.channels={4 - channels}"):
            build_source(config, **place)


@pytest.mark.parametrize("data, told", [
    (encoded(picture(0), exif=exif(6)), "EXIF orientation"), (deep_png(0), "16 bits a channel"),
    (encoded(picture(0), save_all=True, append_images=[picture(1)]), "several frames"),
    (encoded(Image.new("RGB", (9, 9)), transparency=(0, 0, 0)), "transparency"),
], ids=["orientation", "16 bits", "frames", "transparency"])
def test_a_folder_to_be_measured_has_no_image_that_others_see_otherwise(tmp_path, data, told):
    (tmp_path / "0.png").write_bytes(data)
    with pytest.raises(DataError, match=told):
        open_images(tmp_path)


def test_counts_add_up_and_names_are_listed_up_to_a_limit():
    tally = Tally()
    for number in range(LISTED_NAMES + 5):
        tally.add(str(number), ["turned", "enlarged"] if number % 2 else ["enlarged"])
    tally.add("as it was", [])
    account = account_of(tally, num_packed=LISTED_NAMES + 6, num_left_out=2, notes=[])
    assert (account.found, account.changed) == (LISTED_NAMES + 8, LISTED_NAMES + 5)
    enlarged, turned = account.changes
    assert (enlarged.count, len(enlarged.names), turned.count) == (LISTED_NAMES + 5, LISTED_NAMES, 502)


@pytest.mark.parametrize("counts", [
    {"found": 9}, {"packed": 3}, {"left_out": 1}, {"changed": 0}, {"changed": 4}, {"changed": 6},
    {"changes": (Change(how="turned", count=2, names=("a",)),)},
])
def test_an_account_that_does_not_add_up_is_refused(counts):
    good = {"found": 7, "packed": 5, "left_out": 2, "changed": 2, "notes": (),
            "changes": (Change(how="turned", count=2, names=("a", "b")), Change(how="enlarged", count=1, names=("a",)))}
    Account(**good)
    with pytest.raises(ConfigError):
        Account(**good | counts)


def test_sets_packed_before_there_were_accounts_and_channels_are_read(tmp_path):
    packed_images(tmp_path)
    path = tmp_path / "dataset.json"
    plain = json.loads(path.read_bytes())
    assert plain.pop("account") is None and plain["content"].pop("channels") == 3
    path.write_text(json.dumps(plain))
    done = read_description(tmp_path)
    assert done.account is None and done.content.channels == 3
    assert WebDatasetConfig(global_batch=2, folder=tmp_path).resolved().shape == (3, 16, 16)
