from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from afm_scale.core.errors import DivergenceError
from afm_scale.core.random import Positions
from afm_scale.core.types import Batch
from afm_scale.evaluation.accuracy import AccuracyByTime, accuracy_by_time, draw_accuracy

SHAPE = (1, 2, 2)


def samples(count: int) -> Batch:
    """Two classes: every pixel is -1, or every pixel is 1."""
    y = torch.arange(count) % 2
    return Batch((2.0 * y - 1).view(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous(), y)


def part(batch: Batch, positions: Positions) -> tuple[Positions, Batch]:
    """The samples at positions; beyond the last one they come again, as filling."""
    numbers = (torch.arange(positions.count) * positions.stride + positions.offset) % len(batch.y)
    return positions, Batch(batch.x[numbers], batch.y[numbers])


def whole(count: int) -> Iterator[tuple[Positions, Batch]]:
    yield part(samples(count), Positions(0, 1, count))


def sign_of_the_mean(x: Tensor, t: Tensor) -> Tensor:
    """The best guess there is, whatever the time."""
    mean = x.flatten(1).mean(1)
    return torch.stack((-mean, mean), dim=1)


def test_the_accuracy_of_the_best_classifier_is_that_of_the_closed_form() -> None:
    # The mean of four pixels is (1 - t) (2 y - 1) + t z / 2, so the sign is right with probability Phi(2 (1 - t) / t).
    count = 20_000
    found = accuracy_by_time(sign_of_the_mean, whole(count), num_samples=count)
    assert found.clean == 1 and found.num_samples == count
    for bucket, share in enumerate(found.buckets):
        t = (bucket + (torch.arange(1000).double() + 0.5) / 1000) / 10
        expected = (torch.erfc(-2 * (1 - t) / t / math.sqrt(2)) / 2).mean().item()
        assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count)), bucket
    assert found.overall == pytest.approx(sum(found.buckets) / 10, rel=1e-15)


def test_every_sample_is_seen_once_at_the_start_and_once_in_each_bucket() -> None:
    seen: list[Tensor] = []

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return sign_of_the_mean(x, t)

    accuracy_by_time(classifier, whole(50), num_samples=50, num_buckets=4)
    clean, *buckets = seen
    assert (clean == 0).all() and len(buckets) == 4
    for number, t in enumerate(buckets):
        assert len(t.unique()) == 50 and t.dtype == torch.float32
        assert (t >= number / 4).all() and (t <= (number + 1) / 4).all()
        assert t.max() - t.min() > 0.2


def recorded(batches: Iterator[tuple[Positions, Batch]], seed: int) -> dict[int, list[tuple[float, float]]]:
    """What the classifier is shown of each sample: (time, first pixel), at every time in turn."""
    shown: list[tuple[Tensor, Tensor]] = []

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        shown.append((t, x[:, 0, 0, 0]))
        return sign_of_the_mean(x, t)

    sizes = [(positions, batch) for positions, batch in batches]
    accuracy_by_time(classifier, iter(sizes), num_samples=30, num_buckets=3, seed=seed)
    views: dict[int, list[tuple[float, float]]] = {}
    for index, (positions, _) in enumerate(sizes):
        for t, pixel in shown[4 * index : 4 * index + 4]:
            for row in range(positions.below(30)):
                number = positions.offset + positions.stride * row
                views.setdefault(number, []).append((float(t[row]), float(pixel[row])))
    return views


def layouts() -> dict[str, Callable[[], Iterator[tuple[Positions, Batch]]]]:
    batch = samples(30)
    return {
        "one batch": lambda: iter([part(batch, Positions(0, 1, 30))]),
        "batches of 7, the last filled": lambda: iter([part(batch, Positions(7 * k, 1, 7)) for k in range(5)]),
        "interleaved": lambda: iter([part(batch, Positions(k, 3, 10)) for k in range(3)]),
    }


def test_what_a_sample_is_shown_with_depends_on_its_number_and_the_seed_alone() -> None:
    first, *others = [recorded(layout(), seed=1) for layout in layouts().values()]
    assert sorted(first) == list(range(30)) and all(len(views) == 4 for views in first.values())
    assert all(other == first for other in others)
    again = recorded(layouts()["one batch"](), seed=2)
    assert all(again[number][1:] != first[number][1:] for number in first)


def test_the_result_does_not_depend_on_batches_or_ranks() -> None:
    batch, expected = samples(1001), accuracy_by_time(sign_of_the_mean, whole(1001), num_samples=1001)
    assert 0.5 < expected.buckets[-1] < 0.7
    for size in (50, 64, 1000):
        batches = (part(batch, Positions(first, 1, size)) for first in range(0, 1001, size))
        assert accuracy_by_time(sign_of_the_mean, batches, num_samples=1001) == expected


def test_the_counts_of_all_ranks_add_up_to_those_of_one() -> None:
    batch, counts = samples(1001), []

    def count(turn: Iterator[tuple[Positions, Batch]], total: Tensor | None = None) -> Tensor:
        """What one rank hands to the sum; it is given the total in return."""
        def exchange(value: Tensor) -> Tensor:
            counts.append(value)
            return value if total is None else total

        accuracy_by_time(sign_of_the_mean, turn, num_samples=1001, sum_over_ranks=exchange)
        return counts.pop()

    total = count(whole(1001))
    for world_size in (2, 3):
        turns = [iter([part(batch, Positions(rank, world_size, 501))]) for rank in range(world_size)]
        assert torch.equal(sum(count(turn, total) for turn in turns), total)


def test_logits_that_are_not_finite_are_reported_as_divergence() -> None:
    def classifier(x: Tensor, t: Tensor) -> Tensor:
        logits = sign_of_the_mean(x, t)
        logits[3] = torch.nan
        return logits

    with pytest.raises(DivergenceError, match="not finite"):
        accuracy_by_time(classifier, whole(10), num_samples=10)
    # In what only fills the batch they do not matter.
    assert accuracy_by_time(classifier, whole(10), num_samples=3).clean == 1


def test_samples_that_are_missing_are_noticed() -> None:
    with pytest.raises(AssertionError, match="10 samples came, 11 were meant to"):
        accuracy_by_time(sign_of_the_mean, whole(10), num_samples=11)


@pytest.mark.parametrize(("num_buckets", "names"), [
    (2, ["t0.0-0.5", "t0.5-1.0"]), (4, ["t0.00-0.25", "t0.25-0.50", "t0.50-0.75", "t0.75-1.00"]),
    (3, ["t0.000-0.333", "t0.333-0.667", "t0.667-1.000"]),
])
def test_figures_are_named_after_their_times(num_buckets: int, names: list[str]) -> None:
    shares = tuple(1 / (number + 1) for number in range(num_buckets))
    figures = AccuracyByTime(num_samples=1, clean=0.9, buckets=shares).figures()
    assert list(figures) == ["accuracy", "accuracy_t0", *(f"accuracy_{name}" for name in names)]
    assert list(figures.values()) == [sum(shares) / num_buckets, 0.9, *shares]
    assert len(AccuracyByTime(num_samples=1, clean=1.0, buckets=(0.5,) * 97).figures()) == 99


def test_the_picture_is_higher_where_the_accuracy_is(tmp_path: Path) -> None:
    found = AccuracyByTime(num_samples=9, clean=1.0, buckets=(0.9, 0.9, 0.3, 0.3))
    draw_accuracy(tmp_path / "deep" / "accuracy.png", found, num_classes=10, title="accuracy")
    image = Image.open(tmp_path / "deep" / "accuracy.png").convert("RGB")
    width, height = image.size
    red = {
        column: [row for row in range(height) if _is_red(image.getpixel((column, row)))]
        for column in (round(width * 0.25), round(width * 0.8))
    }
    left, right = (min(rows) for rows in red.values())
    assert left < right - height / 4


def _is_red(pixel: tuple[int, int, int]) -> bool:
    red, green, blue = pixel
    return red > 150 and green < 100 and blue < 100
