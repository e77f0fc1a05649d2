"""From YAML and dotted overrides to frozen dataclasses, and back.

Reading goes in three steps: a recipe is laid over all it inherits, the overrides are laid over the recipe, and the type
hints of the configuration classes turn the result into values, or into one ConfigError that says who set what wrongly.

    inherit: [../base.yaml, ../model/dit_xl2.yaml]    relative to this file; later ones win, this file wins over all

Laying one mapping over another merges them key by key, and everything else (numbers, lists, null) replaces. A mapping
with another `kind` than the one below replaces it too, since the keys of one kind mean nothing to another.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..core.errors import ConfigError

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"

Config = TypeVar("Config")
Keys = tuple[str, ...]  # the way to a value: ("optimizer", "betas", "[1]") is optimizer.betas[1]


def load(
    config_type: type[Config], recipe: Path | str, overrides: Sequence[str] = (), *, base: Path | None = None
) -> Config:
    """The configuration of a recipe with overrides `a.b=c`, where c is YAML.

    Args:
        recipe: a YAML file, or the name of one in `RECIPES`; `.yaml` may be left out.
        base: a YAML file below the recipe and all it inherits.

    Raises ConfigError; its message begins with the file or the override that is to be put right.
    """
    file = _find_recipe(str(recipe))
    tree: dict = {}
    try:
        tree = _lay(_read(base), _read(file)) if base else _read(file)
        tree = _lay(tree, _read_overrides(tree, overrides))
        return _build(config_type, _values(tree), ())
    except _Mistake as mistake:
        raise ConfigError(f"{_source(tree, mistake.keys, _shown(file))}: {mistake}") from None
    except RecursionError:
        raise ConfigError(f"{_shown(file)}: nested too deeply; does a YAML alias contain itself?") from None


def from_mapping(config_type: type[Config], mapping: Mapping[str, Any]) -> Config:
    """The inverse of `to_mapping`; raises ConfigError that begins with the dotted path of the mistake."""
    return _build(config_type, mapping, ())


def to_mapping(config: Any) -> Any:
    """Plain JSON values in the order of the fields: tuples as lists, enums as their values, paths as strings."""
    match config:
        case Enum():
            return config.value
        case Path():
            return str(config)
        case tuple() | list():
            return [to_mapping(value) for value in config]
        case dict():
            return {key: to_mapping(value) for key, value in config.items()}
    if not is_dataclass(config):
        return config
    mapping = {field.name: to_mapping(getattr(config, field.name)) for field in fields(config)}
    shorthand = getattr(config, "shorthand", None)
    return mapping[shorthand] if mapping.keys() - {"kind"} == {shorthand} else mapping


def dump_yaml(config: Any) -> str:
    """YAML that loads as the same configuration; mappings as blocks, lists on one line."""
    return yaml.dump(to_mapping(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


# Reading. A tree is a mapping whose values are trees or settings, so that whoever set a value is known to the end.


class _Setting(NamedTuple):
    value: Any
    source: str  # a file or an override, as it is shown to the user


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """YAML forbids a key twice, PyYAML silently keeps the last: half of a long recipe would do nothing."""
        node, first = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            if first.setdefault(str(key.value), key) is not key:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' twice in a mapping", problem_mark=key.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)


def _find_recipe(recipe: str) -> Path:
    for folder in (Path(), RECIPES):
        for file in (folder / recipe, folder / f"{recipe}.yaml"):
            if file.is_file():
                return file.resolve()
    names = [file.stem for folder in (Path(recipe).parent, RECIPES) for file in sorted(folder.glob("*.yaml"))]
    nearest = difflib.get_close_matches(Path(recipe).stem, names, n=5, cutoff=0.4) or names
    there = f"nearest: {', '.join(dict.fromkeys(nearest))}" if nearest else "there are none there"
    raise ConfigError(f"{recipe}: no such recipe, neither as a file nor in {_shown(RECIPES)}; {there}")


def _read(file: Path, asked_by: tuple[Path, ...] = ()) -> dict:
    """The tree of a file over all it inherits. `asked_by` are the files that led here, outermost first."""
    file, source = file.resolve(), _shown(file)
    asker = "".join(f"{_shown(other)}: inherit: " for other in asked_by[-1:])
    if file in asked_by:
        cycle = " -> ".join(map(_shown, (*asked_by[asked_by.index(file) :], file)))
        raise ConfigError(f"{asker}the files inherit each other in a circle: {cycle}")
    try:
        mapping = _parse(file.read_text(encoding="utf-8"), source)
    except (OSError, UnicodeDecodeError) as error:
        hint = _nearest(file.name, [other.name for other in sorted(file.parent.glob("*.yaml"))])
        raise ConfigError(f"{asker}{source} cannot be read: {getattr(error, 'strerror', error)}{hint}") from None
    mapping = {} if mapping is None else mapping  # a file of comments alone
    if not isinstance(mapping, dict):
        raise ConfigError(f"{source}: found {_found(mapping)}, wanted a mapping of sections")
    inherited = mapping.pop("inherit", [])
    inherited = [inherited] if isinstance(inherited, str) else inherited
    if not isinstance(inherited, list) or not all(isinstance(name, str) for name in inherited):
        raise ConfigError(f"{source}: inherit: found {_found(inherited)}, wanted a file name or a list of them")
    below: dict = {}
    for name in inherited:
        below = _lay(below, _read(file.parent / name, (*asked_by, file)))
    return _lay(below, _signed(mapping, source))


def _read_overrides(tree: dict, overrides: Sequence[str]) -> dict:
    """One tree of all overrides, so that a new `kind` and its keys may come in any order; later ones win."""
    above: dict = {}
    for override in overrides:
        source = f"override '{override}'"
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.split("."))
        if not equals or not all(key.strip() for key in keys):
            raise ConfigError(f"{source}: wanted the form section.key=value")
        if not text.strip():
            raise ConfigError(f"{source}: no value after '='; if none is meant, write {dotted}=null")
        through = _lay(tree, above)
        for depth, key in enumerate(keys[:-1], start=1):
            through = through.get(key, {})
            if isinstance(through, _Setting):
                outer = ".".join(keys[:depth])
                raise ConfigError(
                    f"{source}: {outer} is {_found(through.value)} (from {through.source}), not a mapping; "
                    f"set it as a whole: {outer}={{{keys[depth]}: ..., ...}}"
                )
        value = _signed(_parse(text, source), source)
        for key in reversed(keys):
            value = {key: value}
        above = _lay(above, value)
    return above


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2026-13-01, a number of 5,000 digits
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def _signed(value: Any, source: str) -> dict | _Setting:
    """The tree of a parsed value, every setting signed with its source."""
    if not isinstance(value, dict):
        return _Setting(value, source)
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{source}: key {_found(key)} is not text; put it in quotes")
    return {key: _signed(inner, source) for key, inner in value.items()}


def _lay(below: dict | _Setting, above: dict | _Setting) -> dict | _Setting:
    if isinstance(below, _Setting) or isinstance(above, _Setting):
        return above
    kinds = [tree["kind"].value for tree in (below, above) if isinstance(tree.get("kind"), _Setting)]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        return above
    return below | {key: _lay(below[key], inner) if key in below else inner for key, inner in above.items()}


def _values(tree: dict | _Setting) -> Any:
    return tree.value if isinstance(tree, _Setting) else {key: _values(inner) for key, inner in tree.items()}


def _source(tree: dict | _Setting, keys: Keys, recipe: str) -> str:
    """Who set the value at `keys`; of a mapping, all who set a key of it, after the recipe if they are several."""
    for key in keys:
        if isinstance(tree, dict):  # a setting is the end of a tree, though the mistake may lie deeper, in its list
            tree = tree[key]
    if isinstance(tree, _Setting):
        return tree.source
    sources = dict.fromkeys(inner.source for inner in tree.values() if isinstance(inner, _Setting))
    return ", ".join(sources if len(sources) == 1 else dict.fromkeys([recipe, *sources]))


def _shown(file: Path) -> str:
    file = file.resolve()
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


# Building, driven by type hints.


class _Mistake(ConfigError):
    """A value that cannot be used, and the way to it. The message begins with its dotted path."""

    def __init__(self, keys: Keys, text: str) -> None:
        super().__init__(": ".join(filter(None, [".".join(keys).replace(".[", "["), text])))
        self.keys = keys


def _build(wanted: Any, value: Any, keys: Keys) -> Any:
    """`value` as the type `wanted`. Type hints are data here: this is the one place that tells them apart."""
    kind, arguments = get_origin(wanted) or wanted, get_args(wanted)
    if kind in (Union, UnionType):
        return _build_union(arguments, value, keys)
    if kind is Literal:
        return _choose({choice: choice for choice in arguments}, value, keys)
    if kind is tuple:
        return _build_tuple(arguments, value, keys)
    if kind is dict:
        _require(isinstance(value, Mapping), value, "a mapping", keys)
        inner = [(key, (*keys, str(key))) for key in value]
        return {_build(str, key, way): _build(arguments[1], value[key], way) for key, way in inner}
    if is_dataclass(kind):
        return _build_dataclass(kind, value, keys)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choose({member.value: member for member in kind}, value, keys)
    fits, into, words = _SCALARS[kind]
    _require(fits(value), value, words, keys)
    return into(value)


def _build_dataclass(cls: type, value: Any, keys: Keys) -> Any:
    if not isinstance(value, Mapping) and hasattr(cls, "shorthand"):
        value = {cls.shorthand: value}
    _require(isinstance(value, Mapping), value, "a mapping", keys)
    known = {field.name: field for field in fields(cls)}
    for key in value:
        if key not in known:
            hint = _nearest(str(key), known)
            raise _Mistake((*keys, str(key)), f"unknown key{hint}; known: {', '.join(known) or 'none'}")
    missing = [
        name for name, field in known.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise _Mistake(keys, f"missing {', '.join(map(repr, missing))}; there is no default")
    hints = get_type_hints(cls)
    values = {name: _build(hints[name], value[name], (*keys, name)) for name in known if name in value}
    try:
        return cls(**values)
    except ConfigError as error:
        raise _Mistake(keys, str(error)) from None


def _build_union(members: tuple, value: Any, keys: Keys) -> Any:
    """Of a union, null is for None, and the rest is one type or dataclasses told apart by their `kind`."""
    if value is None and NoneType in members:
        return None
    members = tuple(member for member in members if member is not NoneType)
    if len(members) == 1:
        return _build(members[0], value, keys)
    kinds = {kind: member for member in members for kind in get_args(get_type_hints(member)["kind"])}
    if not isinstance(value, Mapping):
        short = [member for member in members if hasattr(member, "shorthand")]
        _require(bool(short), value, f"a mapping with a kind: {', '.join(kinds)}", keys)
        return _build_dataclass(short[0], value, keys)
    if "kind" not in value:
        raise _Mistake(keys, f"missing 'kind'; the kinds are: {', '.join(kinds)}")
    return _build_dataclass(_choose(kinds, value["kind"], (*keys, "kind")), value, keys)


def _build_tuple(arguments: tuple, value: Any, keys: Keys) -> tuple:
    _require(isinstance(value, (list, tuple)), value, "a list", keys)
    types = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
    if len(types) != len(value):
        raise _Mistake(keys, f"found {_found(value)} of {len(value)}, wanted a list of {len(types)}")
    return tuple(_build(inner, value[i], (*keys, f"[{i}]")) for i, inner in enumerate(types))


def _number(value: Any) -> float:
    """Text too: PyYAML reads 1e-4 as text, since YAML 1.1 wants a dot in a float. nan for what is no number."""
    text = value if isinstance(value, str) else repr(value)
    return float(text) if re.fullmatch(r"[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?", text) else math.nan


_SCALARS: dict[type, tuple[Callable[[Any], bool], Callable[[Any], Any], str]] = {  # what it may be, into, in words
    int: (lambda value: type(value) is int, int, "a whole number in digits (1000, not 1e3, 1000.0 or quoted)"),
    float: (lambda value: math.isfinite(_number(value)), _number, "a finite number"),
    bool: (lambda value: isinstance(value, bool), bool, "true or false"),
    str: (lambda value: isinstance(value, str), str, "text, in quotes if YAML takes it for something else"),
    Path: (lambda value: isinstance(value, str) and value != "", Path, "a path"),
}


def _choose(choices: dict, value: Any, keys: Keys) -> Any:
    """The entry of a key of the same type: 1, 1.0 and true are one key to a dict, three values to a user."""
    for name, choice in choices.items():
        if type(name) is type(value) and name == value:
            return choice
    hint = _nearest(str(value), [str(name) for name in choices])
    raise _Mistake(keys, f"found {_found(value)}, wanted one of {', '.join(map(_found, choices))}{hint}")


def _require(holds: bool, value: Any, wanted: str, keys: Keys) -> None:
    if not holds:
        raise _Mistake(keys, f"found {_found(value)}, wanted {wanted}")


def _nearest(name: str, known: Iterable[str]) -> str:
    return "".join(f"; did you mean '{match}'?" for match in difflib.get_close_matches(name, known, n=1))


def _found(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value)) or reprlib.repr(value)
