"""What a rank's device, its network and a folder can do, measured in a few seconds; and which ranks are slow."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from ..core.files import written_atomically
from ..core.place import Place

REPEATS = 7  # of which the fastest counts: the others were disturbed
SLOW = 0.6  # of the median over the ranks: a figure below it is slow, and fails
LONGEST_SKEW = 1.0  # seconds between a rank's clock and the median of all: above it logs and schedules do not fit


@dataclass(frozen=True)
class Figure:
    """Something that is measured on every rank; more is better, but of the clock."""

    name: str
    unit: str
    measure: Callable[[Place, Path], float]  # collective where ranks are; the folder is for what is written


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    def once() -> float:
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(REPEATS))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul(place: Place, folder: Path) -> float:
    """TFLOP/s of a square product: float32 of 1024 on the CPU, bfloat16 of 8192 on a GPU."""
    size, dtype = (8192, torch.bfloat16) if place.device.type == "cuda" else (1024, torch.float32)
    left = torch.ones(size, size, dtype=dtype, device=place.device)
    return 2 * size**3 / _fastest(lambda: left @ left, place.device) / 1e12


def copy(place: Place, folder: Path) -> float:
    """GB/s that are read and written by a copy in the device's memory."""
    source = torch.ones(_bytes(place), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    return 2 * len(source) / _fastest(lambda: target.copy_(source), place.device) / 1e9


def all_reduce(place: Place, folder: Path) -> float:
    """GB/s that each rank sends: 2 (n - 1) / n of the tensor, if it goes round a ring."""
    value = torch.ones(_bytes(place) // 4, device=place.device)
    share = 2 * (place.world_size - 1) / place.world_size
    return share * value.nbytes / _fastest(lambda: dist.all_reduce(value), place.device) / 1e9


def all_gather(place: Place, folder: Path) -> float:
    """GB/s that each rank receives: all parts but its own."""
    part = torch.ones(_bytes(place) // 4 // place.world_size, device=place.device)
    whole = torch.empty(len(part) * place.world_size, device=place.device)
    received = whole.nbytes - part.nbytes
    return received / _fastest(lambda: dist.all_gather_into_tensor(whole, part), place.device) / 1e9


def writing(place: Place, folder: Path) -> float:
    """GB/s of all ranks writing at once, each a file of 32 MiB that is then on the disk; raises OSError."""
    content, path = os.urandom(2**20), folder / f".doctor_{place.rank:05d}"
    began = time.perf_counter()
    try:
        with written_atomically(path) as file:
            for _ in range(32):
                file.write(content)
        return 32 * len(content) / (time.perf_counter() - began) / 1e9
    finally:
        path.unlink(missing_ok=True)


def clock(place: Place, folder: Path) -> float:
    """Seconds of the system's clock as all leave a barrier, the median of several, from rank 0's."""
    found = []
    for _ in range(REPEATS):
        if place.world_size > 1:
            dist.barrier()
        times = [0.0] * place.world_size
        now = time.time()
        if place.world_size > 1:
            dist.all_gather_object(times, now)
        found.append(now - (times[0] if place.world_size > 1 else now))
    return statistics.median(found)


def _bytes(place: Place) -> int:
    return 2**28 if place.device.type == "cuda" else 2**24


ALONE = (Figure("matmul", "TFLOP/s", matmul), Figure("memory copy", "GB/s", copy), Figure("write", "GB/s", writing))
TOGETHER = (Figure("all-reduce", "GB/s", all_reduce), Figure("all-gather", "GB/s", all_gather))
CLOCK = Figure("clock", "s", clock)


def figures_of(world_size: int) -> Sequence[Figure]:
    """What is measured of so many ranks, in this order on each."""
    return (*ALONE, *(TOGETHER if world_size > 1 else ()), CLOCK)


def slow(found: Mapping[str, Sequence[float]]) -> dict[str, list[int]]:
    """The rule: which ranks fail in which figure, of values by rank."""
    failed = {}
    for name, values in found.items():
        middle = statistics.median(values)
        if name == CLOCK.name:
            failed[name] = [rank for rank, value in enumerate(values) if abs(value - middle) > LONGEST_SKEW]
        else:
            failed[name] = [rank for rank, value in enumerate(values) if value < SLOW * middle]
    return {name: ranks for name, ranks in failed.items() if ranks}
