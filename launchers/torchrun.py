"""torchrun that ends as its workers end and lets them save first: `python launchers/torchrun.py [torchrun options] ...`

The command line is torchrun's, and so are the agent, the rendezvous and the restarts. What differs:

- Exit code: 0 done, 2 a user's mistake, 75 stopped by a signal with a whole checkpoint to go on from, 128 + the signal
  where the workers had none, 1 anything else. torchrun always ends with 1 and a traceback of its own.
- All signals that end a process and can be caught (FORWARDED) are passed to every worker once, from the first second
  on, and the workers then have the time of --shutdown-timeout or TORCH_ELASTIC_SHUTDOWN_TIMEOUT (seconds, here 300 by
  default) to save before they are killed. A second signal is passed on too: workers exit at once. One that was ignored
  when this began (nohup) is ignored by all. --signals-to-handle has no effect.
- Workers that ended with 2, or were stopped by a signal, are not restarted. Those that lost another rank are, or waited
  for it before all had met, while --max-restarts allows; afterwards the job ends with 75 if a checkpoint is there to go
  on from.
- Workers that are stopped (SIGSTOP) for longer than STOPPED_SECONDS are killed: others have ended by then.
- Nodes that do not find each other, a port in use and options that make no sense are one message and exit code 2.
- The workers learn the launcher's process id, so that they can end when it is killed (parallel/launch.py); a name for
  every time that all nodes start them, so that they do not meet those of before (parallel/meeting.py): torch's count of
  restarts differs between nodes; and whether they are started again (run/elastic.py).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and a signal may come in them: see `main`
    from argparse import Namespace
    from collections.abc import Iterable, Mapping

    from torch.distributed.elastic.agent.server import RunResult, WorkerGroup
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

DONE, FAILURE, USER_ERROR, GO_ON, LOST_RANK = 0, 1, 2, 75, 76  # as in afm_scale/core/errors.py
_NAMES = "TERM INT HUP QUIT USR1 USR2 XCPU ALRM VTALRM PROF IO PWR STKFLT".split()
FORWARDED = tuple(  # what workers understand: as in afm_scale/core/stopping.py
    signal.Signals[f"SIG{name}"] for name in _NAMES if f"SIG{name}" in signal.Signals.__members__
)
DEFAULT_GRACE_SECONDS = 300
SECONDS_TO_SAY = 20  # for the workers that are left to find out that one is gone, and to say what that comes to
SECONDS_FOR_NODES = 10  # that come anew while workers are well: their own may find out that a rank of those is gone
STOPPED_SECONDS = 45  # a stopped worker neither answers others nor ends by their signals
SECONDS_TO_START = 20  # for workers that know what is to be done; they may wait for another node that never comes


class Workers:
    """The processes of this node, and the signals that were passed on to them."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.starts = 0
        self.codes: list[int] = []  # of those that have failed, the last time that they were started
        self._pids: list[int] = []
        self._handlers: Mapping[int, SubprocessHandler] = {}
        self._first_signal_at = self._first_death_at = 0.0
        self._lost_one = False  # a worker died of a signal before any other had failed
        self._stopped: dict[int, float] = {}  # workers, and since when
        self._looked = time.monotonic()
        self._waited_since = 0.0  # nodes, to be taken in
        self._lock = threading.RLock()  # reentrant: a handler may interrupt another handler

    def started(self, pids: list[int], handlers: Mapping[int, SubprocessHandler]) -> None:
        with self._lock:
            self._pids, self._handlers, self._first_death_at, self._lost_one = pids, handlers, 0.0, False
            for signum in self.signals:  # those that came while the workers were being started
                self._send(signum)

    def have_to_say(self, waiting: int) -> bool:
        """Whether nodes that wait have to wait on."""
        now = time.monotonic()
        self._waited_since = (self._waited_since or now) if waiting else 0.0
        return now - self._waited_since < SECONDS_FOR_NODES

    def stopped(self) -> None:
        """By the agent, because another node has come or begins anew: how they ended says whether that goes on."""
        ended = [handler.proc.poll() for handler in self._handlers.values()]
        self.codes = self.codes or self.counted(code for code in ended if code not in (None, DONE))

    def are_left_to_say(self) -> bool:
        """Whether one is gone without a word and others have still time: torch would end them at once."""
        codes = [handler.proc.poll() for handler in self._handlers.values()]
        failed = [code for code in codes if code not in (None, DONE)]
        self._lost_one = self._lost_one or bool(failed) and not self.signals and all(code < 0 for code in failed)
        if self.signals or None not in codes or not any(code < 0 or code == LOST_RANK for code in failed):
            return False
        self._first_death_at = self._first_death_at or time.monotonic()
        return time.monotonic() - self._first_death_at < SECONDS_TO_SAY

    def counted(self, codes: Iterable[int]) -> list[int]:
        """Exit codes, where a rank that waited for one that is lost did not end by a user's mistake."""
        return [FAILURE if code == USER_ERROR and self._lost_one else code for code in codes]

    def forward(self, signum: int, frame: FrameType | None) -> None:
        with self._lock:
            if not self.signals:
                self._first_signal_at = time.monotonic()
            self.signals.append(signum)
            self._send(signum)

    def kill_after(self, grace_seconds: float) -> None:
        with self._lock:
            waited = time.monotonic() - self._first_signal_at
            if self.signals and waited > grace_seconds:
                self._send(signal.SIGKILL)
            if self.signals and not self._pids and waited > SECONDS_TO_START:
                os._exit(128 + self.signals[0])

    def kill_stopped(self) -> None:
        """To be called every second: a pause between two calls is one of the launcher itself."""
        with self._lock:
            now, before = time.monotonic(), self._looked
            self._looked = now
            known = self._stopped if now - before < STOPPED_SECONDS / 3 else {}
            self._stopped = {pid: known.get(pid, now) for pid in self._pids if is_stopped(pid)}
            for pid, since in self._stopped.items():
                if now - since > STOPPED_SECONDS:
                    os.kill(pid, signal.SIGKILL)

    def _send(self, signum: int) -> None:
        for pid in self._pids:
            try:
                os.killpg(pid, signum)  # torch starts every worker in a session of its own
            except ProcessLookupError:
                pass


def is_stopped(pid: int) -> bool:
    """By SIGSTOP and its like, as the system says; False where it does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except OSError:
        return False


def signal_of(code: int) -> int | None:
    """The signal a worker died of: -N as subprocess reports it, or 128 + N as a handler or a shell may put it."""
    if code < 0:
        return -code
    return code - 128 if code > 128 else None


def exit_code(codes: list[int], signals: list[int]) -> int:
    """The job's exit code from those of its failed workers and the signals passed on to them.

    When one worker ends, torch sends the others SIGTERM, so a death by a signal says little beside a code of 2 or 75.
    Those that died of the first and only signal passed on had no checkpoint: whoever has one ends with 75, or with 76
    if another rank was lost to it: that one may have died of anything.
    """
    if USER_ERROR in codes:
        return USER_ERROR
    deaths = {signal_of(code) for code in codes if code not in (GO_ON, LOST_RANK)}
    if None not in deaths and not {GO_ON, LOST_RANK}.isdisjoint(codes):
        return GO_ON
    if len(signals) == 1 and signals[0] in deaths and deaths <= {signals[0], signal.SIGTERM}:
        return 128 + signals[0]
    return FAILURE


def agent_class(workers: Workers, *, hold: bool) -> type[LocalElasticAgent]:
    """The agent of torchrun, which tells `workers` whom it started.

    With `hold` they are started with signals held, which come to them when they have handlers and let them come.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.rendezvous import RendezvousError

    class Agent(LocalElasticAgent):
        def _initialize_workers(self, worker_group: WorkerGroup) -> None:
            """The host of the rendezvous may go before the workers have ended: they find out and end by themselves.

            So do they where a node that has lost a rank waits to begin anew; torch would end them before they say it.
            """
            handler = worker_group.spec.rdzv_handler
            ask = type(handler).num_nodes_waiting

            def num_nodes_waiting() -> int:
                try:
                    waiting = ask(handler)
                except (RendezvousError, DistError):
                    return 0
                return 0 if workers.have_to_say(waiting) else waiting

            handler.num_nodes_waiting = num_nodes_waiting
            super()._initialize_workers(worker_group)

        def _rendezvous(self, worker_group: WorkerGroup) -> None:
            """torch's first node remembers where the ranks' store is, and so does not tell a node that comes later."""
            handler = worker_group.spec.rdzv_handler
            if handler.get_backend() != "static":
                handler._bootstrap_store_info = None
            super()._rendezvous(worker_group)

        def _stop_workers(self, worker_group: WorkerGroup, *more: bool, **named: bool) -> None:
            super()._stop_workers(worker_group, *more, **named)
            workers.stopped()

        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
            os.environ["AFM_SCALE_MEETING"] = self._meeting(worker_group)
            os.environ["AFM_SCALE_STARTS"] = str(workers.starts)
            workers.starts += 1
            before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED if hold else ())
            try:
                pids = super()._start_workers(worker_group)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            workers.started(list(pids.values()), self._pcontext.subprocess_handlers)
            return pids

        def _meeting(self, worker_group: WorkerGroup) -> str:
            """The same on all nodes, and another one the next time: the first node chooses it."""
            spec = worker_group.spec
            is_static = spec.rdzv_handler.get_backend() == "static"  # else a store is of one round
            key = f"afm_scale/meeting/{spec.max_restarts - self._remaining_restarts if is_static else ''}"
            if worker_group.group_rank == 0:
                worker_group.store.set(key, str(time.time_ns()))
            return worker_group.store.get(key).decode()

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            if workers.are_left_to_say():
                return RunResult(state=WorkerState.HEALTHY)
            result = super()._monitor_workers(worker_group)
            workers.codes = workers.counted(failure.exitcode for failure in result.failures.values())
            may_go_on = LOST_RANK in workers.codes and not workers.signals
            if workers.codes and exit_code(workers.codes, workers.signals) != FAILURE and not may_go_on:
                self._remaining_restarts = 0
            return result

    return Agent


def main(arguments: list[str]) -> int:
    workers = Workers()
    for signum in FORWARDED:
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):
            signal.signal(signum, workers.forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)  # whoever started this may have held some

    level = os.environ.get("TORCH_CPP_LOG_LEVEL")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else a store that is gone costs a page of C++ frames
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import api as launcher

    if level is None:  # the workers choose theirs
        del os.environ["TORCH_CPP_LOG_LEVEL"]
    parser = torchrun.get_args_parser()
    parser.allow_abbrev = False  # else an option of the script, `sample --num`, is taken for a short --numa-binding
    args = parser.parse_args(arguments)
    # Only torch of at least 2.13 has the option; in 2.11 the agent's own 30 s do not matter, since the agent, being in
    # a thread, never handles a signal itself.
    grace_seconds = vars(args).get("shutdown_timeout")
    if grace_seconds is None:
        grace_seconds = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", DEFAULT_GRACE_SECONDS))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun sets the same, with a warning
    os.environ["AFM_SCALE_LAUNCHER_PID"] = str(os.getpid())
    for part in ("multiprocessing.api", "rendezvous"):  # `describe` and `end_of_launcher` say it
        logging.getLogger(f"torch.distributed.elastic.{part}").setLevel(logging.CRITICAL)

    launcher.LocalElasticAgent = agent_class(workers, hold=args.module and args.training_script == "afm_scale")
    failures: list[BaseException] = []

    def run() -> None:
        try:
            torchrun.run(args)
        except BaseException as error:  # raised again in the main thread
            failures.append(error)

    # In a thread, because torch then leaves signals alone; in the main thread it would raise from a handler wherever it
    # happens to be, between the starts of two workers too, and forget the exit codes.
    agent = threading.Thread(target=run)
    agent.start()
    while agent.is_alive():
        agent.join(timeout=1)
        workers.kill_after(grace_seconds)
        workers.kill_stopped()
    if not failures:
        return DONE
    if not isinstance(failures[0], ChildFailedError):
        return end_of_launcher(failures[0], workers, args)
    codes = {rank: failure.exitcode for rank, failure in sorted(failures[0].failures.items())}
    code = exit_code(workers.counted(codes.values()), workers.signals)
    if code not in (USER_ERROR, GO_ON) and (code == FAILURE or min(codes.values()) < 0):
        tell(describe(codes))  # of workers that ended in order one has said why
    return code


def end_of_launcher(error: BaseException, workers: Workers, args: Namespace) -> int:
    """The exit code where the agent itself has failed, after one message. Raises what nobody's settings explain."""
    from torch.distributed import DistError
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

    if not isinstance(error, RendezvousError | DistError):
        raise error
    where = f"--rdzv-endpoint {args.rdzv_endpoint or '(none)'}, --rdzv-id {args.rdzv_id}, --nnodes {args.nnodes}"
    if workers.codes:  # they were to be started again, and another node is gone
        tell(f"error: the nodes do not find each other again ({where})")
        return exit_code(workers.codes, workers.signals)
    if isinstance(error, RendezvousTimeoutError):
        reason = "not all of the nodes came in time. Start the same command on each, with the same number of nodes"
    elif "in use" in str(error.__cause__) or "EADDRINUSE" in str(error.__cause__):
        reason = "the port is in use on this host. Choose another one, the same for every node"
    else:
        cause = str(error.__cause__ or error).partition("\n")[0].partition("Exception raised from")[0].rstrip(". ")
        reason = f"the nodes do not find each other: {cause}. Name host and free port of the first node, and start it"
    tell(f"error: {reason} ({where})")
    return USER_ERROR


def tell(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        pass


def describe(codes: dict[int, int]) -> str:
    """One line, such as 'the job failed: rank 0 ended with 1, rank 1 by SIGKILL'."""
    ends = [f"with {code}" if code > 0 else f"by {signal.Signals(-code).name}" for code in codes.values()]
    return "the job failed: " + ", ".join(
        f"rank {rank} ended {end}" if index == 0 else f"rank {rank} {end}"
        for index, (rank, end) in enumerate(zip(codes, ends, strict=True))
    )


def stand_somewhere() -> None:
    """Opens descriptors that were closed on nothing, so that no pipe gets the number that is written to as the screen.

    Ends the process where its working folder is gone: torch's libraries would, with words of their own.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    try:
        os.getcwd()
    except OSError:
        os.write(2, b"error: the working folder of this process was deleted; change to another (cd), start it there\n")
        os._exit(USER_ERROR)


if __name__ == "__main__":
    stand_somewhere()
    exit_with = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError):  # closed, or nobody reads it
            pass
    os._exit(exit_with)
