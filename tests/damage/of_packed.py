"""What is done to packed data sets: descriptions, indices with their sums put right, shards, unfinished ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import doors
from .harm import (
    DEEP,
    HUGE,
    KINDS,
    LONG,
    MANY_DIGITS,
    Harm,
    absent,
    copied,
    cut,
    edited,
    flipped,
    header_said,
    in_a_zip,
    kind,
    longer,
    moved_behind_a_link,
    nothing,
    planted,
    read_only,
    replaced,
    rewritten,
    safetensors,
    said,
    together,
    unsaid,
    zeros,
)
from .trial import Case

DESCRIPTION, INDEX, SHARD, IDX = "dataset.json", "index.safetensors", "shard-000001.tar", "shard-000001.idx"
NAMES = ("packed", "latents", "unfinished")

Of = Callable[[str], Harm]


def at(name: str, harm: Callable[..., Harm], *arguments: object, **options: object) -> Of:
    return lambda folder: harm(f"{folder}/{name}", *arguments, **options)


def entered(of: Of) -> Of:
    """With the index's sum put right in dataset.json."""
    def enter(folder: str) -> Harm:
        def harm(root: Path) -> None:
            content = (root / folder / INDEX).read_bytes()
            said(f"{folder}/{DESCRIPTION}", ["index_sha256"], sha256(content).hexdigest())(root)

        return together(of(folder), harm)

    return enter


def index(change: Callable[[dict[str, torch.Tensor]], object]) -> Of:
    def of(folder: str) -> Harm:
        def harm(root: Path) -> None:
            tensors = load_file(root / folder / INDEX)
            change(tensors)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, root / folder / INDEX)

        return harm

    return entered(of)


def descriptions() -> Iterator[tuple[str, Of]]:
    values: dict[str, tuple[object, ...]] = {
        "num_samples": (None, -12, 0, "12", 12.0, True, HUGE, MANY_DIGITS, [12]),
        "class_names": (None, "abc", [], [1, 2, 3], [["a"], ["b"], ["c"]], 3, {"a": 1, "b": 2, "c": 3}),
        "class_counts": (None, [], ["4", "4", "4"], [4.0, 4.0, 4.0], [13, 0, -1], [HUGE, 0, 0], 12, [True, 7, 4]),
        "content": (None, [], "images", {"kind": "images", "size": -16, "encoding": "png"},
                    {"kind": "images", "size": "16", "encoding": "png"},
                    {"kind": "images", "size": 16, "encoding": "bmp"},
                    {"kind": "images", "size": 16, "encoding": "png", "more": 1}, {"kind": ["images"]}),
        "shards": (None, [], {}, "all", [None], [[]], [{"name": "shard-000000.tar"}]),
        "index_sha256": (None, 5, "", "0" * 64, []), "made": (None, 5, "by hand"),
        "refused": (None, 5, [None], [{"name": "a"}], "none"), "format": (None, "mine", []),
        "version": (None, 2, "1", True, [1]),
    }
    for key, lied in values.items():
        for value in lied:
            yield f"{key} is {value!r:.44}", at(DESCRIPTION, said, [key], value)
        yield f"no {key}", at(DESCRIPTION, unsaid, [key])
    for key, lied in {
        "name": (None, 5, "", "../other/config.yaml", "/etc/hostname", LONG + ".tar", "a\0.tar", ".tar",
                 "shard-000000.tar"),
        "num_samples": (None, "4", -4, 4.0, HUGE), "num_bytes": (None, "11264", -1, HUGE, 1.5),
        "sha256": (None, 5, "0" * 64, "x"), "idx_sha256": (None, 5, [], "0" * 64),
    }.items():
        for value in lied:
            yield f"a shard's {key} is {value!r:.24}", at(DESCRIPTION, said, ["shards", 1, key], value)
    for text in ("", "null", "[]", "{", "5", DEEP, "\x00" * 40, "NaN"):
        yield f"its text is {text[:10]!r}", at(DESCRIPTION, replaced, text)
    yield "in UTF-16", at(DESCRIPTION, rewritten, lambda data: data.decode().encode("utf-16"))
    yield "cut", at(DESCRIPTION, cut, 0.6)
    yield "made nested 100,000 deep", at(DESCRIPTION, said, ["made"], DEEP)
    yield "a class too many", at(DESCRIPTION, edited, lambda plain: (
        plain["class_names"].append("d"), plain["class_counts"].append(0)))
    yield "planted code", at(DESCRIPTION, planted)
    yield "a key that there is not", at(DESCRIPTION, said, ["more"], 1)


def indices() -> Iterator[tuple[str, Of]]:
    for column, value in (
        ("offset", HUGE), ("offset", -512), ("size", HUGE), ("size", -1), ("size", 0), ("size", 1 << 40),
        ("shard", 50), ("shard", -1), ("key", -1), ("key", HUGE), ("label", 50), ("label", -1), ("label", HUGE),
        ("crc32", -1), ("crc32", HUGE),
    ):
        yield f"a {column} of {value}", index(
            lambda tensors, column=column, value=value: tensors[column][5].fill_(value))
    for column in ("offset", "label", "shard", "size", "crc32", "key"):
        yield f"{column}: floats", index(lambda tensors, column=column: tensors.update({
            column: tensors[column].to(torch.float64)}))
        yield f"{column}: short", index(lambda tensors, column=column: tensors.update({column: tensors[column][:-2]}))
        yield f"{column}: absent", index(lambda tensors, column=column: tensors.pop(column))
    yield "label: of two dimensions", index(lambda tensors: tensors.update(label=tensors["label"][:, None]))
    yield "label: of 32 bits", index(lambda tensors: tensors.update(label=tensors["label"].to(torch.int32)))
    yield "label: truth", index(lambda tensors: tensors.update(label=tensors["label"] > 0))
    yield "a column too many", index(lambda tensors: tensors.update(more=torch.zeros(12)))
    yield "of no samples", index(lambda tensors: tensors.update({name: tensor[:0] for name, tensor in tensors.items()}))
    yield "all samples twice", index(lambda tensors: tensors.update({
        name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}))
    for what, content in (
        ("a header of 2^62 bytes", safetensors(b"{}", length=HUGE)), ("no header", b"\0" * 8), ("empty", b""),
        ("a header nested 100,000 deep", safetensors(str(DEEP).encode())),
        ("places that overlap", safetensors({
            name: {"dtype": "I64", "shape": [12], "data_offsets": [0, 96]} for name in ("label", "key", "shard")
        }, bytes(96))),
        ("a shape of 2^62", _labels("I64", [HUGE])), ("a type that there is not", _labels("Q9", [12])),
    ):
        yield what, entered(at(INDEX, replaced, content))
    yield "planted code", entered(at(INDEX, planted))
    yield "a torch.save with planted code", entered(at(INDEX, planted, in_a_zip))
    yield "its sum not put right", lambda folder: _not_entered(folder)


def _labels(dtype: str, shape: list[int]) -> bytes:
    return safetensors({"label": {"dtype": dtype, "shape": shape, "data_offsets": [0, 96]}}, bytes(96))


def _not_entered(folder: str) -> Harm:
    def harm(root: Path) -> None:
        before = (root / folder / DESCRIPTION).read_bytes()
        index(lambda tensors: tensors["label"].zero_())(folder)(root)
        (root / folder / DESCRIPTION).write_bytes(before)

    return harm


def files() -> Iterator[tuple[str, Of]]:
    for name in (DESCRIPTION, INDEX, SHARD, IDX):
        for what, make in KINDS.items():
            yield f"{name} is {what}", at(name, kind, make)
    for what in ("a pipe", "a link to itself", "a link to nothing"):
        yield f"the folder is {what}", lambda folder, make=KINDS[what]: kind(folder, make)
    yield "the folder is a file", lambda folder: kind(folder, lambda path: path.write_text("no folder"))


def shards() -> Iterator[tuple[str, Of]]:
    yield "a shard absent", at(SHARD, absent)
    yield "a shard cut", at(SHARD, cut, 0.7)
    yield "a shard longer", at(SHARD, longer)
    yield "an .idx absent", at(IDX, absent)
    yield "an .idx flipped", at(IDX, flipped, 1)
    yield "an .idx empty", at(IDX, replaced, b"")
    yield "an .idx of another shard", lambda folder: copied(f"{folder}/shard-000000.idx", f"{folder}/{IDX}")
    yield "a shard of another's bytes", lambda folder: copied(f"{folder}/shard-000000.tar", f"{folder}/{SHARD}")


def bytes_of_shards() -> Iterator[tuple[str, Of]]:
    """What only reading all of it shows; a step of training may not come to it."""
    yield "a shard of zeros", at(SHARD, zeros)
    for seed in range(4):
        yield f"a shard flipped, seed {seed}", at(SHARD, flipped, seed)


def fine() -> Iterator[tuple[str, Of]]:
    yield "untouched", lambda folder: nothing
    yield "behind a link", moved_behind_a_link
    yield "a shard behind a link", at(SHARD, moved_behind_a_link)
    yield "read-only", read_only
    yield "another file in it", lambda folder: lambda root: (root / folder / "notes.txt").write_text("ours")
    yield "a pipe of another name in it", at("a_pipe", kind, KINDS["a pipe"])


def cases() -> Iterator[Case]:
    readers = {
        "packed": cycle((doors.PACKED, doors.DOCTOR, doors.PACKED_IMAGES)),
        "latents": cycle((doors.LATENTS, doors.DOCTOR_LATENTS)),
    }
    folders = cycle(("packed", "packed", "packed", "latents"))

    def taken(of_kind: str, name: str, of: Of, wants: str, folder: str | None = None) -> Case:
        chosen = folder or next(folders)
        return Case(
            kind=of_kind, name=name, door=next(readers[chosen]), harm=of(chosen), wants=wants, names=(chosen,)
        )

    for name, of in descriptions():
        harmless = name.startswith(("made", "refused", "no made", "no refused", "in UTF-16"))
        wants = "either" if harmless else "refused"
        yield taken("packed: dataset.json", name, of, wants, "packed")
    for name, of in indices():
        yield taken("packed: index", name, of, "refused", "packed")
    exchanged = index(lambda tensors: tensors["label"].copy_(tensors["label"].roll(1)))
    yield Case(  # as many of each class as before: only reading all of it shows that
        kind="packed: index", name="labels exchanged", door=doors.DOCTOR, harm=exchanged("packed"), names=("packed",)
    )
    for name, of in shards():
        yield taken("packed: shards", name, of, "refused", "packed")
    for name, of in bytes_of_shards():
        for door in (doors.DOCTOR, doors.PACKED_IMAGES):
            wants = "refused" if door is doors.DOCTOR else "either"
            yield Case(kind="packed: shards", name=name, door=door, harm=of("packed"), wants=wants, names=("packed",))
    for name, of in files():
        yield taken("packed: kinds of file", name, of, "refused", "packed")
    for name, of in fine():
        for door in (doors.PACKED, doors.PACKED_IMAGES):
            yield Case(
                kind="packed: odd but fine", name=name, door=door, harm=of("packed"), wants="done", names=("packed",)
            )
    yield from latents()
    yield from unfinished()


def latents() -> Iterator[Case]:
    for name, harm in (
        *((f"shape is {value!r}", said("latents/dataset.json", ["content", "shape"], value)) for value in (
            None, [4, 8], [4, 8, 0], [4, 8, HUGE], ["4", 8, 8], [-4, 8, 8], 4, [4.0, 8, 8])),
        *((f"scale is {value!r}", said("latents/dataset.json", ["content", "scale"], value)) for value in (
            None, "1", -1.0, 0, [1], MANY_DIGITS)),
        *((f"vae is {value!r:.20}", said("latents/dataset.json", ["content", "vae"], value)) for value in (
            None, 5, [], {})),
        ("one member a sample", index(lambda tensors: tensors.update(offset=tensors["offset"][:, :1]))("latents")),
        ("a member of another size", index(lambda tensors: tensors["size"].sub_(2))("latents")),
    ):
        yield Case(kind="packed: latents", name=name, door=doors.LATENTS, harm=harm, names=("latents",))


def unfinished() -> Iterator[Case]:
    """A packing that was killed before its end, and goes on. Its scratch folder is its own; a record may be torn."""
    def record(harm: Callable[..., Harm], *arguments: object) -> Harm:
        def found(root: Path) -> None:
            path = sorted((root / "unfinished").rglob("*.safetensors"))[0]
            harm(path.relative_to(root).as_posix(), *arguments)(root)

        return found

    def settings(harm: Callable[..., Harm], *arguments: object) -> Harm:
        def found(root: Path) -> None:
            path = sorted((root / "unfinished").rglob("*.json"))[0]
            harm(path.relative_to(root).as_posix(), *arguments)(root)

        return found

    for name, harm, wants in (
        ("untouched", nothing, "done"),
        ("a record absent", record(absent), "done"),
        ("a record empty", record(replaced, b""), "either"),
        ("a record cut", record(cut, 0.6), "either"),
        ("a record of zeros", record(zeros), "either"),
        ("a record with planted code", record(planted), "either"),
        ("a record that is a pipe", record(kind, KINDS["a pipe"]), "either"),
        ("a record that is a folder", record(kind, KINDS["a folder"]), "either"),
        ("a record without its description", record(header_said, lambda header: header.pop("__metadata__")), "either"),
        ("a record of another description", record(header_said, lambda header: header.update(
            __metadata__={"about": "[]"})), "either"),
        ("a record of a shard in another folder", record(header_said, _another_shard), "either"),
        ("a record without labels", record(header_said, lambda header: header.update(
            more=header.pop("label"))), "either"),
        ("the settings cut", settings(cut, 0.5), "either"),
        ("the settings are a list", settings(replaced, "[]"), "either"),
        ("the settings nested 100,000 deep", settings(replaced, DEEP), "either"),
        ("the settings are a pipe", settings(kind, KINDS["a pipe"]), "either"),
        ("the settings without content", settings(unsaid, ["content"]), "either"),
        ("a shard absent", absent("unfinished/shard-000000.tar"), "either"),
        ("a shard that is a pipe", kind("unfinished/shard-000000.tar", KINDS["a pipe"]), "either"),
    ):
        yield Case(
            kind="packed: unfinished", name=name, door=doors.MAKE_SHARDS, harm=harm, wants=wants, names=("unfinished",)
        )


def _another_shard(header: dict) -> None:
    about = json.loads(header["__metadata__"]["about"])
    about["shard"]["name"] = "../other/config.yaml"
    header["__metadata__"]["about"] = json.dumps(about)
