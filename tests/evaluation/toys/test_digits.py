from __future__ import annotations

import pytest
import torch

from afm_scale.core.errors import ConfigError, DivergenceError
from afm_scale.core.random import tensor_generator
from afm_scale.data.toys.digits import digits_of, held_out_digits, training_digits
from afm_scale.evaluation.statistics import frechet_distance, gaussian_statistics
from afm_scale.evaluation.toys.digits import digits_quality
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load


def noise(num_samples: int) -> torch.Tensor:
    return torch.randn(num_samples, 1, 8, 8, generator=tensor_generator("digits quality"))


def test_training_digits_reach_the_references() -> None:
    quality = digits_quality(training_digits().x, training_digits().y)
    assert quality.class_accuracy > 0.99 and quality.real_accuracy > 0.98
    assert quality.frechet_distance == quality.real_frechet_distance == pytest.approx(0.42, abs=0.005)  # the issue's
    assert (quality.precision, quality.recall) == (quality.real_precision, quality.real_recall)
    assert quality.precision > 0.9 and quality.recall > 0.85
    assert quality.diversity == pytest.approx(1, abs=1e-12)


def test_the_pixel_scale_is_the_one_in_which_noise_is_63_away() -> None:
    statistics = (gaussian_statistics(x.flatten(1).numpy()) for x in (noise(359), held_out_digits().x))
    (mean1, cov1), (mean2, cov2) = statistics
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(63, abs=1.5)


def test_noise_is_far_and_of_no_class() -> None:
    labels = torch.arange(500) % 10
    quality = digits_quality(noise(500), labels)
    assert quality.class_accuracy < 0.2 and quality.frechet_distance > 40 and quality.precision < 0.05


def test_one_image_per_class_is_right_but_without_diversity_or_recall() -> None:
    digits = training_digits()
    labels = torch.arange(200) % 10
    first = torch.stack([digits.x[digits.y == label][0] for label in range(10)])
    jitter = 1e-3 * noise(200)
    quality = digits_quality(first[labels] + jitter, labels)
    assert quality.class_accuracy == 1 and quality.diversity < 0.01 and quality.recall < 0.02


def test_labels_that_do_not_match_lose_accuracy_alone() -> None:
    digits = training_digits()
    right, wrong = digits_quality(digits.x, digits.y), digits_quality(digits.x, (digits.y + 1) % 10)
    assert wrong.class_accuracy < 0.01
    assert wrong.frechet_distance == right.frechet_distance and wrong.recall == right.recall


def test_samples_are_clipped_before_they_are_measured() -> None:
    digits = training_digits()
    beyond = torch.where(digits.x.abs() == 1, 5 * digits.x, digits.x)
    assert digits_quality(beyond, digits.y) == digits_quality(digits.x, digits.y)


def test_samples_that_are_not_finite_are_reported_as_divergence() -> None:
    samples = noise(20)
    samples[3, 0, 2, 2] = torch.nan
    with pytest.raises(DivergenceError, match="not finite"):
        digits_quality(samples, torch.arange(20) % 10)


def test_the_tune_part_is_judged_by_digits_that_it_does_not_hold() -> None:
    train = digits_of("train")
    quality = digits_quality(train.x, train.y, "tune")
    assert quality.frechet_distance == quality.real_frechet_distance == pytest.approx(0.48, abs=0.005)
    assert quality.real_accuracy < 1 and quality.diversity == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("setting", ["report", "hooks.evaluation"])
def test_the_tune_part_is_no_comparison_for_a_run_that_trains_on_it(setting: str) -> None:
    chosen = f"{setting}={{kind: digits, part: tune{', every_steps: 5' if setting != 'report' else ''}}}"
    with pytest.raises(ConfigError, match=f"{setting}.part 'tune' compares .* set data.part=train"):
        check(load(RunConfig, "digits_afm", [chosen]), 1)
    check(load(RunConfig, "digits_afm", [chosen, "data.part=train"]), 1)
