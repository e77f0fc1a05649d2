"""From YAML and dotted overrides to frozen dataclasses, and back.

Reading goes in three steps: a recipe is laid over all it inherits, the overrides are laid over the recipe, and the type
hints of the configuration classes turn the result into values, or into one ConfigError that says who set what wrongly.

    inherit: [../base.yaml, ../model/dit_xl2.yaml]    relative to this file; later ones win, this file wins over all
    inherit: [afm_1step_xl2, mine.yaml]               shipped ones by name, from anywhere; `model/dit_xl2` is a name too

Laying one mapping over another merges them key by key, and everything else (numbers, lists, null) replaces. A mapping
with another `kind` than the one below replaces it too, since the keys of one kind mean nothing to another.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..core.errors import ConfigError
from ..core.files import read_regular
from ..core.paths import can_be_path, expanded
from ..core.typed import Keys, Mistake, build, found, nearest, shortened, to_mapping
from .shipped import RECIPES, shipped, shipped_names

T = TypeVar("T")
_LONGEST_RECIPE = 2**18  # bytes
_MOST_VALUES = 100_000  # in a recipe, with all that its aliases repeat
Layers = list[tuple[str, dict]]  # what each file and override says itself, lowest first: an error tells who said it


def load(config_type: type[T], recipe: Path | str, overrides: Sequence[str] = (), *, base: Path | None = None) -> T:
    """The configuration of a recipe with overrides `a.b=c`, where c is YAML.

    `recipe` is a YAML file or the name of one in `RECIPES`, `.yaml` may be left out; `base` is a YAML file below the
    recipe and all it inherits. Raises ConfigError, which begins with the file or the override to be put right.
    """
    file = _find_recipe(str(recipe))
    layers: Layers = []
    try:
        mapping = _lay(_read(base.resolve(), layers) if base else {}, _read(file, layers))
        return build(config_type, _read_overrides(overrides, mapping, layers), ())
    except Mistake as mistake:
        raise ConfigError(f"{_source(layers, mistake.keys) or _shown(file)}: {mistake}") from None
    except RecursionError:
        raise ConfigError(f"{_shown(file)}: nested too deeply; does a YAML alias contain itself?") from None


def dump_yaml(config: Any) -> str:
    """YAML that loads as the same configuration; the innermost mappings and lists are on one line."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    def get_single_node(self) -> yaml.Node | None:
        """Refuses a text whose aliases, each of several others, stand for more values than memory holds."""
        node = super().get_single_node()
        if node is not None and _num_values(node, {}) > _MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"its aliases repeat more than {_MOST_VALUES:,} values")
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuses a key that comes twice, where PyYAML silently keeps the last, and one that is not text."""
        node, names = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.MarkedYAMLError(problem="a key that is not text wants quotes", problem_mark=key.start_mark)
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' twice in a mapping", problem_mark=key.start_mark)
            names.add(key.value)
        return node


def _num_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Of a node and all in it, one that comes by an alias counted again."""
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is counted: it would contain itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]


def _find_recipe(recipe: str) -> Path:
    if not can_be_path(recipe):
        raise ConfigError(f"{shortened(recipe)!r} can be no file's name; wanted a YAML file or the name of a recipe")
    recipe = expanded(recipe)
    for file in [folder / name for folder in (Path(), RECIPES) for name in (recipe, f"{recipe}.yaml")]:
        if file.exists() and not file.is_dir():
            return file.resolve()
    names = sorted(file.stem for folder in {Path(recipe).parent.resolve(), RECIPES} for file in folder.glob("*.yaml"))
    nearest = difflib.get_close_matches(Path(recipe).stem, names, n=5, cutoff=0.4) or names
    raise ConfigError(f"{recipe}: neither a file nor a recipe in {_shown(RECIPES)}; there are: {', '.join(nearest)}")


def _read(file: Path, layers: Layers, asked_by: tuple[Path, ...] = ()) -> dict:
    """A file over all it inherits, noted in `layers`. `asked_by` are the files that led here, outermost first."""
    source = _shown(file)
    asker = f"{_shown(asked_by[-1])}: inherit: " if asked_by else ""
    if file in asked_by:
        cycle = " -> ".join(map(_shown, (*asked_by[asked_by.index(file) :], file)))
        raise ConfigError(f"{asker}the files inherit each other in a circle: {cycle}")
    try:
        text = read_regular(file, _LONGEST_RECIPE)
    except OSError as error:
        hint = nearest(file.name, [other.name for other in sorted(file.parent.glob("*.yaml"))])
        hint = hint or nearest("/".join(file.parts[-2:]), shipped_names()) or nearest(file.stem, shipped_names())
        raise ConfigError(f"{asker}{source} cannot be read: {error.strerror}{hint}") from None
    mapping = parse_yaml(text, source)
    mapping = {} if mapping is None else mapping  # a file of comments alone
    if not isinstance(mapping, dict):
        raise ConfigError(f"{source}: found {found(mapping)}, wanted a mapping of sections")
    inherited = mapping.pop("inherit", [])
    inherited = [inherited] if isinstance(inherited, str) else inherited
    if not isinstance(inherited, list) or not all(isinstance(name, str) for name in inherited):
        raise ConfigError(f"{source}: inherit: found {found(inherited)}, wanted a file name or a list of them")
    below = [_read(_inherited(name, file), layers, (*asked_by, file)) for name in inherited]
    layers.append((source, mapping))
    return reduce(_lay, [*below, mapping])


def _inherited(name: str, file: Path) -> Path:
    """What `file` inherits by a name: a file relative to it, or else a shipped one. It never means itself by a name."""
    if not can_be_path(name):
        raise ConfigError(f"{_shown(file)}: inherit: {shortened(name)!r} can be no file's name; wanted one of a recipe")
    try:
        name = expanded(name)
    except ConfigError as error:
        raise ConfigError(f"{_shown(file)}: inherit: {error}") from None
    relative = file.parent / name
    named = [] if Path(name).suffix else [other for other in [file.parent / f"{name}.yaml"] if other.resolve() != file]
    found = next((other for other in (relative, *named) if other.is_file()), None) or shipped(name)
    return (found or relative).resolve()


def _read_overrides(overrides: Sequence[str], mapping: dict, layers: Layers) -> dict:
    """`mapping` under all overrides, noted in `layers`; a new `kind` and its keys may come in any order."""
    above: dict = {}
    for override in overrides:
        source = f"override '{shortened(override)}'"
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.split("."))
        if not equals or not all(key.strip() for key in keys):
            raise ConfigError(f"{source}: wanted the form section.key=value")
        if not text.strip():
            raise ConfigError(f"{source}: no value after '='; if none is meant, write {dotted}=null")
        for outer in (keys[:depth] for depth in range(1, len(keys))):
            for value in _at(_lay(mapping, above), outer):
                if not isinstance(value, dict):
                    problem = f"{'.'.join(outer)} is {found(value)} (from {_source(layers, outer)}), not a mapping"
                    raise ConfigError(f"{source}: {problem}; give it as a whole: {'.'.join(outer)}={{...}}")
        value = _read_value(text, source)
        for key in reversed(keys):
            value = {key: value}
        layers.append((source, value))
        above = _lay(above, value)
    return _lay(mapping, above)


def _read_value(text: str, source: str) -> Any:
    """The value of an override, which is what stands there: YAML, but nothing in it is a comment and no line is joined.

    `#` is a letter of a folder's name as others are, unless the whole is a list or a mapping or in quotes.
    """
    text = text.strip()
    node = _of_yaml(yaml.compose, text, source)
    rest = text[node.end_mark.index :].strip() if node else text
    if node is None or isinstance(node, yaml.ScalarNode) and node.style is None and (rest or "\n" in text):
        return text
    if rest:
        raise ConfigError(f"{source}: {shortened(rest)!r} follows the value; an override has no comments")
    return parse_yaml(text, source)


def parse_yaml(text: str | bytes, source: str) -> Any:
    """The plain values of a YAML text. Raises ConfigError, which begins with `source`."""
    return _of_yaml(yaml.load, text, source)


def _of_yaml(read: Callable[..., Any], text: str | bytes, source: str) -> Any:
    try:
        return read(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2026-13-01, a number of 5,000 digits
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def _merges(below: Any, above: Any) -> bool:
    mappings = isinstance(below, dict) and isinstance(above, dict)
    return mappings and below.get("kind", above.get("kind")) == above.get("kind", below.get("kind"))


def _lay(below: Any, above: Any) -> Any:
    """`above` over `below`, by the rules at the top of this file."""
    if not _merges(below, above):
        return above
    return below | {key: _lay(below[key], value) if key in below else value for key, value in above.items()}


def _at(mapping: Any, keys: Keys) -> list:
    """The value at `keys`, or the list it lies in; none where there is none."""
    if not keys or not isinstance(mapping, dict):
        return [mapping]
    return _at(mapping[keys[0]], keys[1:]) if keys[0] in mapping else []


def _source(layers: Layers, keys: Keys) -> str:
    """Who set the value at `keys`; of a mapping, all whose keys are in it; nobody in particular at the top."""
    sources, below = [], None
    for source, value in [(source, value) for source, mapping in layers for value in _at(mapping, keys)]:
        sources = [*sources, source] if _merges(below, value) else [source]
        below = _lay(below, value)
    return ", ".join(dict.fromkeys(sources)) if keys else ""


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
