"""Random numbers as a pure function of (seed, context, name, position in the global batch).

There is no generator state to save: a resumed run, another number of ranks, or another number of microbatches draws
exactly the same numbers for the same sample. torch's own generators cannot be keyed per sample without seeding one
for each, so the counter-based Philox4x32-10 (Salmon et al., SC 2011) is written here in integer tensor operations,
the same bits on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four int64 tensors of 32-bit words in [0, 2**32), and as many out, for one 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps modulo 2**64: the low 64 bits are exact
        # In place where the tensor is this round's own: on the CPU, allocating costs as much as the arithmetic.
        high0, high1 = p0 >> 32, p1 >> 32
        c0, c2 = high1.bitwise_xor_(c1).bitwise_xor_(k0), high0.bitwise_xor_(c3).bitwise_xor_(k1)
        c0, c1, c2, c3 = c0.bitwise_and_(_MASK), p1.bitwise_and_(_MASK), c2.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _key(*context: object) -> tuple[int, int]:
    digest = hashlib.blake2b(repr(context).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclass(frozen=True, slots=True)
class Positions:
    """Where this rank's (micro)batch sits in the global batch: offset, offset + stride, ... (`count` of them)."""

    offset: int
    stride: int
    count: int

    @property
    def total(self) -> int:
        """Samples in the global batch, over all ranks and microbatches."""
        return self.stride * self.count

    def below(self, limit: int) -> int:
        """How many of this (micro)batch's positions are < limit. They are its first ones."""
        return min(self.count, max(0, -(-(limit - self.offset) // self.stride)))

    def every(self, start: int, stride: int) -> Positions:
        """The positions of microbatch `start` of `stride`, in step with `Batch.every`."""
        return Positions(self.offset + start * self.stride, self.stride * stride, len(range(start, self.count, stride)))


class Draws(Protocol):
    """The random numbers of one turn. The same name gives the same numbers; different names are independent."""

    positions: Positions

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """[B, *shape] float32, standard normal."""
        ...

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        """[B, *shape] float32, uniform on [low, high)."""
        ...


class KeyedDraws:
    """`Draws` from Philox, keyed by a context such as (seed, step, role)."""

    def __init__(self, *context: object, positions: Positions, device: torch.device | str = "cpu") -> None:
        self.positions = positions
        self._context = context
        self._device = torch.device(device)

    def _words(self, name: str, num_values: int) -> Tensor:
        """[B, num_values] int64 with 32 random bits each."""
        positions, device = self.positions, self._device
        sample = torch.arange(positions.count, device=device)[:, None] * positions.stride + positions.offset
        block = torch.arange(-(-num_values // 4), device=device)[None, :]
        sample, block = torch.broadcast_tensors(sample, block)
        zero = torch.zeros_like(block)
        words = philox((block, zero, sample & _MASK, sample >> 32), _key(*self._context, name))
        return torch.stack(words, dim=-1).flatten(1)[:, :num_values]

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        unit = (self._words(name, math.prod(shape)) >> 8).to(torch.float32) * 2.0**-24
        return (low + (high - low) * unit).view(-1, *shape)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        # Box-Muller; (word + 1) / 2**32 lies in (0, 1], so the logarithm is finite.
        num_values = math.prod(shape)
        words = self._words(name, 2 * -(-num_values // 2))
        radius_word, angle_word = words.unflatten(1, (-1, 2)).unbind(-1)
        radius = torch.sqrt(-2.0 * torch.log((radius_word + 1).to(torch.float32) * 2.0**-32))
        angle = angle_word.to(torch.float32) * (2.0 * math.pi * 2.0**-32)
        values = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return values.flatten(1)[:, :num_values].reshape(-1, *shape)


def permutation(num_items: int, *context: object) -> Tensor:
    """A permutation of range(num_items), [num_items] int64, as a function of the context alone."""
    draws = KeyedDraws(*context, positions=Positions(0, 1, 1))
    words = draws._words("permutation", 2 * num_items).view(num_items, 2)
    return torch.argsort((words[:, 0] << 31) | (words[:, 1] >> 1), stable=True)


def tensor_generator(*context: object) -> torch.Generator:
    """A CPU generator seeded by a context, for torch's own initialisers (model weights, keyed by tensor name)."""
    low, high = _key(*context)
    return torch.Generator().manual_seed((high << 32) | low)
