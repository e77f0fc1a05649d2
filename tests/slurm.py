"""A Slurm of this machine, with two nodes, for as long as a test: `from tests.slurm import Cluster, missing`."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .launched import free_port

_DAEMONS = ("munged", "slurmctld", "slurmd")
_SYSTEM = "/usr/sbin:/sbin"  # where daemons lie, which an ordinary user's PATH may leave out

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
ReturnToService=2
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no cluster here, or an empty string."""
    absent = [name for name in (*_DAEMONS, "sbatch", "srun") if _found(name) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian, Ubuntu: apt-get install slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd starts the jobs of others: it wants root"


class Cluster:
    """munged, slurmctld and a slurmd for each node; leaving the context ends them and what they have started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []
        self._environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        (self.folder / "state").mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        ports = [free_port() for _ in range(3)]
        (self.folder / "slurm.conf").write_text(_CONF.format(
            host=socket.gethostname(), user=getpass.getuser(), folder=self.folder, ports=ports
        ))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        try:
            files = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
            self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files['socket']}",
                        f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}")
            _wait_until(files["socket"].exists)
            self._start("slurmctld", "-D", "-i")
            for node in ("node1", "node2"):
                self._start("slurmd", "-D", "-N", node)
            _wait_until(self._is_idle)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._ask("scancel", "--full", "--signal=KILL", "--state=RUNNING")
        time.sleep(0.5)  # for the jobs to be told
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def submit(self, *words: str, cwd: Path, environment: Mapping[str, str]) -> str:
        """`sbatch WORDS`; the number of the job."""
        done = subprocess.run(
            [_found("sbatch"), "--parsable", *words], cwd=cwd, env=self._environment | environment, text=True,
            capture_output=True, timeout=60, check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def signal(self, job: str, name: str, *options: str) -> None:
        assert self._ask("scancel", f"--signal={name}", *options, job) == ""

    def requeue(self, job: str) -> None:
        """As whoever runs the cluster does: Slurm stops the job itself."""
        assert self._ask("scontrol", "requeue", job) == ""

    def begin_now(self, job: str) -> None:
        """A job that was requeued waits some minutes; here until the nodes have forgotten its first start."""
        _wait_until(self._is_idle)
        time.sleep(3)  # Slurm takes a start in the second of the end for the one that was ended, and refuses it
        self._ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def job(self, number: str) -> dict[str, str]:
        words = self._ask("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(
        self, number: str, condition: Callable[[dict[str, str]], bool], seconds: float = 400
    ) -> dict[str, str]:
        found: dict[str, str] = {}

        def holds() -> bool:
            found.clear()
            found.update(self.job(number))
            return condition(found)

        _wait_until(holds, seconds, lambda: f"{found}\n{self.logs()}")
        return found

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))

    def _start(self, *words: str) -> None:
        log = (self.folder / f"{words[0]}_{len(self._daemons)}.out.log").open("wb")
        with log:
            self._daemons.append(subprocess.Popen(
                [_found(words[0]), *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._environment,
            ))

    def _is_idle(self) -> bool:
        return self._ask("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "2"]

    def _ask(self, name: str, *words: str) -> str:
        done = subprocess.run([_found(name), *words], env=self._environment, text=True, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.stdout


def _found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SYSTEM)


def _wait_until(condition: Callable[[], bool], seconds: float = 30, told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {seconds} seconds\n{told()}"
        time.sleep(0.2)
