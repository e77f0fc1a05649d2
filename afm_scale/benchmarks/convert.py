"""Converting a checkpoint: time beside reading, hashing, writing and syncing the same bytes; memory at several sizes.

    python -m afm_scale benchmark convert --parameters 0.5 --work /tmp --to safetensors
    python -m afm_scale benchmark convert --memory 0.25 0.5 1
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..checkpoint.card import Card
from ..checkpoint.formats.format import About, Lazy, Source, Told, Wanted
from ..checkpoint.formats.table import FORMATS
from ..checkpoint.manifest import TensorEntry
from ..core.files import open_regular, read_regular, written_atomically
from ..core.ranges import MANY, Range
from ..core.screen import say
from ..core.types import Role
from ..run.arguments import add_number
from ..run.converting import Conversion, convert

_SIDE = 4096  # of a tensor: 64 MiB
_PIECE = 2**22


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_number(parser, "--parameters", float, Range(0.001, 100), default=0.125, metavar="B", help="billions")
    add_number(parser, "--memory", float, Range(0.001, 100), nargs="+", metavar="B",
        help="peak memory at these sizes, in place of time")
    add("--from", dest="source_format", choices=("native", "torch", "safetensors"), default="safetensors")
    add("--to", dest="out_format", choices=("native", "torch", "safetensors"), default="torch")
    add_number(parser, "--runs", int, Range(1, MANY), default=5)
    add("--work", type=Path, help="a folder on the disk that is meant; default: the system's for temporary files")
    add("--once", type=Path, nargs=2, metavar=("IN", "OUT"), help=argparse.SUPPRESS)  # in a process of its own


def run(options: argparse.Namespace) -> int:
    if options.once is not None:
        _convert(*options.once, options.source_format, options.out_format)
        say(str(_peak_bytes()))
        return 0
    with TemporaryDirectory(dir=options.work) as folder:
        if options.memory:
            _memory(Path(folder), options)
        else:
            _speed(Path(folder), options)
    return 0


def _memory(folder: Path, options: argparse.Namespace) -> None:
    say(f"MiB of memory, {options.source_format} -> {options.out_format}")
    say(f"{'parameters':>12} {'checkpoint':>12} {'peak':>10} {'peak - largest tensor':>22}")
    for billions in options.memory:
        source = _synthetic(folder / "in", billions, options.source_format)
        words = ["--from", options.source_format, "--to", options.out_format, "--once", source, folder / "out"]
        command = [sys.executable, "-m", "afm_scale", "benchmark", "convert", *map(str, words)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak, largest = int(told), _SIDE * _SIDE * 4
        say(f"{billions:>10g} B {billions * 4e9 / 2**20:>12,.0f} {peak / 2**20:>10,.0f} "
            f"{(peak - largest) / 2**20:>22,.1f}")
        for path in (source, folder / "out"):
            _remove(path)


def _speed(folder: Path, options: argparse.Namespace) -> None:
    source = _synthetic(folder / "in", options.parameters, options.source_format)
    out = folder / "out"
    works: dict[str, Callable[[], None]] = {
        "read, SHA-256, write, fsync": lambda: _copy(source, out),
        "convert": lambda: _convert(source, out, options.source_format, options.out_format),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.runs):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begun)
            _remove(out)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    what = f"{options.source_format} -> {options.out_format}"
    say(f"{options.parameters * 4:g} GB, {what}, {options.runs} interleaved runs")
    for name, values in seconds.items():
        say(f"{name:28} median {medians[name]:6.2f} s   all {' '.join(f'{value:.2f}' for value in values)}")
    say(f"{'quotient':28} {medians['convert'] / medians['read, SHA-256, write, fsync']:.2f}")


def _synthetic(out: Path, billions: float, kind: str) -> Path:
    """A checkpoint of so many parameters, in tensors of 16.8 million."""
    entry, random = TensorEntry((_SIDE, _SIDE), "float32"), torch.randn(_SIDE, _SIDE)
    count = max(1, round(billions * 1e9 / _SIDE**2))
    card = Card(
        learner=Role.GENERATOR, objective="afm", networks={Role.GENERATOR: {"kind": "none"}}, shape=(1, 1, 1),
        num_classes=1, prediction="x", class_dropout=0.0, num_steps=1, precision="fp32", data={"kind": "none"},
        latents=None, device="auto",
    )
    tensors = {f"average.{i}": Lazy(entry, lambda: random) for i in range(count)}
    FORMATS[kind].write(Source(out, tensors, About(card=card)), out, Wanted())
    return out


def _convert(source: Path, out: Path, source_format: str, out_format: str) -> None:
    convert(Conversion(
        source=source, source_format=source_format, out=out, out_format=out_format, part=None, dtype=None,
        verify=False, told=Told(), wanted=Wanted(),
    ))


def _copy(source: Path, out: Path) -> None:
    """What has to be done at least: every byte read, hashed, written and put on the disk."""
    files = [source] if source.is_file() else sorted(source.iterdir())
    for number, file in enumerate(files):
        sha = hashlib.sha256()
        with open_regular(file) as reading, written_atomically(out / str(number)) as writing:
            while piece := reading.read(_PIECE):
                sha.update(piece)
                writing.write(piece)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _peak_bytes() -> int:
    """Of this program: what resource.getrusage has is that of the process which started it, if it was larger."""
    (line,) = (line for line in read_regular(Path("/proc/self/status")).splitlines() if line.startswith(b"VmHWM"))
    return int(line.split()[1]) * 1024
