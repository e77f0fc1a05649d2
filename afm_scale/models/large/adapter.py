"""What has to be said of a class of transformers of diffusers before it can be trained here.

Its blocks, its tensors and how it is built are asked of the class itself. An adapter says the rest, which diffusers
keeps in the pipeline of the class: how samples, times and prompts are given to it, and what it answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from ...core.conditions import Conditions

Settings = Mapping[str, Any]
"""The arguments of a class's constructor, those left out at their defaults: what its config.json says."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a transformer, as its settings have them."""

    channels: int  # C of the latents that it takes and gives
    patch: int  # of a side: positions of a latent that make one token
    hidden_size: int
    num_heads: int
    prompt_width: int  # D of a prompt's tokens
    pooled_width: int | None = None  # P of a whole prompt, if it is told that too
    most_of_a_side: int | None = None  # tokens of a side that its table of positions has; None: it has no end


class Adapter(Protocol):
    """One class. `wants` is printed where there is none for a class: keep both alike."""

    class_name: ClassVar[str]

    time_module: ClassVar[str]
    """Path of the module whose first input is the time, [B] as the class's forward is given it, and whose output is
    what blocks are modulated by, [B, d]."""
    time_projection: ClassVar[str | None]
    """Path of the module in it that makes sinusoids of times; None where the embedder takes times."""
    time_embedder: ClassVar[str]
    """Path of the module in it, or itself, that makes a vector of width d of the sinusoids."""
    time_unit: ClassVar[float]
    """By how much what `time_module` is given grows from time 0 to 1: 1, or 1000; less than 0 for 1 - time."""

    modulations: ClassVar[tuple[str, ...]]
    """Parts of names of linear layers that see one row for each sample, not for each token; from scratch they start at
    zero."""
    last: ClassVar[str]
    """Path of the layer that gives its output, which starts at zero too."""

    positions: ClassVar[tuple[str, ...]]
    """Arguments of its blocks that are tables of rotary positions, which are not lowered with samples and prompts."""

    script: ClassVar[str]
    """In `scripts/`: what draws from an export with diffusers alone."""

    def sizes(self, settings: Settings) -> Sizes:
        """Raises ConfigError for settings with which the class is another network than this adapter knows."""
        ...

    def velocity(self, transformer: nn.Module, x: Tensor, times: Tensor, told: Conditions) -> Tensor:
        """v = noise - data at x [B, C, H, W], as the flow from data (time 0) to noise (time 1) has it.

        `times` [B], or [2 B] where both ends of an interval are told (`two_times.py`), in [-1, 1]: multiplied and
        moved as the class wants them, but otherwise passed on whatever their number is.
        """
        ...


wants = (
    "where its time enters and in which unit, how latents are cut into tokens, how prompts and their masks are given, "
    "and the sign of its output"
)
