"""slurm.sbatch under a Slurm of two nodes that the test starts: what stops comes back, and ends as if never stopped."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from afm_scale.checkpoint.tensors import digest
from afm_scale.core.run_folder import RunFolder
from tests.launched import LAUNCHERS_WORDS, free_port
from tests.program import ROOT, SMALL_AFM, end, train_forked
from tests.slurm import Cluster, missing

STEPS = 300
SMALL = (*SMALL_AFM, f"loop.steps={STEPS}", "checkpoint.every_steps=1000", "hooks.metrics.every_steps=1")
SCRIPT = ROOT / "launchers" / "slurm.sbatch"

needs_slurm = pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
takes_minutes = pytest.mark.timeout(900)  # on a busy machine, where every start of a job imports torch three times


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder:  # Slurm makes sockets in it: their paths are short
        os.chmod(folder, 0o755)
        with Cluster(Path(folder) / "cluster") as started:
            yield started


def submit(cluster: Cluster, folder: Path, *words: str, **environment: str) -> str:
    around = {
        "AFM_SCALE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PROCESSES_PER_NODE": "1", **environment
    }
    return cluster.submit(
        "--nodes=2", f"--output={folder}.log", str(SCRIPT), *words, f"run.folder={folder}", "parallel.device=cpu",
        cwd=folder.parent, environment=around,
    )


def rows(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def trains(cluster: Cluster, job: str, folder: Path, more_than: int = 2) -> None:
    def seen(found: dict[str, str]) -> bool:
        log = Path(f"{folder}.log")
        assert found["JobState"] in ("PENDING", "CONFIGURING", "RUNNING"), log.read_text() if log.exists() else found
        return rows(folder) > more_than

    cluster.wait_for(job, seen)


def log_of(folder: Path) -> str:
    return Path(f"{folder}.log").read_text()


@needs_slurm
@takes_minutes
@pytest.mark.slow
def test_a_job_that_is_stopped_comes_back_and_ends_as_if_never_stopped(cluster: Cluster, tmp_path: Path) -> None:
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    job = submit(cluster, folder, *SMALL)
    alone = train_forked(SMALL, undisturbed, ranks=2)
    trains(cluster, job, folder)
    cluster.signal(job, "USR1")  # as Slurm does before the limit
    cluster.wait_for(job, has_come_back(1))
    told = log_of(folder)
    assert rows(folder) < STEPS and told.count("stopped by SIGUSR1 and saved") == 1 and "Traceback" not in told
    assert "put back into the queue (time 1 of 100 at most)" in told
    cluster.begin_now(job)
    ended = cluster.wait_for(job, has_ended)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), (
        log_of(folder) + cluster.logs()
    )
    assert "resumed at step" in log_of(folder)
    assert end(alone, timeout=600)[0] == 0
    name = f"step_{STEPS:08d}"
    assert digest(folder / "checkpoints" / name) == digest(undisturbed / "checkpoints" / name)


def has_ended(found: dict[str, str]) -> bool:
    return found["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")


def has_come_back(times: int) -> Callable[[dict[str, str]], bool]:
    return lambda found: (found["JobState"], found["Restarts"]) == ("PENDING", str(times))


@needs_slurm
@takes_minutes
@pytest.mark.long
@pytest.mark.slow
def test_what_slurm_itself_puts_back_has_saved_and_a_recipe_that_cannot_go_on_is_not_put_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Preempted by a partition of a higher tier, requeued by an administrator, and its recipe edited meanwhile."""
    folder, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text("inherit: [digits_afm]\nmodel: {generator: {num_heads: 2}}\n")
    words = [word for word in SMALL[1:] if "generator.num_heads" not in word]
    job = submit(cluster, folder, str(recipe), *words, "loop.steps=1000000")
    trains(cluster, job, folder)
    urgent = cluster.submit("--nodes=2", "--exclusive", "--partition=urgent", "--output=/dev/null", "--wrap=true",
                            cwd=tmp_path, environment={})
    cluster.wait_for(job, has_come_back(1))
    cluster.wait_for(urgent, lambda found: found["JobState"] == "COMPLETED")
    assert log_of(folder).count("stopped by SIGTERM and saved") == 1
    cluster.begin_now(job)
    trains(cluster, job, folder, more_than=rows(folder) + 2)
    assert log_of(folder).count("resumed at step") == 1
    cluster.requeue(job)
    cluster.wait_for(job, has_come_back(2))
    told = log_of(folder)
    assert told.count("stopped by SIGTERM and saved") == 2 and "Traceback" not in told, told

    recipe.write_text("inherit: [digits_afm]\nmodel: {generator: {num_heads: 4}}\n")
    cluster.begin_now(job)
    ended = cluster.wait_for(job, has_ended)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "2"), log_of(folder)
    errors = [line for line in log_of(folder).splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "num_heads: 2 -> 4" in errors[0] and "Traceback" not in log_of(folder), log_of(folder)


@needs_slurm
@takes_minutes
@pytest.mark.slow
def test_srun_alone_starts_several_ranks_a_node_and_a_signal_to_the_job_ends_all_with_75(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [*SMALL, "loop.steps=1000000", f"run.folder={folder}", "parallel.device=cpu"]
    job = cluster.submit(
        "--nodes=2", "--ntasks-per-node=2", f"--output={folder}.log",
        f"--wrap=srun {sys.executable} -m afm_scale train {shlex.join(words)}", cwd=ROOT,
        environment={"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    )
    trains(cluster, job, folder)
    (started,) = [event for event in RunFolder(folder).read_events() if event["kind"] == "start"]
    assert started["world_size"] == 4
    cluster.signal(job, "USR1")
    ended = cluster.wait_for(job, has_ended)
    told = log_of(folder)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "75:0"), told
    assert told.count("stopped by SIGUSR1 and saved") == 1 and "Traceback" not in told


@needs_slurm
@takes_minutes
@pytest.mark.slow
def test_a_users_mistake_ends_the_job_with_2_and_one_message(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, folder, "digits_afm", "loop.stepz=3")
    ended = cluster.wait_for(job, has_ended)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    errors = [line for line in log_of(folder).splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "stepz" in errors[0], log_of(folder)


@pytest.mark.parametrize(("environment", "told"), [
    ({}, "error: SLURM_JOB_ID is not set: this is for Slurm, sbatch launchers/slurm.sbatch [RECIPE] [a.b=c ...]"),
    ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1", "MAX_REQUEUES": "often"},
     "error: MAX_REQUEUES=often: wanted a whole number"),
])
def test_what_is_unset_or_no_number_is_one_message(environment: dict[str, str], told: str) -> None:
    around = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
    done = subprocess.run(["bash", SCRIPT], env=around | environment, capture_output=True, text=True, timeout=60,
                          check=False)
    assert (done.returncode, done.stderr) == (2, f"{told}\n")


@pytest.mark.parametrize(("code", "state", "requeued", "told"), [
    (75, "RUNNING", 0, "put back into the queue (time 1 of 2 at most): goes on from the newest checkpoint"),
    (75, "RUNNING", 2, "came back 2 times, MAX_REQUEUES=2: not put back into the queue; submit it again to go on"),
    (75, "CANCELLED", 0, "the job is CANCELLED: not put back into the queue"),
    (0, "RUNNING", 0, ""), (2, "RUNNING", 0, ""), (138, "RUNNING", 0, ""),
])
def test_only_a_job_that_ends_with_75_is_put_back_and_no_more_often_than_it_may(
    tmp_path: Path, code: int, state: str, requeued: int, told: str
) -> None:
    """What the script decides, with commands in the place of Slurm's that note what they are asked for."""
    commands = {
        "srun": '[[ "$*" == *"--ntasks-per-node=1 --kill-on-bad-exit=0 bash -c "*" digits_afm loop.steps=9" ]] ||'
                f' exit 99\necho "$NODES" >{tmp_path}/nodes; exit {code}',
        "squeue": f"echo {state}",
        "scontrol": f"""case "$1 $2" in
            "show job") echo "   Command={ROOT}/launchers/slurm.sbatch digits_afm loop.steps=9";;
            "show hostnames") printf "node1\nnode2\n";;
            "show node") echo "   NodeAddr=10.0.0.1 NodeHostName=x Version=1";;
            *) echo "$*" >>{tmp_path}/asked;; esac""",
        "python_of_the_job": '[[ "$1" != -c ]] || echo 29999',
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    around = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": str(requeued), "MAX_REQUEUES": "2",
        "AFM_SCALE_PYTHON": "python_of_the_job",
    }
    done = subprocess.run(["bash", SCRIPT, "digits_afm", "loop.steps=9"], env=around, cwd=tmp_path, capture_output=True,
                          text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (code, told)
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if told.startswith("put") else "")
    assert (tmp_path / "nodes").read_text() == "10.0.0.1 node2\n"
