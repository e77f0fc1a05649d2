"""Torch's flight recorder: which collectives this rank has begun, and the last of them, for when a run is lost.

It is read in the process itself, as JSON; torch's own dumps of NCCL's would have to be unpickled. Gloo's is always on;
NCCL's has entries where TORCH_FR_BUFFER_SIZE (before torch 2.13: TORCH_NCCL_TRACE_BUFFER_SIZE) says how many.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch._C import _distributed_c10d as recorder
from torch.distributed import distributed_c10d

from ..core.files import write_atomically
from ..core.words import IN_BACKGROUND

_READERS = {"nccl": "_dump_nccl_trace_json", "gloo": "_dump_fr_trace_json"}


def last_collective() -> str:
    """Of this rank, such as 'gloo:all_reduce, number 12 of group default_pg, of Float [1, 7]'; '' if none is known."""
    newest: dict[str, Any] = {}
    for _, recorded in _read():
        for entry in recorded.get("entries", []):
            if entry.get("time_created_ns", 0) >= newest.get("time_created_ns", 0):
                newest = entry
    if not newest:
        return ""
    number, group = newest["collective_seq_id"] or newest["p2p_seq_id"], newest["process_group"]
    kinds = zip(newest["input_dtypes"], newest["input_sizes"], strict=False)
    tensors = ", ".join(f"{dtype} {size}" for dtype, size in list(kinds)[:3])
    name = group[0] if group[1] in ("", "undefined") else group[1]
    return f"{newest['profiling_name']}, number {number} of group {name}{f', of {tensors}' if tensors else ''}"


def begun_by_all(world_size: int, since: int) -> list[tuple[int, int]]:
    """Collectives of all ranks that the main thread has begun since then, in their order.

    Args:
        since: nanoseconds of the system's clock
    Returns: for each a number that it has on every rank, above 0 and below 2 ** 33, and when this rank has begun it, in
        nanoseconds. Empty where nothing is recorded.
    """
    world = distributed_c10d._world
    names = {name for group, name in world.pg_names.items() if len(world.pg_group_ranks[group]) == world_size}
    entries = [
        entry for _, recorded in _read() for entry in recorded["entries"]
        if entry["time_created_ns"] >= since and entry["process_group"][0] in names and not entry["is_p2p"]
        and entry["process_group"][1] != IN_BACKGROUND
    ]
    begun = [
        (zlib.crc32(f"{entry['process_group'][0]} {entry['collective_seq_id']}".encode()) + 1, entry["time_created_ns"])
        for entry in entries
    ]
    return sorted(begun, key=itemgetter(1))


def keep(path: Path) -> None:
    """Writes what was recorded, by libraries, if there is anything. It stays silent where it cannot."""
    found = dict(_read())
    if found:
        with suppress(OSError):
            write_atomically(path, lambda file: file.write(json.dumps(found).encode()))


def _read() -> Iterator[tuple[str, dict[str, Any]]]:
    for library, name in _READERS.items():
        read = getattr(recorder, name, None)  # torch without NCCL has one of them
        with suppress(Exception):  # this is asked for where all is lost already
            found = json.loads(read()) if read is not None else {}
            if found.get("entries"):
                yield library, found
