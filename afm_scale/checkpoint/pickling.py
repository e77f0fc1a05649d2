"""Writes pickles of plain values, in protocol 2: what `pickled.py` reads. Nothing is imported, so that a file may name
what is not installed here."""

from __future__ import annotations

import struct
from typing import Any

from .pickled import Entries, Made, Name, Reference

_ORDERED = Name("collections", "OrderedDict")


def write_pickle(value: Any) -> bytes:
    """Of None, truth values, numbers, texts, lists, tuples, mappings (`Entries` become a `collections.OrderedDict`),
    `Name`s, `Made` records and `Reference`s. Raises TypeError for anything else."""
    parts = [b"\x80\x02"]
    _write(value, parts)
    return b"".join([*parts, b"."])


def _write(value: Any, out: list[bytes]) -> None:
    if value is None or value is True or value is False:
        out.append({None: b"N", True: b"\x88", False: b"\x89"}[value])
    elif type(value) is int:
        out.append(_integer(value))
    elif type(value) is float:
        out.append(b"G" + struct.pack(">d", value))
    elif isinstance(value, str):
        text = value.encode()
        out.append(b"X" + struct.pack("<I", len(text)) + text)
    elif isinstance(value, Name):  # a tuple too, and a Reference: they come first
        out.append(f"c{value.module}\n{value.name}\n".encode())
    elif isinstance(value, Reference):
        _write(value.to, out)
        out.append(b"Q")
    elif isinstance(value, tuple):
        _several(b"(", value, b"t", out)
    elif isinstance(value, list):
        _several(b"](", value, b"e", out)
    elif isinstance(value, dict):
        begins = f"c{_ORDERED.module}\n{_ORDERED.name}\n)R(".encode() if isinstance(value, Entries) else b"}("
        _several(begins, [part for entry in value.items() for part in entry], b"u", out)
    elif isinstance(value, Made):
        _write(value.of, out)
        _write(value.arguments, out)
        out.append(b"R")
        if value.state is not None:
            _write(value.state, out)
            out.append(b"b")
    else:
        raise TypeError(f"a {type(value).__name__} is no plain value")


def _several(begins: bytes, values: Any, ends: bytes, out: list[bytes]) -> None:
    out.append(begins)
    for value in values:
        _write(value, out)
    out.append(ends)


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(8, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content
