"""Tries one case: good files are copied and harmed, a door is opened in a forked child, and what came of it is told."""

from __future__ import annotations

import fnmatch
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import afm_scale
from afm_scale.commands.ending import leave, tell
from afm_scale.core.errors import RunError
from tests.program import ROOT
from tests.ranks import PRELOADED, start_afresh

from .doors import Door
from .originals import Originals

LIMIT_SECONDS = 20.0
LIMIT_MORE_BYTES = 3 << 30  # of addresses, beside those of a child that has done nothing: good files need 1 GB
EXECUTED = "executed"  # what planted code makes in the folder of its case


class Outcome(Enum):
    DONE = "done right"
    REFUSED = "refused"
    TRACEBACK = "traceback"
    DIED = "died"
    HANG = "hang"
    TAKEN = "taken although damaged"
    EXECUTED = "executed"
    MEMORY = "memory"
    FOREIGN = "foreign change"
    MESSAGE = "refused, but not by one message that names the file"
    REFUSED_GOOD = "refused although good"


GOOD = (Outcome.DONE, Outcome.REFUSED)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A harm done to good files, and the door it is taken to."""

    kind: str  # of the file: a row of the table
    name: str  # what was done to it
    door: Door
    harm: Callable[[Path], object]  # is given the folder of the case
    wants: Literal["refused", "done", "either"] = "refused"
    like: tuple[Callable[[Path], object], ...] = ()  # done right means as after one of these harms, or with good files
    names: tuple[str, ...]  # a refusal names one of these

    def __str__(self) -> str:
        return f"{self.kind}: {self.name} -> {self.door.name}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    outcome: Outcome
    words: str  # the first line of what it said, or what changed
    seconds: float = 0.0


class Trials:
    """Tries cases, any number at a time in threads. What doors do with good files is found out once for each."""

    def __init__(self, originals: Originals, folder: Path) -> None:
        self._originals = originals
        self._folder = folder
        self._results: dict[tuple[str, Any], str] = {}
        self._locks: dict[tuple[str, Any], threading.Lock] = {}
        self._lock = threading.Lock()

    def judge(self, case: Case) -> Verdict:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="case_") as name:
            root = Path(name)
            self._prepare(root, case.door)
            case.harm(root)
            found = self._tried(root, case)
        return replace(found, seconds=time.monotonic() - began)

    def _prepare(self, root: Path, door: Door) -> None:
        for name in {*door.needs, "other"}:  # beside it, another run
            good = self._originals.path(name)
            if good.is_dir():
                shutil.copytree(good, root / name, symlinks=True)
            else:
                shutil.copy2(good, root / name)

    def _tried(self, root: Path, case: Case) -> Verdict:
        before = snapshot(root)
        code, printed, told = run_door(case.door, root)
        changes = changed(before, snapshot(root), case.door.writes if code == 0 else case.door.touches)
        words = _first_line(told, root)
        if (root / EXECUTED).exists():
            return Verdict(outcome=Outcome.EXECUTED, words=words)
        if code is None:
            return Verdict(outcome=Outcome.HANG, words=f"nothing done for {LIMIT_SECONDS:g} s, or all the time at work")
        if "Traceback (most recent call last)" in told or code not in (0, 2):
            return Verdict(outcome=_kind_of_crash(code, told), words=_last_line(told, root) or f"exit {code}")
        if changes:
            return Verdict(outcome=Outcome.FOREIGN, words=f"{changes[0]}; {words}")
        if code == 2:
            if case.wants == "done":
                return Verdict(outcome=Outcome.REFUSED_GOOD, words=words)
            return Verdict(outcome=_kind_of_message(told, case.names), words=words)
        if case.wants == "refused":
            return Verdict(outcome=Outcome.TAKEN, words=words)
        try:
            found = case.door.result(root, printed)
        except Exception as error:  # what the door wrote cannot be read back: its work was not done
            return Verdict(outcome=Outcome.TAKEN, words=f"its work cannot be read: {error!r:.100}")
        wanted = [self._wanted(case.door, like) for like in case.like or (None,)]
        if found not in wanted:
            return Verdict(outcome=Outcome.TAKEN, words=f"another result: {found[-60:]!r}, wanted {wanted[0][-60:]!r}")
        return Verdict(outcome=Outcome.DONE, words=words)

    def _wanted(self, door: Door, like: Callable[[Path], object] | None) -> str:
        """What the door's work is with good files, or after another harm, which it is known to bear."""
        key = (door.name, like)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._results:
                with tempfile.TemporaryDirectory(dir=self._folder, prefix="good_") as name:
                    root = Path(name)
                    self._prepare(root, door)
                    if like is not None:
                        like(root)
                    code, printed, told = run_door(door, root)
                    assert code == 0, f"{door.name} fails with good files: {told}"
                    self._results[key] = door.result(root, printed)
            return self._results[key]


def snapshot(root: Path) -> Mapping[str, str]:
    """What lies under a folder: contents of files, kinds of everything else; links are not followed."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                says = f"link to {os.readlink(path)}"
            elif stat.S_ISREG(mode):
                says = sha256(path.read_bytes()).hexdigest()
            else:
                says = f"kind {stat.S_IFMT(mode):o}"
            found[path.relative_to(root).as_posix()] = says
    return found


def changed(before: Mapping[str, str], after: Mapping[str, str], allowed: tuple[str, ...]) -> list[str]:
    found = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
            how = "is gone" if name not in after else "is new" if name not in before else "is another"
            found.append(f"{name} {how}")
    return found


def run_door(door: Door, root: Path) -> tuple[int | None, str, str]:
    """(exit code, stdout, stderr); None: it was killed, because it took too long."""
    outputs = [root.parent / f"{root.name}.{name}" for name in ("stdout", "stderr")]
    server = multiprocessing.get_context("forkserver")
    words = [str(word) for word in door.words(root)]
    arguments = (words, dict(os.environ), str(root), *map(str, outputs))
    try:
        with STARTING:
            server.set_forkserver_preload([*PRELOADED, *COMMANDS])  # of no effect where the server runs already
            process = server.Process(target=_child, args=arguments)
            process.start()
        patience = Patience(process.pid)
        code: int | None = None
        while code is None and patience.lasts():
            time.sleep(0.02)
            with STARTING:  # starting one asks after all others, and two must not ask at once
                code = process.exitcode
        if code is None:
            with STARTING:
                kill(process)
        texts = [path.read_bytes().decode(errors="replace") if path.exists() else "" for path in outputs]
        return code, *texts
    finally:
        for path in outputs:
            path.unlink(missing_ok=True)


def kill(process: BaseProcess) -> None:
    with suppress(ProcessLookupError):  # it has not come so far as to have a group
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


class Patience:
    """For how long a process is waited for. Where others keep the machine busy it may take long, but it gets on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looked_at = self._worked_at = time.monotonic()
        self._seconds = 0.0

    def lasts(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at < LIMIT_SECONDS / 20:
            return True
        self._looked_at = now
        seconds = _seconds_of_group(self._pid)
        if seconds > self._seconds + 0.05:
            self._seconds, self._worked_at = seconds, now
        return now - self._worked_at < LIMIT_SECONDS and seconds < LIMIT_SECONDS


def _seconds_of_group(leader: int) -> float:
    """At work, of a process and of those that it has started."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if leader in (int(path.parent.name), int(words[2])):
            ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


STARTING = threading.Lock()
COMMANDS = [
    f"afm_scale.commands.{name}" for name in (
        "train", "sample", "evaluate", "inspect_checkpoint", "doctor", "show", "make_shards", "replay_reference",
    )
]


def _child(words: list[str], environment: dict[str, str], root: str, stdout: str, stderr: str) -> None:
    start_afresh(environment)
    os.setpgid(0, 0)  # so that whatever it starts can be ended with it
    os.chdir(root)
    for number, (path, name) in enumerate(((stdout, "stdout"), (stderr, "stderr")), start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # it ends, whatever becomes of who watches it
    if words[0] == "load":
        _load(Path(words[1]))
    if words[0] == "-c":
        exec(words[1])
        leave(0)
    sys.argv = ["afm_scale", *words]
    runpy.run_module("afm_scale", run_name="__main__", alter_sys=True)


def _load(path: Path) -> None:
    """What somebody's program does, which tells errors of ours as the command line does."""
    try:
        images = afm_scale.load(path, device="cpu").sample([3, 1, 4], seed=0)
    except RunError as error:
        leave(tell(error))
    print(sha256(images.numpy().tobytes()).hexdigest())
    leave(0)


def _kind_of_crash(code: int, told: str) -> Outcome:
    if "MemoryError" in told or "can't allocate memory" in told or "not enough memory" in told:
        return Outcome.MEMORY
    return Outcome.TRACEBACK if "Traceback" in told else Outcome.DIED


def _kind_of_message(told: str, names: tuple[str, ...]) -> Outcome:
    messages = [line for line in told.splitlines() if line.startswith("error")]
    named = len(messages) == 1 and any(name in messages[0] for name in names)
    return Outcome.REFUSED if named and "Warning:" not in told else Outcome.MESSAGE


def _first_line(told: str, root: Path) -> str:
    lines = told.splitlines()
    chosen = next((line for line in lines if line.startswith("error")), "")
    return _anywhere(chosen, root)


def _last_line(told: str, root: Path) -> str:
    lines = [line for line in told.splitlines() if line.strip()]
    return _anywhere(lines[-1], root) if lines else ""


def _anywhere(line: str, root: Path) -> str:
    """Without the folders of the trial and of the program, which differ from machine to machine."""
    return line.replace(f"{root}/", "").replace(f"{ROOT}/", "")
