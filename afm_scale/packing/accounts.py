"""What became of every file of a source: packed, packed and changed, or left out; the counts add up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..data.description import LISTED_NAMES, Account, Change


class Tally:
    """Counts of changes, with the names of the first that were changed so."""

    def __init__(self) -> None:
        self.num_changed = 0  # images, however many changes each of them saw
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, changes: Sequence[str]) -> None:
        self.num_changed += bool(changes)
        for how in changes:
            self._add(Change(how=how, count=1, names=(name,)))

    def add_all(self, changes: Iterable[Change], num_changed: int) -> None:
        self.num_changed += num_changed
        for change in changes:
            self._add(change)

    def _add(self, change: Change) -> None:
        self._counts[change.how] = self._counts.get(change.how, 0) + change.count
        names = self._names.setdefault(change.how, [])
        names.extend(change.names[:LISTED_NAMES - len(names)])

    @property
    def changes(self) -> tuple[Change, ...]:
        """By name of the change."""
        return tuple(
            Change(how=how, count=self._counts[how], names=tuple(self._names[how])) for how in sorted(self._counts)
        )


def account_of(tally: Tally, *, num_packed: int, num_left_out: int, notes: Sequence[str]) -> Account:
    return Account(
        found=num_packed + num_left_out, packed=num_packed, changed=tally.num_changed, left_out=num_left_out,
        changes=tally.changes, notes=tuple(notes),
    )
