"""Pickles of torch's, read as the data they are: nothing in them is imported, called or given attributes.

A pickle is a program for a small machine with a stack. This one knows the few instructions that torch's files are made
of, and what would be a call of Python is kept as a `Made` record, for the caller to compare with what it expects.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple


class Name(NamedTuple):
    """Something of a module, by its name alone."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Made:
    """What unpickling would have made by calling `of` with `arguments` and by giving it a `state`."""

    of: Name
    arguments: tuple
    state: Any = None


class Entries(dict):
    """A mapping that is no plain dict where it was written: a `collections.OrderedDict`, whose attributes are left out.
    """


class Reference(NamedTuple):
    """What the pickle leaves to its reader: a storage that lies elsewhere in the file."""

    to: Any


def read_pickle(content: bytes, names: Collection[Name], mappings: Collection[Name] = ()) -> Any:
    """The value in a pickle: plain values, `Name`s, `Made` records and `Reference`s. It takes time and memory in
    proportion to the length of `content`, whatever that is.

    Args:
        names: those that it may hold.
        mappings: those of `names` that make `Entries` where they are called with nothing.

    Raises ValueError for a name that is not one of `names`, and for what torch does not write.
    """
    try:
        return _Machine(content, names, mappings).run()
    except (IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"it is no pickle of plain values ({type(error).__name__}: {error})") from error


class _Machine:
    """Instructions are looked up by their byte; each takes its operands from `content` at `place`."""

    def __init__(self, content: bytes, names: Collection[Name], mappings: Collection[Name]) -> None:
        self.content, self.names, self.mappings = content, names, mappings
        self.place = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        content, instructions = self.content, _INSTRUCTIONS
        while True:
            instruction = content[self.place]
            self.place += 1
            if instruction == _STOP:
                break
            if instruction not in instructions:
                raise ValueError(f"instruction {bytes([instruction])!r} at byte {self.place - 1} is not one of torch's")
            instructions[instruction](self)
        (value,) = self.stack
        return value

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self.content, self.place)
        self.place += form.size
        return value

    def text(self, length: int) -> str:
        end = self.place + length
        if end > len(self.content):
            raise ValueError("a text is longer than the file")
        text = self.content[self.place : end].decode("utf-8")
        self.place = end
        return text

    def line(self) -> str:
        return self.text(self.content.index(b"\n", self.place) - self.place + 1)[:-1]

    def long_integer(self) -> int:
        length = self.number(_BYTE)
        if length > 8:
            raise ValueError("a whole number has more than 64 bits")
        self.place += length
        return int.from_bytes(self.content[self.place - length : self.place], "little", signed=True)

    def marked(self) -> list[Any]:
        """What lies above the last mark, which is removed."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def name(self, module: str, name: str) -> Name:
        found = Name(module, name)
        if found not in self.names:
            raise ValueError(f"it names {str(found):.80}, which no checkpoint of torch's needs")
        return found

    # Instructions; each is named as in the standard library's pickletools.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def skip_operand(self, length: int) -> None:
        self.place += length

    def tuple_of(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        if len(values) != count:
            raise ValueError("a tuple has too few values")
        self.stack[-count:] = [values]

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is no text")
        self.stack.append(self.name(module, name))

    def reduce(self) -> None:
        arguments, of = self.stack.pop(), self.stack.pop()
        if not isinstance(of, Name) or not isinstance(arguments, tuple):
            raise ValueError("something is made of what is no name")
        self.stack.append(Entries() if of in self.mappings and not arguments else Made(of, arguments))

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Entries):
            return  # attributes of a mapping: the versions of modules
        if not isinstance(made, Made) or made.state is not None:
            raise ValueError("a state is given to what takes none")
        made.state = state

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("entries are added to what is no mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nothing else: the hash of a tuple of tuples takes any time, a record's is its identity.
            if not isinstance(key, (str, Made)) and not (type(key) is int and abs(key) < 2**31):
                raise ValueError("a mapping has a key that is no text and no number of 32 bits")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("values are added to what is no list")
        target.extend(items)


_STOP = ord(".")
_BYTE, _TWO_BYTES, _INTEGER, _LENGTH, _FRAME = (struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q"))
_FLOAT = struct.Struct(">d")


def _pops(method: Callable[[_Machine, list[Any]], None]) -> Callable[[_Machine], None]:
    return lambda machine: method(machine, [machine.stack.pop(-2), machine.stack.pop()])


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda m: m.skip_operand(1),  # PROTO
    0x95: lambda m: m.skip_operand(_FRAME.size),  # FRAME: only for those who read in pieces
    ord("("): _Machine.mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number(_BYTE)),
    ord("M"): lambda m: m.push(m.number(_TWO_BYTES)),
    ord("J"): lambda m: m.push(m.number(_INTEGER)),
    0x8A: lambda m: m.push(m.long_integer()),  # LONG1
    ord("G"): lambda m: m.push(m.number(_FLOAT)),  # BINFLOAT
    0x8C: lambda m: m.push(m.text(m.number(_BYTE))),  # SHORT_BINUNICODE
    ord("X"): lambda m: m.push(m.text(m.number(_LENGTH))),
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.marked())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("s"): _pops(_Machine.set_items),
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.marked()),
    0x94: lambda m: m.put(len(m.memo)),  # MEMOIZE
    ord("q"): lambda m: m.put(m.number(_BYTE)),
    ord("r"): lambda m: m.put(m.number(_LENGTH)),
    ord("h"): lambda m: m.get(m.number(_BYTE)),
    ord("j"): lambda m: m.get(m.number(_LENGTH)),
    ord("c"): lambda m: m.push(m.name(m.line(), m.line())),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,  # NEWOBJ
    ord("b"): _Machine.build,
    ord("Q"): lambda m: m.push(Reference(m.stack.pop())),
}
