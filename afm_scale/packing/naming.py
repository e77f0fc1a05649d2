"""What the names of files say: which are images, which a system or a program keeps for itself, which are of a split."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from functools import lru_cache

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
}
"""How files of a format (as Pillow calls it) are named, the usual one first."""

_IMAGES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
_ARCHIVES = {".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".lz4",
             ".parquet", ".arrow", ".tfrecord", ".tfrecords", ".h5", ".hdf5", ".lmdb", ".mdb"}
_TEXTS = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".md", ".log"}
_KEPT = {
    "__macosx", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "network trash folder", "temporary items", "__pycache__", "_vti_cnf",
}
_KEPT_FILES = re.compile(r"(synophoto_|synofile_|synovideo_|albumart(small|_\{)).*", re.IGNORECASE)
_SPLIT = r"(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|dev|eval)"
_SPLIT_FOLDER = re.compile(_SPLIT + r"(?:[-_ ]?(?:set|data|images?|split|\d+))?", re.IGNORECASE)
_SPLIT_FILE = re.compile(_SPLIT + r"(?:[-_.\d].*)?", re.IGNORECASE)
SIDE_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Read by the Hugging Face library beside class folders, whose labels they may overrule."""


def suffix_of(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def is_image(path: str) -> bool:
    return suffix_of(path) in _IMAGES


def may_hold_images(path: str) -> bool:
    """Whether a file is of a kind that has images inside, which are not looked for."""
    stem, suffix = posixpath.splitext(posixpath.basename(path).lower())
    is_text = suffix_of(stem) in _TEXTS  # labels.csv.gz
    return suffix in _ARCHIVES and not is_text and posixpath.basename(path).lower() not in SIDE_FILES


def why_ignored(path: str) -> str | None:
    """Why a file, or what lies in a folder, is none of the data set: it is hidden, or kept by a system or a program."""
    folder, _, name = path.rpartition("/")
    reason = _why_ignored_parts(folder) or _why_ignored_parts(name)
    return reason or ("is kept by a system or a program" if _KEPT_FILES.fullmatch(name) else None)


@lru_cache(1 << 16)
def _why_ignored_parts(path: str) -> str | None:
    for part in path.split("/"):
        if part.startswith(".") or part == "__MACOSX":
            return "is a hidden file"
        if part.casefold() in _KEPT:
            return f"is kept by a system or a program ({part})"
    return None


def split_of(folder: str) -> str | None:
    """The split that a folder is named after, in lower case."""
    match = _SPLIT_FOLDER.fullmatch(posixpath.basename(folder))
    return match[1].lower() if match else None


def split_of_file(name: str) -> str | None:
    """The same of a file, such as train-00000-of-00002.parquet."""
    match = _SPLIT_FILE.fullmatch(posixpath.splitext(name)[0])
    return match[1].lower() if match else None


def composed(name: str) -> str:
    """A name in one of the two ways in which Unicode writes accents, NFC: macOS unpacks and packs the other one."""
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that orders numbers in names as people do."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


def refuse_path(name: str) -> str | None:
    """Why a name of an archive's member is not used: it leads out of the archive, or is none."""
    parts = name.replace("\\", "/").split("/")
    if "\0" in name:
        return "has a zero byte in its name"
    if name.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":"):
        return "has an absolute path"
    return "has a path with '..'" if ".." in parts else None
