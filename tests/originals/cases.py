"""What a case is, and how it is judged."""

from __future__ import annotations

import io
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.data.description import read_description
from afm_scale.data.shards import PackedShards
from afm_scale.data.transforms import adm_crop

SIZE = 16
NEAR = 12.0  # grey levels on average: JPEG and CMYK move colours a little, and no two pictures are so near
FILES = Mapping[str, bytes]
Look = tuple[str, Image.Image]
"""A class, and how the image of it looks."""


@dataclass(frozen=True, kw_only=True)
class Case:
    kind: str
    name: str
    make: Callable[[Path], Path]  # writes the source below a folder, and returns it
    looks: Sequence[Look] = ()  # all samples that are wanted; none: a refusal
    classes: Sequence[str] = ()  # in the order of their numbers; left out: those of `looks`, sorted
    told: str = ""  # of the refusal
    options: Sequence[str] = ()  # {root} is the folder
    changes: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)  # by the beginning of the reason
    files: int | None = None  # that the source holds; None: counted here, where that can be

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Verdict:
    came_to: str  # packed, refused, or what is wrong
    words: str

    @property
    def is_good(self) -> bool:
        return self.came_to in ("packed", "refused")


def run(*words: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process, whose workers need not import everything each time."""
    printed, told = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(told):
        code = main([str(word) for word in words])
    return code, printed.getvalue(), told.getvalue()


def judge(case: Case) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="originals_", ignore_cleanup_errors=True) as name:
        root = Path(name)
        source, out = case.make(root), root / "packed"
        words = [word.format(root=root) for word in case.options]
        code, printed, told = run(
            "make_shards", source, out, "--size", SIZE, "--shards", 1, "--workers", 1, *words
        )
        lines = [line for line in told.splitlines() if not line.endswith(" images")]  # of progress
        if code == EXIT_USER_ERROR:
            words = lines[-1] if lines else ""
            if case.looks:
                return Verdict("refused, and is good", words)
            if len(lines) != 1 or not re.search(case.told, words) or (out / "dataset.json").exists():
                return Verdict("no message, several or another", "; ".join(lines))
            return Verdict("refused", words.replace(str(root), ""))
        if code != EXIT_DONE:
            return Verdict(f"exit code {code}", "; ".join(lines[-3:]))
        wrong = wrong_in(case, source, out, printed)
        return Verdict("packed" if not wrong else "packed wrongly", wrong or _in_short(out))


def wrong_in(case: Case, source: Path, out: Path, printed: str) -> str:
    """What of a packed set is not as wanted; empty if all is."""
    done = read_description(out)
    account = done.account
    classes = tuple(case.classes or sorted({name for name, _ in case.looks}))
    if not case.looks or done.class_names != classes:
        return f"classes {done.class_names}, wanted {classes if case.looks else 'a refusal'}"
    missing = [name for number, name in enumerate(classes) if not re.search(rf"^ +{number}  ", printed, re.MULTILINE)]
    if missing:
        return f"the table of classes lacks {missing}"
    shards = PackedShards(out)
    try:
        samples = [
            (int(shards.index.label[number]), Image.open(io.BytesIO(shards.read(number))))
            for number in range(shards.num_samples)
        ]
        mode = {image.mode for _, image in samples}
        pixels = [(label, _pixels(image)) for label, image in samples]
    finally:
        shards.close()
    if "--raw" not in case.options and mode != {"L" if "--grey" in case.options else "RGB"}:
        return f"stored as {mode}"
    for name, look in case.looks:
        wanted = _pixels(look)
        near = [one for one in pixels if one[0] == classes.index(name) and np.abs(one[1] - wanted).mean() < NEAR]
        if not near:
            return f"no sample of {name!r} looks as wanted"
        pixels = [one for one in pixels if one is not near[0]]
    if pixels:
        return f"{len(pixels)} samples too many"
    found = {change.how: change.count for change in account.changes}
    if found != dict(case.changes):
        return f"changes {found}, wanted {dict(case.changes)}"
    if unsaid := [how for how in found if how not in printed]:
        return f"not printed: {unsaid}"
    left = dict.fromkeys(case.left_out, 0)
    for one in done.refused:
        reason = next((start for start in left if one.reason.startswith(start)), None)
        if reason is None:
            return f"{one.name!r} left out: {one.reason}"
        left[reason] += 1
    if left != dict(case.left_out):
        return f"left out {left}, wanted {dict(case.left_out)}"
    files = num_files(source) if case.files is None else case.files
    if not files == account.found == account.packed + account.left_out == len(case.looks) + sum(left.values()):
        return f"{files} files, of which the account says {account.found}"
    return ""


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(adm_crop(image.convert("RGB"), SIZE), np.float64)


def num_files(source: Path) -> int:
    """Counted by other means than those of the program. Folders are none."""
    if source.is_dir():
        return sum(len(files) + sum(os.path.islink(Path(at, name)) for name in folders)
                   for at, folders, files in os.walk(source))
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            return sum(not one.filename.endswith(("/", "\\")) for one in archive.infolist())
    with tarfile.open(source) as tar:
        return sum(not member.isdir() for member in tar)


def _in_short(out: Path) -> str:
    account = read_description(out).account
    changed = "; ".join(f"{change.count} {change.how}" for change in account.changes)
    return f"{account.packed} of {account.found} packed" + (f" ({changed})" if changed else "")
