"""Which memory a step holds when: the birth, the death and the occasion of every piece of storage."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Occasion = Literal["build", "forward", "backward", "step", "between"]


@dataclass(slots=True)
class Life:
    """A piece of memory. Times count births and deaths; `died` is None for what is left at the end."""

    size: int  # bytes
    born: int
    died: int | None
    mover: str  # whose turn it was, "none" outside of turns
    occasion: Occasion
    network: str  # which was being called, "none" outside of them
    died_in: Occasion | None = None
    owner: str = ""  # what it was found to be: 'weights of generator'; empty: known by its occasion alone
    is_sent: bool = False  # handed to a collective
    is_gathered: bool = False  # resized in place, as FSDP2 does with whole weights


class Ledger:
    """Observes `Hollow`. `mover`, `occasion` and `network` are set by who takes the step."""

    def __init__(self) -> None:
        self.mover, self.occasion, self.network = "none", "build", "none"
        self.now = 0
        self.lives: list[Life] = []
        self._living: dict[int, tuple[Life, weakref.ref]] = {}  # by the id of the storage

    def __call__(self, func: Any, args: tuple, kwargs: dict, out: Any, key: int | None) -> None:
        if type(out) is Tensor:
            self._note(out.untyped_storage())
        else:
            for tensor in tensors_in(out):
                self._note(tensor.untyped_storage())
        if func.namespace == "c10d":
            for tensor in tensors_in(args):
                if (life := self.of(tensor)) is not None:
                    life.is_sent = True

    def of(self, tensor: Tensor) -> Life | None:
        """Of the storage behind a tensor, if it was allocated under watch."""
        found = self._living.get(id(tensor.untyped_storage()))
        return None if found is None else found[0]

    def own(self, owner: str, tensors: Any) -> None:
        """Says what tensors are; a storage that has an owner keeps it."""
        for tensor in tensors:
            life = self.of(tensor)
            if life is not None and not life.owner and not life.is_gathered:
                life.owner = owner

    @contextmanager
    def watching_resizes(self) -> Iterator[None]:
        """FSDP2 frees and fills whole weights by resizing their storage, of which no dispatcher hears."""
        plain = torch.UntypedStorage.resize_
        ledger = self

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            before = storage.nbytes()
            answer = plain(storage, size)
            if size != before:
                ledger._resized(storage)
            return answer

        torch.UntypedStorage.resize_ = resize
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = plain

    def _note(self, storage: torch.UntypedStorage) -> None:
        mark = id(storage)
        if mark not in self._living and (size := storage.nbytes()):
            self._begin(mark, storage, size)

    def _begin(self, mark: int, storage: torch.UntypedStorage, size: int, *, is_gathered: bool = False) -> None:
        self.now += 1
        life = Life(size, self.now, None, self.mover, self._now_in(), self.network, is_gathered=is_gathered)
        self.lives.append(life)
        self._living[mark] = life, weakref.ref(storage, lambda _: self._end(mark))

    def _end(self, mark: int) -> None:
        self.now += 1
        life, _ = self._living.pop(mark)
        life.died, life.died_in = self.now, self._now_in()

    def _now_in(self) -> Occasion:
        """A graph may also run inside the forward: autograd.grad, through a frozen discriminator to its input."""
        return "backward" if self.occasion == "forward" and torch._C._current_graph_task_id() != -1 else self.occasion

    def _resized(self, storage: torch.UntypedStorage) -> None:
        mark, owner = id(storage), ""
        if mark in self._living:
            owner = self._living[mark][0].owner
            self._end(mark)
        if size := storage.nbytes():
            self._begin(mark, storage, size, is_gathered=True)
            self._living[mark][0].owner = owner


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Those among the arguments or the results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
