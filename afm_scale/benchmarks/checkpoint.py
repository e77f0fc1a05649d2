"""Saving and loading a checkpoint beside what torch's writer and reader take alone: the cost of sums and of reading
back."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ..checkpoint.manager import CheckpointConfig, CheckpointManager
from ..checkpoint.manifest import folder_name
from ..checkpoint.tensors import load_into, read_tensors
from ..core.errors import UserError
from ..core.random import tensor_generator
from ..core.ranges import Range
from ..core.screen import say
from ..run.arguments import add_number, request_of

NUM_TENSORS = 64

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class CheckpointBenchmark:
    """The command's arguments."""

    mib: int  # of the tensors
    repeats: int
    folder: Path | None

    def __post_init__(self) -> None:
        if self.mib < 1 or self.repeats < 1:
            raise UserError("--mib and --repeats must be at least 1")


@dataclass(frozen=True)
class _Row:
    name: str
    seconds: list[float]
    of: str  # the row it is compared with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_number(parser, "--mib", int, Range(1, 1_000_000), default=1024, metavar="N",
        help="of the tensors (default 1024)")
    add_number(parser, "--repeats", int, Range(1, 1_000), default=7, metavar="N",
        help="of everything, in turns; the median is told (default 7)")
    add("--folder", type=Path, metavar="DIR", help="on the disk that is meant (default: that of temporary files)")
    add("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    return benchmark_checkpoint_command(request_of(CheckpointBenchmark, options), as_json=options.json)


def benchmark_checkpoint_command(request: CheckpointBenchmark, *, as_json: bool) -> int:
    """Prints the seconds of saves until they are on the disk, and of loads from the system's cache. One rank."""
    generator = tensor_generator("benchmark of checkpoints")
    length = request.mib * 2**20 // 4 // NUM_TENSORS
    tensors = {f"tensor_{index}": torch.randn(length, generator=generator) for index in range(NUM_TENSORS)}
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
    with tempfile.TemporaryDirectory(dir=request.folder, prefix="checkpoint_benchmark_") as name:
        rows = _measured(Path(name), tensors, request.repeats)
    _print(request, rows, as_json)
    return 0


def _measured(folder: Path, tensors: Tensors, repeats: int) -> list[_Row]:
    target = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    plain, whole = folder / "torch", folder / "whole" / folder_name(1)
    managers = {verify: _manager(folder / name, verify) for name, verify in (("whole", "never"), ("read", "every"))}
    reader: Callable[[], dcp.FileSystemReader] = lambda: dcp.FileSystemReader(plain)  # noqa: E731
    works: dict[tuple[str, str], Callable[[], object]] = {
        ("save, torch alone", ""): lambda: _save_plainly(plain, tensors),
        ("save with sums", "save, torch alone"): lambda: managers["never"].save(1, tensors, {}),
        ("save, read back", "save, torch alone"): lambda: managers["every"].save(1, tensors, {}),
        ("load, torch alone", ""): lambda: dcp.load(dict(target), storage_reader=reader(), no_dist=True),
        ("load with sums", "load, torch alone"): lambda: load_into(whole, target),
        ("read, torch alone", ""): lambda: dcp.load(
            {name: torch.empty_like(tensor) for name, tensor in tensors.items()}, storage_reader=reader(), no_dist=True
        ),
        ("read with sums", "read, torch alone"): lambda: read_tensors(whole),
    }
    rows = [_Row(name, [], of) for name, of in works]
    for turn in range(repeats + 1):  # the first warms up
        shutil.rmtree(plain, ignore_errors=True)
        for path in folder.glob(f"*/{folder_name(1)}"):
            shutil.rmtree(path)
        pairs = list(zip(rows, works.values(), strict=True))
        saves, loads = pairs[:3], pairs[3:]
        # Another one comes first in each turn: a disk may be fast for some time and then slow.
        for row, work in [*(saves[(turn + k) % 3] for k in range(3)), *(loads[(turn + k) % 4] for k in range(4))]:
            began = time.perf_counter()
            work()
            if turn:
                row.seconds.append(time.perf_counter() - began)
    if not all(torch.equal(target[name], tensor) for name, tensor in tensors.items()):
        raise RuntimeError("what was loaded is not what was saved")
    return rows


def _manager(folder: Path, verify: Literal["every", "never"]) -> CheckpointManager:
    config = CheckpointConfig(every_steps=1, asynchronous=False, verify=verify)
    return CheckpointManager(folder, config, rank=0, world_size=1, description={})


def _save_plainly(path: Path, tensors: Tensors) -> None:
    staged = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    dcp.save(staged, storage_writer=dcp.FileSystemWriter(path, per_thread_copy_ahead=0), no_dist=True)


def _print(request: CheckpointBenchmark, rows: list[_Row], as_json: bool) -> None:
    machine = {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
               "torch": torch.__version__}
    middle = {row.name: median(row.seconds) for row in rows}
    if as_json:
        told = [{**asdict(row), "median": middle[row.name]} for row in rows]
        say(json.dumps({"machine": machine, "request": {**asdict(request), "folder": str(request.folder)},
                          "rows": told}, indent=1))
        return
    say(f"{request.mib:,} MiB in {NUM_TENSORS} tensors, {request.repeats} turns; {machine['cores']} core(s)")
    for row in rows:
        ratio = f"   x {middle[row.name] / middle[row.of]:.2f}" if row.of else ""
        say(f"{row.name:20} {middle[row.name]:7.2f} s ({min(row.seconds):.2f} to {max(row.seconds):.2f}){ratio}")
