"""Shells, signals and surroundings: a line of bash each, in which $RUN is the command that trains."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from afm_scale.checkpoint.manifest import newest_complete
from tests.launched import free_port
from tests.program import ROOT, SMALL_AFM

from .outcome import Outcome, Verdict, errors_in, of_an_end, shortened

LIMIT_SECONDS = 240.0  # of a busy machine
Wants = Literal["done", "refused", "either", "stopped"]
Moment = Literal["start", "imports", "middle", "saving"]
ENDLESS = ("loop.steps=1000000", "checkpoint.every_steps=1")
LONG = ("loop.steps=300", "checkpoint.every_steps=100")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    line: str = "exec $RUN"
    words: tuple[str, ...] = ()  # of the command line
    environment: Mapping[str, str] = field(default_factory=dict)
    wants: Wants = "done"
    signal: int = 0  # that is sent, at a moment
    moment: Moment = "middle"
    to_all: bool = False  # to the shell's group, as a terminal does; else to the one process
    steps: tuple[str, ...] = ("loop.steps=3", "checkpoint.every_steps=3")
    ranks: int = 1
    makes: Callable[[Path], object] = lambda root: None

    def __str__(self) -> str:
        return f"surroundings: {self.name}, ranks: {self.ranks}"

    def run(self, root: Path) -> Verdict:
        self.makes(root)
        folder, told = root / "run", root / "told"
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            listener.listen()
            in_use = str(listener.getsockname()[1])
            stand_for = {"ROOT": str(root), "PORT_IN_USE": in_use, "FREE_PORT": str(free_port())}
            code = self._code(root, folder, told, stand_for)
        return self._judged(code, told.read_bytes().decode(errors="replace"), root, folder)

    def _code(self, root: Path, folder: Path, told: Path, stand_for: Mapping[str, str]) -> int | None:
        """The exit code; None if it was killed, for time."""
        def filled(text: str) -> str:
            for word, value in stand_for.items():
                text = text.replace(word, value)
            return text

        own = {name: filled(value) for name, value in self.environment.items()}
        environment = {**os.environ, "ROOT": str(root), "PYTHONPATH": str(ROOT), **own}
        line = self.line.replace("$RUN", shlex.join(map(filled, self._command(folder))))
        line = line.replace("$PY", shlex.quote(sys.executable))
        with told.open("wb") as stderr:
            process = subprocess.Popen(
                ["bash", "-c", line], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=stderr, start_new_session=True,
            )
        try:
            if self.signal and self._comes(process, folder):
                (os.killpg if self.to_all else os.kill)(process.pid, self.signal)
            return process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _command(self, folder: Path) -> list[str]:
        program = [sys.executable, "-m", "afm_scale"]
        if self.ranks > 1:
            launcher = str(ROOT / "launchers" / "torchrun.py")
            program = [sys.executable, launcher, "--standalone", f"--nproc-per-node={self.ranks}", *program[1:]]
        return [
            *program, "train", *SMALL_AFM, "parallel.device=cpu", "parallel.timeout_seconds=30",
            f"run.folder={folder}", "hooks.metrics.every_steps=1", *self.steps, *self.words,
        ]

    def _comes(self, process: subprocess.Popen, folder: Path) -> bool:
        """Waits for the moment; False if the process ended before it."""
        until = time.monotonic() + LIMIT_SECONDS / 2
        while process.poll() is None and time.monotonic() < until:
            rows = folder / "metrics.jsonl"
            if self.moment in ("start", "imports"):
                time.sleep(0.4 if self.moment == "start" else 1.5)
                return process.poll() is None
            if rows.exists() and rows.read_bytes().count(b"\n") >= 3:
                if self.moment == "middle" or any((folder / "checkpoints").glob(".step_*")):
                    return True
            time.sleep(0.001)
        return False

    def _judged(self, code: int | None, told: str, root: Path, folder: Path) -> Verdict:
        verdict = of_an_end(code, told, root, is_done=any(root.rglob("summary.json")))
        if self.wants == "stopped" and verdict.outcome is Outcome.CODE:
            whole = newest_complete(folder / "checkpoints") is not None
            if len(errors_in(told)) > 1 or not told.strip():
                return Verdict(outcome=Outcome.MESSAGE, words=verdict.words)
            if (code == 75) is whole and code in (75, 128 + self.signal):
                return Verdict(outcome=Outcome.STOPPED, words=f"{code}: {shortened(told, root)}")
        wanted = {"done": (Outcome.DONE,), "refused": (Outcome.REFUSED,), "stopped": (Outcome.STOPPED,),
                  "either": (Outcome.DONE, Outcome.REFUSED)}[self.wants]
        bad = verdict.outcome in (Outcome.DONE, Outcome.REFUSED, Outcome.STOPPED) and verdict.outcome not in wanted
        return Verdict(outcome=Outcome.WORK, words=f"{code}: {verdict.words}") if bad else verdict


FULL = """
import os
os.set_blocking(1, False)
try:
    while os.write(1, b'.' * 512):
        pass
except BlockingIOError:
    os.set_blocking(1, True)
"""
BLOCKED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execvp(sys.argv[1], sys.argv[1:])
"""


def shells() -> Iterator[Case]:
    first = "exit ${PIPESTATUS[0]}"
    yield Case(name="stdin is closed", line="exec $RUN <&-")
    yield Case(name="a pipe that is full and not read",
               line=f'exec > >(exec sleep 120); $PY -c "{FULL}"; exec $RUN 2>&1')
    yield Case(name="SIGCHLD is ignored", line="trap '' CHLD; exec $RUN")
    yield Case(name="stopped for a while", line="$RUN & p=$!; sleep 6; kill -STOP $p; sleep 8; kill -CONT $p; wait $p")
    yield Case(name="setsid", line="exec setsid --wait $RUN")
    yield Case(name="two GB of addresses", line="ulimit -v 2000000; exec $RUN", wants="either")
    yield Case(name="as it is")
    yield Case(name="stdout is closed", line="exec $RUN >&-")
    yield Case(name="stderr is closed", line="exec $RUN 2>&-")
    yield Case(name="all three are closed", line="exec $RUN <&- >&- 2>&-")
    yield Case(name="stdout is /dev/full", line="exec $RUN >/dev/full")
    yield Case(name="both are /dev/full", line="exec $RUN >/dev/full 2>&1")
    yield Case(name="| head -1", line=f"$RUN 2>&1 | head -1 >&2; {first}")
    yield Case(name="| head -c 3", line=f"$RUN 2>&1 | head -c 3 >/dev/null; {first}")
    yield Case(name="| true", line=f"$RUN 2>&1 | true; {first}")
    yield Case(name="| tee", line=f"$RUN 2>&1 | tee $ROOT/log >&2; {first}")
    yield Case(name="| a reader that is late", line=f"$RUN 2>&1 | (sleep 3; cat >&2); {first}")
    yield Case(name="> a file that exists", line="exec $RUN >$ROOT/told2 2>&1 </dev/null")
    yield Case(name="in the background", line="$RUN & wait $!")
    yield Case(name="in a subshell with pipefail", line="set -euo pipefail; ($RUN) 2>&1 | cat >&2")
    yield Case(name="by env -i", line="exec env -i PATH=$PATH OMP_NUM_THREADS=1 PYTHONPATH=$PYTHONPATH $RUN")
    yield Case(name="from another folder", line="cd / && exec $RUN")
    yield Case(name="from a folder that is gone", line="mkdir $ROOT/x && cd $ROOT/x && rmdir $ROOT/x && exec $RUN",
               wants="either")
    yield Case(name="umask 777", line="umask 777; exec $RUN", wants="either")
    yield Case(name="20 open files", line="ulimit -n 40; exec $RUN", wants="either")
    yield Case(name="files of 4 kB", line="ulimit -f 4; exec $RUN", wants="refused")


def surroundings() -> Iterator[Case]:
    yield Case(name="an ASCII locale", environment=ASCII)
    yield Case(name="an ASCII locale, a folder that is not", environment=ASCII, words=("run.folder=ROOT/é",))
    yield Case(name="a locale that does not exist", environment={"LC_ALL": "xx_YY.UTF-8"})
    yield Case(name="output in Latin-1", environment={"PYTHONIOENCODING": "latin-1"}, words=("run.folder=ROOT/→",))
    yield Case(name="CDPATH", environment={"CDPATH": "/:/tmp"})
    yield Case(name="TERM=dumb, COLUMNS=1", environment={"TERM": "dumb", "COLUMNS": "1", "LINES": "1"})
    yield Case(name="a colour is forced", environment={"FORCE_COLOR": "1"})
    yield Case(name="no HOME", line="unset HOME; exec $RUN")
    yield Case(name="HOME is read-only", environment={"HOME": "/proc"})
    yield Case(name="a TMPDIR of 150 letters", environment={"TMPDIR": f"ROOT/{'t' * 150}"}, wants="either",
               makes=lambda root: (root / ("t" * 150)).mkdir())
    yield Case(name="a TMPDIR that is not there", environment={"TMPDIR": "ROOT/nosuch"}, wants="either")
    yield Case(name="PYTHONOPTIMIZE=2", environment={"PYTHONOPTIMIZE": "2"})
    yield Case(name="PYTHONWARNINGS=error", environment={"PYTHONWARNINGS": "error::UserWarning:afm_scale"})
    yield Case(name="OMP_NUM_THREADS is no number", environment={"OMP_NUM_THREADS": "x"}, wants="either")
    yield Case(name="CUDA_VISIBLE_DEVICES is empty", environment={"CUDA_VISIBLE_DEVICES": ""})
    yield Case(name="a time zone that does not exist", environment={"TZ": "No/Such"})
    yield Case(name="a proxy that does not exist", environment={"http_proxy": "http://nosuch.invalid:1"})
    yield Case(name="a lonely MASTER_ADDR", environment={"MASTER_ADDR": "nosuch.invalid", "MASTER_PORT": "x"})
    yield Case(name="CUDA_VISIBLE_DEVICES=nosuch", environment={"CUDA_VISIBLE_DEVICES": "nosuch"})
    yield Case(name="one rank of one", environment={"RANK": "0", "WORLD_SIZE": "1"})
    yield Case(name="no ranks", environment={"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, wants="refused")
    yield Case(name="rank -1", environment={"RANK": "-1", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, wants="refused")
    yield Case(name="a task of Slurm", environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, wants="either")
    yield Case(name="odd words of a launcher", environment={"RANK": "x"}, wants="refused")
    yield Case(name="rank 3 of 2", environment={"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, wants="refused")
    yield Case(name="MASTER_PORT 99999", environment=_alone(MASTER_PORT="99999"), wants="refused")
    yield Case(name="MASTER_PORT 0", environment=_alone(MASTER_PORT="0"), wants="refused")
    yield Case(name="an unknown MASTER_ADDR", environment=_alone(MASTER_ADDR="nosuch.invalid"), wants="refused")
    yield Case(name="rank 1 never comes", environment=_alone(), wants="refused", words=("parallel.timeout_seconds=5",))
    yield Case(name="MASTER_PORT is no number", environment=_alone(MASTER_PORT="x"), wants="refused")
    yield Case(name="MASTER_ADDR is empty", environment=_alone(MASTER_ADDR="", RANK="1"), wants="refused",
               words=("parallel.timeout_seconds=5",))
    yield Case(name="MASTER_ADDR is no address", environment=_alone(MASTER_ADDR="256.1.1.1", RANK="1"), wants="refused",
               words=("parallel.timeout_seconds=5",))
    yield Case(name="MASTER_ADDR does not answer", environment=_alone(MASTER_ADDR="10.255.255.1", RANK="1"),
               wants="refused", words=("parallel.timeout_seconds=5",))
    yield Case(name="rank 0 never comes", environment=_alone(RANK="1", LOCAL_RANK="1"), wants="refused",
               words=("parallel.timeout_seconds=5",))
    yield Case(name="rank 1 alone, and refused", environment=_alone(RANK="1"), wants="refused", words=("loop.steps=x",))
    yield Case(name="rank 0 alone, and refused", environment=_alone(), wants="refused", words=("loop.steps=x",))
    yield Case(name="a port in use, and refused", wants="refused", words=("loop.steps=x",),
               environment=_alone(MASTER_PORT="PORT_IN_USE"))
    yield Case(name="a port in use", wants="refused", environment=_alone(MASTER_PORT="PORT_IN_USE"))


def _alone(**words: str) -> dict[str, str]:
    """One rank of two, as a launcher starts it."""
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "FREE_PORT",
            **words}


STOPPING = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2")


def signals() -> Iterator[Case]:
    for name in STOPPING:
        for moment in ("start", "imports", "middle", "saving"):
            yield Case(name=f"{name} at {moment}", signal=signal.Signals[f"SIG{name}"], moment=moment, wants="stopped",
                       steps=ENDLESS)
    for name, moments in {"ALRM": ("start", "middle", "saving"), "XCPU": ("middle",), "PWR": ("middle",)}.items():
        for moment in moments:
            yield Case(name=f"{name} at {moment}", signal=signal.Signals[f"SIG{name}"], moment=moment, wants="stopped",
                       steps=ENDLESS)
    yield Case(name="TERM where all were held", signal=signal.SIGTERM, wants="stopped", steps=ENDLESS,
               line=f'exec $PY -c "{BLOCKED}" $RUN')
    yield Case(name="TERM is ignored", line="trap '' TERM; exec $RUN", signal=signal.SIGTERM, steps=LONG)
    yield Case(name="URG in the middle", signal=signal.SIGURG, steps=LONG)
    yield Case(name="TERM with a pipe that is full", signal=signal.SIGTERM, wants="stopped", steps=ENDLESS,
               line=f'exec > >(exec sleep 120); $PY -c "{FULL}"; exec $RUN')
    yield Case(name="PIPE in the middle", signal=signal.SIGPIPE, steps=LONG)
    yield Case(name="WINCH in the middle", signal=signal.SIGWINCH, steps=LONG)
    yield Case(name="CONT in the middle", signal=signal.SIGCONT, steps=LONG)
    yield Case(name="nohup, HUP", line="exec nohup $RUN", signal=signal.SIGHUP, steps=LONG)
    yield Case(name="HUP is ignored", line="trap '' HUP; exec $RUN", signal=signal.SIGHUP, steps=LONG)
    yield Case(name="INT is ignored", line="trap '' INT; exec $RUN", signal=signal.SIGINT, steps=LONG, to_all=True)
    yield Case(name="Ctrl-C with | tee", line="$RUN 2>&1 | tee $ROOT/log >&2; exit ${PIPESTATUS[0]}",
               signal=signal.SIGINT, to_all=True, wants="stopped", steps=ENDLESS)
    yield Case(name="Ctrl-C", signal=signal.SIGINT, to_all=True, wants="stopped", steps=ENDLESS)
    yield Case(name="timeout", line="exec timeout -s TERM 60 $RUN")


def cases() -> list[Case]:
    """Signals and shells with one rank and with two; what is said of a launcher by hand with one."""
    found = []
    for one in (*shells(), *surroundings(), *signals()):
        found.append(one)
        if "WORLD_SIZE" not in one.environment and "RANK" not in one.environment:
            found.append(Case(**{**vars(one), "ranks": 2}))
    return found
