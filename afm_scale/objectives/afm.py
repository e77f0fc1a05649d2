"""Adversarial flow models (arXiv 2511.22475): one-step, K-step and any-step, with or without guidance.

    x_s = (1 - s) x + s z        source, noise z
    x_t = (1 - t) x + t z'       real: the target of the move, noise z' of its own
    g   = G moved from x_s to t  fake                                               flow.path.move
    f(a) = softplus(-a) = -log sigmoid(a),  w = max(|s - t|, 0.001),  n = C H W,  rho: augmentation, phi: gradient scale

    L_D = f(D(rho x_t) - D(rho g)) + l_gp (R1 + R2) + l_cp (D(rho x_t) + D(rho g))^2                  (Eq. 1, 7, 13)
    R1  = w (D(a + eps e) - D(a))^2 / eps^2  at a = rho x_t,  e ~ N(0, I);   R2: the same at rho g    (Eq. 3-6, 18, 19)
    L_G = f(D(phi rho g) - D(rho x_t)) + l_ot |g - x_s|^2 / (n w) + l_cg guidance of g  (Eq. 2, 14, 20, 25, 26)

Fake and real of a pair share label, times and augmentation. D is never told the source sample (section 3.4).
R1 and R2 are means over the first `share` of the global batch, so they do not depend on ranks or microbatches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.random import Draws
from ..core.schedules import Schedule
from ..core.types import Batch, Discriminator, Generator, Loss, Networks, Reduce, Role
from ..flow.guidance import Guidance, guidance_loss
from ..flow.path import Prediction, interpolate, interval_weight, move
from ..flow.times import TimeSampler
from .augment import AugmentationConfig, paired_augmentation
from .gradient_scale import GradientScale, GradientScaleConfig, first_order
from .penalty import PenaltyConfig, judge


@dataclass(frozen=True, kw_only=True)
class AFMConfig:
    kind: Literal["afm"] = "afm"
    prediction: Prediction
    times: TimeSampler
    transport_weight: Schedule  # l_ot
    penalty: PenaltyConfig = PenaltyConfig()
    centring_weight: float = 0.01  # l_cp
    gradient_scale: GradientScaleConfig | None = GradientScaleConfig()
    guidance: Guidance | None = None
    augmentation: AugmentationConfig | None = None


class _Pair(NamedTuple):
    """What one turn compares."""

    x_s: Tensor  # [B, C, H, W] source
    fake: Tensor  # [B, C, H, W] g, not augmented
    seen_fake: Tensor  # [B, C, H, W] rho g
    seen_real: Tensor  # [B, C, H, W] rho x_t
    t: Tensor  # [B]
    weight: Tensor  # [B] w(s, t)


class _Critique(NamedTuple):
    """D's verdict in the generator's turn."""

    loss: Tensor  # []
    gradient: Tensor  # [B, C, H, W] of the loss at rho g
    logit_real: Tensor  # []
    logit_fake: Tensor  # []


class AdversarialFlow:
    """The game of generator and discriminator."""

    learner = Role.GENERATOR

    def __init__(self, config: AFMConfig, mean_over_ranks: Reduce, device: torch.device) -> None:
        self.prediction = config.prediction
        self._config = config
        scale = config.gradient_scale
        self._gradient_scale = GradientScale(scale, mean_over_ranks, device) if scale else None
        self._critiques: deque[_Critique] = deque()  # of this turn's microbatches, between survey and loss

    def turns(self, step: int) -> tuple[Role, ...]:
        return (Role.DISCRIMINATOR, Role.GENERATOR)

    def state_dict(self) -> Mapping[str, Tensor]:
        return {"gradient_scale.square_avg": self._gradient_scale.square_avg} if self._gradient_scale else {}

    def discriminator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """Eq. 13, on real, fake and their perturbed copies: 2.5 times the batch at share 1/4.

        By one call of D, or by two (`PenaltyConfig.precise`).
        """
        config = self._config.penalty
        with torch.no_grad():
            pair = self._pair(nets.generator, batch, draws, step)
        num_penalised = max(round(draws.positions.total * config.share), 1)  # in the global batch
        count = draws.positions.below(num_penalised)  # of them in this microbatch, its first ones
        noise = [draws.normal(name, batch.x.shape[1:]).to(batch.x.dtype) for name in ("r1 noise", "r2 noise")]
        judged = judge(config, nets.discriminator, (pair.seen_real, pair.seen_fake), noise, pair.t, batch.y, count)
        real, fake = judged.real, judged.fake

        # A microbatch's loss is averaged over all `stride` of them; dividing by the global count makes that the mean.
        per_sample = config.weight * pair.weight[:count] * draws.positions.stride / num_penalised
        return _sum_of(
            {
                "adversarial": F.softplus(-(real - fake)).mean(),  # Eq. 1
                "r1": (per_sample * judged.slope_real.square()).sum(),  # Eq. 5, 18
                "r2": (per_sample * judged.slope_fake.square()).sum(),  # Eq. 6, 19
                "centring": self._config.centring_weight * (real + fake).square().mean(),  # Eq. 7
            },
            {"logit_real": real.mean(), "logit_fake": fake.mean()},
        )

    def generator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """Eq. 14 and 25."""
        pair = self._pair(nets.generator, batch, draws, step)
        critique = self._critiques.popleft() if self._critiques else self._critique(nets.discriminator, pair, batch.y)
        gradient = self._gradient_scale(critique.gradient) if self._gradient_scale else critique.gradient  # Eq. 23
        distance = (pair.fake - pair.x_s).square().flatten(1).mean(1)  # [B]
        weighted = {
            "adversarial": first_order(pair.seen_fake, critique.loss, gradient),  # Eq. 2
            "transport": self._config.transport_weight(step) * (distance / pair.weight).mean(),  # Eq. 11, 20
        }
        if self._config.guidance is not None:
            guidance = self._config.guidance
            weighted["guidance"] = guidance_loss(guidance, nets, pair.fake, pair.t, batch.y, draws)  # Eq. 26, 28, 38
        return _sum_of(weighted, {"logit_real": critique.logit_real, "logit_fake": critique.logit_fake})

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """With several microbatches phi needs D's gradients of all before the first goes back through G.

        They are kept (one tensor of the samples' size each), so accumulating costs one more forward of G and no more.
        """
        if role is Role.GENERATOR and self._gradient_scale:
            with torch.no_grad():
                pair = self._pair(nets.generator, batch, draws, step)
            self._critiques.append(self._critique(nets.discriminator, pair, batch.y))

    def _pair(self, generator: Generator, batch: Batch, draws: Draws, step: int) -> _Pair:
        s, t = self._config.times(draws)
        shape, dtype = batch.x.shape[1:], batch.x.dtype
        x_s = interpolate(batch.x, draws.normal("source noise", shape).to(dtype), s)
        x_t = interpolate(batch.x, draws.normal("target noise", shape).to(dtype), t)
        fake = move(self.prediction, generator(x_s, s, t, batch.y), x_s, s, t)
        augment = paired_augmentation(self._config.augmentation, draws, (shape[1], shape[2]), step)
        return _Pair(x_s, fake, augment(fake), augment(x_t), t, interval_weight(s.to(dtype), t.to(dtype)))

    def _critique(self, discriminator: Discriminator, pair: _Pair, y: Tensor) -> _Critique:
        """D(real) is a constant here and needs no graph; D(fake) needs one to its input only."""
        with torch.no_grad():
            real = discriminator(pair.seen_real, pair.t, y)
        seen_fake = pair.seen_fake.detach().requires_grad_()
        fake = discriminator(seen_fake, pair.t, y)
        loss = F.softplus(-(fake - real)).mean()
        (gradient,) = torch.autograd.grad(loss, seen_fake)
        if self._gradient_scale:
            self._gradient_scale.observe(gradient)
        return _Critique(loss.detach(), gradient, real.mean(), fake.detach().mean())


def _sum_of(weighted: Mapping[str, Tensor], watched: Mapping[str, Tensor]) -> Loss:
    """The sum of the weighted terms; what is only watched is reported beside them."""
    total = torch.stack(tuple(weighted.values())).sum()
    return Loss(total, {name: value.detach() for name, value in {"total": total, **weighted, **watched}.items()})
