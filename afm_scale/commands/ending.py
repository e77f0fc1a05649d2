"""How a command starts and ends: one way for `python -m afm_scale`, the console script and tools/."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from ..core.errors import RunError, UserError
from ..run.arguments import parse
from .table import COMMANDS, Command, Table

PROGRAM = "afm_scale"
PATIENCE_SECONDS = 10.0  # for rank 0 to speak: it may still be importing when another rank has met the same mistake


def main(*command: str) -> NoReturn:
    """Runs what the command line says, after the words of `command`, and ends the process with its exit code."""
    leave(run([*command, *sys.argv[1:]]))


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 done, 2 the user's mistake, 75 stopped by a signal after saving, 1 anything else.

    Help and words that no option takes end it by SystemExit, as argparse does.
    """
    try:
        words, command, rest = _find(arguments)
        parser = argparse.ArgumentParser(
            prog=" ".join((PROGRAM, *words)), description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parser)
        return command.run(parse(parser, rest))
    except RunError as error:
        return tell(error)


def tell(error: RunError, *, patience: float = PATIENCE_SECONDS) -> int:
    """Prints the error and returns the exit code. Rank 0 speaks for all, once.

    Another rank waits first: launchers kill the ranks that are left as soon as one has ended, and rank 0 has to be
    heard before. If this one is still there afterwards the error was its own, and it speaks, unless all had agreed.
    """
    from ..core.place import rank_of  # here: torch comes with it, which takes seconds that --help need not wait

    rank = rank_of(os.environ)
    text = str(error).encode(errors="backslashreplace").decode()  # names of files need not be text
    if rank == 0:
        print(f"error: {text}", file=sys.stderr, flush=True)
    else:
        time.sleep(patience)
        if not error.is_of_all_ranks:
            print(f"error on rank {rank}: {text}", file=sys.stderr, flush=True)
    return error.exit_code


def leave(code: int) -> NoReturn:
    """Ends the process without the interpreter's own clean-up, in which gloo's threads were once seen to abort.

    Threads that are not daemons (a checkpoint being written) are waited for, as the interpreter would.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _find(arguments: Sequence[str]) -> tuple[list[str], Command, list[str]]:
    """The command's name, its module and the words after the name. Prints the table if that is asked for."""
    table: Table = COMMANDS
    for depth, word in enumerate([*arguments, ""]):
        words = list(arguments[:depth])
        if word in ("", "-h", "--help"):
            print(_overview(words, table), file=sys.stdout if word else sys.stderr)
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
