"""What ranks say, and how they end, when one of them fails, hangs or is gone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from afm_scale.core.errors import DataError
from afm_scale.core.words import EVALUATING, STANDING, Act, Word
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.verdict import leave_after, within
from tests.launched import Launched, free_port, words_of

LIMIT = 6
PATIENCE = 150.0  # for a busy machine to start and end eight pairs at once


def start(function, world_size: int = 2, limit: int = LIMIT) -> list[Launched]:
    port = free_port()
    return [Launched(words_of(rank, world_size, port), function, limit) for rank in range(world_size)]


def ends(ranks: list[Launched]) -> tuple[list[int | None], list[str]]:
    codes, said = zip(*(rank.end(PATIENCE) for rank in ranks), strict=True)
    return list(codes), list(said)


def errors_in(said: str) -> list[str]:
    """Without the warnings of torch's C++, which the program hides before torch is imported."""
    return [line for line in said.splitlines() if line.startswith("error")]


def wait_in_turns(ranks: Ranks, rank: int, meet) -> None:
    """`rank` alone does `meet`; the others wait for it in a collective."""
    STANDING.step = 6
    dist.barrier()
    STANDING.step = 7
    time.sleep(0.5)  # a rank says every moment where it is, not at every step
    if ranks.rank == rank:
        meet()
    dist.all_reduce(torch.zeros(1))


def raise_own(ranks: Ranks) -> None:
    def meet():
        raise ZeroDivisionError("a bug")

    wait_in_turns(ranks, 1, meet)


def raise_users(ranks: Ranks) -> None:
    def meet():
        raise DataError("shard 3 is missing")

    wait_in_turns(ranks, 1, meet)


def lag_0(ranks: Ranks) -> None:
    wait_in_turns(ranks, 0, lambda: time.sleep(100))


def wait_outside(ranks: Ranks) -> None:
    """As for a GPU: the wait of rank 0 raises nothing."""
    STANDING.step = 7
    dist.barrier()
    time.sleep(0.5)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    threading.Event().wait()


def die_outside(ranks: Ranks) -> None:
    """Likewise, and the other one is killed: long before the limit it is known."""
    STANDING.step = 7
    dist.barrier()
    time.sleep(0.5)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def stop_while_others_work(ranks: Ranks) -> None:
    """No collective waits, and the limit of collectives is far: the process has stopped all the same."""
    STANDING.step = 7
    dist.barrier()
    time.sleep(0.5)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    with STANDING.during(EVALUATING):
        while True:
            time.sleep(0.01)


def nap(ranks: Ranks) -> None:
    """All live, and none gets on: the act has a limit."""
    STANDING.step = 7
    with STANDING.during(Act("a nap", 3.0)):
        dist.barrier()
        threading.Event().wait()


def hold_on(ranks: Ranks) -> None:
    """A thread that is no daemon and waits for ever, as of a save or of a library."""
    threading.Thread(target=threading.Event().wait).start()
    wait_in_turns(ranks, 0, lambda: os.kill(os.getpid(), signal.SIGSTOP))


class SlowStore:
    """The store of a busy launcher."""

    def __init__(self, store: dist.Store) -> None:
        self._store, self.is_asked = store, threading.Event()

    def set(self, key: str, value: str) -> None:
        self.is_asked.set()
        time.sleep(1.5)
        self._store.set(key, value)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


def refuse_together(ranks: Ranks) -> None:
    """Nobody is lost: the caller may end its interpreter, in which a thread that comes back from the store aborts."""
    dist.barrier()
    ranks.watch._board._store = slow = SlowStore(ranks.watch._board._store)
    slow.is_asked.wait()
    error = DataError("no rank has a shard").of_all_ranks()
    ranks.__exit__(DataError, error, None)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("watch _")]
    assert not left, left


def groups(ranks: Ranks) -> None:
    """Every group there is, whoever made it, waits no longer than the limit."""
    init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    dist.new_group(backend="gloo")
    known = dist.distributed_c10d._world.pg_map
    limits = {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in known}
    assert len(known) >= 3 and limits == {LIMIT}, (len(known), limits)


def test_every_way_of_losing_a_rank_is_one_message_and_an_end():
    functions = (raise_own, raise_users, lag_0, wait_outside, hold_on, groups, nap, refuse_together)
    stopped = start(stop_while_others_work, limit=600)
    killed = start(die_outside, limit=600)
    started = {function: start(function) for function in functions}
    began = time.monotonic()
    (codes, said), took = ends(killed), time.monotonic() - began
    assert codes == [1, -signal.SIGKILL] and "rank 1 of 2 has ended without a word" in said[0], said
    assert took < PATIENCE
    codes, said = ends(stopped)
    assert codes == [1, -signal.SIGKILL] and time.monotonic() - began < PATIENCE, (codes, said)
    (line,) = errors_in(said[0])
    assert line.startswith("error: rank 1 of 2 is stopped (SIGSTOP) and does not answer (process "), line
    assert "it was last at step 7, in no line" in line and "at step 7, in an evaluation, in no line" in line, line
    log = stopped[0].log.read_text()
    assert "the last that is known of rank 1, at step 7" in log and "stop_while_others_work" in log, log
    collectives = json.loads(stopped[0].log.with_suffix(".collectives.json").read_text())
    assert collectives["gloo"]["entries"][-1]["profiling_name"] == "gloo:barrier"
    found = {function: ends(ranks) for function, ranks in started.items()}
    for function, (_, said) in found.items():
        if "before its first step" in "".join(said):  # on a full machine they may meet too late: once more, alone
            found[function] = ends(start(function))

    codes, said = found[raise_own]
    assert codes == [1, 1] and said[0] == "" and said[1].rstrip().endswith("ZeroDivisionError: a bug"), said
    assert "Traceback" in started[raise_own][0].log.read_text()

    codes, said = found[raise_users]
    assert (codes, said) == ([2, 2], ["", "error on rank 1: shard 3 is missing\n"])

    codes, said = found[lag_0]
    assert codes == [1, 1], said
    (line,) = errors_in("".join(said))
    assert line.startswith("error: rank 0 of 2 is behind: at step 7, in "), line
    assert "Rank 1 waited for it at step 7" in line and f"timeout_seconds={LIMIT}" in line

    for function, lost in ((hold_on, 0), (wait_outside, 1)):
        codes, said = found[function]
        if codes[lost] != -signal.SIGKILL:  # on a full machine another may be late first: once more, alone
            codes, said = ends(start(function))
        assert codes[lost] == -signal.SIGKILL and codes[1 - lost] == 1, (codes, said)
        (line,) = errors_in(said[1 - lost])
        assert line.startswith(f"error: rank {lost} of 2 is stopped (SIGSTOP) and does not answer (process "), line
        assert "it was last at step " in line and f"Rank {1 - lost} waited for it at step 7" in line

    codes, said = found[nap]
    assert codes == [1, 1], (codes, said)
    (line,) = errors_in("".join(said))
    assert "is behind: at step 7, in a nap, in " in line and "its limit is 3 s" in line, line

    assert found[groups] == ([0, 0], ["", ""])

    codes, said = found[refuse_together]  # torch's C++ may warn of the store that goes with rank 0
    assert codes == [0, 0] and not errors_in("".join(said)), (codes, said)


def test_a_word_says_the_step_and_the_line_and_whether_its_process_is_there():
    word = STANDING.word(time.monotonic())
    assert Word.decode(word.encode().encode()) == word
    assert word.state() == "computing" and word.pid == os.getpid()


def test_what_needs_a_thread_is_given_up_where_the_system_has_none_left(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert within(1.0, lambda: 3) is None
    leave_after(0.0, 5)
