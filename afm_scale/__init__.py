"""Distributed pretraining of one- and few-step image generators.

    import afm_scale

    model = afm_scale.load("runs/digits")            # a run's folder, or one of its checkpoints
    images = model.sample([3, 1, 4], seed=0)         # [3, 1, 8, 8] float32

What is public is listed in `__all__`. Torch is imported when a checkpoint is loaded, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .run.model import Model

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def load(
    path: str | Path, *, vae: str | Path | None = None, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Model:
    """The average of a generator's checkpoint, to draw from.

    Args:
        path: a checkpoint, or a run's folder, which means its newest complete one.
        vae: of a latent model, the folder of the autoencoder that decodes what is drawn; None: it is not decoded.
        device: where the network is; auto: a GPU if there is one.

    Raises CheckpointError if there is no such checkpoint, if it is damaged, or if it holds a classifier; ConfigError if
    the autoencoder or the device is not there. Both are UserErrors of `afm_scale.core.errors`.
    """
    from .run.model import load_model

    return load_model(Path(path), vae=None if vae is None else str(vae), device=device)
