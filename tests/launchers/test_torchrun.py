"""The launcher ends as its workers end, and gives them time to save."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afm_scale.core.stopping import SIGNALS

LAUNCHER = Path(__file__).parents[2] / "launchers" / "torchrun.py"

ENDS_WITH = "import os, sys; sys.exit(int(sys.argv[1 + int(os.environ['RANK'])]))"

RESTARTED = """
import os, sys, time
from pathlib import Path
mine, other = (Path(sys.argv[1], str(rank)) for rank in (int(os.environ["RANK"]), 1 - int(os.environ["RANK"])))
mine.open("a").write("started ")
while not other.exists() or len(other.read_text()) < len(mine.read_text()):
    time.sleep(0.01)  # the launcher ends the other worker as soon as this one has ended
sys.exit(int(sys.argv[2]))
"""

LOST_BEFORE_THE_OTHER_GIVES_UP = """
import os, signal, sys, time
from pathlib import Path
mine = Path(sys.argv[1], os.environ["RANK"])
mine.open("a").write("started ")
if os.environ["RANK"] == "1" and len(mine.read_text().split()) <= int(sys.argv[2]):
    os.kill(os.getpid(), signal.SIGKILL)
if len(mine.read_text().split()) <= int(sys.argv[2]):
    time.sleep(1)
    sys.exit(2)  # not all ranks came
"""

WAITS_FOR_A_SIGNAL = """
import os, signal, sys, time
from pathlib import Path

folder, seconds_to_save = Path(sys.argv[1]), float(sys.argv[2])
got = []

def note(number, frame):
    got.append(signal.Signals(number).name)
    if len(got) == 2:
        os._exit(128 + number)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGQUIT):
    signal.signal(number, note)
(folder / ("ready" + os.environ["RANK"])).write_text(str(os.getpid()))
while not got:
    time.sleep(0.02)
time.sleep(seconds_to_save)
(folder / ("saved" + os.environ["RANK"])).write_text(" ".join(got))
time.sleep(1)  # so that the end of one worker does not reach the other before it has written
sys.exit(75)
"""

TRAINS_FOREVER = """
import os, sys, time
from pathlib import Path
from afm_scale.parallel.launch import launch
from afm_scale.parallel.config import ParallelConfig

launch(ParallelConfig(plan="ddp", device="cpu"))
Path(sys.argv[1], "ready" + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(100)
"""


def load():
    specification = importlib.util.spec_from_file_location("launchers_torchrun", LAUNCHER)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


JOBS: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_job_outlives_its_test():
    yield
    while JOBS:
        with JOBS.pop() as process:  # closes its pipes
            process.kill()


def start(
    folder: Path, script: str, *arguments: object, options: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen:
    (folder / "worker.py").write_text(script)
    command = [sys.executable, LAUNCHER, "--standalone", "--nproc-per-node", "2", *options, folder / "worker.py"]
    process = subprocess.Popen(
        [str(word) for word in (*command, *arguments)], env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    JOBS.append(process)
    return process


def start_waiting(folder: Path, seconds_to_save: float, **environment: str) -> subprocess.Popen:
    process = start(folder, WAITS_FOR_A_SIGNAL, folder, seconds_to_save, **environment)
    pids_of_workers(folder)
    return process


def pids_of_workers(folder: Path) -> list[int]:
    """Of both workers, once they are ready."""
    files = [folder / f"ready{rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def wait_until(condition, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {seconds} seconds"
        time.sleep(0.05)


@pytest.mark.parametrize("codes, signals, wanted", [
    ([2, 2], [], 2),
    ([1, 2], [], 2),  # the others fail when one ends with its user's mistake
    ([2, -signal.SIGTERM], [], 2),
    ([75, 75], [signal.SIGTERM], 75),
    ([75], [], 75),  # the signal reached the workers alone, and the other one ended with 0
    ([75, -signal.SIGTERM], [signal.SIGUSR1], 75),  # torch ends the others when one has ended
    ([75, 128 + signal.SIGTERM], [signal.SIGUSR1], 75),
    ([75, 1], [signal.SIGTERM], 1),
    ([76, -signal.SIGKILL], [], 75),  # one is gone, and the other knows of a checkpoint to go on from
    ([76], [], 75),  # it was of another host
    ([76, 1], [], 1),
    ([76, 2], [], 2),
    ([-signal.SIGKILL, 1], [], 1),  # there is none
    ([-signal.SIGUSR1, -signal.SIGUSR1], [signal.SIGUSR1], 138),  # they had no checkpoint: no 75
    ([138, -signal.SIGTERM], [signal.SIGUSR1], 138),
    ([138, 75], [signal.SIGUSR1], 75),  # one of them knew of a checkpoint
    ([138, 1], [signal.SIGUSR1], 1),
    ([-signal.SIGKILL, -signal.SIGKILL], [signal.SIGTERM], 1),  # they did not save in time
    ([128 + signal.SIGTERM] * 2, [signal.SIGTERM, signal.SIGTERM], 1),  # ended at once by the second
    ([-signal.SIGKILL, -signal.SIGTERM], [], 1),
    ([1, -signal.SIGTERM], [], 1),
    ([1], [signal.SIGTERM], 1),
])
def test_the_exit_code_tells_why_the_workers_ended(codes, signals, wanted):
    assert load().exit_code(codes, signals) == wanted


@pytest.mark.parametrize("codes, wanted, told", [
    ((0, 0), 0, ""),
    ((2, 2), 2, ""),
    ((75, 75), 75, ""),
    ((0, 3), 1, "the job failed: rank 1 ended with 3\n"),
])
def test_the_launcher_ends_as_its_workers_and_says_no_more_than_needed(tmp_path, codes, wanted, told):
    process = start(tmp_path, ENDS_WITH, *codes)
    output, errors = process.communicate(timeout=100)
    also = told.replace("rank 1 ended", "rank 0 ended by SIGTERM, rank 1")  # where rank 0 was not quite at its end
    assert (process.returncode, output) == (wanted, "") and errors in (told, also)


def test_workers_understand_all_that_is_passed_on():
    assert load().FORWARDED == SIGNALS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_reaches_each_worker_once_and_is_waited_for(tmp_path, number):
    process = start_waiting(tmp_path, 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, output, errors) == (75, "", "")
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == [number.name] * 2


def test_a_signal_to_the_workers_alone_ends_the_job_with_75(tmp_path):
    process = start_waiting(tmp_path, 0)
    for pid in pids_of_workers(tmp_path):
        os.kill(pid, signal.SIGUSR1)
    assert process.wait(timeout=100) == 75


def test_a_second_signal_is_passed_on_and_ends_the_job_at_once(tmp_path):
    process = start_waiting(tmp_path, 90)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "ended with 130" in errors and "Traceback" not in errors
    assert not list(tmp_path.glob("saved*"))


def test_workers_that_do_not_save_in_time_are_killed(tmp_path):
    process = start_waiting(tmp_path, 90, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="2")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "SIGKILL" in errors and "Traceback" not in errors


@pytest.mark.parametrize("code, starts", [(2, 1), (75, 1), (3, 2), (76, 2)])
def test_only_a_failure_is_restarted(tmp_path, code, starts):
    process = start(tmp_path, RESTARTED, tmp_path, code, options=("--max-restarts", "1"))
    assert process.wait(timeout=100) == {2: 2, 75: 75, 3: 1, 76: 75}[code]
    assert (tmp_path / "0").read_text() == "started " * starts


@pytest.mark.parametrize("times, wanted", [(1, 0), (2, 1)])
def test_a_rank_that_gives_up_waiting_for_a_killed_one_made_no_mistake_and_both_start_again(tmp_path, times, wanted):
    process = start(tmp_path, LOST_BEFORE_THE_OTHER_GIVES_UP, tmp_path, times, options=("--max-restarts", "1"))
    assert process.wait(timeout=100) == wanted
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["started " * 2] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_no_worker_outlives_a_launcher_that_is_killed(tmp_path):
    process = start(tmp_path, TRAINS_FOREVER, tmp_path, PYTHONPATH=str(LAUNCHER.parents[1]))
    workers = pids_of_workers(tmp_path)
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in workers), seconds=30)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_is_stopped_is_killed_and_one_that_goes_on_in_time_is_not(monkeypatch) -> None:
    launcher = load()
    monkeypatch.setattr(launcher, "STOPPED_SECONDS", 1.5)
    processes = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
        for _ in range(2)
    ]
    workers = launcher.Workers()
    workers.started([process.pid for process in processes], {})
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 20
        while processes[0].poll() is None and time.monotonic() < until:
            workers.kill_stopped()
            processes[1].send_signal(signal.SIGCONT)
            time.sleep(0.2)
            assert not launcher.is_stopped(processes[1].pid)
        assert processes[0].poll() == -signal.SIGKILL and processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()
