"""What several commands take on their command line, and how it becomes their request."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import ConfigError, UserError
from ..core.paths import can_be_path, expanded
from ..core.ranges import Range
from ..core.typed import shortened

T = TypeVar("T")

LABELS_HELP = "every class in turn (default), by chance, or these in turn"


def add_recipe(parser: argparse.ArgumentParser, *, required: bool = True, note: str = "") -> None:
    """Gives the command a recipe and its overrides, as `options.recipe` and `options.overrides`, in any order.

    The recipe is the first word that has no '=' or names a file; all others are overrides `a.b=c`. `note` says what the
    command does with the recipe.
    """
    text = "a YAML file, or the name of a shipped recipe"
    help_text = f"{note}; {text}" if note else text
    parser.add_argument("recipe", nargs=None if required else "?", metavar="RECIPE", help=help_text)
    parser.add_argument(
        "overrides", nargs="*", action=_Overrides, metavar="a.b=c", help="settings that win over the recipe's"
    )


class _Overrides(argparse.Action):
    """Tells the recipe from its overrides, once all words are there."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        words = [*filter(None, [namespace.recipe]), *values]
        recipe = next((word for word in words if "=" not in word or Path(word).is_file()), None)
        if words and recipe is None:
            parser.error(f"found settings alone ({' '.join(words)}), wanted a recipe too: a YAML file or a name")
        if recipe is not None:
            words.remove(recipe)
        namespace.recipe, namespace.overrides = recipe, words


class Number:
    """The type of an option that takes a number of some range."""

    def __init__(self, option: str, kind: type[int] | type[float], allowed: Range) -> None:
        self.option, self.kind, self.allowed = option, kind, allowed

    def __call__(self, text: str) -> float:
        """Raises UserError, which names the option, for anything else."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if value not in self.allowed:
            raise UserError(f"{self.option}: found {text}, wanted {self.allowed.wanted(whole=self.kind is int)}")
        return value


def add_number(
    parser: argparse.ArgumentParser, option: str, kind: type[int] | type[float], allowed: Range, **details: Any
) -> None:
    """Gives the command an option that takes a number; `details` as argparse's."""
    parser.add_argument(option, type=Number(option, kind, allowed), **details)


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Gives the command what says how samples are drawn: --steps, --between and --renoise, as `check_steps` checks."""
    add_number(parser, "--steps", int, Range(1, 100_000), metavar="K",
        help="network evaluations (default: the recipe's)")
    add_number(parser, "--between", float, Range(above=0, below=1), nargs="+", metavar="T",
        help="times between 1 and 0, falling, in place of equal steps: 0.55 for two")
    parser.add_argument("--renoise", action="store_true",
        help="each step to the data and back with fresh noise: consistency sampling")


def check_steps(steps: int | None, between: Sequence[float] | None) -> None:
    """Raises UserError for times that do not fall, or another number of steps than they make."""
    between = between or ()
    if sorted(set(between), reverse=True) != list(between):
        raise UserError(f"--between {' '.join(map(str, between))} must fall from step to step")
    if between and steps not in (None, len(between) + 1):
        raise UserError(
            f"--between says {len(between)} time(s), which are {len(between) + 1} steps, and --steps {steps}; leave "
            "--steps out"
        )


def labels(text: str) -> str | tuple[int, ...]:
    """The value of an option --labels: 'balanced', 'random', or class numbers."""
    if text in ("balanced", "random"):
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'balanced' nor 'random' nor a list of class numbers such as 0,1,2"
        ) from None


def name_or_path(text: str) -> str:
    """The value of an option that takes a path, or a name that is known elsewhere."""
    try:
        return expanded(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def request_of(request_type: type[T], options: argparse.Namespace, **others: Any) -> T:
    """The frozen dataclass of a command's arguments: every field is the option of its name, or one of `others`."""
    given = vars(options) | others
    return request_type(**{field.name: given[field.name] for field in fields(request_type)})


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Options and other words, in any order. What cannot be used ends the process with exit code 2 and the usage.

    In those of the type Path, `~` and variables are put in (`core.paths`). Raises UserError for one that is not set and
    for a path that no file system could have.
    """
    options = parser.parse_intermixed_args(arguments)
    for name, value in vars(options).items():
        try:
            setattr(options, name, _expanded(value))
        except ConfigError as error:
            raise UserError(f"{name}: {error}") from None
    return options


def _expanded(value: Any) -> Any:
    """The same with the paths in it expanded, on their own, in a list or in a mapping."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_expanded, value))
    if isinstance(value, dict):
        return {name: _expanded(one) for name, one in value.items()}
    if not isinstance(value, Path):
        return value
    text = expanded(str(value))
    if not can_be_path(text):
        raise ConfigError(f"{shortened(text)!r} can be no file's name; wanted a path")
    return Path(text)
