"""Zips and tars as programs of all systems write them, and as they are torn, joined and forged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .cases import Case
from .pictures import BASIC, LOOKS, plain, png

ACCENTED = {f"\u00e9t\u00e9/{n}.png" if name.startswith("ant") else name: data
            for n, (name, data) in enumerate(BASIC.items())}
ACCENTED_LOOKS = [("\u00e9t\u00e9" if name == "ant" else name, look) for name, look in LOOKS]
LINK, DEVICE, ENCRYPTED = stat.S_IFLNK, stat.S_IFCHR, 1


def cases() -> Iterator[Case]:
    yield from _zips()
    yield from _tars()


def member(name: str, *, kind: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.filename = name  # zipfile has put this system's separator in
    info.external_attr = (kind | 0o644) << 16
    info.flag_bits = flags
    return info


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(member(name), data, compress_type=method)
        archive.comment = comment
    return buffer.getvalue()


def with_raw_names(files: Mapping[bytes, bytes], extra: Callable[[bytes], bytes] = lambda raw: b"") -> bytes:
    """A stored zip whose names are bytes that no flag explains, as older programs write them."""
    out, directory = b"", b""
    for raw, data in files.items():
        field = extra(raw)
        sizes = len(data), len(data), len(raw), len(field)
        common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(data), *sizes)
        directory += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(out)) + raw
        directory += field
        out += b"PK\3\4" + common + raw + field + data
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(out), 0)
    return out + directory + end


def streamed(files: Mapping[str, bytes]) -> bytes:
    """Written to a pipe: sizes follow each member."""
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.parts.append(bytes(data))
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return b"".join(pipe.parts)


def overlapping() -> bytes:
    """Two names of the directory lead to one member."""
    data = bytearray(zipped(BASIC, zipfile.ZIP_STORED))
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    data[second + 42:second + 46] = data[first + 42:first + 46]
    return bytes(data)


def unlisted() -> bytes:
    """A member that the directory has lost."""
    data = zipped(BASIC, zipfile.ZIP_STORED)
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    end = data.index(b"PK\5\6")
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 3, 3, end - second)
    return data[:first] + data[second:end] + bytes(tail)


def more(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO(zipped(BASIC))
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there already, which is wanted
        for info, data in members:
            archive.writestr(info, data)
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(more((member("cat/1.png"), png(4))))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.rindex(mark) + at] |= ENCRYPTED
    return bytes(data)


def of_method(number: int) -> bytes:
    data = bytearray(more((member("cat/1.png"), png(4))))
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        struct.pack_into("<H", data, data.rindex(mark) + at, number)
    return bytes(data)


def damaged_member() -> bytes:
    data = bytearray(more((member("cat/1.png"), png(4))))
    data[data.index(b"PK\1\2") - 20] ^= 0xFF
    return bytes(data)


def below(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    return {f"{folder}{name}": data for name, data in files.items()}


def at(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).write_bytes(data() if callable(data) else data)
        return root / name

    return make


def backslashed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name.replace("/", "\\"): data for name, data in files.items()}


def _zips() -> Iterator[Case]:
    def good(name: str, data: bytes | Callable[[], bytes], file: str = "a.zip", **wants: object) -> Case:
        return Case(kind="zips", name=name, make=at(file, data), **{"looks": LOOKS, **wants})

    def bad(name: str, data: bytes | Callable[[], bytes], told: str, file: str = "a.zip") -> Case:
        return Case(kind="zips", name=name, make=at(file, data), told=told)

    whole = zipped(BASIC)
    raw = {name.encode(): data for name, data in ACCENTED.items()}
    for name, method in (("stored", 0), ("deflated", 8), ("bzip2", 12), ("LZMA", 14)):
        yield good(name, zipped(BASIC, method))
    yield good("in a folder of its own", zipped(below(BASIC, "data/")))
    yield good("names that begin with ./", zipped(below(BASIC, "./")))
    yield good("backslashes, as PowerShell 5 writes them", zipped(backslashed(below(BASIC, "data/"))))
    yield good("folders with backslashes", zipped({
        "data\\": b"", "data\\ant\\": b"", **backslashed(below(BASIC, "data/"))}))
    yield good("one class with backslashes", zipped({
        name.replace("/", "\\") if name.startswith("bee") else name: data for name, data in BASIC.items()}))
    yield good("UTF-8 with its flag", zipped(ACCENTED), looks=ACCENTED_LOOKS)
    yield good("UTF-8 without its flag", with_raw_names(raw), looks=ACCENTED_LOOKS)
    yield good("UTF-8 without its flag, accents apart, as macOS writes it", with_raw_names({
        name.replace("\u00e9".encode(), "e\u0301".encode()): data for name, data in raw.items()}), looks=ACCENTED_LOOKS)
    yield bad("names in Shift JIS", with_raw_names({
        name.decode().replace("\u00e9", "\u732b").encode("cp932"): data for name, data in raw.items()}), "encoding")
    yield bad("names in Latin-1", with_raw_names({name.decode().encode("latin-1"): data for name, data in raw.items()}),
              "encoding")
    yield good("names of images alone in Latin-1", with_raw_names({
        name.encode().replace(b".png", b"\xe9.png"): data for name, data in BASIC.items()}))
    yield good("the field of Unicode names beside others", with_raw_names(
        {name.decode().encode("cp850"): data for name, data in raw.items()},
        lambda old: (lambda told: struct.pack("<HHBI", 0x7075, 5 + len(told), 1, zlib.crc32(old)) + told)(
            old.decode("cp850").encode())), looks=ACCENTED_LOOKS)
    yield good("written to a pipe", streamed(BASIC))
    yield good("with a comment", zipped(BASIC, comment=b"made by hand" * 50))
    yield good("named as a tar", whole, file="a.tar")
    yield good("named as a parquet file", whole, file="a.parquet")
    yield good("a member named twice", more((member("cat/0.png"), png(4))), left_out={"is named twice": 1},
               looks=[*LOOKS[:3], ("cat", plain(4))])
    yield good("an absolute member", more((member("/etc/cat/1.png"), png(4))), left_out={"has an absolute path": 1})
    yield good("a member of a drive", more((member("C:\\cat\\1.png"), png(4))), left_out={"has an absolute path": 1})
    yield good("a member above", more((member("cat/../../1.png"), png(4))), left_out={"has a path with '..'": 1})
    yield good("a link to an image", more((member("cat/1.png", kind=LINK), b"../ant/0.png")), left_out={"is a link": 1})
    yield bad("a link to a class", more((member("dog", kind=LINK), b"ant")), "'dog' is a link among the class folders")
    yield good("a device", more((member("cat/1.png", kind=DEVICE), b"")), left_out={"is a device": 1})
    yield good("an encrypted member", encrypted, left_out={"is encrypted": 1})
    yield good("a member of Deflate64", lambda: of_method(9), left_out={"is packed in a way that is not read (9)": 1})
    yield good("a member of Zstandard", lambda: of_method(93), left_out={"is packed in a way that is not read (93)": 1})
    yield good("a damaged member", damaged_member, left_out={"cannot be unpacked from the zip": 1})
    yield good("what macOS adds", more((member("__MACOSX/cat/._0.png"), b"x"), (member("cat/.DS_Store"), b"x")),
               left_out={"is a hidden file": 2})
    yield bad("an empty class", more((member("dog/"), b"")), "'dog' .*holds no image")
    yield bad("a zip inside", more((member("dog.zip"), whole)), "'dog.zip' .*may hold images")
    yield good("a zip inside, beside its folder", more((member("cat.zip"), whole)), left_out={"is not an image by": 1})
    yield bad("text after its end", whole + b"signature", "9 bytes lie after its end")
    yield bad("text before it", b"#!/bin/sh\n" + whole, "is not a whole tar file")
    yield bad("two in a row", whole + zipped(below(BASIC, "other/")), "in no member of its directory")
    yield bad("a member that the directory does not name", unlisted, "in no member of its directory|no member begins")
    yield bad("two members over each other", overlapping, "in no member of its directory|lie over each other")
    yield bad("half of it", whole[:len(whole) // 2], "is not a whole zip file")
    yield bad("empty", zipped({}), "holds no images")
    yield bad("part of a split one", b"PK\7\x08" + whole, "is a part of a split zip")
    yield bad("one that unpacks itself", b"MZ" + bytes(500) + whole, "is a program")
    yield good("a zero byte in a name", with_raw_names({
        name.encode().replace(b"cat/", b"cat/\0"): data for name, data in BASIC.items()}),
        looks=LOOKS[:3], classes=("ant", "bee", "cat"), left_out={"has a zero byte": 1}, files=4)
    for name, start in (("7z", b"7z\xbc\xaf\x27\x1c"), ("RAR", b"Rar!\x1a\x07\1\0"), ("Zstandard", b"\x28\xb5\x2f\xfd"),
                        ("LZ4", b"\x04\x22\x4d\x18"), ("HDF5", b"\x89HDF\r\n\x1a\n"), ("Arrow", b"ARROW1\0\0"),
                        ("cpio", b"070701"), ("compress", b"\x1f\x9d\x90")):
        yield Case(kind="other archives", name=name, make=at("a.tar", start + bytes(2000)), told="which is not read")


def tarred(files: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT, *, marks: bool = True,
           then: Callable[[tarfile.TarFile], object] = lambda tar: None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in files.items():
            put(tar, name, data)
        then(tar)
    data = bytearray(buffer.getvalue())
    if not marks:  # as before POSIX
        for start in range(0, len(data), 512):
            if data[start + 257:start + 262] == b"ustar":
                data[start + 257:start + 265] = bytes(8)
                data[start + 148:start + 156] = b" " * 8
                data[start + 148:start + 156] = b"%06o\0 " % sum(data[start:start + 512])
    return bytes(data)


def put(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, to: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, to, len(data)
    tar.addfile(info, io.BytesIO(data))


def plus(*arguments: object, **options: object) -> bytes:
    return tarred(BASIC, then=lambda tar: put(tar, *arguments, **options))


def sparse(root: Path) -> Path:
    """A member in GNU's way of leaving zeros out."""
    info = tarfile.TarInfo("cat/1.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 4096
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    whole = tarred(BASIC, tarfile.GNU_FORMAT)
    end = len(whole.rstrip(b"\0")) + 511 & ~511
    (root / "a.tar").write_bytes(whole[:end] + bytes(header) + bytes(512) + bytes(10240))
    return root / "a.tar"


def _tars() -> Iterator[Case]:
    def good(name: str, data: bytes, file: str = "a.tar", **wants: object) -> Case:
        return Case(kind="tars", name=name, make=at(file, data), **{"looks": LOOKS, **wants})

    def bad(name: str, data: bytes, told: str, file: str = "a.tar") -> Case:
        return Case(kind="tars", name=name, make=at(file, data), told=told)

    whole = tarred(BASIC)
    padded = len(whole.rstrip(b"\0")) + 511 & ~511
    for name, kind in (("pax", tarfile.PAX_FORMAT), ("GNU", tarfile.GNU_FORMAT), ("ustar", tarfile.USTAR_FORMAT)):
        yield good(name, tarred(BASIC, kind))
    yield good("as before POSIX", tarred(BASIC, tarfile.USTAR_FORMAT, marks=False))
    for name, pack in (("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)):
        yield good(f"in {name}", pack(whole))
        yield good(f"in {name}, in two pieces", pack(whole[:3000]) + pack(whole[3000:]), file="a.bin")
        yield bad(f"in {name}, text after its end", pack(whole) + b"not compressed", "cannot be unpacked")
        yield bad(f"in {name}, cut short", pack(whole)[:-20], "cannot be unpacked")
        yield good(f"in {name}, zeros after its end", pack(whole) + bytes(512))
    yield bad("a zip in gzip", gzip.compress(zipped(BASIC)), "is not a whole tar file")
    long_ = {f"{'deep' * 40}/{name}": data for name, data in BASIC.items()}
    for name, kind in (("pax", tarfile.PAX_FORMAT), ("GNU", tarfile.GNU_FORMAT)):
        yield good(f"long names of {name}", tarred(long_, kind))
    yield good("names with accents", tarred(ACCENTED), looks=ACCENTED_LOOKS)
    yield good("backslashes", tarred(backslashed(BASIC)))
    yield good("a backslash as a letter", plus("cat/a\\b.png", png(4)), looks=[*LOOKS, ("cat", plain(4))])
    yield good("a first member named as bzip2 begins", tarred(below(BASIC, "BZh91AY&SY/")))
    yield good("a first member named as lzip begins", tarred(below(BASIC, "LZIP\1/")))
    yield good("hard links", plus("cat/1.png", kind=tarfile.LNKTYPE, to="ant/0.png"), looks=[*LOOKS, ("cat", plain(0))])
    yield good("hard links to hard links", tarred(BASIC, then=lambda tar: (
        put(tar, "cat/1.png", kind=tarfile.LNKTYPE, to="./ant/0.png"),
        put(tar, "cat/2.png", kind=tarfile.LNKTYPE, to="cat/1.png"))),
        looks=[*LOOKS, ("cat", plain(0)), ("cat", plain(0))])
    yield good("a class of hard links alone", tarred(BASIC, then=lambda tar: [
        put(tar, f"dog/{n}.png", kind=tarfile.LNKTYPE, to=f"ant/{n}.png") for n in range(2)]),
        looks=[*LOOKS, ("dog", plain(0)), ("dog", plain(1))])
    yield good("a hard link out of it", plus("cat/1.png", kind=tarfile.LNKTYPE, to="/etc/passwd"),
               left_out={"is a link to what the tar does not hold": 1})
    yield good("a link to an image", plus("cat/1.png", kind=tarfile.SYMTYPE, to="../ant/0.png"),
               left_out={"is a link": 1})
    yield bad("a link to a class", plus("dog", kind=tarfile.SYMTYPE, to="ant"), "'dog' is a link among the class")
    for name, kind in (("a device", tarfile.CHRTYPE), ("a pipe", tarfile.FIFOTYPE)):
        yield good(name, plus("cat/1.png", kind=kind), left_out={"is a device": 1})
    yield good("an unknown kind", plus("cat/notes", kind=b"Z"), left_out={"is ": 1})
    yield Case(kind="tars", name="a sparse member", make=sparse, looks=LOOKS, left_out={"is a sparse file": 1})
    yield good("a contiguous file", plus("cat/1.png", png(4), kind=tarfile.CONTTYPE), looks=[*LOOKS, ("cat", plain(4))])
    yield good("a member named twice", plus("./cat/0.png", png(4)), left_out={"is named twice": 1},
               looks=[*LOOKS[:3], ("cat", plain(4))])
    yield good("an absolute member", plus("/cat/1.png", png(4)), left_out={"has an absolute path": 1})
    yield good("a member above", plus("../cat/1.png", png(4)), left_out={"has a path with '..'": 1})
    yield bad("an empty class", plus("dog", kind=tarfile.DIRTYPE), "'dog' .*holds no image")
    yield bad("tars inside, as ImageNet comes", tarred({f"n{n}.tar": whole for n in range(3)}), "'n0.tar' and 2 more")
    yield good("a zip inside, by another name, at its end", plus("cat/notes.bin", zipped(BASIC)),
               left_out={"is not an image by its name": 1}, files=5)
    yield bad("two in a row", whole + tarred(below(BASIC, "other/")), "there is more after its end")
    yield bad("a zip after its end", whole + zipped(BASIC), "there is more after its end")
    yield bad("text after its end", whole + b"signature", "there is more after its end")
    yield bad("no end", whole[:padded], "cut short")
    yield bad("half of a member", whole[:padded - 600], "is not a whole tar file")
    yield bad("a damaged header", whole[:padded - 1024] + b"\xaa" * 512 + whole[padded - 512:], "is not a whole tar")
    yield bad("zeros alone", bytes(10240), "holds no images")
    yield bad("an image", png(0), "is a PNG image")
    yield bad("text", b"dear diary " * 100, "is not a whole tar file")
