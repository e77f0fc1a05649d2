"""Two hosts on this machine: namespaces of names and of networks, which a pair of interfaces joins, and a launcher in
each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .launched import LAUNCHERS_WORDS
from .program import ROOT

HOSTS = ("10.77.19.1", "10.77.19.2")
PORT = "29419"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def cannot_be_joined() -> str:
    """Why not, or an empty string."""
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        return "network namespaces want Linux, ip and root"
    done = subprocess.run(["ip", "netns", "add", f"afm{os.getpid()}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", f"afm{os.getpid()}"], check=False)
    return ""


@dataclass(frozen=True)
class Nodes:
    """The names of the namespaces, which are those of their interfaces too."""

    names: tuple[str, str]

    def start(self, node: int, *words: str, **environment: str) -> subprocess.Popen[str]:
        """`launchers/torchrun_multinode.sh WORDS` on one of them."""
        name, script = self.names[node], str(ROOT / "launchers" / "torchrun_multinode.sh")
        of_its_own = 'echo "$0" > /proc/sys/kernel/hostname && exec bash "$@"'  # else ranks see each other's processes
        return subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "--uts", "bash", "-c", of_its_own, name, script, *words],
            env=around(**environment), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )

    def cut(self, *, joined: bool) -> None:
        """Takes the link away, or gives it back."""
        ip("-n", self.names[1], "link", "set", self.names[1], "up" if joined else "down")

    def kill(self, node: int) -> None:
        """All that runs there."""
        for pid in self._processes(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def workers(self, node: int) -> list[int]:
        """The processes of ranks there."""
        return [pid for pid in self._processes(node) if _is_worker(pid)]

    def _processes(self, node: int) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.names[node]], capture_output=True, text=True, check=True)
        return [*map(int, done.stdout.split())]


def _is_worker(pid: int) -> bool:
    """Of a launcher, and no process of its own."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return b"launchers/torchrun.py" in Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Wants `cannot_be_joined` to be empty."""
    names = (f"afm{os.getpid()}a", f"afm{os.getpid()}b")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for name, address in zip(names, HOSTS, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            for link in (name, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield Nodes(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def around(**environment: str) -> dict[str, str]:
    """What a person sets on each host, and nothing of a launcher that runs these tests."""
    others = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
    return others | {
        "AFM_SCALE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PROCESSES_PER_NODE": "1", "PORT": PORT,
        "MAX_RESTARTS": "0", "NODES": " ".join(HOSTS), **environment,
    }
