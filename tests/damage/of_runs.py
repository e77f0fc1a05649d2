"""What is done to a run's folder beside its newest checkpoint: logs, configuration, places, and all checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from . import doors
from .doors import NEWEST, OLDER
from .harm import DEEP, KINDS, Harm, absent, copied, cut, flipped, kind, link_to, replaced, together, zeros
from .of_checkpoints import MANIFEST, METADATA, TENSORS, at
from .trial import Case

CHECKPOINTS = "run/checkpoints"


def added(name: str, line: bytes) -> Harm:
    """A line at the end of a log."""
    def harm(root: Path) -> None:
        with (root / name).open("ab") as file:
            file.write(line)

    return harm


def instead(name: str, line: bytes) -> Harm:
    """A line in the place of the first one."""
    def harm(root: Path) -> None:
        lines = (root / name).read_bytes().splitlines(keepends=True)
        (root / name).write_bytes(b"".join([line + b"\n", *lines[1:]]))

    return harm


def logs() -> Iterator[tuple[str, Harm, str]]:
    """(what is done, the harm, what is wanted of `train`)."""
    for log in ("events.jsonl", "metrics.jsonl"):
        name = f"run/{log}"
        yield f"{log}: its last line is torn", added(name, b'{"step": 4, "kind'), "done"
        yield f"{log}: absent", absent(name), "done"
        yield f"{log}: empty", replaced(name, b""), "done"
        yield f"{log}: a pipe", kind(name, KINDS["a pipe"]), "refused"
        yield f"{log}: a socket", kind(name, KINDS["a socket"]), "refused"
        yield f"{log}: a folder", kind(name, KINDS["a folder"]), "refused"
        yield f"{log}: a link to another run's", kind(name, link_to(f"../other/{log}")), "refused"
        yield f"{log}: a link to /dev/full", kind(name, KINDS["a link to /dev/full"]), "refused"
        for line in (b"[]", b"5", b"null", b'"text"', b"not JSON", b"\xff\xfe", b"", b"{}", b'{"step": null}',
                     b'{"step": "4"}', b'{"step": [1]}', b'{"step": NaN}', b'{"step": 1e999}'):
            yield f"{log}: its first line is {line.decode(errors='replace')!r}", instead(name, line), "either"
        yield f"{log}: a line nested 100,000 deep", instead(name, DEEP.encode()), "either"
        yield f"{log}: zeros", zeros(name), "either"
    for file in ("config.yaml", "summary.json"):
        name = f"run/{file}"
        yield f"{file}: a pipe", kind(name, KINDS["a pipe"]), "refused"
        yield f"{file}: a folder", kind(name, KINDS["a folder"]), "refused"
        yield f"{file}: absent", absent(name), "done"
        yield f"{file}: a link to another run's", kind(name, link_to(f"../other/{file}")), "either"
        yield f"{file}: not its format", replaced(name, b"[: {\0"), "either"
        yield f"{file}: nested 100,000 deep", replaced(name, DEEP), "either"
        yield f"{file}: empty", replaced(name, b""), "either"


def places() -> Iterator[tuple[str, Harm, str]]:
    for name in ("run/checkpoints", "run"):
        for what in ("a pipe", "a socket", "a link to itself"):
            yield f"{name.rpartition('/')[2]}: {what}", kind(name, KINDS[what]), "refused"
        yield f"{name.rpartition('/')[2]}: a file", kind(name, lambda path: path.write_text("no folder")), "refused"
    partial = f"{CHECKPOINTS}/.step_00000006.partial-0"
    yield "left by a kill: a folder", copied(f"{CHECKPOINTS}/{OLDER}", partial), "done"
    yield "left by a kill: a link to another run", kind(partial, link_to("../../other")), "done"
    yield "left by a kill: a pipe", kind(partial, KINDS["a pipe"]), "done"
    newer = f"{CHECKPOINTS}/step_00000009"
    yield "a newer checkpoint: an empty folder", kind(newer, lambda path: path.mkdir()), "torn"
    yield "a newer checkpoint: a file", kind(newer, lambda path: path.write_text("")), "torn"
    yield "a newer checkpoint: a link to nothing", kind(newer, link_to("absent")), "torn"
    yield "a newer checkpoint: 200 digits", kind(f"{CHECKPOINTS}/step_{'9' * 200}", lambda path: path.mkdir()), "torn"


def a_torn_one_more(root: Path) -> None:
    (root / CHECKPOINTS / "step_00000008").mkdir()


def none_whole() -> Iterator[tuple[str, Harm]]:
    """Both checkpoints of a run are damaged."""
    def both(name: str, harm: Callable[..., Harm], *arguments: object, **options: object) -> Harm:
        return together(*(at(name, harm, *arguments, **options)(f"{CHECKPOINTS}/{step}") for step in (NEWEST, OLDER)))

    yield "no manifests", both(MANIFEST, absent)
    yield "empty manifests", both(MANIFEST, replaced, b"")
    yield "cut manifests", both(MANIFEST, cut, 0.5)
    yield "no tensors", both(TENSORS, absent)
    yield "cut tensors", both(TENSORS, cut, 0.5)
    yield "flipped tensors", both(TENSORS, flipped, 3, bits=5)
    yield "tensors of zeros", both(TENSORS, zeros)
    yield "no plan of the storage", both(METADATA, absent)
    yield "empty folders", both("", kind, lambda path: path.mkdir())
    yield "files in the place of folders", both("", kind, lambda path: path.write_text(""))


def cases() -> Iterator[Case]:
    # What the last word lies in is seen when all work is done.
    to_its_end = replace(doors.TRAIN, touches=doors.TRAIN.writes)
    for name, harm, wants in logs():
        door = to_its_end if name.startswith("summary.json") else doors.TRAIN
        yield Case(
            kind="run: logs and settings", name=name, door=door, harm=harm, wants=wants,
            names=(name.partition(":")[0],),
        )
    reads = cycle((doors.SAMPLE, doors.INSPECT, doors.LOAD, doors.EVALUATE, doors.RESUME, doors.INITIALISE))
    for name, harm, wants in places():
        like = (a_torn_one_more,) if wants == "torn" else ()
        for door in (doors.TRAIN, next(reads)):
            yield Case(
                kind="run: places", name=name, door=door, harm=harm, wants="done" if wants == "torn" else wants,
                like=like, names=("run",),
            )
    # A run that has nothing to go on from is neither begun again nor touched.
    strict = replace(
        doors.TRAIN, name="train goes on, none whole", touches=("run/events.jsonl", "run/.*")
    )
    for name, harm in none_whole():
        for door in (strict, next(reads)):
            yield Case(kind="run: no checkpoint is whole", name=name, door=door, harm=harm, names=("checkpoints",))
    yield Case(
        kind="run: no checkpoint is whole", name="there never was one", door=replace(doors.TRAIN, name="train begins"),
        harm=absent("run"), wants="done", like=(absent("run"),), names=("run",),
    )
