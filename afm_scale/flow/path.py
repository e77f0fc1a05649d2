"""The straight path between data and noise, and how a generator moves along it.

The time convention, stated here and nowhere else: t = 0 is data, t = 1 is noise. A generator moves a sample from the
source time s to the target time t, with 0 <= t <= s <= 1, so it moves towards the data. Times are [B] float32. (Some
papers put the data at t = 1.)

    x_t = (1 - t) x + t z         x [B, C, H, W] data, z [B, C, H, W] standard normal noise
    v   = dx_t / dt = z - x
"""

from __future__ import annotations

from enum import Enum

from torch import Tensor

_SHORTEST_INTERVAL = 0.001


class Prediction(str, Enum):
    """What a generator's output means."""

    X = "x"  # the sample at the target time
    V = "v"  # the mean velocity between target and source time


def expand_times(t: Tensor, x: Tensor) -> Tensor:
    """Times [B] as [B, 1, 1, 1] in the dtype of x [B, C, H, W], so that arithmetic with x is done in that dtype."""
    return t.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def interpolate(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The point at time t [B] between data x and noise z, all [B, C, H, W]: (1 - t) x + t z."""
    t = expand_times(t, x)
    return (1 - t) * x + t * z


def move(prediction: Prediction, output: Tensor, x_s: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The sample at time t that a generator's output at x_s stands for.

    Args:
        prediction: X: the output is that sample; V: it is x_s - (s - t) output.
        output: [B, C, H, W] what the generator returned for (x_s, s, t).
        x_s: [B, C, H, W] the sample at the source time.
        s, t: [B] source and target times.
    Returns: [B, C, H, W].
    """
    if prediction is Prediction.X:
        return output
    return x_s - (expand_times(s, x_s) - expand_times(t, x_s)) * output


def interval_weight(s: Tensor, t: Tensor) -> Tensor:
    """w(s, t) = max(|s - t|, 0.001), [B] (arXiv 2511.22475, Eq. 18 to 20): the length of the interval, kept away from
    zero so that one may divide by it.
    """
    return (s - t).abs().clamp(min=_SHORTEST_INTERVAL)
