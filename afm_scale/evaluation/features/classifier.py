"""Features from a classifier of ours, which reads what a generator makes without decoding it."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...core.arithmetic import full_float32
from ...core.errors import DataError
from .extractor import Features


@runtime_checkable
class FeatureClassifier(Protocol):
    """A time-conditioned classifier in two parts."""

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W], t [B] float32 -> what the last linear layer sees, [B, d]."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """[B, d] -> [B, num_classes]."""
        ...


class ClassifierFeatures:
    """pool: what the last linear layer of a classifier sees; logits: what it says. It is told one time for all."""

    reads: Literal["samples"] = "samples"

    def __init__(
        self, classifier: FeatureClassifier, *, name: str, shape: tuple[int, int, int], device: torch.device,
        time: float = 0.0,
    ) -> None:
        """The classifier is on the device, in float32 and in eval mode; `shape` [C, H, W] is of its samples."""
        self.name = name
        self._classifier = classifier
        self._shape = shape
        self._device = device
        self._time = time

    def __call__(self, x: Tensor) -> Features:
        """x float [B, C, H, W]. Raises DataError if the samples have another shape than the classifier's."""
        if tuple(x.shape[1:]) != self._shape:
            raise DataError(
                f"the classifier was trained on samples of shape {list(self._shape)}, found {list(x.shape[1:])}; name "
                "a classifier of the generator's own data"
            )
        assert x.is_floating_point(), x.dtype
        times = torch.full((len(x),), self._time, dtype=torch.float32, device=self._device)
        with full_float32(self._device):
            pool = self._classifier.features(x.to(torch.float32), times)
            return Features(pool, logits=self._classifier.logits(pool))
