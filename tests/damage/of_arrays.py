"""What is done to npz files: sets of images, statistics, and the file of mnist."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import doors
from .doors import Door
from .harm import (
    DEEP,
    HUGE,
    KINDS,
    Harm,
    Planted,
    arrays,
    cut,
    flipped,
    in_a_zip,
    kind,
    longer,
    members,
    moved_behind_a_link,
    nothing,
    npy,
    npy_header,
    plant,
    planted,
    read_only,
    replaced,
    rewritten,
    zeros,
)
from .trial import Case

Wants = str
Of = tuple[str, Harm, Wants]


def of_any(name: str, array: str) -> Iterator[Of]:
    """What may befall any npz; `array` is one that is needed."""
    member = f"{array}.npy"
    yield "untouched", nothing, "done"
    yield "behind a link", moved_behind_a_link(name), "done"
    yield "read-only", read_only(name), "done"
    yield "compressed", members(name, lambda held: None, compression=zipfile.ZIP_DEFLATED), "done"
    yield "another array in it", arrays(name, lambda held: held.update(more=np.arange(3))), "done"
    yield "a file of text in it", members(name, lambda held: held.update({"readme.txt": b"ours"})), "done"
    for what, make in KINDS.items():
        yield f"it is {what}", kind(name, make), "refused"
    for share in (0.0, 0.5, 0.99):
        yield f"cut to {share:g}", cut(name, share), "refused"
    yield "zeros", zeros(name), "refused"
    yield "text", replaced(name, b"no archive"), "refused"
    yield "a pickle with planted code", planted(name), "refused"
    yield "a torch.save with planted code", planted(name, in_a_zip), "refused"
    yield "longer", longer(name), "either"
    for seed in range(4):
        yield f"flipped, seed {seed}", flipped(name, seed, bits=3), "either"
    yield f"{array}: a bit of its values flipped", _value_flipped(name, member), "refused"
    yield f"{array}: planted code", _planted_in(name, member), "refused"
    yield f"{array}: objects with planted code", _planted_objects(name, member), "refused"
    yield f"{array}: absent", members(name, lambda held: held.pop(member)), "refused"
    yield f"{array}: twice", _twice(name, member), "either"
    yield f"{array}: of 2^62 numbers", members(name, lambda held: held.update({member: npy_header(
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({HUGE},), }}")})), "refused"
    yield f"{array}: of 10^13 numbers, listed as if they were there", _huge_size(name, member), "refused"
    yield f"{array}: of a negative size", members(name, lambda held: held.update({member: npy_header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-4,), }", b"1234")})), "refused"
    yield f"{array}: a header with code in it", members(name, lambda held: held.update({member: npy_header(
        "{'descr': __import__('os').system('touch executed'), 'fortran_order': False, 'shape': (1,), }")})), "refused"
    yield f"{array}: a header nested 5,000 deep", members(name, lambda held: held.update({
        member: npy_header("(" * 5_000 + ")" * 5_000)})), "refused"
    yield f"{array}: of records", arrays(name, lambda held: held.update({
        array: np.zeros(4, dtype=[("a", "u1"), ("b", "f4")])})), "refused"
    yield f"{array}: of no dimension", arrays(name, lambda held: held.update({array: np.array(3.0)})), "refused"
    yield f"{array}: empty", arrays(name, lambda held: held.update({array: held[array][:0]})), "refused"
    yield f"{array}: of text", arrays(name, lambda held: held.update({array: np.array(["a", "b"])})), "refused"
    yield f"{array}: complex", arrays(name, lambda held: held.update({
        array: held[array].astype(np.complex64)})), "refused"
    yield f"{array}: by columns", arrays(name, lambda held: held.update({
        array: np.asfortranarray(held[array])})), "either"
    yield f"{array}: of the other byte order", arrays(name, lambda held: held.update({
        array: held[array].astype(held[array].dtype.newbyteorder(">"))})), "either"
    yield f"{array}: header of version 2", members(name, lambda held: held.update({
        member: npy(_array(held[member]), version=(2, 0))})), "either"


def _array(data: bytes) -> Any:
    import io

    return np.load(io.BytesIO(data), allow_pickle=False)


def _value_flipped(name: str, member: str) -> Harm:
    """In the archive, whose own sum of the member stays as it was."""
    def harm(root: Path) -> None:
        with zipfile.ZipFile(root / name) as archive:
            info = archive.getinfo(member)
        data = bytearray((root / name).read_bytes())
        lengths = struct.unpack("<HH", data[info.header_offset + 26:info.header_offset + 30])
        start = info.header_offset + 30 + sum(lengths)
        data[start + info.compress_size - 3] ^= 4
        (root / name).write_bytes(data)

    return harm


def _planted_in(name: str, member: str) -> Harm:
    return lambda root: members(name, lambda held: held.update({member: plant(root)}))(root)


def _planted_objects(name: str, member: str) -> Harm:
    def harm(root: Path) -> None:
        objects = npy(np.array([Planted(root)], dtype=object), allow_pickle=True)
        members(name, lambda held: held.update({member: objects}))(root)

    return harm


def _twice(name: str, member: str) -> Harm:
    def harm(root: Path) -> None:
        with zipfile.ZipFile(root / name) as archive:
            data = archive.read(member)
        with (root / name).open("r+b") as file, zipfile.ZipFile(file, "a") as archive:
            info = zipfile.ZipInfo(member)
            archive.NameToInfo.pop(member)  # else zipfile warns of what is wanted here
            archive.writestr(info, data)

    return harm


def _huge_size(name: str, member: str) -> Harm:
    """Header and archive agree on a size that the file has not."""
    def harm(root: Path) -> None:
        size = 10**9  # of 32 bits
        header = npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}")
        members(name, lambda held: held.update({member: header}))(root)
        data = (root / name).read_bytes()
        listed = struct.pack("<LL", len(header), len(header))
        (root / name).write_bytes(data.replace(listed, struct.pack("<LL", len(header) + size, len(header) + size)))

    return harm


def images(name: str) -> Iterator[Of]:
    changes: list[tuple[str, Callable[[dict], object], Wants]] = [
        ("floats", lambda held: held.update(arr_0=held["arr_0"].astype(np.float32)), "refused"),
        ("channels first", lambda held: held.update(arr_0=held["arr_0"].transpose(0, 3, 1, 2).copy()), "refused"),
        ("two channels", lambda held: held.update(arr_0=np.concatenate([held["arr_0"]] * 2, 3)), "refused"),
        ("another size", lambda held: held.update(arr_0=held["arr_0"][:, :4]), "refused"),
        ("signed", lambda held: held.update(arr_0=held["arr_0"].astype(np.int8)), "refused"),
        ("labels of floats", lambda held: held.update(labels=held["labels"] * 1.0), "refused"),
        ("labels below 0", lambda held: held.update(labels=held["labels"] - 1), "refused"),
        ("too few labels", lambda held: held.update(labels=held["labels"][:3]), "refused"),
        ("labels of 2^63", lambda held: held.update(labels=held["labels"].astype(np.uint64) + 2**63), "refused"),
        ("no labels", lambda held: held.pop("labels"), "done"),
        ("labels of a byte", lambda held: held.update(labels=held["labels"].astype(np.uint8)), "done"),
    ]
    for what, change, wants in changes:
        yield what, arrays(name, change), wants


def statistics(name: str, *, ours: bool) -> Iterator[Of]:
    def put(**values: Any) -> Harm:
        return arrays(name, lambda held: held.update({
            key: value(held[key]) if callable(value) else value for key, value in values.items()
        }))

    for what, value in (
        ("one is NaN", lambda array: np.where(np.arange(len(array)) == 3, np.nan, array)),
        ("one is infinite", lambda array: np.where(np.arange(len(array)) == 3, np.inf, array)),
        ("whole numbers", lambda array: array.astype(np.int64)), ("half", lambda array: array.astype(np.float16)),
        ("shorter", lambda array: array[:-1]), ("of two dimensions", lambda array: array[None]),
        ("truth", lambda array: array > 0), ("another mean's", np.zeros(3)),
    ):
        yield f"mu: {what}", put(mu=value), "refused"
    for what, value in (
        ("not symmetric", lambda array: array + np.triu(np.full_like(array, 50), 1)),
        ("negative variances", lambda array: -array), ("NaN", lambda array: array * np.nan),
        ("not square", lambda array: array[:, :-1]), ("flat", lambda array: array.ravel()),
        ("of huge numbers", lambda array: np.full_like(array, 1e308)),
    ):
        yield f"sigma: {what}", put(sigma=value), "refused"
    yield "sigma: of no covariance", put(sigma=lambda array: np.ones_like(array) - np.eye(len(array))), "refused"
    single = np.float32
    yield "float32", put(mu=lambda array: array.astype(single), sigma=lambda array: array.astype(single)), "done"
    yield "mu_s without sigma_s", arrays(name, lambda held: held.update(mu_s=held["mu"])), "refused"
    if not ours:
        return
    yield "members: NaN", put(members=lambda array: array * np.nan), "refused"
    yield "members: narrower", put(members=lambda array: array[:, :-1]), "refused"
    yield "members: whole numbers", put(members=lambda array: array.astype(np.int64)), "refused"
    for key, values in {
        "count": (-5, 0, 1, True, 1.5, "20", HUGE * HUGE, [20], 3), "features": (None, 5, "", "pixels of another set"),
        "about": (None, [], "text", 3), "version": (2, None, "1", True, 1.0), "format": (None, "mine", 1),
    }.items():
        for value in values:
            wants = "either" if (key, value) in (("count", 3), ("version", 1.0)) else "refused"
            yield f"about: {key} is {value!r:.24}", _about(name, lambda plain, key=key, value=value: plain.update({
                key: value})), wants
    for key in ("count", "features", "about", "version"):
        yield f"about: no {key}", _about(name, lambda plain, key=key: plain.pop(key)), (
            "either" if key == "count" else "refused"
        )
    for what, text in (("nested 100,000 deep", str(DEEP)), ("not JSON", "{"), ("a list", "[]"), ("empty", ""),
                       ("NaN", "NaN"), ("no text", None)):
        value = np.array(5) if text is None else np.array(text)
        yield f"about: {what}", arrays(name, lambda held, value=value: held.update(about=value)), "refused"
    yield "about: no Unicode", members(name, lambda held: held.update({"about.npy": npy_header(
        "{'descr': '<U1', 'fortran_order': False, 'shape': (), }", b"\xff\xff\xff\x7f")})), "refused"


def _about(name: str, change: Callable[[dict], object]) -> Harm:
    def rewrite(held: dict[str, Any]) -> None:
        plain = json.loads(str(held["about"]))
        change(plain)
        held["about"] = np.array(json.dumps(plain))

    return arrays(name, rewrite)


def digits(name: str) -> Iterator[Of]:
    changes: list[tuple[str, Callable[[dict], object]]] = [
        ("labels of 10", lambda held: held.update(labels=held["labels"] + 1)),
        ("labels below 0", lambda held: held.update(labels=held["labels"].astype(np.int64) - 1)),
        ("labels of floats", lambda held: held.update(labels=held["labels"] * 1.0)),
        ("too few labels", lambda held: held.update(labels=held["labels"][:50])),
        ("images of floats", lambda held: held.update(images=held["images"] / 255.0)),
        ("images of 32 pixels", lambda held: held.update(images=np.zeros((200, 32, 32), np.uint8))),
        ("nine images", lambda held: held.update(images=held["images"][:9], labels=held["labels"][:9])),
        ("no labels", lambda held: held.pop("labels")),
        ("labels of 2^63", lambda held: held.update(labels=held["labels"].astype(np.uint64) + 2**63)),
    ]
    for what, change in changes:
        yield what, arrays(name, change), "refused"
    yield "a .npy", rewritten(name, lambda data: npy(np.zeros((20, 28, 28), np.uint8))), "refused"


def cases() -> Iterator[Case]:
    for name, array, door, of_kind, more in (
        ("samples.npz", "arr_0", doors.OF_SAMPLES, "npz: images", images("samples.npz")),
        ("images.npz", "arr_0", doors.REFERENCE_IMAGES, "npz: images", iter(())),
        ("reference.npz", "mu", doors.REFERENCE, "npz: statistics", statistics("reference.npz", ours=True)),
        ("fid.npz", "sigma", doors.FID_REFERENCE, "npz: statistics", statistics("fid.npz", ours=False)),
        ("mnist.npz", "images", doors.MNIST, "npz: mnist", digits("mnist.npz")),
    ):
        thin = 4 if name in ("images.npz", "fid.npz") else 1
        for number, of in enumerate((*of_any(name, array), *more)):
            if number % thin == thin - 1 or of[0] == "untouched":
                yield _case(of_kind, name, door, *of)


def _case(of_kind: str, file: str, door: Door, name: str, harm: Harm, wants: Any) -> Case:
    names = (file, "reference.npz")  # which of two that do not fit each other is to blame, nobody knows
    return Case(kind=of_kind, name=f"{file}: {name}", door=door, harm=harm, wants=wants, names=names)
