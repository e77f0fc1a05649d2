"""Paths as users write them: `~`, `~name`, `$NAME` and `${NAME}` mean what they mean to a shell.

A shell puts them in for words that stand open; in a recipe, in quotes and after the `=` of `run.folder=~/x` it does
not, and a folder named `~` would be made. `$$` stands for a `$`, and `./~` for a name that begins with `~`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ConfigError

_VARIABLE = re.compile(r"\$(\$|[A-Za-z_][A-Za-z0-9_]*|\{[^}]*\}?)")


class OrName:
    """Of a text, in the place of a `Range`: a path, or else a name that something else knows."""


def expanded(text: str) -> str:
    """Raises ConfigError for a variable that is not set, or empty, and for a user that there is not."""
    head, slash, rest = text.partition("/")
    if head.startswith("~"):
        home = os.path.expanduser(head)
        if home == head:
            raise ConfigError(f"found {_beginning(head)}, but there is no such user; write ./~ for a name with a ~")
        return home + slash + _VARIABLE.sub(_value, rest)
    return _VARIABLE.sub(_value, text)


def written(path: Path) -> str:
    """The text that `expanded` makes this path of."""
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def can_be_path(text: str) -> bool:
    """Whether a file system could have such a file: it raises errors of its own kinds at any other name."""
    parts = text.encode(errors="surrogateescape").split(b"/")
    return text != "" and "\0" not in text and max(map(len, parts)) <= 255 and sum(map(len, parts)) + len(parts) <= 4096


def _value(match: re.Match[str]) -> str:
    name = match[1][1:-1] if match[1].startswith("{") and match[1].endswith("}") else match[1]
    if name == "$":
        return name
    value = os.environ.get(name)
    if not value:
        shown = _beginning(match[0])
        state = "not set" if value is None else "empty"
        raise ConfigError(f"the variable {shown} is {state}; set it, or write $$ for a $")
    return value


def _beginning(text: str, longest: int = 100) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."
