"""Pretraining files of DiT (arXiv 2212.09748), which predicts the noise of a diffusion with 1,000 linear betas.

The generator they become (kind `dit_diffusion`, models/diffusion.py) has the same weights; its output is the velocity
on the straight path that the predicted noise stands for, exactly so at the times of the thousand steps.
"""

from __future__ import annotations

from .pretraining import Pretraining

DIT = Pretraining(
    name="dit", kind="dit_diffusion", time_embedding="dit", is_turned=False, second_half="a variance of the diffusion",
)
