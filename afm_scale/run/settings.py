"""Every setting there is, as its class declares it: type, range, default, documentation. For people to look up."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..core.kinds import OneOf
from ..core.ranges import Levels, Range
from ..core.typed import to_mapping

_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", Any: "anything"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a recipe."""

    key: str  # "optimizer.generator.betas"
    kinds: tuple[str, ...]  # of which kinds of the section it is: ("afm",); none: of all
    num_kinds: int  # that there are to choose from
    type: str  # in words
    range: str  # of its numbers, in words; empty where it has none
    default: str  # as YAML; "required" where there is none
    documentation: str  # its comment in the source, or the first line about the class of a section
    hint: Any  # its type hint
    is_section: bool  # its value is a mapping of further settings
    is_inner: bool = False  # inside of a section that stands elsewhere too, or of a schedule


def settings_of(config_type: type) -> list[Setting]:
    """All that a configuration of this type may say, in the order of its fields.

    What several kinds of a section have alike is one setting with their names, or with none if all have it.
    """
    found: dict[tuple[str, str, str, str, str], Setting] = {}
    for setting in _walk(config_type, "", (), 0, {}):
        same = (setting.key, setting.type, setting.range, setting.default, setting.documentation)
        kinds = (*found[same].kinds, *setting.kinds) if same in found else setting.kinds
        found[same] = replace(setting, kinds=kinds)
    for same, setting in found.items():
        if len(setting.kinds) == setting.num_kinds > 1:
            found[same] = replace(setting, kinds=())
    in_order = {key: number for number, key in enumerate(dict.fromkeys(setting.key for setting in found.values()))}
    return sorted(found.values(), key=lambda setting: in_order[setting.key])


def _walk(config_type: type, above: str, kinds: tuple[str, ...], num_kinds: int, seen: dict[Any, str], *,
          inner: bool = False) -> Iterator[Setting]:
    hints, comments = get_type_hints(config_type, include_extras=True), documentation_of(config_type)
    for field in fields(config_type):
        key, hint = f"{above}{field.name}", hints[field.name]
        members = [_without_range(member) for member in members_of(hint)]
        listed = [part for member in members if get_origin(member) is tuple for part in get_args(member)]
        below, sections = f"{key}.", [member for member in members if is_dataclass(member)]
        if not sections and (sections := [part for part in listed if is_dataclass(part)]):
            below = f"{key}[]."  # a list of sections
        identity = tuple(sections)
        is_again = seen.setdefault(identity, key) != key and len(sections) > 1
        setting = Setting(
            key=key, kinds=kinds, num_kinds=num_kinds, type=_type_words(members), range=_range_words(hint),
            default=_default(field, sections),
            documentation=comments.get(field.name) or field.metadata.get("documentation", "") or _of_class(sections),
            hint=hint, is_section=bool(sections), is_inner=inner,
        )
        same = f"; the same settings as {seen[identity]}" if is_again and not _is_schedule(sections) else ""
        if field.name == "kind" and len(kinds) == 1 and setting.type == kinds[0]:
            setting = replace(setting, default="required", documentation=_of_class([config_type]))
        yield replace(setting, documentation=(setting.documentation + same).removeprefix("; "))
        for section in sections:
            of = (kinds, num_kinds) if len(sections) == 1 else ((_kind(section),), len(sections))
            yield from _walk(section, below, *of, seen, inner=inner or is_again or _is_schedule(sections))


def members_of(hint: Any) -> Iterator[Any]:
    """What a hint allows, one by one: types, with their ranges, and the configurations of a table."""
    kind = get_origin(hint)
    if kind is Annotated and isinstance(hint.__metadata__[0], OneOf):
        yield from hint.__metadata__[0].table
    elif kind in (Union, UnionType):
        for part in get_args(hint):
            yield from members_of(part)
    elif kind is Annotated and get_origin(get_args(hint)[0]) in (Union, UnionType):  # a schedule and its range
        for part in members_of(get_args(hint)[0]):
            yield Annotated[part, hint.__metadata__[0]]
    else:
        yield hint


def _without_range(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _type_words(members: list[Any]) -> str:
    sections = [member for member in members if is_dataclass(member)]
    others = [member for member in members if not is_dataclass(member) and member is not NoneType]
    words = [_words_of(member) for member in others]
    if _is_schedule(sections):
        words.append("number, or schedule")
    elif len(sections) == 1:
        words.append("section")
    elif sections:
        words.append(f"section of kind {', '.join(map(_kind, sections))}")
    return " or ".join([*words, *(["null"] if NoneType in members else [])])


def _words_of(hint: Any) -> str:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return ", ".join(map(str, arguments))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(str(member.value) for member in kind)
    if kind is tuple:
        parts = [[_without_range(member) for member in members_of(part)] for part in arguments if part is not Ellipsis]
        inner = set(map(_type_words, parts))
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        return f"list of {count}{' and '.join(f'({word})' if ' of ' in word else f'{word}s' for word in sorted(inner))}"
    return "mapping" if kind is dict else _WORDS[kind]


def _range_words(hint: Any) -> str:
    """Of the numbers in a value, wherever in the hint their range is declared."""
    if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], Range):
        return str(hint.__metadata__[0])
    if is_dataclass(hint) or get_origin(hint) is Literal:
        return ""
    inner = (_range_words(part) for part in get_args(hint) if not isinstance(part, OneOf))
    return "; ".join(dict.fromkeys(filter(None, inner)))


def _default(field: Field, sections: list[type]) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    plain = to_mapping(default)
    if is_dataclass(default) and isinstance(plain, dict):
        return plain["kind"] if len(sections) > 1 else "as below"
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).strip().removesuffix("\n...").strip()


def _is_schedule(sections: list[type]) -> bool:
    return bool(sections) and all(issubclass(section, Levels) for section in sections)


def _kind(config_type: type) -> str:
    return str(get_args(get_type_hints(config_type)["kind"])[0])


def _of_class(sections: list[type]) -> str:
    """The first paragraph about the one class that there is."""
    if len(sections) != 1:
        return ""
    text = (vars(sections[0]).get("__doc__") or "").strip().partition("\n\n")[0]
    return "" if text.startswith(f"{sections[0].__name__}(") else " ".join(text.split())  # dataclass writes that one


@cache
def documentation_of(config_type: type) -> dict[str, str]:
    """By the names of a class's fields, its bases' too, the comments beside or above them in the source."""
    found: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # built in, or made of a table
            continue
        comments, alone = _comments(source)
        for node in ast.walk(ast.parse(source).body[0]):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            above, line = [], node.lineno - 1
            while line in alone:
                above, line = [comments[line], *above], line - 1
            text = " ".join([*above, *filter(None, [comments.get(node.end_lineno or node.lineno)])])
            if text:
                found[node.target.id] = text
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Comments by their lines, and the lines that are nothing else."""
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    return comments, alone
