"""Why a run of several ranks ends: the words for it, and ways to ask and to leave that wait for nobody."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from ..core.words import Word
from .flight import last_collective

# How gloo and NCCL say that others are gone or late. Their errors have no class in common.
_OF_OTHERS = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|Broken pipe|[Tt]imed out|Socket Timeout")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why the run ends, by the first rank that knew."""

    by: int
    host: str
    text: str
    exit_code: int

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes) -> Verdict:
        return cls(**json.loads(text))


class Observer(NamedTuple):
    """The rank that looks at the others."""

    rank: int
    world_size: int
    timeout: float  # seconds


def of_silent(silent: Sequence[int], words: Mapping[int, Word], me: Observer) -> str:
    told = {
        "gone": "has ended without a word", "stopped": "is stopped (SIGSTOP) and does not answer",
        "computing": "does not answer", "waiting": "does not answer", "unknown": "does not answer",
    }
    lost = "; ".join(
        f"rank {rank} of {me.world_size} {told[words[rank].state()]} (process {words[rank].pid} on "
        f"{words[rank].host}); it was last {words[rank]}" for rank in silent[:3]
    ) + (f"; and {len(silent) - 3} more ranks" if len(silent) > 3 else "")
    return lost + _of_waiting({rank: word for rank, word in words.items() if rank not in silent}, me)


def behind(words: Mapping[int, Word], me: Observer) -> int:
    """All answer: the rank with the fewest steps is behind; of several, the one that is not seen to wait."""

    def progress(rank: int) -> tuple[int, bool, bool, float]:
        word = words[rank]
        step = -1 if word.step is None else word.step
        return step, word.waits, word.motionless > me.timeout / 2, -word.motionless

    return min(words, key=progress)


def of_behind(last: int, words: Mapping[int, Word], me: Observer) -> str:
    word = words[last]
    text = f"rank {last} of {me.world_size} is behind: {word}, for {word.motionless:.0f} s"
    if word.is_overdue(me.timeout):
        text += f", {word.acting:.0f} s without a step or another act (its limit is {word.allowed(me.timeout):.0f} s)"
    return text + _of_waiting({rank: word for rank, word in words.items() if rank != last}, me)


def _of_waiting(words: Mapping[int, Word], me: Observer) -> str:
    rank = me.rank if me.rank in words else min(words, default=None)
    own = last_collective() if rank == me.rank else ""
    waited = "" if rank is None else (
        f". Rank {rank}{f', and {len(words) - 1} more' if len(words) > 1 else ''} waited for it {words[rank]}"
        f"{own and f' (its last collective: {own})'}"
    )
    return (
        f"{waited} (parallel.timeout_seconds={me.timeout:.0f}). Look at that host and process"
    )


def is_of_others(error: BaseException) -> bool:
    """Whether an error only says that other ranks are gone or late."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, dist.DistError) or isinstance(seen, RuntimeError) and _OF_OTHERS.search(str(seen)):
            return True
        seen = seen.__cause__
    return not isinstance(error, Exception) and "gloo" in str(error)  # torch's CheckpointException


def within(seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns; None if it failed, took longer (for ever, where the store's process is stopped), or found no
    thread to begin in."""
    results: list[T] = []

    def run() -> None:
        with suppress(Exception):  # whatever torch makes of a store that is gone
            results.append(work())

    thread = threading.Thread(target=run, name="watch", daemon=True)
    with suppress(RuntimeError):
        thread.start()
        thread.join(seconds)
    return results[0] if results else None


def leave_after(seconds: float, code: int) -> None:
    """The process's last resort: threads and collectives that never end are not waited for."""

    def leave() -> None:
        time.sleep(seconds)
        os._exit(code)

    with suppress(RuntimeError):  # without a thread the process leaves as it can
        threading.Thread(target=leave, name="leave", daemon=True).start()
