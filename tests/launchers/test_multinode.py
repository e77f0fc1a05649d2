"""Two hosts, each with its own launcher: two network namespaces of this machine, joined by a pair of interfaces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from afm_scale.checkpoint.manifest import newest_complete
from afm_scale.checkpoint.tensors import digest
from tests.launched import LAUNCHERS_WORDS, free_port
from tests.program import ROOT, SMALL_AFM, end, train_forked

STEPS = 60
SMALL = (*SMALL_AFM, f"loop.steps={STEPS}", "checkpoint.every_steps=10", "checkpoint.keep_last=9",
         "parallel.timeout_seconds=20")
HOSTS = ("10.77.19.1", "10.77.19.2")
PORT = "29419"


def cannot_be_joined() -> str:
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        return "network namespaces want Linux, ip and root"
    done = subprocess.run(["ip", "netns", "add", f"afm{os.getpid()}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", f"afm{os.getpid()}"], check=False)
    return ""


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    if reason := cannot_be_joined():
        pytest.skip(reason)
    names = [f"afm{os.getpid()}{letter}" for letter in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for name, address in zip(names, HOSTS, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            for link in (name, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def around(**environment: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
    return others | {
        "AFM_SCALE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PROCESSES_PER_NODE": "1", "PORT": PORT,
        "MAX_RESTARTS": "0", "NODES": " ".join(HOSTS), **environment,
    }


def start(namespace: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, "bash", str(ROOT / "launchers" / "torchrun_multinode.sh"), *words],
        env=around(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


@pytest.mark.slow
def test_hosts_find_each_other_and_what_is_left_of_them_ends_with_75_when_the_first_is_gone(
    namespaces: list[str], tmp_path: Path
) -> None:
    """The rendezvous and the ranks' store go with the first host. Started again, all ends as if nothing had been."""
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    words = [*SMALL, f"run.folder={folder}", "parallel.device=cpu"]
    alone = train_forked(SMALL, undisturbed, ranks=2)
    nodes = [start(name, *words, "loop.steps=1000000") for name in namespaces]
    try:
        until = time.monotonic() + 240
        while newest_complete(folder / "checkpoints") is None:
            assert time.monotonic() < until, [end(node) for node in nodes]
            assert all(node.poll() is None for node in nodes), [end(node) for node in nodes]
            time.sleep(0.1)
        nodes[0].kill()  # its rank dies with it
        code, _, stderr = end(nodes[1], timeout=240)
    finally:
        for node in nodes:
            with node:  # closes its pipes
                node.kill()
    assert code == 75, stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "rank 0" in errors[0] and "Traceback" not in stderr, stderr

    for path in (folder / "checkpoints").iterdir():  # steps fly: so that both runs end at the same one
        if path.name > "step_00000010":
            shutil.rmtree(path)
    assert end(alone, timeout=240)[0] == 0
    nodes = [start(name, *words) for name in namespaces]
    ends = [end(node, timeout=240) for node in nodes]
    assert [code for code, _, _ in ends] == [0, 0], ends
    name = f"step_{STEPS:08d}"
    assert digest(folder / "checkpoints" / name) == digest(undisturbed / "checkpoints" / name)


def refused(**environment: str) -> str:
    """The one line that the script says, and ends with 2."""
    done = subprocess.run(
        ["bash", ROOT / "launchers" / "torchrun_multinode.sh", "digits_afm"], env=around(**environment),
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


@pytest.mark.parametrize(("environment", "told"), [
    ({"NODES": ""}, "NODES is not set: wanted the hosts"),
    ({"NODES": "nosuch.invalid 127.0.0.1"}, "the name 'nosuch.invalid' is not known here"),
    ({"NODES": "198.51.100.1 203.0.113.1"}, "none of them is this host"),
    ({"NODES": "127.0.0.1 127.0.0.2"}, "127.0.0.1, 127.0.0.2 are all this host"),
    ({"NODES": "127.0.0.1 127.0.0.1"}, "names a host twice"),
    ({"NODES": "127.0.0.1", "NODE_RANK": "1"}, "NODE_RANK=1: wanted a number from 0 to 0"),
    ({"NODES": "127.0.0.1", "WAIT_SECONDS": "1", "PORT": "ssh"}, "PORT=ssh: wanted a whole number"),
    ({"NODES": "127.0.0.1", "AFM_SCALE_PYTHON": "nosuchpython"}, "AFM_SCALE_PYTHON=nosuchpython is no program here"),
])
def test_hosts_that_make_no_sense_are_one_message(environment: dict[str, str], told: str) -> None:
    assert told in refused(**environment)


def test_a_port_in_use_and_a_host_that_never_comes_are_one_message() -> None:
    launcher = [sys.executable, str(ROOT / "launchers" / "torchrun.py"), "--nnodes", "2", "--rdzv-backend", "c10d"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        waits = {
            "the port is in use on this host": (taken.getsockname()[1], "is_host=1"),
            "not all of the nodes came in time": (free_port(), "is_host=1,join_timeout=2"),
            "the nodes do not find each other": (free_port(), "is_host=0,read_timeout=2"),
        }
        started = {
            told: subprocess.Popen(
                [*launcher, "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", how, "-m", "afm_scale", "doctor"],
                env=around(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for told, (port, how) in waits.items()
        }
        for told, process in started.items():
            code, _, stderr = end(process)
            errors = [line for line in stderr.splitlines() if line.startswith("error:")]  # torch may log beside it
            assert code == 2 and len(errors) == 1 and told in errors[0] and "Traceback" not in stderr, stderr
