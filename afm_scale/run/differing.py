"""What differs between two checkpoints of any formats: by name, shape, type and value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.formats.format import Told
from ..checkpoint.formats.table import format_of


def differences(one: Path, other: Path) -> Iterator[str]:
    """A line for every difference, then one that sums up; both are read a tensor at a time.

    Raises CheckpointError for what is no checkpoint of any format.
    """
    first, second = format_of("auto", one), format_of("auto", other)
    with first.source(one, Told()) as a, second.source(other, Told()) as b:
        yield f"A  {a.path} ({first.name}, step {a.about.step}, {len(a.tensors)} tensors)"
        yield f"B  {b.path} ({second.name}, step {b.about.step}, {len(b.tensors)} tensors)"
        alike, largest = 0, 0.0
        for name in sorted(a.tensors.keys() | b.tensors.keys()):
            if name not in a.tensors or name not in b.tensors:
                here, entry = ("A", a.entries[name]) if name in a.tensors else ("B", b.entries[name])
                yield f"only in {here}  {name}  {entry}"
                continue
            if a.entries[name] != b.entries[name]:
                yield f"differs     {name}  {a.entries[name]} in A, {b.entries[name]} in B"
            if a.entries[name].shape != b.entries[name].shape:
                continue
            found = _largest(a.read(name), b.read(name))
            largest = max(largest, found)
            if found:
                yield f"values      {name}  largest difference {found:g}"
            else:
                alike += 1
        if a.about.card != b.about.card:
            yield "cards       differ"
        yield f"{alike} of {len(a.tensors.keys() | b.tensors.keys())} have equal values; largest difference {largest:g}"


def _largest(one: Tensor, other: Tensor) -> float:
    """0 if all are equal; not a number where one holds such."""
    if one.dtype == other.dtype and torch.equal(one, other):
        return 0.0
    wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    return float((one.to(wide) - other.to(wide)).abs().max()) if one.numel() else 0.0
