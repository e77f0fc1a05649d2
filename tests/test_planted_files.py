"""Every reader of weights, npz, features, autoencoders, recipes and logs meets every kind of damaged or planted file.

What comes of it is work done, or one message with exit code 2: nothing planted is executed, and nothing hangs.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from afm_scale.commands.replay_reference import replay
from afm_scale.core.errors import EXIT_USER_ERROR, RunError
from afm_scale.core.run_folder import RunFolder
from afm_scale.core.types import Role
from afm_scale.data.toys.mnist import read_mnist
from afm_scale.evaluation.features.extractor import InceptionConfig, PixelFeatures, TorchScriptConfig
from afm_scale.evaluation.features.inception import Inception
from afm_scale.evaluation.features.torchscript import TorchScriptFeatures, TorchScriptInception
from afm_scale.evaluation.images.sets import open_images
from afm_scale.evaluation.reference import read_reference
from afm_scale.models.diffusers import CONFIG_NAME, WEIGHTS_NAME, read_autoencoder
from afm_scale.run.config import RunConfig
from afm_scale.run.guides import _with_weights
from afm_scale.run.load import load
from afm_scale.run.networks import build_network
from tests.data.small import mnist_file
from tests.models.small_autoencoder import saved_autoencoder
from tests.test_opening import openings  # noqa: F401  (the other half: nobody opens files elsewhere)

CPU = torch.device("cpu")
SECONDS = 20  # each takes milliseconds
GOLDEN = Path(__file__).parent / "golden" / "afm_1nfe.json"


class Hang(BaseException):
    """Not an Exception: nobody catches it by the way."""


@contextmanager
def limited() -> Iterator[None]:
    def over(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(read: Callable[[], object]) -> str:
    """'done', or the message of the refusal; whatever else is raised goes on."""
    with limited():
        try:
            read()
        except RunError as error:
            assert error.exit_code == EXIT_USER_ERROR
            assert 20 < len(str(error)) < 2000, error
            return str(error)
    return "done"


class Planted:
    """Unpickled, it makes a file of the name 'executed' where the process is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('executed', 'w').close()",)


def in_memory(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def object_npz() -> bytes:
    names = ("arr_0", "labels", "images", "mu", "sigma", "about")
    planted = np.array([Planted()], dtype=object)
    return in_memory(lambda file: np.savez(file, **dict.fromkeys(names, planted)))


def planted_script() -> bytes:
    """An archive that torch.load and torch.jit.load would open: its data are a pickle of ours."""

    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("data.pkl", "constants.pkl"):
                archive.writestr(f"x/{name}", pickle.dumps(Planted()))
            archive.writestr("x/version", "3\n")

    return in_memory(write)


def long_header_npz() -> bytes:
    """A kilobyte that unfolds to a header of a gigabyte."""

    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("arr_0", "mu", "images"):
                header = np.lib.format.MAGIC_PREFIX + bytes((2, 0)) + struct.pack("<I", 2**30) + b" " * 2**20
                archive.writestr(f"{name}.npy", header)

    return in_memory(write)


CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "zeros": bytes(4096),
    "noise": random.Random(0).randbytes(4096),
    "text": b"these are no numbers\n" * 50,
    "a pickle": pickle.dumps(Planted()),
    "a pickle of weights": in_memory(lambda file: torch.save({"weight": Planted()}, file)),
    "an old pickle of weights": in_memory(
        lambda file: torch.save({"weight": Planted()}, file, _use_new_zipfile_serialization=False)
    ),
    "a planted script": planted_script(),
    "pickled arrays": object_npz(),
    "a pickled array": in_memory(lambda file: np.save(file, np.array([Planted()], dtype=object))),
    "a long header": long_header_npz(),
    "a header of a terabyte": struct.pack("<Q", 10**12) + b"{}",
    "a tensor of 10^15": (lambda text: struct.pack("<Q", len(text)) + text)(
        b'{"a":{"dtype":"F32","shape":[1000000000000000],"data_offsets":[0,4000000000000000]}}'
    ),
    "tensors over each other": (lambda text: struct.pack("<Q", len(text)) + text + bytes(8))(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    ),
    "deep lists": b"[" * 100_000,
    "deep mappings": b'{"a":' * 100_000,
    "a number of 5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "YAML that runs": b"run: !!python/object/apply:builtins.exec [\"open('executed', 'w').close()\"]\n",
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": pipe, "a device": endless, "a folder": Path.mkdir, "a link to itself": circle,
    "a terabyte of holes": holes,
}


@dataclass(frozen=True)
class Reader:
    name: str  # of the file
    read: Callable[[Path], object]
    good: Callable[[Path], object] | None = None  # writes a file that can be read; None: too slow for here
    takes_folders: bool = False


def guided(path: Path) -> RunConfig:
    classifier = f"model.classifier={{kind: mlp, width: 8, weights: {path}}}"
    return load(RunConfig, "mixture2d_afm_flow", [classifier])


def guide_tensors() -> dict[str, torch.Tensor]:
    shapes = build_network(guided(Path("x")), Role.CLASSIFIER).state_dict()
    return {name: torch.zeros(value.shape) for name, value in shapes.items()}


def image_npz(path: Path, **changes: np.ndarray) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1), dtype=np.uint8)
    np.savez(path, **{"arr_0": images, "labels": np.arange(6), **changes})


def about(**changes: object) -> np.ndarray:
    known = {"format": "afm_scale reference", "version": 1, "features": PixelFeatures.name, "count": 9, "about": {}}
    return np.array(json.dumps({**known, **changes}))


def reference_npz(path: Path, **changes: np.ndarray) -> None:
    np.savez(path, **{"mu": np.zeros(4), "sigma": np.eye(4), "about": about(), **changes})


def every_image(path: Path) -> None:
    for _ in open_images(path).batches(0, 1, 4):
        pass


def replay_with(suffix: str) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        other = ".json" if suffix == ".safetensors" else ".safetensors"
        path.with_suffix(other).write_bytes(GOLDEN.with_suffix(other).read_bytes())
        replay(path.with_suffix(".json"))

    return read


def read_inception(path: Path) -> None:
    Inception(InceptionConfig(weights=path, sha256=None), CPU)


def recipe(path: Path) -> None:
    path.write_text("inherit: [mixture2d_afm]\nloop: {steps: 3}\n")


def log(path: Path) -> None:
    path.write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(9)))


READERS: dict[str, Reader] = {
    "images in an npz": Reader("x.npz", every_image, image_npz, takes_folders=True),
    "statistics": Reader("x.npz", lambda path: read_reference(path, PixelFeatures()), reference_npz),
    "digits in an npz": Reader("x.npz", lambda path: read_mnist(path, "train"), mnist_file),
    "weights of a guide": Reader(
        "x.safetensors", lambda path: _with_weights(guided(path), "classifier"),
        lambda path: path.write_bytes(safetensors_bytes(guide_tensors())),
    ),
    "TorchScript": Reader("x.pt", lambda path: TorchScriptFeatures(TorchScriptConfig(file=path), CPU)),
    "Inception as TorchScript": Reader(
        "x.pt", lambda path: TorchScriptInception(InceptionConfig(weights=path, sha256=None), CPU)
    ),
    "Inception as weights": Reader("x.pth", read_inception),
    "an autoencoder's description": Reader(CONFIG_NAME, lambda path: read_autoencoder(str(path.parent))),
    "an autoencoder's weights": Reader(WEIGHTS_NAME, lambda path: read_autoencoder(str(path.parent))),
    "a recipe": Reader("x.yaml", lambda path: load(RunConfig, path), recipe),
    "a log": Reader("metrics.jsonl", lambda path: list(RunFolder(path.parent).read_metrics()), log),
    "a case to replay": Reader("x.json", replay_with(".json")),
    "tensors to replay": Reader("x.safetensors", replay_with(".safetensors")),
}
TAKEN = {("a recipe", "nothing"), *(("a log", what) for what in CONTENTS)}  # of one line, which a kill may have torn


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def place_for(reader: Reader, folder: Path, autoencoder: Path) -> Path:
    """The free name of the file that is read, with the good ones that belong beside it."""
    if reader.name in (CONFIG_NAME, WEIGHTS_NAME):
        for other in {CONFIG_NAME, WEIGHTS_NAME} - {reader.name}:
            (folder / other).write_bytes((autoencoder / other).read_bytes())
    return folder / reader.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_nothing_else_is_taken_executed_or_waited_for(kind: str, here: Path, autoencoder: Path) -> None:
    reader, words = READERS[kind], {"a pipe": "a named pipe", "a device": "a device"}
    for number, (what, make) in enumerate([*CONTENTS.items(), *PLACES.items()]):
        if what == "a folder" and reader.takes_folders:
            continue
        folder = here / str(number)
        folder.mkdir()
        path = place_for(reader, folder, autoencoder)
        path.write_bytes(make) if isinstance(make, bytes) else make(path)
        told = outcome(lambda path=path: reader.read(path))
        assert told != "done" or (kind, what) in TAKEN, f"{kind} was read from {what}"
        assert what not in ("a pipe", "a device") or f"it is {words[what]}, wanted a regular file" in told, told
        assert not (here / "executed").exists(), f"{kind}: {what} was executed"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, reader in READERS.items() if reader.good])
def test_a_good_file_is_read_and_a_torn_or_flipped_one_ends_well(kind: str, here: Path) -> None:
    reader, random_ = READERS[kind], random.Random(1)
    path = here / reader.name
    reader.good(path)
    assert outcome(lambda: reader.read(path)) == "done"
    whole = path.read_bytes()
    for number in range(25):
        damaged = bytearray(whole[:random_.randrange(len(whole))] if number % 5 == 0 else whole)
        for _ in range(number % 3 + 1):
            if damaged:
                damaged[random_.randrange(min(len(damaged), 2000))] ^= 1 << random_.randrange(8)
        other = here / f"{number}" / reader.name
        other.parent.mkdir()
        other.write_bytes(damaged)
        outcome(lambda other=other: reader.read(other))


def many_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        array = in_memory(lambda file: np.save(file, np.zeros(1)))
        for number in range(1001):
            archive.writestr(f"{number}.npy", array)


def packed_zeros(path: Path) -> None:
    """A megabyte that unfolds to a gigabyte: statistics of 11,585 features."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("mu.npy", in_memory(lambda file: np.save(file, np.zeros(6000))))
        header = in_memory(lambda file: np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (6000, 6000)}
        ))
        with archive.open("sigma.npy", "w", force_zip64=True) as member:
            member.write(header)
            for _ in range(6000):
                member.write(bytes(8 * 6000))


STATISTICS: dict[str, dict[str, np.ndarray]] = {
    **{f"count {count}": {"about": about(count=count)} for count in (-5, 0, 1, 2**70, 2.5, True, "9", [])},
    **{f"features {found}": {"about": about(features=found)} for found in (None, 3, "x" * 5000, "\ud800")},
    "about a list": {"about": about(about=[])}, "another version": {"about": about(version=True)},
    "a key too many": {"about": about(more=1)}, "not a number": {"about": np.array('{"count": NaN}')},
    "a mean of NaN": {"mu": np.full(4, np.nan)}, "an endless mean": {"mu": np.full(4, np.inf)},
    "a mean of 1e300": {"mu": np.full(4, 1e300)}, "a complex mean": {"mu": np.zeros(4, complex)},
    "a whole mean": {"mu": np.zeros(4, int)}, "a mean of 80 bits": {"mu": np.zeros(4, np.longdouble)},
    "no mean": {"mu": np.zeros(0)}, "a mean of other length": {"mu": np.zeros(5)},
    "a covariance of 1e300": {"sigma": 1e300 * np.eye(4)}, "of -1": {"sigma": -np.eye(4)},
    "not symmetric": {"sigma": np.triu(np.ones((4, 4)))},
    "not positive": {"sigma": np.ones((4, 4)) + np.ones((4, 4))[:, ::-1] * np.array([0, 1, 1, 0]) * 5},
    "of nothing, but for the rest": {"sigma": np.ones((4, 4)) - np.eye(4)},
    "structured": {"sigma": np.zeros((4, 4), dtype=[("a", "f8")])},
    "members of NaN": {"members": np.full((3, 4), np.nan)}, "other members": {"members": np.zeros((3, 5))},
    "text members": {"members": np.array(["x"])},
}
IMAGES: dict[str, dict[str, np.ndarray]] = {
    "floats": {"arr_0": np.zeros((2, 2, 2, 3))}, "none": {"arr_0": np.zeros((0, 2, 2, 3), np.uint8)},
    "four channels": {"arr_0": np.zeros((2, 2, 2, 4), np.uint8)}, "columns first": {
        "arr_0": np.asfortranarray(np.zeros((2, 2, 2, 3), np.uint8))
    },
    "negative labels": {"labels": np.arange(6) - 1}, "float labels": {"labels": np.zeros(6)},
    "labels of 64 bits": {"labels": np.full(6, 2**63, np.uint64)}, "five labels": {"labels": np.zeros(5, int)},
}


@pytest.mark.parametrize("what", STATISTICS)
def test_statistics_that_cannot_be_are_refused(what: str, here: Path) -> None:
    reference_npz(here / "x.npz", **STATISTICS[what])
    assert "x.npz" in outcome(lambda: read_reference(here / "x.npz", PixelFeatures()))


@pytest.mark.parametrize("what", IMAGES)
def test_images_and_labels_that_cannot_be_are_refused(what: str, here: Path) -> None:
    image_npz(here / "x.npz", **IMAGES[what])
    assert "x.npz" in outcome(lambda: every_image(here / "x.npz"))


@pytest.mark.parametrize("make, told", [(many_arrays, "1,001 arrays"), (packed_zeros, "no array of real numbers")])
def test_what_unfolds_to_more_than_there_can_be_is_refused(make, told: str, here: Path) -> None:
    make(here / "x.npz")
    assert told in outcome(lambda: read_reference(here / "x.npz", PixelFeatures()))


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "values that are not finite": lambda value: torch.full_like(value, torch.nan),
    "holds values that are": lambda value: torch.full_like(value, torch.inf),
    "of int64": lambda value: value.to(torch.int64), "of bool": lambda value: value.to(torch.bool),
    "of complex64": lambda value: value.to(torch.complex64), "of float8": lambda value: value.to(torch.float8_e4m3fn),
    "there,": lambda value: value[None],
    "missing there": lambda value: None,
}


@pytest.mark.parametrize("told", CHANGES)
@pytest.mark.parametrize("kind", ["guide", "autoencoder"])
def test_weights_of_another_kind_are_refused(kind: str, told: str, here: Path, autoencoder: Path) -> None:
    if kind == "guide":
        tensors, path = guide_tensors(), here / "x.safetensors"
        read = lambda: _with_weights(guided(path), "classifier")  # noqa: E731
    else:
        path = place_for(READERS["an autoencoder's weights"], here, autoencoder)
        tensors = {name: value.clone() for name, value in safetensors_of(autoencoder / WEIGHTS_NAME).items()}
        read = lambda: read_autoencoder(str(here))  # noqa: E731
    path.write_bytes(safetensors_bytes(tensors))
    assert outcome(read) == "done"
    name = sorted(tensors)[0]
    changed = {name: CHANGES[told](tensors.pop(name)), **tensors}
    path.write_bytes(safetensors_bytes({name: value for name, value in changed.items() if value is not None}))
    found = outcome(read)
    assert found != "done" and (kind == "autoencoder" or told in found)


def safetensors_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(path.read_bytes())


@pytest.mark.parametrize("change", [
    {"scaling_factor": float("nan")}, {"scaling_factor": -1}, {"scaling_factor": [1]}, {"scaling_factor": 1e999},
    {"block_out_channels": [10**9, 10**9]}, {"block_out_channels": [8] * 1000}, {"block_out_channels": 8},
    {"block_out_channels": [8]}, {"layers_per_block": 10**9}, {"layers_per_block": -1}, {"norm_num_groups": 0},
    {"norm_num_groups": 3}, {"latent_channels": 2**62}, {"in_channels": None}, {"act_fn": "os.system"},
    {"down_block_types": ["builtins.exec"] * 2}, {"_class_name": "UNet2DModel"}, {"sample_size": -16},
    {"quantization_config": {"quant_method": "bitsandbytes"}}, {"block_out_channels": [8192, 8192]},
])
def test_an_autoencoder_that_cannot_be_is_refused_before_it_is_built(
    change: dict, here: Path, autoencoder: Path
) -> None:
    path = place_for(READERS["an autoencoder's description"], here, autoencoder)
    plain = json.loads((autoencoder / CONFIG_NAME).read_text())
    path.write_text(json.dumps(plain))
    assert outcome(lambda: read_autoencoder(str(here))) == "done"
    path.write_text(json.dumps({**plain, **change}))
    assert str(here) in outcome(lambda: read_autoencoder(str(here)))


def test_an_index_of_other_files_is_not_followed(here: Path, autoencoder: Path) -> None:
    path = place_for(READERS["an autoencoder's weights"], here, autoencoder)
    path.write_bytes((autoencoder / WEIGHTS_NAME).read_bytes())
    (here / f"{WEIGHTS_NAME}.index.json").write_text('{"metadata": {}, "weight_map": {"a": "../x.safetensors"}}')
    assert "in one file" in outcome(lambda: read_autoencoder(str(here)))
