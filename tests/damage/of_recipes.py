"""What is done to recipes, to recorded cases, and to the places that results are written to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from . import doors
from .doors import Door
from .harm import (
    DEEP,
    KINDS,
    Harm,
    absent,
    cut,
    flipped,
    kind,
    link_to,
    moved_behind_a_link,
    nothing,
    planted,
    read_only,
    replaced,
    rewritten,
    said,
    zeros,
)
from .trial import Case

RECIPE = "recipe.yaml"


def recipes() -> Iterator[tuple[str, Harm, str]]:
    def line(text: str) -> Harm:
        return rewritten(RECIPE, lambda data: data + text.encode())

    yield "untouched", nothing, "done"
    yield "behind a link", moved_behind_a_link(RECIPE), "done"
    yield "read-only", read_only(RECIPE), "done"
    yield "with a mark of its byte order", rewritten(RECIPE, lambda data: b"\xef\xbb\xbf" + data), "done"
    yield "lines of Windows", rewritten(RECIPE, lambda data: data.replace(b"\n", b"\r\n")), "done"
    yield "in UTF-16", rewritten(RECIPE, lambda data: data.decode().encode("utf-16")), "either"
    yield "no Unicode", line("a: \udcff".encode(errors="surrogateescape").decode(errors="replace")), "refused"
    for what, make in KINDS.items():
        yield f"it is {what}", kind(RECIPE, make), "refused"
        yield f"what it inherits is {what}", kind("base.yaml", make), "refused"
    yield "what it inherits is absent", absent("base.yaml"), "refused"
    yield "it inherits itself", replaced("base.yaml", "inherit: [recipe.yaml]\n"), "refused"
    yield "it inherits /dev/zero", replaced("base.yaml", "inherit: [/dev/zero]\n"), "refused"
    yield "empty", replaced(RECIPE, b""), "refused"
    yield "zeros", zeros(RECIPE), "refused"
    yield "cut", cut(RECIPE, 0.6), "refused"
    yield "planted by a tag", line("run: !!python/object/apply:os.system ['touch executed']\n"), "refused"
    yield "planted by another tag", line("run: !!python/name:os.system\n"), "refused"
    yield "nested 100,000 deep", line(f"data: {DEEP}\n"), "refused"
    yield "nested 900 deep", line(f"data: {'[' * 900}{']' * 900}\n"), "refused"
    yield "doubled 40 times", line("".join(
        f"x{number}: &x{number} [{f'*x{number - 1}, *x{number - 1}' if number else '1'}]\n" for number in range(40)
    )), "refused"
    yield "merged 25 times, doubled", line("".join(
        f"y{number}: &y{number} {{{f'<<: [*y{number - 1}, *y{number - 1}]' if number else 'a: 1'}}}\n"
        for number in range(25)
    )), "refused"
    yield "a list that holds itself", line("data: &a [*a]\n"), "refused"
    yield "a mapping that holds itself", line("data: &a {global_batch: 8, more: *a}\n"), "refused"
    yield "a number of 5,000 digits", line(f"run: {{folder: {'1' * 5000}}}\n"), "refused"
    for text in ("loop: {steps: 1e3}", "loop: {steps: -1}", "loop: {steps: .nan}", "loop: null", "data: [digits]",
                 "objective: {kind: [afm]}", "1: 2", "? [a, b]\n: c", "---\na: 1",
                 "data: {kind: digits, global_batch: 2026-13-01}", "loop: {steps: !!binary aGk=}",
                 "loop: {steps: !!set {1}}", "run: {folder: \"a\\0b\"}", "loop: {steps: 9223372036854775808}",
                 "model: {generator: {depth: 1000000000}}", "data: {global_batch: 1000000000000}"):
        yield f"a line {text!r:.48}", rewritten(RECIPE, lambda data, text=text: (
            b"inherit: [base.yaml]\n" + text.encode() + b"\n")), "refused"


def recorded() -> Iterator[tuple[str, Harm, str]]:
    for file in ("case.json", "case.safetensors"):
        yield f"{file}: absent", absent(file), "refused"
        yield f"{file}: cut", cut(file, 0.5), "refused"
        yield f"{file}: planted code", planted(file), "refused"
        for what in ("a pipe", "a folder", "a link to itself", "a link to /dev/zero"):
            yield f"{file}: {what}", kind(file, KINDS[what]), "refused"
    yield "case.json: nested 100,000 deep", replaced("case.json", DEEP), "refused"
    yield "case.json: a list", replaced("case.json", "[]"), "refused"
    yield "case.json: null", replaced("case.json", "null"), "refused"
    yield "case.json: no Unicode", replaced("case.json", b"\xff\xfe\xfd"), "refused"
    yield "case.json: a lie", said("case.json", ["model"], 5), "refused"
    yield "case.safetensors: flipped", flipped("case.safetensors", 1, between=(0.0, 0.001)), "either"


# Places of results. What lies there already is another's.


def _target(door: Door, name: str, *words: str) -> Door:
    def command(root: Path) -> list[str]:
        return [*map(str, door.words(root)), *(word.replace("ROOT", str(root)) for word in words)]

    return replace(door, name=f"{door.name} {name}", words=command)


TARGETS = (
    _target(doors.SAMPLE, "--grid", "--grid", "ROOT/target"),
    _target(doors.SAMPLE, "--npz", "--npz", "ROOT/target"),
    _target(doors.OF_SAMPLES, "--write-reference", "--write-reference", "ROOT/target"),
)


NEW = ("out/00000[023].png", "out/sampled.json", "out/.*")  # beside the one image that lies there


def targets() -> Iterator[Case]:
    for door in TARGETS:
        suffix = "target"
        for what, make in (
            *KINDS.items(), ("a link to another run's file", link_to("other/config.yaml")),
            ("a link to a pipe", lambda path: (KINDS["a pipe"](path.with_name("pipe")), path.symlink_to("pipe"))),
        ):
            yield Case(
                kind="places of results", name=f"it is {what}", door=door, harm=kind(suffix, make), names=("target",)
            )
    out = replace(doors.SAMPLE, name="sample --out")
    for what in ("a pipe", "a socket", "a link to itself", "a link to /dev/full"):
        yield Case(
            kind="places of results", name=f"it is {what}", door=out, harm=kind("out", KINDS[what]), names=("out",)
        )
    inside = replace(doors.SAMPLE, name="sample --out, an image there", writes=(), touches=NEW)
    for what in ("a pipe", "a folder", "a link to another run's file"):
        make = KINDS.get(what, link_to("../other/config.yaml"))
        yield Case(
            kind="places of results", name=f"000001.png is {what}", door=inside, names=("out",),
            harm=lambda root, make=make: ((root / "out").mkdir(), make(root / "out" / "000001.png")),
        )
    yield Case(
        kind="places of results", name="images of nobody there", door=inside, names=("out",),
        harm=lambda root: ((root / "out").mkdir(), (root / "out" / "000001.png").write_bytes(b"another's")),
    )


def cases() -> Iterator[Case]:
    readers = cycle((doors.SHOW, doors.TRAIN_RECIPE))
    for name, harm, wants in recipes():
        door = next(readers)
        names = (RECIPE, "base.yaml", "/dev/zero")
        yield Case(kind="recipes", name=name, door=door, harm=harm, wants=wants, names=names)
    for name, harm, wants in recorded():
        yield Case(
            kind="recorded cases", name=name, door=doors.REPLAY, harm=harm, wants=wants,
            names=("case.json", "case.safetensors"),
        )
    yield from targets()
