"""Whether tensors are a network's, by name and shape, in words for a person: both shapes, and the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

Shapes = Mapping[str, tuple[int, ...]]

_SHOWN = 5
_LETTERS = 120  # of a name


def misfits(found: Shapes, wanted: Shapes) -> str | None:
    """What is missing, what is surplus and what is of another shape; None if all fits."""
    missing, surplus = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    other = [name for name in wanted if name in found and tuple(found[name]) != tuple(wanted[name])]
    said = []
    if missing:
        said.append(f"missing: {_listed([f'{name}{_nearest(name, surplus)}' for name in missing])}")
    if surplus:
        said.append(f"surplus: {_listed([_short(name) for name in surplus])}")
    if other:
        said.append("of another size: " + _listed([
            f"{_short(name)} is {list(found[name])} there, {list(wanted[name])} wanted" for name in other
        ]))
    return "; ".join(said) or None


def _nearest(name: str, others: Sequence[str]) -> str:
    asked = [other for other in others[:2000] if len(other) <= _LETTERS]
    near = difflib.get_close_matches(name, asked, n=1, cutoff=0.7)
    return f" (there is {near[0]})" if near else ""


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[:_LETTERS]}..."


def _listed(words: Sequence[str]) -> str:
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
