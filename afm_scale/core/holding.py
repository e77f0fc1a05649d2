"""A process holds a folder: nobody else writes into it until that process has ended, however it ends.

    FOLDER/.lock    a POSIX lock on this file is held for as long as the process lives; it is never renamed or removed
    FOLDER/.held    who holds the folder, and a count of beats that goes up every few seconds; removed at the end

The kernel drops the lock when the process ends, by SIGKILL too. Unlike flock's it does not pass to forked children,
which may outlive the process; but it is lost when the process closes any descriptor of the file, so nobody else opens
that one.

On one host, and between hosts whose file system shares locks, the lock alone decides. Some network file systems do not
share them (NFS mounted with nolock, Lustre with localflock). So whoever gets the lock and finds the record of another
host watches it: if it goes on beating the folder is held, if it does not for some beats its host or process is dead.
No clock is compared with another's. A dead record is taken over by writing over it and looking a beat later who wrote
last. A process that was stopped for so long that its folder was taken finds that out at its next beat.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from .errors import UserError
from .files import explained_write, open_in_place, read_regular
from .holder import RECORD_NAME, Holder, Seen, create, holder_in, look, overwrite
from .screen import note

LOCK_NAME = ".lock"
BEAT_SECONDS = 5.0
MISSED_BEATS = 4  # after which a record of another host is dead
_GRACE_SECONDS = 1.0  # for a process that was killed just now, and is not quite gone
_OTHERS_LOCK = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # this file system has none
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")


class Held:
    """A folder that this process holds."""

    def __init__(self, record: Path, me: Holder, beat_seconds: float) -> None:
        self._record, self._me, self._beat_seconds = record, me, beat_seconds
        self._ended = threading.Event()
        self._tell: Callable[[UserError], None] | None = None
        self._lost: UserError | None = None
        self._thread = threading.Thread(target=self._beat, name="holding", daemon=True)
        self._thread.start()

    def on_loss(self, tell: Callable[[UserError], None]) -> None:
        """`tell` is called once, by a thread, if the folder is lost to another process."""
        self._tell = tell
        if self._lost is not None:
            tell(self._lost)

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if holder_in(look(self._record)) == self._me:
                self._record.unlink()
        except (OSError, UserError):
            pass  # what is left is a record without a lock, and without beats

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                found = holder_in(look(self._record))
                if found is not None and found.token != self._me.token:
                    self._lose(found)
                    return
                beaten = replace(self._me, beats=self._me.beats + 1)
                if not create(self._record, beaten):
                    overwrite(self._record, beaten)
                self._me = beaten
            except (OSError, UserError):
                pass  # the file system does not answer, or somebody removed the folder; the next beat may reach it

    def _lose(self, to: Holder) -> None:
        self._lost = UserError(
            f"{self._record.parent} was taken over by {to}: this process had not been heard of for "
            f"{MISSED_BEATS * self._beat_seconds:g} seconds (was it suspended, or cut off from the file system?); it "
            "stops without saving, the other one goes on"
        )
        if self._tell is not None:
            self._tell(self._lost)


@contextmanager
def hold(folder: Path, *, ranks: int, beat_seconds: float = BEAT_SECONDS) -> Iterator[Held]:
    """Holds a folder, which is made, while the block lasts; to be called by one of the ranks, once in a process.

    Raises UserError, having changed nothing, if another process holds it; it may take some beats to see that one of
    another host is dead.
    """
    record = folder / RECORD_NAME
    with explained_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor, has_lock = _lock(folder / LOCK_NAME)
    try:
        me = _myself(ranks, os.fstat(descriptor).st_dev)
        if has_lock is False:
            raise _refusal(folder, _look_soon(record))
        with explained_write(record):
            take(folder, me, has_lock is True, beat_seconds)
        held = Held(record, me, beat_seconds)
        try:
            yield held
        finally:
            held.end()
    finally:
        os.close(descriptor)


def _myself(ranks: int, device: int) -> Holder:
    try:
        kernel = read_regular(Path("/proc/sys/kernel/random/boot_id")).decode().strip()
    except OSError:  # no Linux
        kernel = platform.node()
    return Holder(
        host=platform.node(), kernel=kernel, device=device, pid=os.getpid(),
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"), ranks=ranks, job=_job_of(os.environ),
        token=secrets.token_hex(8),
    )


def _job_of(environment: Mapping[str, str]) -> str:
    return next((f"{name}={environment[name]}" for name in _JOBS if environment.get(name)), "")


def _lock(path: Path) -> tuple[int, bool | None]:
    """An open descriptor of the file, and whether this process has its lock; None: there are no locks here."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        with explained_write(path):
            descriptor = open_in_place(path, os.O_CREAT)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, None
            if error.errno not in _OTHERS_LOCK:
                os.close(descriptor)
                raise UserError(f"{path} cannot be locked: {error.strerror}; choose another run.folder") from error
            if time.monotonic() > deadline:
                return descriptor, False
        else:
            if _is_at(descriptor, path):
                return descriptor, True
        os.close(descriptor)  # the lock is another's, or of a file that was removed together with its folder
        time.sleep(0.05)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def take(folder: Path, me: Holder, has_lock: bool, beat_seconds: float) -> None:
    """Writes the record. Raises UserError if another host, or another process where there are no locks, goes on."""
    record = folder / RECORD_NAME
    while not create(record, me):  # of two that find none, one makes it, with locks or without
        seen = look(record)
        if seen is None:
            continue
        holder = holder_in(seen)
        if has_lock and holder is not None and holder.shares_locks(me):
            overwrite(record, me)  # it is dead: the lock would be its own
            return
        whom = holder or "a process whose record cannot be read"
        seconds = MISSED_BEATS * beat_seconds
        note(f"{folder} was left by {whom}: watching for {seconds:g} s whether it lives")
        if _changes(record, seen, seconds, beat_seconds):
            raise _refusal(folder, holder_in(look(record)) or holder)
        overwrite(record, me)
        time.sleep(beat_seconds)  # for another that has watched as long: who wrote last has it
        last = holder_in(look(record))
        if last is None or last.token != me.token:
            raise _refusal(folder, last)
        return


def _changes(record: Path, seen: Seen, seconds: float, beat_seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(beat_seconds / 10)
        if look(record) != seen:
            return True
    return False


def _refusal(folder: Path, holder: Holder | None) -> UserError:
    whom = "another process, which has not said who it is" if holder is None else str(holder)
    stop = "stop it" if holder is None else f"stop it (kill {holder.pid} on {holder.host})"
    return UserError(f"{folder} is held by {whom}; wait until it has ended or {stop}, or choose another run.folder")


def _look_soon(record: Path) -> Holder | None:
    """Who has the lock, and may not have written its record yet."""
    deadline = time.monotonic() + _GRACE_SECONDS
    with explained_write(record):
        while (holder := holder_in(look(record))) is None and time.monotonic() < deadline:
            time.sleep(0.05)
    return holder
