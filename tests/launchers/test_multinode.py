"""Two hosts, each with its own launcher: two network namespaces of this machine, joined by a pair of interfaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from afm_scale.checkpoint.manifest import newest_complete
from afm_scale.checkpoint.tensors import digest
from tests.launched import free_port
from tests.nodes import Nodes, around, cannot_be_joined, two_nodes
from tests.program import ROOT, SMALL_AFM, end, train_forked

STEPS = 60
SMALL = (*SMALL_AFM, f"loop.steps={STEPS}", "checkpoint.every_steps=10", "checkpoint.keep_last=9",
         "parallel.timeout_seconds=20")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if reason := cannot_be_joined():
        pytest.skip(reason)
    with two_nodes() as joined:
        yield joined


@pytest.mark.slow
def test_hosts_find_each_other_and_what_is_left_of_them_ends_with_75_when_the_first_is_gone(
    nodes: Nodes, tmp_path: Path
) -> None:
    """The rendezvous and the ranks' store go with the first host. Started again, all ends as if nothing had been."""
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    words = [*SMALL, f"run.folder={folder}", "parallel.device=cpu"]
    alone = train_forked(SMALL, undisturbed, ranks=2)
    hosts = [nodes.start(node, *words, "loop.steps=1000000") for node in (0, 1)]
    try:
        until = time.monotonic() + 240
        while newest_complete(folder / "checkpoints") is None:
            assert time.monotonic() < until, [end(host) for host in hosts]
            assert all(host.poll() is None for host in hosts), [end(host) for host in hosts]
            time.sleep(0.1)
        hosts[0].kill()  # its rank dies with it
        code, _, stderr = end(hosts[1], timeout=240)
    finally:
        for host in hosts:
            with host:  # closes its pipes
                host.kill()
    assert code == 75, stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "rank 0" in errors[0] and "Traceback" not in stderr, stderr

    for path in (folder / "checkpoints").iterdir():  # steps fly: so that both runs end at the same one
        if path.name > "step_00000010":
            shutil.rmtree(path)
    assert end(alone, timeout=240)[0] == 0
    hosts = [nodes.start(node, *words) for node in (0, 1)]
    ends = [end(host, timeout=240) for host in hosts]
    assert [code for code, _, _ in ends] == [0, 0], ends
    name = f"step_{STEPS:08d}"
    assert digest(folder / "checkpoints" / name) == digest(undisturbed / "checkpoints" / name)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine
def test_a_killed_rank_a_cut_network_and_a_lost_host_are_survived(nodes: Nodes, tmp_path: Path) -> None:
    """One run: the launchers start all again after the first two; after the third the first host goes on alone, until
    the other comes back."""
    folder = tmp_path / "run"
    words = [*SMALL, f"run.folder={folder}", "parallel.device=cpu", "loop.steps=1000000", "parallel.elastic=true",
             "parallel.timeout_seconds=12", "hooks.metrics.every_steps=1"]
    hosts = [nodes.start(node, *words, MAX_RESTARTS="3", MIN_NODES="1") for node in (0, 1)]

    def wait_until(holds: Callable[[], object], seconds: float = 240) -> None:
        until = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < until and hosts[0].poll() is None, [end(host) for host in hosts]
            time.sleep(0.1)

    def starts() -> list[dict[str, Any]]:
        events = folder / "events.jsonl"
        lines = events.read_text().splitlines() if events.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == "start"]

    def trains(number: int) -> None:
        """The run is at its start of that number, and has got beyond what it began at: else it would not be started."""
        wait_until(lambda: len(starts()) == number)
        begun_at = starts()[-1]["step"]
        wait_until(lambda: (newest_complete(folder / "checkpoints") or Path("")).name > f"step_{begun_at:08d}")

    try:
        trains(1)
        os.kill(nodes.workers(1)[0], signal.SIGKILL)
        trains(2)
        ranks = [pid for node in (0, 1) for pid in nodes.workers(node)]
        nodes.cut(joined=False)
        wait_until(lambda: not {*nodes.workers(0), *nodes.workers(1)} & {*ranks}, seconds=60)
        nodes.cut(joined=True)
        trains(3)
        nodes.kill(1)
        trains(4)
        hosts.append(nodes.start(1, *words, MAX_RESTARTS="3", MIN_NODES="1"))
        trains(5)
        hosts[0].send_signal(signal.SIGTERM)
        code, _, stderr = end(hosts[0], timeout=120)
    finally:
        for host in hosts:
            with host:
                host.kill()
    assert [start["world_size"] for start in starts()] == [2, 2, 2, 1, 2]
    errors = [line for line in stderr.splitlines() if line.startswith("error")]
    assert code == 75 and len(errors) == 3 and all("rank 1 of 2" in line for line in errors), stderr
    assert all("its last collective: gloo:" in line for line in errors), stderr  # in which it waited
    assert "1 rank(s) keep data.global_batch with loop.accumulation=2" in stderr
    assert (folder / "rank_00000.collectives.json").exists()


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
