"""Folders of images as systems, programs and people leave them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .cases import Case
from .pictures import BASIC, LOOKS, plain, png, written

JUNK = (
    "ant/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir/ant/0.jpg", "bee/.thumbnails/0.png", ".Trash-1000/files/0.png",
    "__MACOSX/ant/._0.png", "ant/._0.png", ".DS_Store", "ant/Thumbs.db", "ant/.ipynb_checkpoints/0-checkpoint.png",
    "#recycle/aaa/0.png", "$RECYCLE.BIN/S-1/0.png", "lost+found/0.png", "System Volume Information/0.png",
    ".@__thumb/ant/0.png", "desktop.ini", ".git/objects/0.png", "ant/_vti_cnf/0.png", "aaa/.hidden/0.png",
)


def source(files: dict[str, bytes], then: Callable[[Path], object] = lambda folder: None) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        folder = written(root, files)
        then(folder)
        return folder

    return make


def plus(**more: bytes) -> dict[str, bytes]:
    return {**BASIC, **more}


def looks(*names: str) -> list:
    return [(name, plain(number)) for number, name in enumerate(names)]


def each(*names: str, inner: str = "") -> dict[str, bytes]:
    """A class folder of each name, with one image."""
    return {f"{name}/{inner}0.png": png(number) for number, name in enumerate(names)}


def parquet(**columns: object) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def images(*numbers: int, **more: object) -> bytes:
    return parquet(image=[png(number) for number in numbers], label=list(range(len(numbers))), **more)


def cases() -> Iterator[Case]:
    def good(name: str, files: dict[str, bytes], want: list, **wants: object) -> Case:
        make = source(files, wants.pop("then", lambda folder: None))
        return Case(kind="folders", name=name, make=make, looks=want, **wants)

    def bad(name: str, files: dict[str, bytes], told: str, **options: object) -> Case:
        make = source(files, options.pop("then", lambda folder: None))
        return Case(kind="folders", name=name, make=make, told=told, **options)

    def classes(text: str) -> dict:
        return {"options": ("--classes", "{root}/source/../classes.txt"),
                "then": lambda folder: (folder.parent / "classes.txt").write_text(text, encoding="utf-8")}

    yield good("ordinary", BASIC, LOOKS)
    for name in JUNK:
        is_text = name.endswith((".db", ".ini"))
        if name.startswith("aaa"):
            yield bad(f"with {name}", plus(**{name: png(7)}), "'aaa' .*holds no image")
            continue
        yield good(f"with {name}", plus(**{name: b"x" if is_text else png(7)}), LOOKS,
                   left_out={"is ": 1})
    yield good("numbers", each("0", "1", "2", "10"), looks("0", "1", "2", "10"), classes=("0", "1", "2", "10"))
    yield good("numbers with zeros before them", each("000", "001", "010"), looks("000", "001", "010"))
    yield good("numbers from 1", each("1", "2", "3"), looks("1", "2", "3"))
    yield good("numbers with a gap", each("0", "1", "3"), looks("0", "1", "3"))
    yield bad("a number twice", each("1", "01", "2"), "named 1, with and without zeros")
    yield good("numbers in names", each("c1", "c2", "c10"), looks("c1", "c2", "c10"), classes=("c1", "c10", "c2"))
    yield good("accents in one way", each("\u00e9", "f", "z"), looks("\u00e9", "f", "z"), classes=("f", "z", "\u00e9"))
    yield good("accents in the other way", each("e\u0301", "f", "z"), looks("\u00e9", "f", "z"),
               classes=("f", "z", "\u00e9"))
    yield bad("accents in both ways", each("e\u0301", "\u00e9"), "accents written in two ways")
    yield good("capitals alone", each("a", "A"), looks("a", "A"), classes=("A", "a"))
    yield good("blanks in names", each("a b", "a b ", " a"), looks("a b", "a b ", " a"))
    yield good("names that are no text", each(os.fsdecode(b"caf\xe9"), "tea"), looks(os.fsdecode(b"caf\xe9"), "tea"))
    yield good("a line feed in a name", each("a\nb", "c"), looks("a\nb", "c"))
    yield good("folders named as images", each("a.png", "b.png"), looks("a.png", "b.png"))
    yield good("capital extensions", {"a/0.PNG": png(0), "b/0.Png": png(1)}, looks("a", "b"))
    yield good("in folders of their own", each("x/y/a", "x/y/b"), looks("a", "b"))
    yield good("images in an inner folder of each class", each("n1", "n2", inner="images/"), looks("n1", "n2"))
    yield bad("images in inner folders of two names", {"n1/images/0.png": png(0), "n2/pics/0.png": png(1)}, "depths")
    yield bad("thumbnails in a class", {**each("a", "b"), "a/thumbs/0.png": png(2)}, "different depths")
    yield bad("classes in groups", each("animal/cat", "animal/dog", "plant/rose"), "different depths")
    yield bad("a class in a class", {"a/0.png": png(0), "a/b/0.png": png(1), "c/0.png": png(2)}, "different depths")
    yield bad("an empty class", BASIC, "'dog' .*holds no image", then=lambda folder: (folder / "dog").mkdir())
    yield bad("a class of unknown images", plus(**{"dog/0.heic": b"x"}), "'dog' .*holds no image")
    yield bad("annotations beside classes", plus(**{"labels/0.xml": b"x"}), "'labels' .*holds no image")
    yield good("a class of bad images alone", {**each("a", "c"), "b/0.png": b""}, [("a", plain(0)), ("c", plain(1))],
               classes=("a", "b", "c"), left_out={"is empty": 1})
    yield good("an image beside the classes", plus(**{"0.png": png(7)}), LOOKS, left_out={"lies in no class folder": 1})
    yield bad("many images beside the classes", {**each("a"), **{f"{n}.png": png(n) for n in range(3)}}, "lie beside")
    yield bad("no folders", {"0.png": png(0)}, "holds no images in class folders")
    yield bad("hidden files alone", {".a/0.png": png(0)}, "holds no images in class folders")
    yield bad("splits", each("train/a", "train/b", "val/a", "val/b"), "named as a split is")
    yield bad("splits of other names", each("Training/a", "Test/a"), "named as a split is")
    yield bad("a split beside classes", each("a", "b", "val"), "named as a split is")
    yield good("one split alone", each("train/a", "train/b"), looks("a", "b"))
    yield good("one split of two", each("train/a", "train/b", "val/a"), looks("a", "b"), options=("--within", "train"),
               left_out={"lies outside of --within": 1})
    yield bad("a split that is not there", each("train/a", "val/a"), "is no folder", options=("--within", "test"))
    yield good("a class of trains", each("car", "train", "truck"), looks("car", "train", "truck"))
    yield good("splits that are classes", each("train", "test"), looks("train", "test"), classes=("train", "test"),
               **classes("train\ntest\n"))
    for name in ("metadata.csv", "metadata.jsonl", "metadata.parquet", "labels.csv", "README.md", "classes.txt"):
        content = parquet(file_name=["x"], label=[1]) if name.endswith("parquet") else b"file_name,label\n"
        yield good(f"{name} beside classes", plus(**{name: content}), LOOKS,
                   left_out={"is not an image by its name": 1})
    yield bad("images in parquet beside classes", plus(**{"data.parquet": images(0)}), "is not clear")
    yield bad("an archive of a class", plus(**{"dog.tar": b"x"}), "'dog.tar' .*may hold images")
    yield good("an archive beside its folder", plus(**{"cat.zip": b"x"}), LOOKS, left_out={"is not an image by": 1})
    yield bad("a link to a class", BASIC, "'dog' is a link", then=lambda folder: (folder / "dog").symlink_to("ant"))
    yield good("a link to an image", BASIC, LOOKS, left_out={"is a link": 1},
               then=lambda folder: (folder / "cat/1.png").symlink_to("../ant/0.png"))
    yield good("a pipe", BASIC, LOOKS, left_out={"is a device, a pipe": 1},
               then=lambda folder: os.mkfifo(folder / "cat/1.png"))
    yield good("an image and its mask", plus(**{"cat/0.bmp": png(4)}), LOOKS, left_out={"is PNG, not what its name": 1})
    yield good("classes in another order", BASIC, LOOKS, classes=("cat", "ant", "bee"), **classes("cat\nant\nbee\n"))
    yield good("some of the classes", BASIC, LOOKS[:3], classes=("bee", "ant"), left_out={"lies in no folder that": 1},
               **classes("bee\nant\n"))
    yield good("a class without a folder", BASIC, LOOKS, classes=("aaa", "ant", "bee", "cat"),
               **classes("aaa\nant\nbee\ncat\n"))
    yield good("a class in a class, as said", {"a/0.png": png(0), "a/b/0.png": png(1)}, looks("a", "a/b"),
               **classes("a\na/b\n"))
    yield good("groups, as said", each("animal/cat", "animal/dog", "plant/rose"), [
        ("animal", plain(0)), ("animal", plain(1)), ("plant", plain(2))], **classes("animal\nplant\n"))
    yield good("annotations, as said", plus(**{"labels/0.xml": b"x"}), LOOKS, left_out={"is not an image by": 1},
               **classes("ant\nbee\ncat\n"))
    yield bad("a class misspelt", BASIC, "'aunt'.*does not name 'ant'", **classes("aunt\nbee\ncat\n"))
    yield bad("a blank line among classes", BASIC, "line 2 is blank", **classes("ant\n\nbee\ncat\n"))
    yield bad("a class named twice", BASIC, "names 'ant' twice", **classes("ant\nbee\nant\n"))
    yield bad("no file of classes", BASIC, "cannot be read", options=("--classes", "{root}/none.txt"))
    yield from _parquet()


def _parquet() -> Iterator[Case]:
    def case(name: str, contents: dict[str, Callable[[], bytes]], **wants: object) -> Case:
        def make(root: Path) -> Path:
            folder = written(root, {file: data() for file, data in contents.items()})
            return folder / next(iter(contents)) if len(contents) == 1 else folder

        return Case(kind="parquet files", name=name, make=make, **wants)

    def part(*numbers: int) -> Callable[[], bytes]:
        return lambda: images(*numbers)

    two = looks("0", "1")
    yield case("one", {"a.parquet": part(0, 1)}, looks=two, files=2)
    yield case("named otherwise", {"a.bin": part(0, 1)}, looks=two, files=2)
    yield case("other columns", {"a.parquet": lambda: images(0, 1, mask=[png(3)] * 2)}, looks=two, files=2)
    yield case("two of one split", {f"train-0000{n}-of-00002.parquet": part(n) for n in range(2)},
               looks=[("0", plain(0)), ("0", plain(1))], files=2)
    yield case("two splits", {"train-00000-of-00001.parquet": part(0), "test-00000-of-00001.parquet": part(1)},
               told="several splits .test, train.")
    yield case("one split of two", {"train.parquet": part(0, 1), "test.parquet": part(2)}, looks=two, files=3,
               options=("--within", "train"), left_out={"is of another split": 1})
    yield case("a part is missing", {f"train-0000{n}-of-00003.parquet": part(n) for n in (0, 2)},
               told="lacks the parquet file train-00001-of-00003")
    yield case("what macOS and people add", {
        "a.parquet": part(0, 1), "._a.parquet": lambda: b"x", "README.md": lambda: b"x"}, looks=two, files=4,
        left_out={"is a hidden file": 1, "is none of the parquet files": 1})
    yield case("labels out of range", {"a.parquet": lambda: parquet(image=[png(0), png(1)], label=[0, -1])},
               looks=[("0", plain(0))], files=2, left_out={"has no label": 1})
    yield case("cut short", {"a.parquet": lambda: images(0, 1)[:-9]}, told="is not a whole parquet file")
