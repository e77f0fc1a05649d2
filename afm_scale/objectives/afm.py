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
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.arithmetic import Precision, block_dtype
from ..core.random import Draws
from ..core.ranges import Range
from ..core.schedules import Schedule
from ..core.types import Batch, Generator, Loss, Networks, Reduce, Role, Turn
from ..flow.guidance import Guidance, guidance_loss
from ..flow.path import Prediction, interpolate, interval_weight, move
from ..flow.times import TimeSampler
from . import demands
from .augment import AugmentationConfig, paired_augmentation
from .critique import Critique, Pair, ask
from .described import Described
from .gradient_scale import GradientScale, GradientScaleConfig, first_order
from .objective import GameOfOneConfig
from .penalty import PenaltyConfig, Verdict, judge


@dataclass(frozen=True, kw_only=True)
class AFMConfig(GameOfOneConfig):
    """The adversarial flow model: a generator against a discriminator (arXiv 2511.22475, Algorithm 1)."""
    roles: ClassVar[tuple[Role, ...]] = (Role.GENERATOR, Role.DISCRIMINATOR)
    kind: Literal["afm"] = "afm"
    prediction: Prediction  # what the generator's output means
    times: TimeSampler  # which pairs (s, t) are trained
    transport_weight: Annotated[Schedule, Range(0, 1e6)]  # l_ot
    penalty: PenaltyConfig = PenaltyConfig()
    centring_weight: Annotated[float, Range(0, 1e6)] = 0.01  # l_cp
    gradient_scale: GradientScaleConfig | None = GradientScaleConfig()  # null: no gradient normalisation
    # alternating: D's turn, then G's, as published; one_pass: both at once, on the same samples (one_pass.py)
    update: Literal["alternating", "one_pass"] = "alternating"
    discriminator_steps: Annotated[int, Range(1, 64)] = 1  # turns of D before each of G, alternating alone
    # of D's tokens that it looks at in training, at random; the same for a real sample, its fake and their moved copies
    token_share: Annotated[float, Range(above=0, high=1)] = 1.0
    guidance: Guidance | None = None  # null: none
    augmentation: AugmentationConfig | None = None  # of what D sees; null: none

    @property
    def guides(self) -> tuple[str, ...]:
        return () if self.guidance is None else (self.guidance.guide,)

    def check(self, described: Described) -> None:
        demands.guides_fit(described.model, self.guidance)
        demands.times_told(described.model, self.times.told, by=f"objective.times {self.times.kind!r}")
        demands.tokens_left(described, self.token_share)
        demands.turns_apart(self.update == "one_pass", self.discriminator_steps)

    def resolved(self, precision: Precision) -> AFMConfig:
        """With blocks in less than float32 the penalties' slopes need a precise call of D."""
        precise = block_dtype(precision) is not None if self.penalty.precise is None else self.penalty.precise
        return replace(self, penalty=replace(self.penalty, precise=precise))


class AdversarialFlow:
    """The game of generator and discriminator."""

    learner = Role.GENERATOR

    def __init__(self, config: AFMConfig, mean_over_ranks: Reduce, device: torch.device) -> None:
        self.prediction = config.prediction
        self.config = config
        scale = config.gradient_scale
        self._gradient_scale = GradientScale(scale, mean_over_ranks, device) if scale else None
        self._critiques: deque[Critique] = deque()  # of this turn's microbatches, between survey and loss

    def turns(self, step: int) -> tuple[Turn, ...]:
        return (*self.config.discriminator_steps * ((Role.DISCRIMINATOR,),), (Role.GENERATOR,))

    def state_dict(self) -> Mapping[str, Tensor]:
        return {"gradient_scale.square_avg": self._gradient_scale.square_avg} if self._gradient_scale else {}

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        turn = self.discriminator_loss if role is Role.DISCRIMINATOR else self.generator_loss
        return turn(nets, batch, draws, step)

    def discriminator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """Eq. 13, on real, fake and their perturbed copies: 2.5 times the batch at share 1/4."""
        with torch.no_grad():
            pair = self._pair(nets.generator, batch, draws, step)
        return self._judged(nets, pair, batch.y, draws, step)[0]

    def _judged(self, nets: Networks, pair: Pair, y: Tensor, draws: Draws, step: int) -> tuple[Loss, Verdict]:
        config, seen = self.config.penalty, (pair.seen_real, pair.seen_fake)
        verdict = judge(config, nets.discriminator, seen, pair.t, y, draws, step, pair.shown)
        real, fake, w = verdict.real, verdict.fake, pair.weight[:verdict.count]
        loss = _sum_of(
            {
                "adversarial": F.softplus(-(real - fake)).mean(),  # Eq. 1
                "r1": config.weight * verdict.mean(w * verdict.slope_real.square()),  # Eq. 5, 18
                "r2": config.weight * verdict.mean(w * verdict.slope_fake.square()),  # Eq. 6, 19
                "centring": self.config.centring_weight * (real + fake).square().mean(),  # Eq. 7
            },
            {"logit_real": real.mean(), "logit_fake": fake.mean()},
        )
        return loss, verdict

    def generator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """Eq. 14 and 25."""
        pair = self._pair(nets.generator, batch, draws, step)
        critique = self._critiques.popleft() if self._critiques else self._critique(nets, pair, batch.y)
        return self._moved(nets, pair, critique, batch.y, draws, step)

    def _moved(
        self, nets: Networks, pair: Pair, critique: Critique, y: Tensor, draws: Draws, step: int
    ) -> Loss:
        gradient = self._gradient_scale(critique.gradient) if self._gradient_scale else critique.gradient  # Eq. 23
        distance = (pair.fake - pair.x_s).square().flatten(1).mean(1)  # [B]
        weighted = {
            "adversarial": first_order(pair.seen_fake, critique.loss, gradient),  # Eq. 2
            "transport": self.config.transport_weight(step) * (distance / pair.weight).mean(),  # Eq. 11, 20
        }
        if (guidance := self.config.guidance) is not None:
            guide = nets.frozen[guidance.guide]
            weighted["guidance"] = guidance_loss(guidance, guide, pair.fake, pair.t, y, draws)  # Eq. 26, 28, 38
        return _sum_of(weighted, critique.watched | {"transport_cost": distance.mean()})

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """With several microbatches phi needs D's gradients of all before the first goes back through G.

        They are kept (one tensor of the samples' size each), so accumulating costs one more forward of G and no more.
        """
        if role is Role.GENERATOR and self._gradient_scale:
            with torch.no_grad():
                pair = self._pair(nets.generator, batch, draws, step)
            self._critiques.append(self._critique(nets, pair, batch.y))

    def _pair(self, generator: Generator, batch: Batch, draws: Draws, step: int) -> Pair:
        s, t = self.config.times(draws)
        shape, dtype = batch.x.shape[1:], batch.x.dtype
        x_s = interpolate(batch.x, draws.normal("source noise", shape).to(dtype), s)
        x_t = interpolate(batch.x, draws.normal("target noise", shape).to(dtype), t)
        fake = move(self.prediction, generator(x_s, s, t, batch.y), x_s, s, t)
        augment = paired_augmentation(self.config.augmentation, draws, (shape[1], shape[2]), step)
        share, shown = self.config.token_share, {}
        if share < 1:
            shown = {"order": draws.uniform("order of tokens", shape=shape[1:]), "share": share}
        return Pair(x_s, fake, augment(fake), augment(x_t), t, interval_weight(s.to(dtype), t.to(dtype)), shown)

    def _critique(self, nets: Networks, pair: Pair, y: Tensor) -> Critique:
        return self._noted(ask(nets.discriminator, pair, y))

    def _noted(self, critique: Critique) -> Critique:
        if self._gradient_scale:
            self._gradient_scale.observe(critique.square)
        return critique


def _sum_of(weighted: Mapping[str, Tensor], watched: Mapping[str, Tensor]) -> Loss:
    """The sum of the weighted terms; what is only watched is reported beside them."""
    total = torch.stack(tuple(weighted.values())).sum()
    return Loss(total, {name: value.detach() for name, value in {"total": total, **weighted, **watched}.items()})
