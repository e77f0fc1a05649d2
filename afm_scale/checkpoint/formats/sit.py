"""Pretraining files of SiT (arXiv 2401.08740), which predicts a velocity on the straight path, towards the data.

Its t = 1 is the data, and its times are not multiplied: its network f(x, t') is this program's v(x, t) = -f(x, 1 - t).
The sign goes into the final layer, where it costs no bit; the time is the generator's setting `time_embedding: sit`.
"""

from __future__ import annotations

from .pretraining import Pretraining

SIT = Pretraining(
    name="sit", kind="dit", time_embedding="sit", is_turned=True, second_half="which SiT neither uses nor learns",
)
