"""What is measured of digits that were drawn for captions, and the report and evaluation of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afm_scale.core.errors import ConfigError, DivergenceError
from afm_scale.data.table import build_source
from afm_scale.data.toys.captioned_mnist import CaptionedMnistConfig
from afm_scale.data.toys.captions import described, every_attributes, every_caption
from afm_scale.data.toys.mnist import MnistConfig, read_mnist
from afm_scale.evaluation.toys.captioned_mnist import (
    CaptionedMnistEvaluation,
    CaptionedMnistReport,
    caption_scores,
    name_of_row,
)
from tests.data.small import packed_prompts, slanted_digits_file


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CaptionedMnistConfig:
    root = tmp_path_factory.mktemp("captioned")
    packed_prompts(root / "prompts", every_caption())
    return CaptionedMnistConfig(
        global_batch=8, file=slanted_digits_file(root / "digits.npz", count=600), embeddings=root / "prompts"
    )


def real(config: CaptionedMnistConfig):
    digits = read_mnist(config.file, "train")
    return digits.x, described(config.file, digits.x, digits.y)


def test_real_digits_follow_their_captions_but_for_the_classifier(config):
    images, said = real(config)
    found = caption_scores(images, [one.caption for one in said], config.file)
    assert found["following_slant"] == found["following_thickness"] == 1
    assert found["following_digit"] >= 0.3  # bars are poor digits
    assert found["following"] <= found["following_digit"] + 0.1


def test_a_caption_that_says_something_else_is_not_followed(config):
    images, said = real(config)
    other = [one._replace(slant=(one.slant + 1) % 3).caption for one in said]
    found = caption_scores(images, other, config.file)
    assert found["following"] == found["following_slant"] == 0 and found["following_thickness"] == 1


def test_middle_thickness_is_not_said_and_right_with_any(config):
    images, said = real(config)
    unsaid = [one._replace(thickness=1).caption for one in said]
    assert "following_thickness" not in caption_scores(images, unsaid, config.file)
    thick = caption_scores(images, [one._replace(thickness=2).caption for one in said], config.file)
    assert thick["following_thickness"] == pytest.approx(1 / 3, abs=0.02)


class Drawn:
    """A subject whose samples are images of what was asked for."""

    class place:  # noqa: N801
        rank = 0

    def __init__(self, config):
        self.source = build_source(config, seed=0, rank=0, world_size=1, device=torch.device("cpu"))
        images, said = real(config)
        self.of = {one: image for image, one in zip(images, said, strict=True)}

    def stream(self, *, seed):
        return None

    def generate(self, stream, count):
        labels = torch.arange(count) % self.source.num_classes
        blank = torch.full((1, 28, 28), -1.0)
        return torch.stack([self.of.get(every_attributes()[label], blank) for label in labels.tolist()]), labels


def test_report_and_evaluation_measure_alike_and_the_picture_is_drawn(config, tmp_path):
    subject = Drawn(config.resolved())
    report = CaptionedMnistReport(part="tune", num_samples=90)(subject, tmp_path / "picture.png")
    figures = CaptionedMnistEvaluation(every_steps=1, num_samples=90).figures(subject)
    assert report.pop("compared_with") == "the tune part" and report == figures
    assert {"following", "following_digit", "class_accuracy", "frechet_distance", "diversity"} <= report.keys()
    assert report["class_accuracy"] == pytest.approx(report["following_digit"])
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_what_cannot_be_judged_is_refused(config):
    images, _ = real(config)
    with pytest.raises(ConfigError, match="the prompt 'a horse' is no caption of a digit"):
        caption_scores(images[:1], ["a horse"], config.file)
    with pytest.raises(DivergenceError, match="are not finite numbers"):
        caption_scores(images[:1] * float("nan"), ["a zero, upright"], config.file)
    report = CaptionedMnistReport()
    with pytest.raises(ConfigError, match="report.kind 'captioned_mnist' compares .* but data.kind is 'mnist'"):
        report.check(MnistConfig(global_batch=1), "report")
    with pytest.raises(ConfigError, match="report.part 'test' is what data.part trains on"):
        report.check(replace(config, part="test"), "report")


def test_a_row_of_the_picture_is_named_by_what_its_captions_say_of_any_digit() -> None:
    rows = [every_caption()[first:first + 10] for first in range(0, 90, 10)]
    names = [name_of_row(row) for row in rows]
    assert len(set(names)) == 9 and all("digit" in name for name in names)
    assert name_of_row(["a thin two, upright", "a thin zero, upright"]) == "a thin digit, upright"
    assert name_of_row(["a thin two, upright", "a zero, upright"]) == "a thin two, upright"
    assert name_of_row(["a cat", "a cat"]) == "a cat"
