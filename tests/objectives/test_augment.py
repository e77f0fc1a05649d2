from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.schedules import Constant, Piecewise
from afm_scale.objectives.augment import AugmentationConfig, paired_augmentation

HEIGHT, WIDTH, COUNT = 20, 30, 400


def augment(
    x: Tensor, probability: float | Piecewise = 1.0, step: int = 0, context: int = 0, **changes: float
) -> Tensor:
    schedule = probability if isinstance(probability, Piecewise) else Constant(value=probability)
    draws = KeyedDraws(context, positions=Positions(0, 1, len(x)))
    return paired_augmentation(AugmentationConfig(probability=schedule, **changes), draws, x.shape[2:], step)(x)


def numbered(count: int = COUNT) -> Tensor:
    """Every pixel is its number, from 1: a moved one can be found again, an erased one is 0."""
    pixels = torch.arange(1.0, HEIGHT * WIDTH + 1).view(1, 1, HEIGHT, WIDTH)
    return torch.cat((pixels, 1000 * pixels), dim=1).expand(count, -1, -1, -1)


def shifts(moved: Tensor) -> Tensor:
    """[B, 2] rows and columns by which each sample of `numbered` was moved; its centre must have stayed inside."""
    centre = moved[:, 0, HEIGHT // 2, WIDTH // 2].long() - 1
    return torch.stack((HEIGHT // 2 - centre // WIDTH, WIDTH // 2 - centre % WIDTH), dim=1)


def test_translation_moves_whole_pixels_and_zeros_move_in() -> None:
    x = numbered()
    moved = augment(x, num_erasings=0)
    for sample, (down, right) in zip(moved, shifts(moved).tolist(), strict=True):
        expected = torch.zeros_like(sample)
        rows = slice(max(down, 0), HEIGHT + min(down, 0)), slice(max(-down, 0), HEIGHT + min(-down, 0))
        columns = slice(max(right, 0), WIDTH + min(right, 0)), slice(max(-right, 0), WIDTH + min(-right, 0))
        expected[:, rows[0], columns[0]] = x[0, :, rows[1], columns[1]]
        assert torch.equal(sample, expected)


def test_every_shift_up_to_the_largest_happens_on_both_axes() -> None:
    moved = shifts(augment(numbered(2000), num_erasings=0, translation=0.1))
    assert moved[:, 0].unique().tolist() == [-2, -1, 0, 1, 2]
    assert moved[:, 1].unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    counts = torch.stack([(moved[:, 0] == k).sum() for k in range(-2, 3)])
    assert ((counts - 400).abs() < 4 * math.sqrt(2000 * 0.2 * 0.8)).all()


def test_an_erasing_sets_one_rectangle_of_the_share_asked_for_to_zero() -> None:
    kept = augment(torch.ones(COUNT, 2, HEIGHT, WIDTH), translation=0.0, num_erasings=1)
    assert torch.equal(kept[:, 0], kept[:, 1])  # all channels alike
    for erased in kept[:, 0] == 0:
        rows, columns = erased.any(1).nonzero().flatten(), erased.any(0).nonzero().flatten()
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert erased.sum() == height * width == len(rows) * len(columns)
        rounding = (height + width) / 2  # half a pixel on each side
        assert 0.1 * HEIGHT * WIDTH - rounding <= height * width <= 0.5 * HEIGHT * WIDTH + rounding


def test_erasings_reach_every_pixel_and_both_shapes() -> None:
    erased = augment(torch.ones(COUNT, 1, HEIGHT, WIDTH), translation=0.0, num_erasings=1)[:, 0] == 0
    assert erased.any(0).all()
    aspect = erased.any(2).sum(1) / erased.any(1).sum(1)
    assert aspect.min() < 0.5 and aspect.max() > 2 and aspect.log().mean().abs() < 0.2


def test_the_average_erased_share_is_the_middle_of_its_range() -> None:
    x = torch.ones(2000, 1, 60, 60)
    share = (augment(x, translation=0.0, num_erasings=1, aspect=1.5) == 0).double().mean()
    assert share.item() == pytest.approx(0.3, abs=4 * 0.4 / math.sqrt(12 * 2000) + 0.002)


def test_real_and_fake_get_the_same_operations() -> None:
    draws = KeyedDraws(0, positions=Positions(0, 1, 50))
    together = paired_augmentation(AugmentationConfig(probability=Constant(value=0.5)), draws, (HEIGHT, WIDTH), 0)
    real, fake = torch.randn(2, 50, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(together(real) - together(fake), together(real - fake), rtol=0, atol=1e-6)
    assert torch.equal(together(real) != 0, together(fake) != 0)


def test_samples_and_steps_get_operations_of_their_own() -> None:
    x = numbered(20)
    assert len({sample.sum().item() for sample in augment(x)}) > 15
    assert not torch.equal(augment(x, context=0), augment(x, context=1))


@pytest.mark.parametrize("config", [None, AugmentationConfig(probability=Constant(value=0.0))])
def test_probability_zero_is_the_identity_to_the_last_bit(config: AugmentationConfig | None) -> None:
    x = torch.tensor([[[[-0.0, math.inf], [math.nan, 1.0]]]])
    draws = KeyedDraws(0, positions=Positions(0, 1, 1))
    seen = paired_augmentation(config, draws, (2, 2), 0)(x)
    assert torch.equal(seen.view(torch.int32), x.view(torch.int32))


def test_each_operation_happens_with_its_probability_independently() -> None:
    x, p = numbered(4000), 0.4
    tolerance = 4 * math.sqrt(4000 * p * (1 - p))
    moved = (shifts(augment(x, p, num_erasings=0)) != 0).any(1).sum()
    stays_though_drawn = 1 / (13 * 19)  # both shifts are 0: up to 6 rows and 9 columns either way
    assert moved.item() == pytest.approx(4000 * p * (1 - stays_though_drawn), abs=tolerance)
    erased = (augment(x, p, translation=0.0, num_erasings=1) == 0).flatten(1).any(1).sum()
    assert erased.item() == pytest.approx(4000 * p, abs=tolerance)
    ever = (augment(x, p, translation=0.0, num_erasings=3) == 0).flatten(1).any(1).sum()
    assert ever.item() == pytest.approx(4000 * (1 - (1 - p) ** 3), abs=tolerance)


def test_the_probability_follows_its_schedule() -> None:
    schedule = Piecewise(points=((10, 0.0), (20, 1.0)))
    x = numbered()
    changed = [(augment(x, schedule, step) != x).flatten(1).any(1).double().mean() for step in (0, 15, 20)]
    assert changed[0] == 0 and changed[2] == 1
    assert changed[1].item() == pytest.approx(1 - 0.5**4, abs=0.06)  # one translation and three erasings


def test_gradients_pass_to_what_was_kept_and_nowhere_else() -> None:
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augment(x, 0.6), (x,))
    a, b = x.detach(), x.detach().flip(0)
    torch.testing.assert_close(augment(2 * a - 3 * b), 2 * augment(a) - 3 * augment(b), rtol=0, atol=1e-14)
