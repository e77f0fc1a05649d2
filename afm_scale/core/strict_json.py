"""JSON from files that anyone may have written: whatever is wrong with it is one ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse_json(content: bytes | str) -> Any:
    """The values of a JSON text: None, bool, int, float, str, list, dict; every number finite, no key twice.

    Raises ValueError, whose words go into a message, for anything else: no JSON, NaN, Infinity or 1e999, a number of
    thousands of digits, bytes that are no text, lists in lists thousands deep.
    """
    try:
        return json.loads(content, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_mapping)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no text ({error.reason})") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no finite number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if number - number == 0 else _refuse(digits[:40])


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice[:40]!r} twice in a mapping")
    return mapping
