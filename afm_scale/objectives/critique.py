"""What a turn shows D, and what the generator learns of it: a gradient at the fake samples that D has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.types import Discriminator
from .gradient_scale import scaled_square


class Pair(NamedTuple):
    """What one turn compares."""

    x_s: Tensor  # [B, C, H, W] source
    fake: Tensor  # [B, C, H, W] g, not augmented
    seen_fake: Tensor  # [B, C, H, W] rho g
    seen_real: Tensor  # [B, C, H, W] rho x_t
    t: Tensor  # [B]
    weight: Tensor  # [B] w(s, t)
    shown: Mapping[str, Any]  # what D is told of the tokens that it is to look at


class Critique(NamedTuple):
    """Of one microbatch's fake samples."""

    loss: Tensor  # [], Eq. 2
    gradient: Tensor  # [B, C, H, W] of the loss at rho g
    square: Tensor  # [] float64, q of Eq. 23
    watched: Mapping[str, Tensor]  # name -> []


def ask(discriminator: Discriminator, pair: Pair, y: Tensor) -> Critique:
    """D(real) is a constant here and needs no graph; D(fake) needs one to its input only."""
    with torch.no_grad():
        real = discriminator(pair.seen_real, pair.t, y, **pair.shown)
    seen_fake = pair.seen_fake.detach().requires_grad_()
    fake = discriminator(seen_fake, pair.t, y, **pair.shown)
    (gradient,) = torch.autograd.grad(F.softplus(-(fake - real)).mean(), seen_fake)
    return critique_of(real, fake.detach(), gradient)


def critique_of(real: Tensor, fake: Tensor, gradient: Tensor, **watched: Tensor) -> Critique:
    """Of the logits [B] of a microbatch, without graphs, and the gradient that goes with them."""
    square = scaled_square(gradient)
    logits = {"logit_real": real.mean(), "logit_fake": fake.mean(), "adversarial_gradient_square": square.to(fake)}
    return Critique(F.softplus(-(fake - real)).mean(), gradient, square, {**logits, **watched})
