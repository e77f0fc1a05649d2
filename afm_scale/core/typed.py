"""Plain values to frozen dataclasses by their type hints, and back. A mistake says where it lies and what fits."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError
from .kinds import OneOf
from .paths import OrName, can_be_path, expanded, written
from .ranges import Levels, Range, Text

T = TypeVar("T")
_LONGEST_KEY = 100  # letters of a key in a message
Keys = tuple[str, ...]  # the way to a value: ("optimizer", "betas", "[1]") is optimizer.betas[1]


def to_mapping(config: Any) -> Any:
    """Plain JSON values in the order of the fields: tuples as lists, enums as their values, paths as strings."""
    if is_dataclass(config):
        mapping = {field.name: to_mapping(getattr(config, field.name)) for field in fields(config)}
        shorthand = _shorthand(type(config))
        return mapping[shorthand] if mapping.keys() - {"kind"} == {shorthand} else mapping
    if isinstance(config, dict):
        return {key: to_mapping(value) for key, value in config.items()}
    if isinstance(config, tuple):
        return [to_mapping(value) for value in config]
    if isinstance(config, Path):
        return written(config)
    return config.value if isinstance(config, Enum) else config


class Mistake(ConfigError):
    """A value that cannot be used, and the way to it. The message begins with its dotted path."""

    def __init__(self, keys: Keys, text: str) -> None:
        super().__init__(": ".join(filter(None, [".".join(map(shortened, keys)).replace(".[", "["), text])))
        self.keys = keys


def build(wanted: Any, value: Any, keys: Keys = ()) -> Any:
    """`value` as the type `wanted`, the inverse of `to_mapping`; every number within the range that its hint declares.

    Type hints are data here: this is the one place that tells them apart. Raises Mistake.
    """
    kind, arguments = get_origin(wanted) or wanted, get_args(wanted)
    if wanted is Any:  # another program's setting, which it checks itself
        return value
    if kind is Annotated and isinstance(wanted.__metadata__[0], Range):
        return _within(wanted.__metadata__[0], build(arguments[0], value, keys), value, keys)
    if kind is Annotated and isinstance(wanted.__metadata__[0], Text):
        text, allowed = build(arguments[0], value, keys), wanted.__metadata__[0]
        _require(text in allowed, value, str(allowed), keys)
        return text
    if kind is Annotated and isinstance(wanted.__metadata__[0], OrName):
        return _expanded(build(arguments[0], value, keys), keys)
    if kind in (Union, UnionType, Annotated):
        return _build_union(_members(wanted), value, keys)
    if kind is Literal:
        return _choose({choice: choice for choice in arguments}, value, keys)
    if kind is tuple:
        return _build_tuple(arguments, value, keys)
    if kind in (dict, Mapping):
        _require(isinstance(value, Mapping), value, "a mapping", keys)
        inner = {k: (*keys, str(k) if len(str(k)) <= _LONGEST_KEY else found(k)) for k in value}
        return {build(arguments[0], k, inner[k]): build(arguments[1], v, inner[k]) for k, v in value.items()}
    if is_dataclass(kind):
        return _build_dataclass(kind, value, keys)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choose({member.value: member for member in kind}, value, keys)
    if kind is Path and isinstance(value, str):
        value = _expanded(value, keys)
    fits, into, words = _SCALARS[kind]
    _require(fits(value), value, words, keys)
    return into(value)


def _expanded(text: str, keys: Keys) -> str:
    try:
        return expanded(text)
    except ConfigError as error:
        raise Mistake(keys, str(error)) from None


def _build_dataclass(cls: type, value: Any, keys: Keys) -> Any:
    shorthand = _shorthand(cls)
    if not isinstance(value, Mapping) and shorthand:
        value = {shorthand: value}
    _require(isinstance(value, Mapping), value, "a mapping", keys)
    known = [field.name for field in fields(cls)]
    for key in value:
        if key not in known:
            hint = nearest(str(key), known)
            raise Mistake((*keys, str(key)), f"unknown key{hint or ';'} known: {', '.join(known)}")
    required = [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]
    if missing := [name for name in required if name not in value]:
        raise Mistake(keys, f"missing {', '.join(map(repr, missing))}; there is no default")
    hints = _hints(cls)
    values = {name: build(hints[name], value[name], (*keys, name)) for name in known if name in value}
    try:
        return cls(**values)
    except ConfigError as error:
        raise Mistake(keys, str(error)) from None


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)  # evaluates texts: a manifest has thousands of entries


def _within(allowed: Range, built: Any, value: Any, keys: Keys) -> Any:
    """What was built, if all numbers in it are within the range."""
    if isinstance(built, Levels):
        shorthand = None if isinstance(value, Mapping) else _shorthand(type(built))
        inner = {() if name == shorthand else tuple(name.split(".")): level for name, level in built.levels().items()}
    elif isinstance(built, tuple):
        inner = {(f"[{i}]",): number for i, number in enumerate(built)}
    else:
        inner = {} if built is None else {(): built}
    for name, number in inner.items():
        if number not in allowed:
            wanted = allowed.wanted(whole=isinstance(number, int))
            shown = f"{number:g}" if isinstance(number, float) else found(number)
            raise Mistake((*keys, *name), f"found {shown}, wanted {wanted}")
    return built


def _shorthand(cls: type) -> str | None:
    """The field that a bare scalar stands for (see core/schedules.py)."""
    return getattr(cls, "shorthand", None)


def _members(wanted: Any) -> tuple:
    """What a union is made of."""
    if get_origin(wanted) is Annotated and isinstance(wanted.__metadata__[0], OneOf):
        return tuple(wanted.__metadata__[0].table)
    if get_origin(wanted) in (Union, UnionType):
        return tuple(member for part in get_args(wanted) for member in _members(part))
    return (wanted,)


def _build_union(members: tuple, value: Any, keys: Keys) -> Any:
    """Of a union, null is for None, and the rest is one type or dataclasses told apart by their `kind`."""
    if value is None and NoneType in members:
        return None
    members = tuple(member for member in members if member is not NoneType)
    if len(members) == 1:
        return build(members[0], value, keys)
    kinds = {kind: member for member in members for kind in get_args(get_type_hints(member)["kind"])}
    if not isinstance(value, Mapping):
        short = [member for member in members if _shorthand(member)]
        _require(bool(short), value, f"a mapping of one kind: {', '.join(kinds)}", keys)
        return _build_dataclass(short[0], value, keys)
    if "kind" not in value:
        raise Mistake(keys, f"missing 'kind'; the kinds are: {', '.join(kinds)}")
    return _build_dataclass(_choose(kinds, value["kind"], (*keys, "kind")), value, keys)


def _build_tuple(arguments: tuple, value: Any, keys: Keys) -> tuple:
    _require(isinstance(value, (list, tuple)), value, "a list", keys)
    types = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
    if len(types) != len(value):
        raise Mistake(keys, f"found {found(value)} of {len(value)}, wanted a list of {len(types)}")
    return tuple(build(inner, value[i], (*keys, f"[{i}]")) for i, inner in enumerate(types))


def shortened(text: str, longest: int = 100) -> str:
    """A user's own words in a message, of which the beginning is enough."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} letters)"


def _number(value: Any) -> float:
    """Text too: PyYAML reads 1e-4 as text, since YAML 1.1 wants a dot in a float. nan for what is no number."""
    text = value if isinstance(value, str) else repr(value)
    return float(text) if re.fullmatch(r"[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?", text) else math.nan


_SCALARS = {  # which values fit, what makes the scalar of one, what is wanted in words
    int: (lambda value: type(value) is int, int, "a whole number in digits (1000, not 1e3, 1000.0 or quoted)"),
    float: (lambda value: math.isfinite(_number(value)), _number, "a finite number"),
    bool: (lambda value: isinstance(value, bool), bool, "true or false"),
    str: (lambda value: isinstance(value, str), str, "text, in quotes if YAML takes it for something else"),
    Path: (lambda value: isinstance(value, str) and can_be_path(value), Path, "a path"),
}


def _choose(choices: dict, value: Any, keys: Keys) -> Any:
    """The entry of a key of the same type: 1, 1.0 and true are one key to a dict, three values to a user."""
    for name, choice in choices.items():
        if type(name) is type(value) and name == value:
            return choice
    hint = nearest(str(value), [name for name in choices if isinstance(name, str)])
    raise Mistake(keys, f"found {found(value)}, wanted one of {', '.join(map(found, choices))}{hint}")


def _require(holds: bool, value: Any, wanted: str, keys: Keys) -> None:
    if not holds:
        raise Mistake(keys, f"found {found(value)}, wanted {wanted}")


def nearest(name: str, known: Iterable[str]) -> str:
    return "".join(f"; did you mean '{match}'?" for match in difflib.get_close_matches(name, known, n=1))


def found(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value)) or reprlib.repr(value)
