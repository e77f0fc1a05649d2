"""The way to the screen, which never ends a run: what cannot be shown is left out, and text is taken as it is.

A pipe whose reader has left (`| head`), a full disk under a log, a terminal that was hung up, a closed descriptor and a
locale that lacks a letter are no matter of the work. `take_over` makes streams of `sys.stdout` and `sys.stderr` that
bear all of them, for whoever writes there: argparse, bars, warnings, tracebacks. Nothing else of the package names
these streams or prints.

A pipe that is full, because its reader does not read, holds up what others read for its own sake, the results of a
command. It does not hold up training: after `PATIENCE_SECONDS` what it does not take is left out, until it does.
"""

from __future__ import annotations

import io
import os
import select
import sys
import time
from typing import Any, TextIO

_OUT, _ERR = 1, 2
PATIENCE_SECONDS = 10.0  # with a reader that does not read
_AT_ONCE = 512  # bytes that a pipe takes whole if it takes any (POSIX's least PIPE_BUF)

_patience: dict[int, float] = {}  # seconds, of descriptors that hold nobody up for longer
_is_full: set[int] = set()


def take_over(*, holds_up: bool = True) -> None:
    """Makes streams of standard output and standard error. `holds_up`: whether the work waits for who reads them."""
    open_closed()
    if not holds_up:
        _patience.update({_OUT: PATIENCE_SECONDS, _ERR: PATIENCE_SECONDS})
    sys.stdout, sys.stderr = _stream(_OUT, sys.stdout), _stream(_ERR, sys.stderr)


def open_closed() -> None:
    """The first thing that a process does: descriptors that were closed are opened on nothing, so that no file or pipe
    of a run gets the number that libraries write their complaints to."""
    for number in (0, _OUT, _ERR):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free


def say(text: str, *, end: str = "\n") -> None:
    """To standard output, where the results of a command stand."""
    print(_shown(text), end=end, flush=True)


def note(text: str, stream: TextIO | None = None) -> None:
    """To standard error, where a person reads how the work goes on."""
    print(_shown(text), file=errors() if stream is None else stream, flush=True)


def in_plain_letters(text: str) -> str:
    """With escapes for what no terminal shows: for one line, or a cell of a table."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def errors() -> TextIO:
    """Standard error, for bars and for what asks whether a person is there."""
    return sys.stderr if sys.stderr is not None else io.StringIO()


def note_at_once(text: str) -> None:
    """The same from a signal's handler, which may stand in the middle of a `note`."""
    _write(_ERR, f"{text}\n".encode(errors="backslashreplace"))


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):  # a stream that was not taken over, of a closed pipe or closed itself
                pass


def _shown(text: str) -> str:
    """Names of files need not be text."""
    return text.encode(errors="backslashreplace").decode()


class _Descriptor(io.RawIOBase):
    """Writes to a descriptor and answers that it has."""

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        _write(self._number, content)
        return len(content)


def _write(number: int, content: bytes | memoryview) -> None:
    patience = _patience.get(number)
    while len(content):
        try:
            if patience is None:
                content = content[os.write(number, content):]
            elif _takes(number, 0.0 if number in _is_full else patience):
                content = content[os.write(number, content[:_AT_ONCE]):]
            else:
                return
        except BlockingIOError:  # a pipe that somebody set so: its reader has not kept up
            if not _takes(number, 1.0) and patience is not None:
                return
        except OSError:
            return


def _takes(number: int, seconds: float) -> bool:
    """Whether a write would not wait, within that time; once it would have, `_is_full` has the descriptor till then."""
    poll, until = select.poll(), time.monotonic() + seconds
    poll.register(number, select.POLLOUT)
    while not (found := poll.poll(max(0.0, until - time.monotonic()) * 1000)) and time.monotonic() < until:
        pass
    (_is_full.discard if found else _is_full.add)(number)
    return bool(found)


def _stream(number: int, before: TextIO | None) -> TextIO:
    flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(number)), encoding="utf-8" if before is None else before.encoding,
        errors="backslashreplace", line_buffering=True,
    )
