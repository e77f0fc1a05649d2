"""AFM with both players moving at once: one batch, one forward of G, one forward and backward of D, one backward of G.

A sample a_i has one logit f_i, so both losses reach it by the same factor (arXiv 2103.00430, for GANs without
penalties):

    dL_D / da_i = (dL_D / df_i) (df_i / da_i),    dL_G / da_i = (dL_G / df_i) (df_i / da_i)

D's own backward leaves the first at the fake samples; times (dL_G / df_i) / (dL_D / df_i), one number a sample, it is
the second, exactly. It then goes on into G by phi, beside transport and guidance, as that of a turn of G's own.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..core.random import Draws
from ..core.types import Batch, Loss, Networks, Reduce, Role, Turn
from .afm import AdversarialFlow, AFMConfig
from .critique import Critique, Pair, critique_of


class Crossing:
    """The samples at which D's backward turns into what G learns.

    All behind a logit is linear in its gradient, row by row, so a small one loses nothing. Only one that is 0, or would
    vanish on the way, says nothing of the factor: it is given a size that the batch's rounding would not notice.
    """

    def __init__(self, seen_fake: Tensor, real: Tensor, fake: Tensor) -> None:
        """Before D's backward: the leaf [B, C, H, W] that D was shown, and the logits [B] that its loss is made of."""
        self._seen_fake, self._real, self._fake = seen_fake, real.detach(), fake.detach()
        fake.register_hook(self._pass)

    def _pass(self, found: Tensor) -> Tensor:
        """Of dL_D / df [B], with all terms of the loss, however the backward was scaled."""
        about = torch.finfo(found.dtype)
        least = (about.eps * found.abs().mean()).clamp(min=about.tiny**0.5)
        self._is_lifted = found.abs() < least
        found = torch.where(self._is_lifted, least.copysign(found), found)
        self._ratio = -torch.sigmoid(self._real - self._fake) / len(found) / found  # dL_G / df, of Eq. 2, above
        return found

    def critique(self) -> Critique:
        """After it."""
        gradient = self._seen_fake.grad * self._ratio.view(-1, 1, 1, 1)
        lifted = self._is_lifted.to(gradient.dtype).mean()
        return critique_of(self._real, self._fake, gradient, lifted_logits=lifted)


class OnePassFlow(AdversarialFlow):
    """Losses of D come first; with several microbatches G is run once more, as phi has to know the gradients of all."""

    def __init__(self, config: AFMConfig, mean_over_ranks: Reduce, device: torch.device) -> None:
        super().__init__(config, mean_over_ranks, device)
        self._surveyed: deque[Pair] = deque()  # without a graph
        self._drawn: deque[Pair] = deque()  # with the graph that G's loss goes back through
        self._crossings: deque[Crossing] = deque()

    def turns(self, step: int) -> tuple[Turn, ...]:
        return ((Role.DISCRIMINATOR, Role.GENERATOR),)

    def discriminator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        if self._surveyed:
            pair = self._surveyed.popleft()
        else:
            pair = self._pair(nets.generator, batch, draws, step)
            self._drawn.append(pair)
        pair = pair._replace(seen_fake=pair.seen_fake.detach().requires_grad_())
        loss, verdict = self._judged(nets, pair, batch.y, draws, step)
        self._crossings.append(Crossing(pair.seen_fake, verdict.real, verdict.fake))
        return loss

    def generator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        pair = self._drawn.popleft() if self._drawn else self._pair(nets.generator, batch, draws, step)
        critique = self._critiques.popleft() if self._critiques else self._noted(self._crossings.popleft().critique())
        return self._moved(nets, pair, critique, batch.y, draws, step)

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        if role is Role.GENERATOR:
            self._critiques.append(self._noted(self._crossings.popleft().critique()))
        else:
            with torch.no_grad():
                self._surveyed.append(self._pair(nets.generator, batch, draws, step))


def adversarial_flow(config: AFMConfig, mean_over_ranks: Reduce, device: torch.device) -> AdversarialFlow:
    """The game that the configuration asks for."""
    return (OnePassFlow if config.update == "one_pass" else AdversarialFlow)(config, mean_over_ranks, device)
