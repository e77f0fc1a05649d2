"""Type hints for a choice among the kinds of a table, for whatever reads configurations by their hints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any


class OneOf:
    """The configurations of a table, as it is when a value is read: whoever adds an entry need not tell anybody."""

    def __init__(self, table: Mapping[type, object]) -> None:
        self.table = table


def one_of(table: Mapping[type, object]) -> Any:
    """A type hint: a value of one of the table's configurations, told apart by their `kind`."""
    return Annotated[object, OneOf(table)]
