"""Captions of digits, and the source that tells them: measures in closed form, order, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.data.prompts import Prompts
from afm_scale.data.table import build_source
from afm_scale.data.toys.captioned_mnist import CaptionedMnistConfig
from afm_scale.data.toys.captions import (
    attributes_of,
    described,
    every_attributes,
    every_caption,
    slants,
    thicknesses,
    thresholds_of,
)
from afm_scale.data.toys.mnist import read_mnist
from tests.data.small import packed_prompts, slanted_digits_file

BATCH = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CaptionedMnistConfig:
    root = tmp_path_factory.mktemp("captioned")
    packed_prompts(root / "prompts", every_caption()[::-1])
    return CaptionedMnistConfig(
        global_batch=BATCH, file=slanted_digits_file(root / "digits.npz", count=300), embeddings=root / "prompts"
    )


def source(config: CaptionedMnistConfig, rank: int = 0, world_size: int = 1, seed: int = 3):
    return build_source(config, seed=seed, rank=rank, world_size=world_size, device=torch.device("cpu"))


def bar(width: int, height: int, shear: int = 0) -> torch.Tensor:
    """White on black; every row lies `shear` pixels further to the right than the one below it."""
    image = torch.full((1, 1, 40, 60), -1.0)
    for row in range(height):
        left = 5 + shear * (height - 1 - row)
        image[0, 0, 10 + row, left:left + width] = 1
    return image


@pytest.mark.parametrize("shear", [0, 1, 2])
def test_the_slant_of_a_sheared_bar_is_its_shear(shear):
    image = bar(4, 11, shear)
    assert slants(image).item() == pytest.approx(shear, abs=1e-12)
    assert slants(image.flip(-1)).item() == pytest.approx(-shear, abs=1e-12)


@pytest.mark.parametrize(("width", "height"), [(1, 20), (3, 20), (6, 25)])
def test_the_thickness_of_a_bar_is_twice_its_area_over_its_edge(width, height):
    edge = 2 * (width + height) - 2 + math.sqrt(2)  # the lower right corner is cut
    assert thicknesses(bar(width, height)).item() == pytest.approx(2 * width * height / edge, abs=1e-12)


def test_nothing_drawn_has_no_slant_and_no_thickness():
    assert slants(torch.full((1, 1, 8, 8), -1.0)).item() == thicknesses(torch.full((1, 1, 8, 8), -1.0)).item() == 0


def test_every_caption_says_its_attributes_and_no_other():
    assert len(set(every_caption())) == 90
    assert [attributes_of(caption) for caption in every_caption()] == every_attributes()
    assert [attributes.digit for attributes in every_attributes()[:20]] == [*range(10)] * 2
    assert every_attributes()[0].caption == "a zero, upright" and attributes_of("a horse") is None


def test_a_third_of_each_digit_is_slanted_to_either_side_and_a_third_is_thin_and_thick(config):
    digits = read_mnist(config.file, "train")
    found = described(config.file, digits.x, digits.y)
    for label in range(10):
        own = [one for one in found if one.digit == label]
        assert len(own) == int((digits.y == label).sum()) == 24
        for name in ("slant", "thickness"):
            assert Counter(getattr(one, name) for one in own) == {0: 8, 1: 8, 2: 8}
    assert thresholds_of(config.file).slant.shape == (10, 2)


def test_each_image_comes_with_its_own_caption_and_the_empty_one_is_last(config):
    digits, prompts = read_mnist(config.file, "train"), Prompts(config.embeddings)
    caption_of = {
        image.numpy().tobytes(): one.caption
        for image, one in zip(digits.x, described(config.file, digits.x, digits.y), strict=True)
    }
    number_of = {text: number for number, text in enumerate(prompts.texts())}
    for batch in islice(source(config), 4):
        assert batch.y.tolist() == [*range(BATCH)] and batch.conditions.shape == (5, 4, 0)
        rows = [number_of[caption_of[image.numpy().tobytes()]] for image in batch.x]
        for found, wanted in zip(batch.conditions, prompts.conditions(rows), strict=True):
            assert torch.equal(found, wanted)
        assert torch.equal(batch.conditions.rows(torch.tensor([-1])).mask[0], prompts.conditions([]).mask[0])


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_together_tell_what_one_does_and_go_on_where_it_was(config, world_size):
    whole = source(config)
    wanted = [next(iter(whole)) for _ in range(40)]  # some epochs
    ranks = [source(config, rank, world_size) for rank in range(world_size)]
    for one in ranks:
        one.load_state_dict({"consumed": 17 * BATCH})
    for batch in wanted[17:]:
        for rank, one in enumerate(ranks):
            part = next(iter(one))
            assert torch.equal(part.x, batch.x[rank::world_size])
            own = batch.conditions.rows(torch.cat((batch.y[rank::world_size], torch.tensor([-1]))))
            assert all(torch.equal(a, b) for a, b in zip(part.conditions, own, strict=True))


def test_what_stands_with_the_prompts_is_read_and_what_is_given_is_compared(config, tmp_path):
    resolved = config.resolved()
    assert (resolved.num_classes, *resolved.prompt_shape) == (90, 5, 4, 0)
    assert resolved.resolved() == resolved and resolved.encoder == Prompts(config.embeddings).content.encoder.sha256()
    table = resolved.prompts()
    assert torch.equal(table.embeddings, Prompts(config.embeddings).conditions(range(90)).embeddings)
    assert config.texts() == tuple(every_caption()[::-1])
    packed_prompts(tmp_path / "other", every_caption(), encoder="1")
    packed_prompts(tmp_path / "wide", every_caption(), width=6)
    packed_prompts(tmp_path / "long", every_caption(), length=9)
    for name, words in (
        ("other", "was embedded by the text encoder of SomePipeline with SHA-256 1111.*their numbers mean something"),
        ("wide", "holds prompts of width 6, data.width is 4"),
        ("long", "holds prompts of 9 tokens, data.length is 5; set data.length=9, or embed them with --length 5"),
    ):
        for changed in (
            replace(resolved, embeddings=tmp_path / name), replace(resolved, shown=tmp_path / name, num_classes=9)
        ):
            with pytest.raises(DataError, match=words):
                source(changed)
            with pytest.raises(DataError, match=words):
                changed.prompts()


def test_prompts_of_their_own_may_be_shown_and_shorter_ones_are_padded(config, tmp_path):
    packed_prompts(tmp_path / "shown", ["a seven, upright", "a thin two, upright"], length=3)
    shown = replace(config, shown=tmp_path / "shown").resolved()
    assert (shown.num_classes, shown.prompt_shape.length) == (2, 5)
    table = shown.prompts()
    assert table.embeddings.shape == (3, 5, 4) and not table.mask[:, 3:].any()
    assert table.mask.sum(1).tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="holds 2 prompts, data.num_classes is 3"):
        replace(shown, num_classes=3).prompts()


def test_a_fingerprint_says_which_images_prompts_and_text_encoder(config, tmp_path):
    packed_prompts(tmp_path / "other", every_caption()[::-1], encoder="1")
    packed_prompts(tmp_path / "seed", every_caption()[::-1], seed=1)
    found = config.fingerprint()
    assert found.keys() == {"file", "prompts", "texts", "text_encoder"}
    others = [replace(config, embeddings=tmp_path / name).fingerprint() for name in ("other", "seed")]
    assert [{name for name in found if found[name] != other[name]} for other in others] == [
        {"text_encoder"}, {"prompts"},
    ]


def test_captions_that_are_not_embedded_and_files_that_are_not_named_are_refused(config, tmp_path):
    packed_prompts(tmp_path / "few", every_caption()[:80])
    with pytest.raises(DataError, match="few holds no prompt 'a t.*, nor [0-9]+ more captions"):
        source(replace(config, embeddings=tmp_path / "few"))
    with pytest.raises(ConfigError, match="data.embeddings is null: data.kind 'captioned_mnist' reads prompts"):
        replace(config, embeddings=None).prompts()
    with pytest.raises(ConfigError, match="data.file is null"):
        source(replace(config, file=None))
    with pytest.raises(DataError, match="dataset.json is not there"):
        replace(config, embeddings=Path("nowhere")).resolved()
