"""What is done to checkpoints: manifests, the plan of the storage, the tensors, and the places of all of them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import cycle
from pathlib import Path

import torch

from . import doors
from .doors import NEWEST, OLDER, Door
from .harm import (
    DEEP,
    HUGE,
    KINDS,
    LONG,
    MANY_DIGITS,
    Harm,
    Planted,
    a_folder,
    absent,
    by_a_dotted_name,
    by_builtins,
    copied,
    cut,
    edited,
    fifo,
    flipped,
    in_a_zip,
    kind,
    longer,
    moved_behind_a_link,
    nothing,
    plant,
    planted,
    read_only,
    replaced,
    rewritten,
    said,
    together,
    unsaid,
    zeros,
)
from .trial import Case

NEW = f"run/checkpoints/{NEWEST}"
OLD = "old/checkpoints/step_00000003"
MANIFEST, METADATA, TENSORS, SUMS = "manifest.json", ".metadata", "__0_0.distcp", "SHA256SUMS"
NAMES = ("checkpoints/", "/run", "/old")

Of = Callable[[str], Harm]
"""From the folder of a checkpoint to a harm done to it."""


def without_newest(root: Path) -> None:
    """What every harm of the newest is like, if it is found: the older one is taken."""
    (root / NEW / MANIFEST).unlink()


def at(name: str, harm: Callable[..., Harm], *arguments: object, **options: object) -> Of:
    return lambda folder: harm(f"{folder}/{name}", *arguments, **options)


def sealed(of: Of) -> Of:
    """With the sums of the manifest put right, where there are any: what a liar would do."""
    return lambda folder: together(of(folder), lambda root: _put_right(root / folder, MANIFEST))


def entered(of: Of, name: str) -> Of:
    """With the size and the sum of a file put right in the manifest, and its own sums."""
    def harm_of(folder: str) -> Harm:
        def enter(root: Path) -> None:
            if (root / folder / name).is_file():
                content = (root / folder / name).read_bytes()
                said(f"{folder}/{MANIFEST}", ["files", name], len(content))(root)
                _put_right(root / folder, name)
                if json.loads((root / folder / MANIFEST).read_bytes()).get("sha256"):
                    said(f"{folder}/{MANIFEST}", ["sha256", name], sha256(content).hexdigest())(root)
                _put_right(root / folder, MANIFEST)

        return together(of(folder), enter)

    return harm_of


def _put_right(folder: Path, name: str) -> None:
    """The line of a file among the sums, if there are any."""
    sums = folder / SUMS
    if sums.is_file():
        own = f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        lines = sums.read_text().splitlines(keepends=True)
        sums.write_text("".join(own if line.endswith(f"  {name}\n") else line for line in lines))


def lies() -> Iterator[tuple[str, Of]]:
    """Those that must be seen wherever a checkpoint is read."""
    values = {
        "step": (None, -1, 1.5, "4", True, [4], MANY_DIGITS),
        "world_size": (None, 0, "1", -3),
        "scalars": (None, [], "none"),
        "tensors": (None, [], {}, "all", 7),
        "files": (None, [], {}, "all", -1),
        "description": (None, [], "mine"),
        "card": ([], "a card", {}, 3),
        "created": (None, 7),
    }
    for key, lied in values.items():
        for value in lied:
            yield f"{key} is {value!r:.20}", at(MANIFEST, said, [key], value)
    for key in values:
        if key != "card":
            yield f"no {key}", at(MANIFEST, unsaid, [key])
    yield "format of another program", at(MANIFEST, said, ["format"], "pickle")
    for value in (None, "1", 99, 1.5, [1]):
        yield f"format_version is {value!r}", at(MANIFEST, said, ["format_version"], value)
    for value in ([10**15], [10**7, 10**7], None, [-1], ["a"], [True], 1.5, [1.5], [1] * 2000, [[8]], {}):
        yield f"a shape is {value!r:.24}", at(MANIFEST, of_a_tensor, "shape", value)
    for value in ("load", "float", "complex64", "int64", "Tensor", "__class__", 5, None, LONG, "", ["float32"]):
        yield f"a dtype is {value!r:.20}", at(MANIFEST, of_a_tensor, "dtype", value)
    for value in (None, [], 5, {}, "float32"):
        yield f"a tensor is {value!r}", at(MANIFEST, of_a_tensor, None, value)
    yield "a tensor is missing", at(MANIFEST, edited, lambda plain: plain["tensors"].popitem())
    yield "a tensor too many", at(MANIFEST, said, ["tensors", "average.more"], {"shape": [2], "dtype": "float32"})
    yield "a tensor of 5,000 letters", at(MANIFEST, said, ["tensors", LONG], {"shape": [2], "dtype": "float32"})
    for value in (None, -1, "500", 1.5, HUGE, True, []):
        yield f"a file's size is {value!r}", at(MANIFEST, said, ["files", TENSORS], value)
    for name in ("../../../other/config.yaml", "/etc/hostname", "", ".", "..", LONG, "a\0b", "\ud800"):
        yield f"a file is called {name!r:.30}", at(MANIFEST, said, ["files", name], 5)
    yield "a file that is not listed", at(MANIFEST, unsaid, ["files", TENSORS])
    yield "nested 100,000 deep", at(MANIFEST, replaced, DEEP)
    yield "a description nested 100,000 deep", at(MANIFEST, said, ["description"], DEEP)
    yield "a card nested 100,000 deep", at(MANIFEST, said, ["card"], DEEP)
    for text in ("", "null", "[]", "5", '"manifest"', "{", "{}", "not JSON", "\x00" * 64, "\ufeff{}", "NaN", "[" * 50):
        yield f"its text is {text[:12]!r}", at(MANIFEST, replaced, text)
    yield "in UTF-16", at(MANIFEST, rewritten, lambda data: data.decode().encode("utf-16"))
    yield "no Unicode", at(MANIFEST, rewritten, lambda data: data.replace(b"afm_scale", b"afm\xffscale"))
    for share in (0.1, 0.5, 0.999):
        yield f"cut to {share:g}", at(MANIFEST, cut, share)
    yield "zeros", at(MANIFEST, zeros)
    yield "planted code", at(MANIFEST, planted)


def of_a_tensor(name: str, key: str | None, value: object) -> Harm:
    def change(plain: dict) -> None:
        first = next(name for name in plain["tensors"] if name.startswith("average."))
        if key is None:
            plain["tensors"][first] = value
        else:
            plain["tensors"][first][key] = value

    return edited(name, change)


def lies_of_the_card() -> Iterator[tuple[str, Of]]:
    values: dict[str, tuple[object, ...]] = {
        "version": (2, None, "1", True), "learner": ("judge", None, 1), "objective": (None, 5),
        "networks": (None, {}, [], "dit", {"generator": None}, {"generator": {"kind": "x"}}),
        "shape": (None, [10**15, 1, 1], [0, 8, 8], [-1, 8, 8], "abc", [1, 8], [1, 8.5, 8], [1, 8, HUGE]),
        "num_classes": (0, -1, None, HUGE, 1.5), "prediction": ("z", 1, None), "num_steps": (0, -1, None, "1"),
        "precision": ("fp1", None, 32), "device": ("meta", 5, LONG), "ops": ("mine", None), "data": (None, [], {}),
        "latents": ([], "none", {"vae": 5, "scale": 1.0}, {"vae": None, "scale": -1.0}, {"vae": None}),
        "class_dropout": (None, -0.5, 7, "none"),
    }
    for key, lied in values.items():
        for value in lied:
            yield f"card: {key} is {value!r:.30}", at(MANIFEST, said, ["card", key], value)
    for key, lied in {
        "hidden_size": (10**9, 0, -8, None, "16", 17), "depth": (10**9, -1, 1.5), "num_heads": (0, 3, 10**9),
        "patch_size": (0, 3, 10**6),
    }.items():
        for value in lied:
            yield f"card: the network's {key} is {value!r}", at(
                MANIFEST, said, ["card", "networks", "generator", key], value
            )


def lies_of_an_old_configuration() -> Iterator[tuple[str, Of]]:
    for keys, value in (
        (["model"], None), (["model", "generator"], None), (["data"], []), (["data", "kind"], "sounds"),
        (["data", "kind"], ["digits"]), (["objective", "kind"], None), (["sampling"], None),
        (["sampling", "num_steps"], -4), (["parallel", "precision"], {}), (["model", "generator", "depth"], 10**9),
        (["model", "generator", "hidden_size"], "8"), (["model", "generator", "kind"], LONG),
    ):
        yield f"old configuration: {'.'.join(keys)} is {value!r:.12}", at(
            MANIFEST, said, ["description", "config", *keys], value
        )


# The plan of the storage, a pickle.


def metadata(change: Callable[[object], object]) -> Of:
    """A lie in it, written as torch writes it."""
    def rewrite(data: bytes) -> bytes:
        found = pickle.loads(data)  # a file that was made here
        return pickle.dumps(change(found) or found)

    return at(METADATA, rewritten, rewrite)


def _every_place(name: str, value: object) -> Callable[[object], None]:
    def change(found: object) -> None:
        found.storage_data = {
            index: place.__class__(**{**vars(place), name: value}) for index, place in found.storage_data.items()
        }

    return change


def _every_chunk(name: str, value: object) -> Callable[[object], None]:
    def change(found: object) -> None:
        for entry in found.state_dict_metadata.values():
            for chunk in getattr(entry, "chunks", ()):
                setattr(chunk, name, value)

    return change


def planted_plans() -> Iterator[tuple[str, Of]]:
    yield "planted os.system", at(METADATA, planted)
    yield "planted exec", at(METADATA, planted, by_builtins)
    yield "planted by a dotted name", at(METADATA, planted, by_a_dotted_name)
    yield "planted in a good one", lambda folder: lambda root: _plant_inside(root, root / folder / METADATA)


def _plant_inside(root: Path, path: Path) -> None:
    found = pickle.loads(path.read_bytes())  # a file that was made here
    found.planner_data = Planted(root)
    path.write_bytes(pickle.dumps(found))


def plans() -> Iterator[tuple[str, Of]]:
    yield "planted os.system, protocol 0", at(METADATA, planted, lambda root: plant(root, 0))
    yield "a torch.save with planted code", at(METADATA, planted, in_a_zip)
    yield "empty", at(METADATA, replaced, b"")
    yield "zeros", at(METADATA, zeros)
    yield "text", at(METADATA, replaced, "no pickle")
    yield "a number", at(METADATA, replaced, pickle.dumps(5))
    yield "none at all", at(METADATA, absent)
    yield "an opcode that asks for 2^60 bytes", at(METADATA, replaced, b"\x80\x04\x8e" + (2**60).to_bytes(8, "little"))
    yield "nested 100,000 deep", at(METADATA, replaced, b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    yield "doubled 40 times", at(METADATA, replaced, b"\x80\x04)" + b"\x94h\x00\x86" * 1 + b"2\x86" * 40 + b".")
    for share in (0.2, 0.9):
        yield f"cut to {share:g}", at(METADATA, cut, share)
    for seed in range(6):
        yield f"flipped, seed {seed}", at(METADATA, flipped, seed, bits=3)
    yield "without storage_data", metadata(lambda found: setattr(found, "storage_data", None))
    yield "without tensors", metadata(lambda found: found.state_dict_metadata.clear())
    yield "files in another run", metadata(_every_place("relative_path", "../../../other/checkpoints/x"))
    yield "files of another type", metadata(_every_place("relative_path", 7))
    yield "offsets of 2^62", metadata(_every_place("offset", HUGE))
    yield "negative offsets", metadata(_every_place("offset", -5))
    yield "lengths of 2^62", metadata(_every_place("length", HUGE))
    yield "negative lengths", metadata(_every_place("length", -1))
    yield "all places the same", metadata(_every_place("offset", 0))
    yield "pieces of 10^15", metadata(_every_chunk("sizes", torch.Size([10**15])))
    yield "pieces at negative offsets", metadata(_every_chunk("offsets", torch.Size([-3])))
    yield "pieces of another rank", metadata(_every_chunk("sizes", torch.Size([1] * 9)))


# The tensors.


def in_the_largest(make: Callable[[Path], bytes]) -> Of:
    """Other bytes in the place of the largest tensor, as many as there were."""
    def of(folder: str) -> Harm:
        def harm(root: Path) -> None:
            places = pickle.loads((root / folder / METADATA).read_bytes()).storage_data.values()
            place = max((one for one in places if one.relative_path == TENSORS), key=lambda one: one.length)
            path = root / folder / TENSORS
            data = bytearray(path.read_bytes())
            data[place.offset:place.offset + place.length] = _filled(make(root), place.length)
            path.write_bytes(data)

        return harm

    return of


def _filled(archive: bytes, length: int) -> bytes:
    """The same zip made longer by a member that nobody reads."""
    for filler in range(length, 0, -1):
        file = io.BytesIO(archive)
        with zipfile.ZipFile(file, "a") as added:
            added.writestr("archive/filler", bytes(filler))
        if len(file.getvalue()) <= length:
            return file.getvalue().ljust(length, b"\0")
    raise AssertionError("the place is too small")


def saved(tensor: object) -> Callable[[Path], bytes]:
    def make(root: Path) -> bytes:
        file = io.BytesIO()
        torch.save(tensor, file)
        return file.getvalue()

    return make


def damaged_tensors() -> Iterator[tuple[str, Of]]:
    """Those that sums show."""
    for seed, between in enumerate(((0.0, 0.01), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.999, 1.0))):
        yield f"a bit flipped at {between[0]:g} of its length", at(TENSORS, flipped, seed, between=between)
    yield "40 bits flipped", at(TENSORS, flipped, 40, bits=40)
    yield "longer", at(TENSORS, longer)
    yield "as long, but zeros", at(TENSORS, zeros)
    yield "of another run", lambda folder: copied(f"other/checkpoints/{OLDER}/{TENSORS}", f"{folder}/{TENSORS}")
    yield "of an older step", lambda folder: copied(f"run/checkpoints/{OLDER}/{TENSORS}", f"{folder}/{TENSORS}")


def tensors_of_a_liar() -> Iterator[tuple[str, Of]]:
    """With sums that were put right, or in checkpoints from before there were any."""
    for share in (0.0, 0.5, 0.999):
        yield f"cut to {share:g}", at(TENSORS, cut, share)
    yield "absent", at(TENSORS, absent)
    yield "planted code", at(TENSORS, planted)
    yield "planted code in one tensor", in_the_largest(in_a_zip)
    yield "a tensor of another shape", in_the_largest(saved(torch.zeros(3)))
    yield "a tensor of another type", in_the_largest(saved({"not": "a tensor"}))


def places() -> Iterator[tuple[str, Of]]:
    for name in (MANIFEST, METADATA, TENSORS):
        for what, make in KINDS.items():
            yield f"{name} is {what}", at(name, kind, make)
    for what in ("a pipe", "a link to itself", "a link to nothing", "a socket"):
        yield f"the folder is {what}", lambda folder, make=KINDS[what]: kind(folder, make)
    yield "the folder is a file", lambda folder: kind(folder, lambda path: path.write_text("no folder"))
    yield "the folder is empty", lambda folder: kind(folder, lambda path: path.mkdir())
    yield "the folder holds other things", lambda folder: kind(folder, a_folder)


def odd_but_fine() -> Iterator[tuple[str, Of]]:
    yield "untouched", lambda folder: nothing
    yield "another file in it", lambda folder: lambda root: (root / folder / "notes.txt").write_text("ours")
    yield "another folder in it", lambda folder: lambda root: (root / folder / "notes").mkdir()
    yield "a pipe of another name in it", lambda folder: lambda root: fifo(root / folder / "a_pipe")
    yield "it lies elsewhere, behind a link", moved_behind_a_link
    yield "its tensors lie elsewhere, behind a link", lambda folder: moved_behind_a_link(f"{folder}/{TENSORS}")
    yield "its manifest lies elsewhere, behind a link", lambda folder: moved_behind_a_link(f"{folder}/{MANIFEST}")
    yield "all is read-only", read_only
    yield "other names beside it", lambda folder: lambda root: _clutter((root / folder).parent)


def _clutter(folder: Path) -> None:
    (folder / "step_000").mkdir()
    (folder / "step_latest").symlink_to(NEWEST)
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "step_00000004.tar").write_bytes(b"")
    (folder / "readme").write_text("ours")


def cases() -> Iterator[Case]:
    """Every harm is taken to a door or two; the doors take turns, so that each sees harms of every kind."""
    of_run, of_one, of_old = cycle(doors.OF_RUN), cycle(doors.OF_CHECKPOINT), cycle(doors.OF_OLD)
    every = cycle((of_one, of_run, of_old, of_one, of_old))
    for name, of in lies():
        yield _case("checkpoint: manifest", name, sealed(of), next(next(every)), may_ignore=name == "in UTF-16")
    reads_card = cycle((doors.SAMPLE_ONE, doors.LOAD_ONE, doors.EVALUATE_ONE, doors.LOAD, doors.SAMPLE))
    for name, of in lies_of_the_card():
        yield _case("checkpoint: card", name, sealed(of), next(reads_card), may_refuse=True)
    reads_configuration = cycle((doors.OLD_SAMPLE, doors.OLD_LOAD))
    for name, of in lies_of_an_old_configuration():
        yield _case("checkpoint: card", name, of, next(reads_configuration))
    for name, of in planted_plans():
        for door in (*doors.OF_CHECKPOINT, next(of_run), next(of_old)):
            yield _case("checkpoint: .metadata", name, entered(of, METADATA), door, may_ignore=True)
    for name, of in plans():
        yield _case("checkpoint: .metadata", name, entered(of, METADATA), next(next(every)), may_ignore=True)
    for name, of in damaged_tensors():
        yield _case("checkpoint: tensors", name, of, next(of_one))
        yield _case("checkpoint: tensors", name, of, next(of_run))
    reads_all = cycle((doors.OLD_TRAIN, doors.RESUME_ONE, doors.OLD_INSPECT, doors.INSPECT_ONE, doors.TRAIN))
    for name, of in tensors_of_a_liar():
        for _ in range(2):
            yield _case("checkpoint: tensors", name, entered(of, TENSORS), next(reads_all), may_refuse=True)
    for name, of in places():
        doors_of = next(every)
        yield _case("checkpoint: kinds of file", name, of, next(doors_of), may_ignore=METADATA in name)
    for name, of in odd_but_fine():
        for doors_of in (of_one, of_run):
            door = next(doors_of)
            yield Case(kind="checkpoint: odd but fine", name=name, door=door, harm=of(NEW), wants="done", names=NAMES)


def _case(
    of_kind: str, name: str, of: Of, door: Door, *, may_refuse: bool = False, may_ignore: bool = False
) -> Case:
    """What is wanted of a door that has a damaged checkpoint before it: of a run it takes the older one.

    Args:
        may_refuse: whether it may also end there: what only a liar can have done need not count as torn.
        may_ignore: whether it may do without this file, and have the good result.
    """
    wants, like = ("done", (without_newest,)) if door in doors.OF_RUN else ("refused", ())
    if may_ignore:
        wants, like = "either", (nothing, *like)
    elif may_refuse and wants == "done":
        wants = "either"
    harm = of(OLD if door in doors.OF_OLD else NEW)
    return Case(kind=of_kind, name=name, door=door, harm=harm, wants=wants, like=like, names=NAMES)
