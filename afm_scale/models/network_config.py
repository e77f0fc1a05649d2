"""What the configuration of a network answers, beside its own settings; and the answers that most of them share."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, TypeVar

T = TypeVar("T")


class BlockSize(NamedTuple):
    """Of a network's blocks, as far as plans have demands on it."""

    hidden_size: int
    num_heads: int
    can_be_shared: bool = True  # by several ranks (tensor parallelism)


class NetworkConfig:
    """The base of the configurations under `model`: subclasses say what differs."""

    prompt_width: ClassVar[int | None] = None  # numbers for each token of a prompt that it is told
    pooled_width: ClassVar[int | None] = None  # numbers for a whole prompt; where both are None, it is told classes
    any_size: ClassVar[bool] = False  # takes samples of any height and width; else of those that it was built for
    has_own_names: ClassVar[bool] = True  # of its tensors; else another program's, which building it imports
    no_forward_derivative: ClassVar[str | None] = None  # why derivatives in forward mode cannot go through it

    @property
    def block_size(self) -> BlockSize | None:
        """None if it has no blocks."""
        return None

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        """Raises ConfigError if it cannot be told samples of a shape [C, H, W]; asked of those that take any size."""

    def resolved(self: T) -> T:
        """The same with what it leaves to files read from them. Raises ConfigError if they are not there."""
        return self

    def check_named(self) -> None:
        """Raises ConfigError if what a recipe leaves to its user is not named."""

    def without_files(self: T) -> T:
        """The same as far as sizes are concerned, beginning without files."""
        return self
