"""Tables on the screen: names and values, taken as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.screen import in_plain_letters

_WIDTH = 10_000  # wider than any: a path that is longer than the screen is not cut

Section = Sequence[Sequence[str]]
"""Rows between two lines, each of as many words as the table has columns."""


def rows_of(figures: Mapping[str, Any]) -> Section:
    """What a report found, a row for each figure, in four digits."""
    return [
        (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in figures.items()
    ]


def show_table(title: str | None, *sections: Section, columns: Sequence[str] = ()) -> None:
    """Prints it on standard output. Nothing in it is markup: `sweep[/final]` is the name of a folder.

    Without `columns` it has no heads.
    """
    head = None if title is None else Text(in_plain_letters(title))
    table = Table(title=head, show_header=bool(columns), title_justify="left")
    for column in columns:
        table.add_column(Text(column))
    for rows in sections:
        for row in rows:
            table.add_row(*(Text(in_plain_letters(word)) for word in row))
        table.add_section()
    Console(width=_WIDTH, soft_wrap=True, markup=False, highlight=False, emoji=False).print(table)
