from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from afm_scale.core.errors import UserError
from afm_scale.core.holding import LOCK_NAME, MISSED_BEATS, RECORD_NAME, Held, Holder, hold, take
from afm_scale.core.typed import to_mapping

from ..ranks import PRELOADED

BEAT = 0.05
OTHER = Holder(
    host="another", kernel="another's", device=7, pid=4321, since="2026-01-01T00:00:00+00:00", ranks=16,
    job="SLURM_JOB_ID=77", token="theirs",
)


def leave_record(folder: Path, text: str = json.dumps(to_mapping(OTHER))) -> Path:
    """What another host's process has written."""
    folder.mkdir(exist_ok=True)
    (folder / RECORD_NAME).write_text(text)
    return folder / RECORD_NAME


@contextmanager
def beating(record: Path) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            os.utime(record)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def hold_and_say(folder: Path, name: str, seconds: float, forks: bool) -> None:
    """Of a process: writes 'held' or why not into the file of this name, having left a child if it forks."""
    try:
        with hold(folder, ranks=2, beat_seconds=BEAT):
            if forks:
                child = os.fork()
                if child == 0:
                    time.sleep(seconds)
                    os._exit(0)
                (folder / "child").write_text(str(child))
            (folder / name).write_text("held")
            time.sleep(seconds)
    except UserError as error:
        (folder / name).write_text(str(error))


def started(folder: Path, name: str, *, seconds: float = 30, forks: bool = False) -> multiprocessing.Process:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    process = server.Process(target=hold_and_say, args=(folder, name, seconds, forks))
    process.start()
    return process


def killed(process: multiprocessing.Process) -> None:
    process.kill()
    process.join()


def test_a_second_process_is_told_who_holds_the_folder_and_a_killed_one_blocks_nobody(tmp_path: Path) -> None:
    process = started(tmp_path, "first", forks=True)
    wait_for(lambda: (tmp_path / "first").exists())
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as refused, hold(tmp_path, ranks=1):
        pass
    told = str(refused.value)
    assert str(tmp_path) in told and f"process {process.pid} on {os.uname().nodename} since 20" in told
    assert "2 rank(s)" in told and f"kill {process.pid}" in told and "run.folder" in told
    assert {path.name for path in tmp_path.iterdir()} == before

    killed(process)  # its forked child lives on
    began = time.monotonic()
    with hold(tmp_path, ranks=1, beat_seconds=60):
        assert time.monotonic() - began < 5
        assert json.loads((tmp_path / RECORD_NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / RECORD_NAME).exists()
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_of_many_that_come_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    """It was left by one of this host that was killed."""
    first = started(tmp_path, "first")
    wait_for(lambda: (tmp_path / "first").exists())
    killed(first)
    names = [f"newcomer_{number}" for number in range(5)]
    processes = [started(tmp_path, name) for name in names]
    try:
        wait_for(lambda: all((tmp_path / name).exists() for name in names))
    finally:
        for process in processes:
            killed(process)
    told = [(tmp_path / name).read_text() for name in names]
    assert told.count("held") == 1
    assert all("is held by process" in text for text in told if text != "held")


def test_a_record_of_another_host_is_respected_while_it_beats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = leave_record(tmp_path)
    with beating(record), pytest.raises(UserError) as refused, hold(tmp_path, ranks=1, beat_seconds=10 * BEAT):
        pass
    assert "process 4321 on another since 2026-01-01" in str(refused.value)
    assert "16 rank(s), SLURM_JOB_ID=77" in str(refused.value)
    assert record.read_text() == json.dumps(to_mapping(OTHER))

    began = time.monotonic()
    with hold(tmp_path, ranks=1, beat_seconds=BEAT):
        assert time.monotonic() - began > MISSED_BEATS * BEAT
        assert json.loads(record.read_text())["pid"] == os.getpid()
    assert "watching" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, json.dumps({**to_mapping(OTHER), "pid": "1"}), "null"])
def test_a_record_that_nobody_can_read_is_watched_like_that_of_another_host(tmp_path: Path, text: str) -> None:
    record = leave_record(tmp_path, text)
    with beating(record), pytest.raises(UserError, match="has not said who"), hold(tmp_path, ranks=1):
        pass
    with hold(tmp_path, ranks=1, beat_seconds=BEAT / 5):
        assert json.loads(record.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("is_left", [True, False])
def test_where_there_are_no_locks_one_of_many_gets_the_folder(tmp_path: Path, is_left: bool) -> None:
    if is_left:
        leave_record(tmp_path)
    gate = threading.Barrier(8)

    def come(number: int) -> bool:
        me = replace(OTHER, token=f"newcomer {number}")
        gate.wait()
        try:
            take(tmp_path, me, has_lock=False, beat_seconds=4 * BEAT)
        except UserError:
            return False
        winners.append(Held(tmp_path / RECORD_NAME, me, BEAT))
        return True

    winners: list[Held] = []
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(come, range(8))) == 1
    assert not winners[0].is_lost
    winners[0].end()
    assert not (tmp_path / RECORD_NAME).exists()


def test_a_record_beats_and_a_process_whose_folder_was_taken_learns_of_it(tmp_path: Path) -> None:
    record, told = tmp_path / RECORD_NAME, list[UserError]()
    with hold(tmp_path, ranks=1, beat_seconds=BEAT) as held:
        wait_for(lambda: json.loads(record.read_text())["beats"] > 2)
        leave_record(tmp_path)
        wait_for(lambda: held.is_lost)
        held.on_loss(told.append)
    assert "taken over by process 4321 on another" in str(told[0])
    assert json.loads(record.read_text())["token"] == "theirs"


@pytest.mark.parametrize("name", [LOCK_NAME, RECORD_NAME])
def test_what_is_no_file_is_refused_in_the_place_of_either(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    for make in (lambda path: os.mkfifo(path), lambda path: path.symlink_to(foreign), lambda path: path.mkdir()):
        make(folder / name)
        with pytest.raises(UserError, match=name), hold(folder, ranks=1, beat_seconds=BEAT):
            pass
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    assert foreign.read_text() == "mine"


def test_a_folder_that_is_removed_and_made_anew_is_held_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with hold(folder, ranks=1, beat_seconds=BEAT):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    with hold(folder, ranks=1):
        assert (folder / RECORD_NAME).exists()
