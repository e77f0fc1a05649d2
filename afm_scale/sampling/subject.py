"""The average of a run or of a checkpoint, with all that drawing from it needs: what reports and evaluations are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.conditions import Conditions, given
from ..core.place import Place
from ..data.source import DataSource
from ..flow.path import Prediction
from .decoding import Decoder
from .drawing import Drawing
from .sampler import SampleStream, generate_on_all


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whom a report or an evaluation is of: a generator's average, or a classifier's."""

    network: nn.Module  # laid over the ranks; calling a sharded one is collective
    prediction: Prediction | None  # what the generator's output means; None: a classifier, nothing is drawn
    shape: tuple[int, int, int]  # [C, H, W] of a sample
    num_classes: int
    num_steps: int  # network evaluations for one sample, unless said otherwise
    dtype: torch.dtype  # of the network's weights and inputs
    place: Place
    source: DataSource | None = None  # what it is trained on, where a run is going on
    prompts: Conditions | None = None  # what classes stand for, on the device: `num_classes` rows, then the empty one

    @property
    def told(self) -> Callable[..., Tensor]:
        """The network, as it is called with labels."""
        return given(self.network, self.prompts)

    def stream(
        self, *, seed: int, labels: Sequence[int] | None = None, num_steps: int | None = None,
        random_labels: bool = False, between: tuple[float, ...] | None = None, renoises: bool = False,
    ) -> SampleStream:
        """An endless row of samples, of these classes in turn (None: of all), or of one of them by chance each.

        `between` says the times between 1 and 0, and how many steps there are; `renoises`: see `SampleStream`.
        """
        assert self.prediction is not None, "nothing can be drawn from a classifier"
        chosen = range(self.num_classes) if labels is None else labels
        return SampleStream(
            seed=seed, shape=self.shape, labels=tuple(chosen), prediction=self.prediction,
            num_steps=(num_steps or self.num_steps) if between is None else len(between) + 1,
            dtype=self.dtype, random_labels=random_labels, between=between, renoises=renoises,
        )

    def drawing(self, stream: SampleStream, decoder: Decoder | None = None) -> Drawing:
        """The network at work on a stream; with a decoder, its latents become pixels."""
        return Drawing(self.told, stream, self.place, decoder)

    def generate(self, stream: SampleStream, count: int) -> tuple[Tensor, Tensor]:
        """Collective: the first `count` samples [count, C, H, W] and their labels [count], on the CPU of every rank."""
        return generate_on_all(self.told, stream, start=0, count=count, place=self.place)
