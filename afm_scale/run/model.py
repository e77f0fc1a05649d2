"""The average of a generator's checkpoint as an object to draw from: what `afm_scale.load` returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.arithmetic import arithmetic_of
from ..core.errors import ConfigError, UserError
from ..core.types import Role
from ..parallel.launch import Ranks
from ..sampling.decoding import Decoder
from ..sampling.drawing import check_finite, classes_of
from ..sampling.subject import Subject
from .checkpoints import Checkpoint, Device, on_device, open_checkpoint

_AT_ONCE = 256  # images whose network's outputs are held on the device; changes no image


class Model:
    """A generator that has been trained. It draws in this process alone, in the arithmetic of its run."""

    def __init__(self, checkpoint: Checkpoint, subject: Subject, decoder: Decoder | None) -> None:
        self._checkpoint = checkpoint
        self._subject = subject
        self._decoder = decoder

    @property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return self._checkpoint.path

    @property
    def step(self) -> int:
        """How many updates of the generator it has behind it."""
        return self._checkpoint.step

    @property
    def num_classes(self) -> int:
        """Labels are from 0 to one less."""
        return self._subject.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of what `sample` returns."""
        return self._subject.shape if self._decoder is None else self._decoder.shape

    @property
    def draws_latents(self) -> bool:
        """Whether `sample` returns latents: this is a latent model, and `load` was given no autoencoder."""
        return self._checkpoint.card.latents is not None and self._decoder is None

    def sample(self, labels: Sequence[int] | Tensor, *, steps: int | None = None, seed: int = 0) -> Tensor:
        """One image for each label.

        Image i is, bit for bit, that of `python -m afm_scale sample --labels LABELS --seed SEED --steps STEPS` on this
        machine with as many CPU threads; `afm_scale.sampling.pictures.to_uint8` makes the bytes of its picture.

        Args:
            labels: [N] whole numbers from 0 to num_classes - 1; N may be 0.
            steps: network evaluations for one image; None: the recipe's.

        Returns [N, C, H, W] float32 on the CPU: pixels in [-1, 1], not clipped, so that a few may lie a little beyond;
        or latents as the training data has them, if `draws_latents`. Raises UserError for a label or a number of steps
        that there is not, DivergenceError if a sample is not finite.
        """
        chosen = tuple(int(label) for label in (labels.tolist() if isinstance(labels, Tensor) else labels))
        if steps is not None and steps < 1:
            raise UserError(f"steps is {steps}; it must be at least 1")
        classes_of(chosen, self.num_classes, setting="labels")
        images = torch.empty(len(chosen), *self.shape)
        if not chosen:
            return images
        drawing = self._subject.drawing(
            self._subject.stream(seed=seed, labels=chosen, num_steps=steps), self._decoder
        )
        with arithmetic_of(self._checkpoint.card.precision):
            for _, tiles in drawing.windows(len(chosen), _AT_ONCE):
                check_finite(tiles)
                for tile in tiles:
                    images[tile.indices] = tile.images.to("cpu", torch.float32)
        return images


def load_model(path: Path, *, vae: str | None, device: Device) -> Model:
    """See `afm_scale.load`."""
    checkpoint = open_checkpoint(path, holds=Role.GENERATOR)
    on_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda' but torch sees no GPU here; use device='cpu'")
    place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    ranks = Ranks(rank=0, local_rank=place.index or 0, world_size=1, device=place)
    decoder = None if vae is None else checkpoint.decoder(vae, place, setting="vae")
    return Model(checkpoint, checkpoint.subject(ranks, on_device(checkpoint.parallel, device)), decoder)
