"""Errors that one rank met by itself, kept until all ranks can stop for them at the same step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import UserError


class Failures:
    """The note of one rank: hooks add to it, and the stop hook reads it after every step."""

    def __init__(self) -> None:
        self.first: UserError | None = None  # the one to stop for; later ones tend to follow from it

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps a UserError of the block, the work of one rank (writing a file).

        It does not end this rank alone, leaving the others to wait for it: all ranks stop at the same step, each
        raising an error of the same kind and message.
        """
        try:
            yield
        except UserError as error:
            self.keep(error)

    def keep(self, error: UserError) -> None:
        """The same for an error that somebody else caught, in another thread if need be."""
        self.first = self.first or error
