"""Ends all ranks, with one message, when one of them fails, falls silent or falls behind.

Every second a thread of each rank leaves a word in the store where the ranks met: its step, the act it is in and the
line it is at. A rank looks at the words of all others when a collective of its own fails; when the next rank's process
has ended or has left no word for HEARTBEAT_SECONDS, whatever either is at; and when it gets nowhere itself for longer
than its act may take. The first rank that has something to say writes it into the store, and it alone speaks: with its
own error, or with the name of the rank that no longer answers. The others leave without a word on the screen; their
tracebacks go to a log in the run's folder, with the last stack of the rank that was lost, and their collectives beside.

Nothing here waits for a collective, nor for the store without a limit: rank 0, where the store lives if no launcher has
one, may be the rank that is stopped.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import stopping
from ..core.errors import EXIT_FAILURE, RunError
from ..core.screen import note_at_once
from ..core.words import STANDING, Word
from .board import Board, Pulse
from .rank_log import RankLog
from .verdict import Observer, Verdict, behind, is_of_others, leave_after, of_behind, of_silent, within

if TYPE_CHECKING:
    from .meeting import Meeting

PERIOD_SECONDS = 1.0  # between the words of a rank, of many ranks
SILENT_SECONDS = 5.0  # a rank that leaves no word for so long while it is watched is silent
SOON_SECONDS = 1.0  # the same where a collective has failed and all others have spoken twice since
HEARTBEAT_SECONDS = 30.0  # without a word, looked at by the rank before it: its process is stopped or cut off
LINGERS_SECONDS = 2.0  # rank 0, if the store is its own, after the loss of a rank that may never look there again
GRACE_SECONDS = 15.0  # for a save that is under way, once it is known that the run ends

AfterLoss = Callable[[], tuple[int, str]]
"""The exit code of a process that lost the others, and what is to be added to the message."""


def without_a_run() -> tuple[int, str]:
    return EXIT_FAILURE, ""


class LostRank(RunError):
    """Another rank failed, fell silent or fell behind, and this one cannot go on without it."""


class Watch:
    """One rank's look at the others, from `start` to `close`."""

    def __init__(
        self, meeting: Meeting, timeout: float, log: Path | None, after_loss: AfterLoss = without_a_run
    ) -> None:
        """It opens a connection to the store that nothing else uses: a call of another thread would block it.

        `after_loss` is asked once it is known that the run ends because another rank is gone, silent or behind.
        """
        self._rank, self._world_size, self._meeting = meeting.rank, meeting.world_size, meeting
        self._me = Observer(meeting.rank, meeting.world_size, timeout)
        self._timeout, self._after_loss = timeout, after_loss
        self._log = RankLog(log, meeting.rank)
        self._heartbeat = min(HEARTBEAT_SECONDS, timeout)
        self._patience = min(SILENT_SECONDS, max(2.0, timeout / 2))
        self._grace = min(GRACE_SECONDS, max(2.0, timeout))
        self._period = min(PERIOD_SECONDS, 0.1 + self._world_size / 100)
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ending = threading.Lock()
        self._word = STANDING.word(time.monotonic())
        self._of_rank_0: Word | None = None
        self._answered = time.monotonic()
        self._verdict: Verdict | None = None
        self._known_since = 0.0
        self._lost = ""  # why the store no longer answers
        self._pulse = Pulse(time.monotonic())  # of the next rank

    def start(self) -> None:
        """Opens the connection. Raises torch's DistError if there is none to be had."""
        self._board = Board(self._meeting.connect(), self._rank, self._world_size)
        self._speak()
        for work in (self._speak_on, self._supervise):
            thread = threading.Thread(target=work, name=f"watch {work.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def look_at_rank_0(self) -> None:
        """To be called once rank 0 is known to have started: if its store falls silent, it is known who that was."""
        self._of_rank_0 = self._board.awaited_word(0)

    def close(self) -> None:
        """At the end of the work. Rank 0 waits a moment for the others, who may still look into its store."""
        if self._closed.is_set():
            return
        self._close()
        self._leave_store(self._patience, waits=self._rank == 0)

    def _close(self) -> None:
        """Waits for its threads: one that comes back from the store while the interpreter is cleaned up aborts that."""
        self._closed.set()
        until = time.monotonic() + self._patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _leave_store(self, seconds: float, *, waits: bool) -> None:
        """Others may be about to look there whether it is said how the run ends."""
        within(seconds, lambda: self._board.leave(waits=waits))

    def explained(self, error: BaseException) -> RunError | None:
        """What to raise in the place of an error that ends this rank's work; None: the error itself.

        A LostRank for one that only says that the others are gone, late or at their end. It is told already, by this
        rank or another. From here on the process has a little time to leave.
        """
        if isinstance(error, RunError) and error.is_of_all_ranks:
            self._close()  # they leave together
            return None
        stopping.await_the_end()  # the others were told to stop as well
        if not is_of_others(error):
            self._end_of(error)
            return None
        STANDING.failed_in(error.__traceback__)
        self._word = STANDING.word(time.monotonic())
        with self._ending:
            verdict = self._verdict or self._look(failed=True)
            self._closed.set()
            self._tell(verdict)
            self._log.write(self._word, traceback.format_exception(error))
        leave_after(self._grace, verdict.exit_code)
        self._leave_store(LINGERS_SECONDS, waits=self._meeting.hosts_store)
        lost = LostRank(verdict.text)
        lost.exit_code, lost.is_told = verdict.exit_code, True
        return lost

    def _end_of(self, error: BaseException) -> None:
        """This rank's own error: it is told by this rank alone, unless another's was first."""
        code = error.exit_code if isinstance(error, RunError) else EXIT_FAILURE  # of a last resort, for other errors
        with self._ending:
            mine = Verdict(
                by=self._rank, host=self._word.host, exit_code=code,
                text=str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}",
            )
            verdict = within(self._patience, lambda: self._board.first(mine)) or mine
            self._closed.set()
            if isinstance(error, RunError):
                if verdict == mine:
                    note_at_once(f"error{f' on rank {self._rank}' if self._rank else ''}: {error}")
                error.is_told = True
            else:
                self._log.write(self._word, traceback.format_exception(error))
        leave_after(2 * self._grace, code)
        self._leave_store(self._patience, waits=self._meeting.hosts_store)
        self._close()

    # The threads.

    def _speak_on(self) -> None:
        """Leaves a word every second, and reads whether the end has come."""
        looked = spoke = time.monotonic()
        try:
            while not self._closed.wait(self._period):
                self._speak()
                before, spoke = spoke, time.monotonic()
                if self._verdict is not None or spoke - before > SILENT_SECONDS:  # this process was stopped itself
                    continue
                now, overdue = spoke, self._word.is_overdue(self._timeout)
                still = min(self._word.motionless, now - looked)
                if overdue or still > self._timeout or self._neighbour_is_lost(still, now):
                    looked = now
                    # Nothing else ends a wait of the GPU, or of a library. Slow work of all ranks is no reason to.
                    self._leave(lambda: self._look(failed=overdue))  # noqa: B023
        except Exception as error:  # whatever torch makes of a store that is gone
            self._lost = str(error).splitlines()[0] if str(error) else repr(error)

    def _neighbour_is_lost(self, still: float, now: float) -> bool:
        """Whether the next rank has ended, on this host, or says nothing, on any.

        Ranks that have come to the end of their work have said that they leave.
        """
        rank = (self._rank + 1) % self._world_size
        word = self._board.words([rank]).get(rank)
        is_silent = self._pulse.seconds(word, now, SILENT_SECONDS) > self._heartbeat
        is_gone = still > self._patience and word is not None and word.state() == "gone"
        return (is_silent or is_gone) and not self._board.is_left()

    def _speak(self) -> None:
        self._word = STANDING.word(time.monotonic())
        self._board.put(self._word)
        self._of_rank_0 = self._board.words([0]).get(0, self._of_rank_0)
        if self._verdict is None and (verdict := self._board.verdict()) is not None:
            self._known_since, self._verdict = time.monotonic(), verdict
        self._answered = time.monotonic()

    def _supervise(self) -> None:
        """Ends this process where its main thread cannot: it waits for a rank that will not come."""
        last = time.monotonic()
        while not self._closed.wait(self._period):
            now = time.monotonic()
            if now - last > SILENT_SECONDS:  # this process was stopped itself
                self._answered += now - last
                STANDING.forgive(now - last)
            last = now
            if self._verdict is not None and now - self._known_since > self._grace:
                self._leave(lambda: self._verdict)
            # A launcher's store may be silent while the ranks get on without it; rank 0's is not.
            still = STANDING.word(now).motionless if self._meeting.is_in_launcher else self._heartbeat
            if now - self._answered > self._heartbeat + self._patience and still >= self._heartbeat:
                self._leave(self._without_store)

    def _leave(self, find: Callable[[], Verdict | None]) -> None:
        """Ends the process with what `find` says, if it says anything and the main thread is not about to do so."""
        stopping.await_the_end()
        with self._ending:
            if self._closed.is_set():
                return
            if (verdict := find()) is None:
                return
            self._tell(verdict)
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            self._log.write(self._word, ["the process was ended where it stood:\n", *traceback.format_stack(frame)])
            self._leave_store(LINGERS_SECONDS, waits=self._meeting.hosts_store)
            os._exit(verdict.exit_code)

    # Finding out.

    def _look(self, failed: bool) -> Verdict | None:
        """Who is silent or behind. Without a failure only silence counts: None where all answer."""
        seen = within(self._patience + 2.0, lambda: self._observe(failed))
        if seen is None:
            return self._without_store()
        if isinstance(seen, Verdict):
            return seen
        silent, words = seen
        if not silent and not failed:
            return None
        lost = silent or [behind(words, self._me)]
        text = of_silent(silent, words, self._me) if silent else of_behind(lost[0], words, self._me)
        mine = self._ended(self._rank, text, {rank: words[rank] for rank in lost})
        verdict = within(self._patience, lambda: self._board.first(mine)) or mine
        for rank in silent:
            words[rank].kill()
        return verdict

    def _observe(self, failed: bool) -> Verdict | tuple[list[int], dict[int, Word]]:
        """The verdict of another rank, or (ranks that say nothing new, the last words of all)."""
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        first = self._board.words(others)
        until = time.monotonic() + self._patience
        soon = until - self._patience + SOON_SECONDS if failed else until  # after a failure somebody is gone
        while True:
            if (verdict := self._board.verdict()) is not None:
                return verdict
            self._speak()  # who called this may be the thread that does
            last = self._board.words(others)
            gone = [rank for rank, word in last.items() if word.state() == "gone"]
            still = [rank for rank in last if last[rank].count == first[rank].count]
            others_speak = all(last[rank].count > first[rank].count + 1 for rank in last if rank not in still)
            if gone or time.monotonic() > until or still and others_speak and time.monotonic() > soon:
                break
            time.sleep(self._period)
        # One that computes may be in a call that lets none of its other threads speak.
        silent = gone or [rank for rank in still if last[rank].state() != "computing"]
        return silent, last | {self._rank: self._word}

    def _without_store(self) -> Verdict:
        """The store lived in rank 0. Nobody can agree on who speaks: one of each host does."""
        words = {self._rank: self._word}
        if self._of_rank_0 is None:
            text = f"rank 0, or its host, does not answer ({self._lost or 'its store is silent'})"
        else:
            words[0] = self._of_rank_0
            text = of_silent([0], words, self._me)
            self._of_rank_0.kill()
        speaks = self._meeting.leads_host or self._rank == 1
        return self._ended(self._rank if speaks else 0, text, {0: self._of_rank_0} if self._of_rank_0 else {})

    def _ended(self, by: int, text: str, lost: dict[int, Word]) -> Verdict:
        where = self._log.remember(lost) if lost else ""
        code, advice = self._after_loss()
        return Verdict(by=by, host=self._word.host, text=text + where + advice, exit_code=code)

    # Saying.

    def _tell(self, verdict: Verdict) -> None:
        """Says a verdict of one's own; and, once a host, that of a rank whose screen may be another."""
        if verdict.by == self._rank:
            note_at_once(f"error: {verdict.text}")
        elif verdict.host != self._word.host and self._meeting.leads_host:
            note_at_once(f"error: rank {verdict.by} on {verdict.host} ended the run: {verdict.text}")
