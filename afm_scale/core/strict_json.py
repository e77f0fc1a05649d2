"""JSON from files that anyone may have written: whatever is wrong with it is one ValueError."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import TEXT_LIMIT, read_regular

MOST_LEVELS = 100  # of values in values: whoever reads them goes through them by recursion


def parse_json(content: bytes | str, *, file_names: bool = False) -> Any:
    """The values of a JSON text: None, bool, int, float, str, list, dict; every number finite, no key twice.

    With `file_names` its texts may be names of files that are no text, as `os.fsdecode` has them: print their `repr`.

    Raises ValueError, whose words go into a message, for anything else: no JSON, NaN, Infinity or 1e999, a number of
    thousands of digits, bytes that are no text, values in values deeper than `MOST_LEVELS`.
    """
    try:
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_mapping)
        return _within_levels(value, "surrogateescape" if file_names else "strict")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no text ({error.reason})") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"a text in it is none ({error.reason})") from None


def read_mapping(path: Path, limit_bytes: int | None = TEXT_LIMIT) -> dict[str, Any]:
    """The mapping that the JSON text of a file is.

    Raises OSError as `read_regular` does, and ValueError as `parse_json` does or if it is another value.
    """
    value = parse_json(read_regular(path, limit_bytes))
    if not isinstance(value, dict):
        raise ValueError("it is no mapping")
    return value


def _within_levels(value: Any, halves: str) -> Any:
    level, levels = [value], 0
    while level:
        if levels > MOST_LEVELS:
            raise RecursionError
        for text in filter(lambda inner: isinstance(inner, str) and not inner.isascii(), level):
            text.encode(errors=halves)  # UnicodeEncodeError for half a character, which could not be printed
        level, levels = [inner for outer in level for inner in _values(outer)], levels + 1
    return value


def _values(value: Any) -> Iterable[Any]:
    return (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()


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
