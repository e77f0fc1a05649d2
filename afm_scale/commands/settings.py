"""What a recipe may say: type, range, default and meaning of every setting.

Without a key, all of them in a line each; with one, that setting, those inside of it, or those that end in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from ..core.errors import ConfigError
from ..core.screen import say
from ..core.typed import nearest, shortened
from ..run.config import RunConfig
from ..run.settings import Setting, settings_of

_HEAD = """\
# Settings

Every key of a recipe. Made by `python -m afm_scale settings --markdown > docs/settings.md`; a test fails when it is
stale. `python -m afm_scale settings KEY` prints the same of one. Defaults are those of the program: what a recipe
inherits (`configs/base.yaml`, mostly) may say something else, and `python -m afm_scale show RECIPE` has the last word.

In paths `~`, `~name`, `$NAME` and `${NAME}` mean what they mean to a shell, also in a recipe: see docs/runs.md.

Numbers outside of their range are refused when a recipe is read. *Kinds* are those of the section that the key lies in.
A schedule is a number, or one of these, whose values keep to the range of the setting:

"""
_COLUMNS = "| key | kinds | type | range | default | meaning |\n|---|---|---|---|---|---|\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", metavar="KEY", help="a setting, a section, or the last word of a setting")
    parser.add_argument("--markdown", action="store_true", help="the page docs/settings.md")


def run(options: argparse.Namespace) -> int:
    settings = settings_of(RunConfig)
    if options.markdown:
        say(as_page(settings), end="")
    elif options.key is None:
        say("\n".join(_in_one_line(setting) for setting in settings if not setting.is_inner))
    else:
        say("\n\n".join(map(_in_full, matching(options.key, settings))))
    return 0


def matching(key: str, settings: Sequence[Setting]) -> list[Setting]:
    """The settings that are meant. Raises ConfigError, with the nearest one, if there are none."""
    exact = [setting for setting in settings if setting.key == key]
    inside = [setting for setting in settings if setting.key.startswith(f"{key}.") and not setting.is_inner]
    ending = [setting for setting in settings if setting.key.endswith(f".{key}") and not setting.is_inner]
    found = [*exact, *(inside if all(setting.is_section for setting in exact) else [])] or ending
    if not found:
        known = {name for setting in settings for name in (setting.key, setting.key.rpartition(".")[2])}
        hint = nearest(key, sorted(known))
        raise ConfigError(f"there is no setting {shortened(key)!r}{hint}; `afm_scale settings` lists all")
    return found


def as_page(settings: Sequence[Setting]) -> str:
    schedule = "optimizer.generator.learning_rate."
    parts = [_HEAD, _COLUMNS, *(_row(s, s.key.removeprefix(schedule)) for s in settings if s.key.startswith(schedule))]
    outer = [setting for setting in settings if not setting.is_inner]
    for section in dict.fromkeys(setting.key.partition(".")[0] for setting in outer):
        first, *rest = (setting for setting in outer if setting.key.partition(".")[0] == section)
        parts += [f"\n## {section}\n\n", f"{_sentence(first.documentation)}\n\n" if first.documentation else ""]
        parts += [_COLUMNS, *(_row(setting, setting.key) for setting in ([first, *rest] if not rest else rest))]
    return "".join(parts)


def _row(setting: Setting, name: str) -> str:
    default = setting.default if setting.default in ("required", "as below") else f"`{setting.default}`"
    cells = [f"`{name}`", ", ".join(setting.kinds), setting.type, setting.range, default, setting.documentation]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _in_one_line(setting: Setting) -> str:
    kinds = f" ({', '.join(setting.kinds)})" if setting.kinds else ""
    about = [setting.type, setting.range, f"default {setting.default}" if setting.default != "required" else "required"]
    return f"{setting.key}{kinds}: {'; '.join(filter(None, about))}"


def _in_full(setting: Setting) -> str:
    rows = [
        ("kinds", ", ".join(setting.kinds)), ("type", setting.type), ("range", setting.range),
        ("default", setting.default), ("meaning", setting.documentation),
    ]
    return "\n".join([setting.key, *_lines(rows)])


def _lines(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {name:8} {text}" for name, text in rows if text]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":")) else ".")
