"""What is done to good files: flips, cuts, lies, planted code, other kinds of file. Each is a function of a folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import socket
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .trial import EXECUTED

Harm = Callable[[Path], object]
Change = Callable[[bytes], bytes]


def nothing(root: Path) -> None:
    """A good file, and what lies beside it."""


def together(*harms: Harm) -> Harm:
    def harm(root: Path) -> None:
        for one in harms:
            one(root)

    return harm


# Bytes.


def rewritten(name: str, change: Change) -> Harm:
    def harm(root: Path) -> None:
        path = root / name
        path.write_bytes(change(path.read_bytes()))

    return harm


def replaced(name: str, content: bytes | str) -> Harm:
    return rewritten(name, lambda _: content.encode() if isinstance(content, str) else content)


def flipped(name: str, seed: int, *, bits: int = 1, between: tuple[float, float] = (0.0, 1.0)) -> Harm:
    """Flips bits at places that depend on the seed alone, within a part of the file."""
    def change(data: bytes) -> bytes:
        rng = random.Random(seed)
        spoilt = bytearray(data)
        for _ in range(bits):
            spoilt[int(len(data) * rng.uniform(*between)) % len(data)] ^= 1 << rng.randrange(8)
        return bytes(spoilt)

    return rewritten(name, change)


def cut(name: str, share: float) -> Harm:
    return rewritten(name, lambda data: data[:int(len(data) * share)])


def longer(name: str) -> Harm:
    return rewritten(name, lambda data: data + b"more")


def zeros(name: str) -> Harm:
    """As long as it was: what a file system may leave after the power has failed."""
    return rewritten(name, lambda data: bytes(len(data)))


def absent(name: str) -> Harm:
    def harm(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    return harm


def copied(source: str, to: str) -> Harm:
    def harm(root: Path) -> None:
        if (root / source).is_dir():
            shutil.copytree(root / source, root / to, dirs_exist_ok=True)
        else:
            shutil.copy2(root / source, root / to)

    return harm


# Other kinds of file in the place of one.


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"/proc/self/fd/{folder}/{path.name}")  # the path itself may be too long for a socket
    listening.close()
    os.close(folder)


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("a file in the place's folder")


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: Mapping[str, Callable[[Path], None]] = {
    "a pipe": fifo, "a socket": a_socket, "a folder": a_folder, "a link to itself": loop,
    "a link to nothing": link_to("absent"), "a link to /dev/zero": link_to("/dev/zero"),
    "a link to /dev/full": link_to("/dev/full"),
}


def kind(name: str, make: Callable[[Path], None]) -> Harm:
    """Another kind of file in its place."""
    def harm(root: Path) -> None:
        if os.path.lexists(root / name):
            absent(name)(root)
        make(root / name)

    return harm


def moved_behind_a_link(name: str) -> Harm:
    """Harmless: the good file lies elsewhere, and a link in its place."""
    def harm(root: Path) -> None:
        away = root / "away" / Path(name).name
        away.parent.mkdir(exist_ok=True)
        shutil.move(root / name, away)
        (root / name).symlink_to(away)

    return harm


def read_only(name: str) -> Harm:
    """Harmless for readers."""
    def harm(root: Path) -> None:
        for path in [root / name, *(root / name).rglob("*")]:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))

    return harm


# JSON.


class Text(str):
    """JSON that `json.dumps` would not write."""


def said(name: str, keys: Sequence[str | int], value: Any) -> Harm:
    """A lie at a place in a JSON file."""
    return edited(name, lambda plain: _put(plain, keys, value))


def unsaid(name: str, keys: Sequence[str | int]) -> Harm:
    def change(plain: Any) -> None:
        for key in keys[:-1]:
            plain = plain[key]
        del plain[keys[-1]]

    return edited(name, change)


def edited(name: str, change: Callable[[Any], object]) -> Harm:
    def rewrite(data: bytes) -> bytes:
        plain = json.loads(data)
        change(plain)
        texts: dict[str, str] = {}
        text = json.dumps(_with_marks(plain, texts))
        for mark, raw in texts.items():
            text = text.replace(json.dumps(mark), raw)
        return text.encode()

    return rewritten(name, rewrite)


def _put(plain: Any, keys: Sequence[str | int], value: Any) -> None:
    for key in keys[:-1]:
        plain = plain[key]
    plain[keys[-1]] = value


def _with_marks(value: Any, texts: dict[str, str]) -> Any:
    if isinstance(value, Text):
        mark = f"mark {len(texts)} of a lie"
        texts[mark] = str(value)
        return mark
    if isinstance(value, dict):
        return {key: _with_marks(inner, texts) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_marks(inner, texts) for inner in value]
    return value


DEEP = Text("[" * 100_000 + "]" * 100_000)
MANY_DIGITS = Text("1" * 5_000)
LONG = "n" * 5_000
HUGE = 2**62


# Planted code.


class Planted:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, root: Path) -> None:
        self._words = f"touch {root / EXECUTED}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._words,)


def plant(root: Path, protocol: int = 4) -> bytes:
    return pickle.dumps(Planted(root), protocol)


def planted(name: str, wrap: Callable[[Path], bytes] = plant) -> Harm:
    return lambda root: (root / name).write_bytes(wrap(root))


def by_builtins(root: Path) -> bytes:
    """The same by way of `builtins.exec`, and an instruction that takes a name apart at dots."""
    code = f"open({str(root / EXECUTED)!r}, 'w').close()"
    return b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + _short(code) + b"\x85R."


def by_a_dotted_name(root: Path) -> bytes:
    """`torch.distributed.checkpoint.metadata` as a module, `os.system` as a name in it."""
    module = b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata"
    return module + b"\x8c\x09os.system\x93" + _short(f"touch {root / EXECUTED}") + b"\x85R."


def _short(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def in_a_zip(root: Path) -> bytes:
    """As torch.save writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", plant(root, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


# safetensors.


def safetensors(header: bytes | Mapping[str, Any], data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def header_said(name: str, change: Callable[[dict[str, Any]], object]) -> Harm:
    """A lie in the header of a safetensors file, with its length put right."""
    def rewrite(data: bytes) -> bytes:
        end = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:end])
        change(header)
        return safetensors(header, data[end:])

    return rewritten(name, rewrite)


# Arrays.


def arrays(name: str, change: Callable[[dict[str, Any]], object]) -> Harm:
    """An npz whose arrays are changed, and written as numpy writes them."""
    def harm(root: Path) -> None:
        with np.load(root / name, allow_pickle=False) as found:
            held = dict(found)
        change(held)
        with (root / name).open("wb") as file:
            np.savez(file, **held)

    return harm


def members(name: str, change: Callable[[dict[str, bytes]], object], *, compression: int = zipfile.ZIP_STORED) -> Harm:
    """The same of the bytes of the archive's members."""
    def harm(root: Path) -> None:
        with zipfile.ZipFile(root / name) as archive:
            held = {info.filename: archive.read(info) for info in archive.infolist()}
        change(held)
        with zipfile.ZipFile(root / name, "w", compression) as archive:
            for member, data in held.items():
                archive.writestr(member, data)

    return harm


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def npy_header(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with any header."""
    header = text.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


