"""The errors a run can end with, each with the exit code of the process (docs: README, "Exit codes")."""

from __future__ import annotations

import errno
import os

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED_BY_SIGNAL = 75  # EX_TEMPFAIL: run the same command again to go on
EXIT_GO_ON = EXIT_STOPPED_BY_SIGNAL  # also after the loss of another rank, where there is something to go on from
EXIT_LOST_RANK = 76  # the same said to launchers/torchrun.py, which may start all again; it ends with 75 itself


class RunError(Exception):
    """An end of the run that is explained by its message alone: printed without a traceback."""

    exit_code = EXIT_FAILURE
    is_of_all_ranks = False  # true once they have agreed on it, so that one of them may speak for all
    is_told = False  # true once it is on the screen, or left to another rank to tell

    def of_all_ranks(self) -> RunError:
        self.is_of_all_ranks = True
        return self

    def plain(self) -> RunError:
        """The same words as the nearest base that takes them alone: an error that can be pickled and made anew.

        Classes with more to say (`__init__` of their own) cannot; their bases end a run with the same exit code.
        """
        kind = next(kind for kind in type(self).__mro__ if kind.__init__ is Exception.__init__)
        return kind(str(self))


class UserError(RunError):
    """Something the user can put right. The message says what was found, what was wanted, what to do."""

    exit_code = EXIT_USER_ERROR


class ConfigError(UserError):
    """A recipe or an override that cannot be used."""


class DataError(UserError):
    """Data that cannot be read or does not fit the recipe."""


class CheckpointError(UserError):
    """A checkpoint that is torn, of another model, or cannot be written."""


class TornError(CheckpointError):
    """A checkpoint that is not whole: an older one may be. Where another model was met, none is."""


class DivergenceError(RunError):
    """Numbers of a run that are no longer good: not finite, or copies that differ between ranks; says which."""


_SCARCE = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_WORDS_OF_SCARCITY = ("can't start new thread", "can't allocate memory", "std::bad_alloc", "failed to map segment",
                      *map(os.strerror, _SCARCE))


def of_scarcity(error: BaseException) -> UserError | None:
    """For an error by which the system refuses memory, a thread or a file to this process; None: for any other one.

    Libraries say it by a RuntimeError or an ImportError with the system's words, at any line.
    """
    by_number = isinstance(error, OSError) and error.errno in _SCARCE
    by_words = isinstance(error, (RuntimeError, ImportError)) and any(word in str(error) for word in _WORDS_OF_SCARCITY)
    if isinstance(error, RunError) or not (isinstance(error, MemoryError) or by_number or by_words):
        return None
    first = (str(error).splitlines() or [""])[0].strip() or "out of memory"
    return UserError(
        f"the system gives this process no more memory, threads or open files ({first[:200]}); allow more (ulimit -a "
        "says what is allowed; a container has limits of its own), or start fewer processes on this machine"
    )
