"""tools/make_shards.py from the outside: every kind of source, kills, bad files, and settings that cannot be."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afm_scale.commands.make_shards import summary
from afm_scale.core.errors import ConfigError, DataError, RunError, UserError
from afm_scale.data.description import DatasetDescription, read_description
from afm_scale.data.shards import PackedShards
from afm_scale.data.transforms import adm_crop, decode_checked
from afm_scale.packing.originals import FolderReader
from afm_scale.packing.recode import Recode
from afm_scale.packing.shards import MakeShardsConfig, make_shards
from tests.data.small import encoded, image_folder, picture
from tests.program import ROOT


def pack(source: Path, out: Path, *, workers: int = 1, seed: int = 0, num_shards: int | None = 2,
         shard_mb: float | None = None, **recode: object) -> DatasetDescription:
    config = MakeShardsConfig(
        source=source, out=out, recode=Recode(**{"size": 16, **recode}), num_shards=num_shards, shard_mb=shard_mb,
        workers=workers, seed=seed,
    )
    return make_shards(config)


def tool(*arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, str(ROOT / "tools/make_shards.py"), *map(str, arguments)]
    return subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples_of(folder: Path) -> list[tuple[int, bytes]]:
    """(label, bytes) in the order of the shards."""
    shards = PackedShards(folder)
    samples = [(int(shards.index.label[n]), shards.read(n)) for n in range(shards.num_samples)]
    shards.close()
    return samples


def refused(done: DatasetDescription) -> dict[str, str]:
    return {one.name: one.reason for one in done.refused}


def tar_of(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname="top")
    return path


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, f"top/{file.relative_to(folder)}")
    return path


def parquet_of(folder: Path, path: Path, *, nested: bool = True, labels: list[int | None] | None = None) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = sorted(folder.rglob("*.*"))
    names = sorted({file.parent.name for file in files})
    values = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = pyarrow.table({
        "image": values if nested else [value["bytes"] for value in values],
        "label": labels or [names.index(file.parent.name) for file in files],
    })
    if nested:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)
    return path


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip", "parquet", "plain parquet", "parquet folder"])
def test_every_kind_of_source_gives_the_samples_of_the_folder(tmp_path, folder, kind):
    pack(folder, tmp_path / "expected")
    source = tmp_path / kind
    if kind.startswith("tar"):
        tar_of(folder, source, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[kind])
    elif kind == "zip":
        zip_of(folder, source)
    else:
        source = tmp_path / "data" / "train.parquet"
        source.parent.mkdir()
        parquet_of(folder, source, nested=kind != "plain parquet")
        source = source.parent if kind == "parquet folder" else source
    done = pack(source, tmp_path / "packed")
    assert samples_of(tmp_path / "packed") == samples_of(tmp_path / "expected")
    names = ("0", "1", "2") if kind == "plain parquet" else ("class_0", "class_1", "class_2")
    assert (done.class_names, done.class_counts, done.refused) == (names, (4, 4, 4), ())
    assert not (tmp_path / "packed/.packing").exists()


def test_two_parquet_files_are_one_data_set(tmp_path, folder):
    (tmp_path / "parts").mkdir()
    parquet_of(folder, tmp_path / "parts/0.parquet")
    parquet_of(folder, tmp_path / "parts/1.parquet")
    done = pack(tmp_path / "parts", tmp_path / "packed")
    assert done.class_counts == (8, 8, 8)
    pack(folder, tmp_path / "expected")
    assert set(samples_of(tmp_path / "packed")) == set(samples_of(tmp_path / "expected"))


def test_the_pixels_are_the_adm_crop_of_the_originals(tmp_path, folder):
    pack(folder, tmp_path / "packed")
    expected = set()
    for file in folder.rglob("*.jpg"):
        expected.add((int(file.parent.name[-1]), adm_crop(decode_checked(file.read_bytes()), 16).tobytes()))
    found = {(label, Image.open(io.BytesIO(data)).tobytes()) for label, data in samples_of(tmp_path / "packed")}
    assert found == expected


def test_the_order_is_shuffled_and_follows_from_the_seed(tmp_path, folder):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        pack(folder, tmp_path / name, seed=seed)
    one, three = samples_of(tmp_path / "one"), samples_of(tmp_path / "three")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert one != three and sorted(one) == sorted(three)
    assert [label for label, _ in one] != sorted(label for label, _ in one)


def test_one_worker_and_two_give_the_same_bytes(tmp_path, folder):
    pack(folder, tmp_path / "one", num_shards=5, workers=1)
    pack(folder, tmp_path / "two", num_shards=5, workers=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_raw_keeps_the_bytes_and_names_them_after_their_format(tmp_path):
    image_folder(tmp_path / "images", num_classes=1, kind="PNG")
    jpeg = encoded(picture(50), "JPEG")
    (tmp_path / "images/class_0/x.JPEG").write_bytes(jpeg)
    (tmp_path / "images/class_0/y.bmp").write_bytes(encoded(picture(51), "BMP"))
    done = pack(tmp_path / "images", tmp_path / "packed", raw=True, num_shards=1)
    assert (done.content.size, done.content.encoding) == (None, "original")
    stored = [data for _, data in samples_of(tmp_path / "packed")]
    assert {file.read_bytes() for file in (tmp_path / "images").rglob("*.png")} | {jpeg} < set(stored)
    with tarfile.open(tmp_path / "packed/shard-000000.tar") as tar:
        names = [Path(name).suffix for name in tar.getnames()]
    assert (names.count(".jpg"), names.count(".png")) == (1, 5)  # the bmp became a png


def test_jpeg_of_a_chosen_quality_is_not_subsampled(tmp_path, folder):
    done = pack(folder, tmp_path / "packed", jpeg_quality=90)
    assert done.content.encoding == "jpeg"
    image = Image.open(io.BytesIO(samples_of(tmp_path / "packed")[0][1]))
    assert image.format == "JPEG" and {layer[1:3] for layer in image.layer} == {(1, 1)}


def test_the_size_of_a_shard_decides_their_number(tmp_path, folder):
    done = pack(folder, tmp_path / "packed", num_shards=None, shard_mb=0.002)
    sizes = [len(data) for _, data in samples_of(tmp_path / "packed")]
    assert len(done.shards) == -(-sum(sizes) // 2000)
    raw = pack(folder, tmp_path / "raw", num_shards=None, shard_mb=0.002, raw=True)
    assert len(raw.shards) == -(-sum(file.stat().st_size for file in folder.rglob("*.jpg")) // 2000)


def bad_files(folder: Path) -> dict[str, str]:
    """Writes one file of each bad kind into class_0; the reason wanted for each."""
    jpeg = encoded(picture(90, width=64, height=64), "JPEG")
    damaged = bytearray(encoded(picture(91), "PNG"))
    damaged[len(damaged) // 2] ^= 0xFF
    cmyk = encoded(picture(92).convert("CMYK"), "JPEG")
    contents = {
        "short.jpg": (jpeg[:-20], "is corrupt or truncated"),
        "half.jpg": (jpeg[:len(jpeg) // 2], "is corrupt or truncated"),
        "damaged.png": (bytes(damaged), "is corrupt or truncated"),
        "empty.jpg": (b"", "is empty"),
        "zeros.jpg": (b"\0" * 500, "holds nothing but zero bytes"),
        "text.jpg": (b"<html>not found</html>", "is not an image of a known format"),
        "cmyk.jpg": (cmyk, "has CMYK colours (--convert accepts such files)"),
        "really_png.jpg": (encoded(picture(93), "PNG"), "is PNG, not what its name says (.jpg; --convert"),
        "bomb.png": (encoded(Image.new("1", (20_000, 10_000))), "has more than"),
        "Thumbs.db": (b"thumbs", "is not an image by its name (.db)"),
        "notes.txt": (b"notes", "is not an image by its name (.txt)"),
        ".hidden.jpg": (jpeg, "is a hidden file"),
    }
    for name, (data, _) in contents.items():
        (folder / "class_0" / name).write_bytes(data)
    (folder / "stray.jpg").write_bytes(jpeg)
    return {f"class_0/{name}": reason for name, (_, reason) in contents.items()} | {"stray.jpg": "lies in no class"}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_each_bad_file_is_refused_and_listed_and_the_rest_is_packed(tmp_path, folder, kind):
    pack(folder, tmp_path / "expected")
    wanted = bad_files(folder)
    if kind == "folder":
        (folder / "class_0/link.jpg").symlink_to(folder / "class_1/0.jpg")
        os.mkfifo(folder / "class_0/pipe.jpg")
        wanted |= {"class_0/link.jpg": "is a link", "class_0/pipe.jpg": "is a device, a pipe"}
    source = {"folder": lambda: folder, "tar": lambda: tar_of(folder, tmp_path / "source.tar"),
              "zip": lambda: zip_of(folder, tmp_path / "source.zip")}[kind]()
    done = pack(source, tmp_path / "packed")
    found = {name.removeprefix("top/"): reason for name, reason in refused(done).items()}
    assert found.keys() == wanted.keys()
    for name, reason in wanted.items():
        assert found[name].startswith(reason), (name, found[name])
    assert sorted(samples_of(tmp_path / "packed")) == sorted(samples_of(tmp_path / "expected"))
    config = MakeShardsConfig(source=source, out=tmp_path / "packed", recode=Recode())
    assert f"{len(wanted)} refused" in summary(config, done) and "--convert" in summary(config, done)


def test_convert_accepts_cmyk_and_misnamed_images(tmp_path, folder):
    (folder / "class_0/cmyk.jpg").write_bytes(encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"))
    png = encoded(picture(93), "PNG")
    (folder / "class_0/really_png.jpg").write_bytes(png)
    done = pack(folder, tmp_path / "packed", convert=True, raw=True)
    assert done.refused == () and done.class_counts == (6, 4, 4)
    stored = [data for _, data in samples_of(tmp_path / "packed")]
    assert png in stored
    colours = {Image.open(io.BytesIO(data)).mode for data in stored}
    assert colours == {"RGB"}


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_modes_are_stored_as_rgb(tmp_path, mode):
    (tmp_path / "images/cat").mkdir(parents=True)
    image = picture(1).convert(mode)
    (tmp_path / "images/cat/0.png").write_bytes(encoded(image, "PNG"))
    pack(tmp_path / "images", tmp_path / "packed", num_shards=1)
    stored = Image.open(io.BytesIO(samples_of(tmp_path / "packed")[0][1]))
    assert stored.mode == "RGB"
    assert np.array_equal(np.asarray(stored), np.asarray(adm_crop(image.convert("RGB"), 16)))


def test_members_that_lead_out_of_a_tar_are_refused_and_never_followed(tmp_path, folder):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(encoded(picture(99), "JPEG"))
    tar_of(folder, tmp_path / "source.tar")
    with tarfile.open(tmp_path / "source.tar", "a") as tar:
        for name in ("/abs/cat/0.jpg", "top/../../cat/0.jpg"):
            info = tarfile.TarInfo(name)
            info.size = outside.stat().st_size
            tar.addfile(info, io.BytesIO(outside.read_bytes()))
        for name, kind in (("top/class_0/sym.jpg", tarfile.SYMTYPE), ("top/class_0/hard.jpg", tarfile.LNKTYPE),
                           ("top/class_0/device.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(outside)
            tar.addfile(info)
    done = pack(tmp_path / "source.tar", tmp_path / "packed")
    assert refused(done) == {
        "/abs/cat/0.jpg": "has an absolute path", "top/../../cat/0.jpg": "has a path with '..'",
        "top/class_0/sym.jpg": "is a link",
        "top/class_0/hard.jpg": "is a link to what the tar does not hold before it",
        "top/class_0/device.jpg": "is a device, a pipe or of an unknown kind",
    }
    assert done.num_samples == 12 and sorted(path.name for path in tmp_path.iterdir()) == [
        "images", "outside.jpg", "packed", "source.tar"]


def test_members_that_lead_out_of_a_zip_are_refused(tmp_path, folder):
    zip_of(folder, tmp_path / "source.zip")
    link = zipfile.ZipInfo("top/class_0/link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "source.zip", "a") as archive:
        archive.writestr("/abs/cat/0.jpg", b"x")
        archive.writestr("top\\..\\..\\cat.jpg", b"x")
        archive.writestr(link, "/etc/passwd")
    done = pack(tmp_path / "source.zip", tmp_path / "packed")
    assert done.num_samples == 12 and set(refused(done).values()) == {
        "has an absolute path", "has a path with '..'", "is a link"}


def test_labels_out_of_range_and_missing_bytes_in_a_parquet_file_are_refused(tmp_path, folder):
    parquet_of(folder, tmp_path / "a.parquet", labels=[0, -1, None, 3, 1, 1, 1, 1, 2, 2, 2, 2])
    done = pack(tmp_path / "a.parquet", tmp_path / "packed")
    assert done.class_counts == (1, 4, 4)
    assert sorted(refused(done).values()) == [f"has no label in 0 to 2: {label}" for label in ("-1", "3", "None")]


@pytest.mark.parametrize("name, start", [("a.tar", "is not a whole tar"), ("a.tar.gz", "cannot be unpacked"),
                                         ("a.zip", "is not a whole"), ("a.parquet", "is not a whole parquet")])
def test_an_archive_cut_short_is_refused(tmp_path, folder, name, start):
    path = tmp_path / name
    if "tar" in name:
        tar_of(folder, path, "w:gz" if name.endswith("gz") else "w")
    else:
        (zip_of if name.endswith("zip") else parquet_of)(folder, path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(DataError, match=start):
        pack(path, tmp_path / "packed")
    path.unlink()


def test_a_tar_with_a_damaged_header_is_not_taken_for_a_shorter_one(tmp_path, folder):
    path = tar_of(folder, tmp_path / "a.tar")
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[8].offset
    data = bytearray(path.read_bytes())
    data[middle:middle + 100] = b"\xaa" * 100
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"the header at byte {middle} is damaged"):
        pack(path, tmp_path / "packed")


def test_a_source_that_has_changed_is_noticed(tmp_path, folder):
    pack(folder, tmp_path / "packed")
    (folder / "class_2/new.jpg").write_bytes(encoded(picture(70), "JPEG"))
    with pytest.raises(DataError, match="was packed with num_originals 12, now it is 13"):
        pack(folder, tmp_path / "packed")


@pytest.mark.parametrize("change, message", [
    ({"seed": 1}, "packed with seed 0, now it is 1"), ({"num_shards": 3}, "packed with num_shards 2, now it is 3"),
    ({"size": 8}, "packed with size 16, now it is 8"), ({"convert": True}, "packed with convert False, now it is True"),
])
def test_other_settings_are_refused(tmp_path, folder, change, message):
    pack(folder, tmp_path / "packed")
    before = bytes_of(tmp_path / "packed")
    with pytest.raises(DataError, match=message):
        pack(folder, tmp_path / "packed", **change)
    assert bytes_of(tmp_path / "packed") == before and not (tmp_path / "packed/.packing").exists()


def test_a_second_packing_into_the_same_folder_waits_and_gives_up(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("afm_scale.packing.workers._LOCK_SECONDS", 0.3)
    (tmp_path / "packed/.packing").mkdir(parents=True)
    with (tmp_path / "packed/.packing/lock").open("wb") as other:
        fcntl.flock(other.fileno(), fcntl.LOCK_SH)
        with pytest.raises(DataError, match="another packing into .* is running"):
            pack(folder, tmp_path / "packed")
    assert pack(folder, tmp_path / "packed").num_samples == 12


def test_a_source_of_bad_files_alone_is_an_error_that_names_them(tmp_path):
    (tmp_path / "images/cat").mkdir(parents=True)
    (tmp_path / "images/cat/0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no sample is left to pack: cat/0.jpg: is empty"):
        pack(tmp_path / "images", tmp_path / "packed", num_shards=1)


@pytest.mark.parametrize("settings, message", [
    ({"workers": 0}, "--workers is 0"), ({"num_shards": 0}, "--shards is 0"), ({"size": 0}, "--size is 0"),
    ({"num_shards": 2, "shard_mb": 1.0}, "one of them decides"), ({"num_shards": None, "shard_mb": 0.0}, "--shard-mb"),
    ({"jpeg_quality": 101}, "--jpeg-quality is 101"), ({"raw": True, "jpeg_quality": 9}, "leave one of them out"),
    ({"num_shards": 13}, "--shards is 13, the source holds 12 images"),
])
def test_settings_that_cannot_be_are_refused(tmp_path, folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        pack(folder, tmp_path / "packed", **settings)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("source, out, message", [
    ("absent", "out", "is not there; wanted a folder"),
    ("empty", "out", "holds no images in class folders .it is empty"),
    ("flat", "out", "holds no images in class folders .0.jpg: lies in no class folder"),
    ("images", "images/out", "lies inside the source"),
    ("images", "full", "is not empty and holds no packing"),
    ("images", "full/thesis.tex", "is a file; a data set is a folder"),
    ("full/thesis.tex", "out", "is not a whole tar file"),
])
def test_sources_and_folders_that_cannot_be_used_are_refused_and_left_as_they_are(
    tmp_path, folder, source, out, message
):
    for name in ("empty", "full", "flat"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/thesis.tex").write_text("dear")
    (tmp_path / "flat/0.jpg").write_bytes(encoded(picture(0), "JPEG"))
    before = bytes_of(tmp_path)
    with pytest.raises(DataError, match=message):
        pack(tmp_path / source, tmp_path / out)
    assert bytes_of(tmp_path) == before and not (tmp_path / "out").exists()


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # such names are short
    return path


@pytest.mark.parametrize("name", ["images.tar", "images.zip", "images.parquet", "parquets/a.parquet", "images"])
@pytest.mark.parametrize("make", [pipe, listening, lambda path: path.symlink_to("/dev/full") or path])
def test_a_pipe_a_socket_or_a_device_is_no_source_and_is_not_opened(tmp_path, monkeypatch, make, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parquets").mkdir()
    make(tmp_path / name)
    source = tmp_path / name if name != "parquets/a.parquet" else tmp_path / "parquets"
    with pytest.raises(DataError, match="is neither a file nor a folder|it is a (named pipe|socket|device), wanted"):
        pack(source, tmp_path / "packed")


def test_a_lock_that_is_no_regular_file_is_not_opened(tmp_path, folder):
    scratch = tmp_path / "packed" / ".packing"
    scratch.mkdir(parents=True)
    pipe(scratch / "lock")
    with pytest.raises(UserError, match="could not write .*lock: it is a named pipe"):
        pack(folder, tmp_path / "packed")


@pytest.mark.parametrize("arguments", [("absent", "out"), ("absent", "out", "--shards", 2, "--shard-mb", 1)])
def test_the_tool_ends_with_one_line_and_exit_code_2(tmp_path, arguments):
    stdout, stderr = (process := tool(*arguments)).communicate(timeout=60)
    assert (process.returncode, stdout, len(stderr.splitlines())) == (2, "", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_a_packing_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, kind):
    source = image_folder(tmp_path / "images", num_classes=4, per_class=40, width=300, height=260)
    if kind == "tar.gz":
        source = tar_of(source, tmp_path / "images.tar.gz", "w:gz")
    arguments = (source, tmp_path / "killed", "--size", 128, "--shards", 40, "--workers", 2)
    process = tool(*arguments)
    until = time.monotonic() + 60
    while not list((tmp_path / "killed").glob(".packing/shard-*.safetensors")):
        assert process.poll() is None and time.monotonic() < until, "no shard was written before the end"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "killed/dataset.json").exists(), "the packing was too fast to be killed in the middle"
    records = list((tmp_path / "killed").glob(".packing/shard-*.safetensors"))
    assert 1 <= len(records) < 40

    stdout, stderr = (again := tool(*arguments)).communicate(timeout=60)
    assert again.returncode == 0, stderr
    assert "160 samples of 4 classes in 40 shard(s)" in stdout
    pack(source, tmp_path / "undisturbed", size=128, num_shards=40)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "undisturbed")
    assert read_description(tmp_path / "killed").num_samples == 160


def test_a_worker_that_dies_ends_the_packing_with_an_explanation(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(FolderReader, "__reduce__", lambda self: (DyingReader, ()))
    with pytest.raises(RunError, match="a worker process was killed .* run the same command again to go on"):
        pack(folder, tmp_path / "packed", raw=True)
    monkeypatch.undo()
    assert pack(folder, tmp_path / "packed", raw=True).num_samples == 12


class DyingReader:
    def read(self, original: object) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a killed process goes on")
