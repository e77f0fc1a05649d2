"""How a command starts and ends: one way for `python -m afm_scale`, the console script and tools/."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from ..core import stopping
from ..core.errors import EXIT_DONE, EXIT_FAILURE, RunError, UserError, of_scarcity
from ..core.screen import flush, note, open_closed, say, take_over
from ..run.arguments import parse
from .table import COMMANDS, Command, Table

PROGRAM = "afm_scale"
PATIENCE_SECONDS = 15.0  # for rank 0 to speak: it may still be importing when another rank has met the same mistake


def main(*command: str) -> NoReturn:
    """Runs what the command line says, after the words of `command`, and ends the process with its exit code.

    What was done decides the code. After it nothing is asked but that what was said is on its way to the screen.
    """
    open_closed()
    _speak_utf8()
    words = [*command, *sys.argv[1:]]
    stopping.begin(words)
    take_over(holds_up=words[:1] != ["train"])
    code = EXIT_FAILURE
    try:
        _stand_somewhere()
        code = run(words)
        stopping.decided(code)
    except SystemExit as end:  # of argparse
        code = end.code if isinstance(end.code, int) else EXIT_DONE if end.code is None else EXIT_FAILURE
    except KeyboardInterrupt:
        note("interrupted")
        code = 128 + signal.SIGINT
    except UserError as error:  # before there is a command
        note(f"error: {error}")
        code = error.exit_code
    except BaseException:
        stopping.await_the_end()
        note(traceback.format_exc().rstrip())
    leave(code)


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 done, 2 the user's mistake, 1 anything else; and of a run that a signal stopped, 75 if
    there is a whole checkpoint to go on from, else 128 + the signal's number.

    Help and words that no option takes end it by SystemExit, as argparse does.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a rank that is gone costs a page of C++ frames
    try:
        words, command, rest = _find(arguments)
        parser = argparse.ArgumentParser(
            prog=" ".join((PROGRAM, *words)), description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parser)
        return command.run(parse(parser, rest))
    except Exception as error:
        told = error if isinstance(error, RunError) else of_scarcity(error)
        if told is None:
            raise
        stopping.await_the_end()
        return tell(told)


def tell(error: RunError, *, patience: float = PATIENCE_SECONDS) -> int:
    """Prints the error and returns the exit code. One rank speaks for all, rank 0 if it can.

    Another rank waits first: launchers kill the ranks that are left as soon as one has ended, and rank 0 has to be
    heard before. What all have agreed on is left to rank 0; of what ranks met before they had met each other, each for
    itself and at different times, `parallel.speaker` finds the one that speaks.
    """
    if error.is_told:
        return error.exit_code
    # Here: torch comes with it, which takes seconds that --help need not wait.
    from ..core.place import rank_of
    from ..parallel.speaker import one_speaker

    rank = rank_of(os.environ)
    if error.is_of_all_ranks:
        if rank == 0:
            note(f"error: {error}")
        else:
            stopping.decided(error.exit_code)
            time.sleep(patience)
        return error.exit_code
    if rank != 0:
        stopping.decided(error.exit_code)
    with one_speaker(os.environ, patience) as speaks:
        if speaks:
            note(f"error on rank {rank}: {error}" if rank else f"error: {error}")
        stopping.decided(error.exit_code)
    return error.exit_code


def leave(code: int) -> NoReturn:
    """Ends the process at once, without the interpreter's own clean-up.

    Gloo's threads were seen to abort in it, and it waits for every thread of a library that is no daemon: the last one
    of the compiler's pool never ends. A save that is under way has been waited for by who began it
    (`CheckpointManager.settle`); a collective that a lost rank does not answer is not.
    """
    flush()
    os._exit(code)


def _stand_somewhere() -> None:
    """Before torch is imported, whose libraries end the process with words of their own."""
    try:
        os.getcwd()
    except OSError:
        raise UserError(
            "the working folder of this process was deleted; change to another folder (cd), and start it there"
        ) from None


def _speak_utf8() -> None:
    """Starts again where the locale is ASCII: Python could then neither name nor write a folder that is not."""
    if sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # for the processes of this one
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _find(arguments: Sequence[str]) -> tuple[list[str], Command, list[str]]:
    """The command's name, its module and the words after the name. Prints the table if that is asked for."""
    table: Table = COMMANDS
    for depth, word in enumerate([*arguments, ""]):
        words = list(arguments[:depth])
        if word in ("", "-h", "--help"):
            (say if word else note)(_overview(words, table))
            raise SystemExit(0 if word else UserError.exit_code)
        if word not in table:
            near = difflib.get_close_matches(word, table, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(table)}"
            raise UserError(f"{' '.join((*words, word))}: there is no such command{hint}")
        found = table[word]
        if callable(found):
            return [*words, word], found(), list(arguments[depth + 1 :])
        table = found
    raise AssertionError("the last word is empty")


def _overview(words: Sequence[str], table: Table) -> str:
    lines = [f"usage: {' '.join((PROGRAM, *words))} COMMAND ...     (COMMAND --help says what stands after it)", ""]
    for name, found in table.items():
        text = found.__doc__ if callable(found) else f"{', '.join(found)}: parts of the product timed and counted here"
        lines.append(f"  {name:20} {text}")
    return "\n".join(lines)
