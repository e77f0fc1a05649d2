"""Which rank this process is, and what ranks tell each other before they train."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from afm_scale.core.errors import CheckpointError, ConfigError, DataError
from afm_scale.parallel.agreement import agree, check_same_on_all_ranks
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.launch import Announcement, announcement_of, launch
from tests.ranks import RankFailure, run_ranks

LAUNCHERS_WORDS = [
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID",
    "SLURM_LOCALID", "SLURM_NTASKS", "AFM_SCALE_LAUNCHER_PID",
]


@pytest.fixture
def no_launcher(monkeypatch):
    for name in LAUNCHERS_WORDS:
        monkeypatch.delenv(name, raising=False)


def config(**fields) -> ParallelConfig:
    return ParallelConfig(**({"plan": "ddp", "device": "cpu", "timeout_seconds": 60} | fields))


def test_without_a_launcher_there_is_one_rank_with_a_process_group(no_launcher):
    with launch(config()) as ranks:
        assert (ranks.rank, ranks.local_rank, ranks.world_size, ranks.device) == (0, 0, 1, torch.device("cpu"))
        value = torch.tensor([2.0])
        dist.all_reduce(value)
        assert value.item() == 2.0
    assert not dist.is_initialized()


def test_the_group_ends_when_the_work_in_it_fails(no_launcher):
    with pytest.raises(ZeroDivisionError), launch(config()):
        1 / 0  # noqa: B018
    assert not dist.is_initialized()


def test_torchruns_words_are_read():
    found = announcement_of({
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "host",
        "MASTER_PORT": "1234", "SLURM_PROCID": "0", "SLURM_NTASKS": "2",  # torchrun inside a Slurm job
    })
    assert found == Announcement(rank=5, local_rank=1, world_size=8, local_world_size=4, address=("host", 1234))


def test_slurms_words_are_read():
    words = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "MASTER_ADDR": "host"}
    expected = Announcement(rank=3, local_rank=1, world_size=4, local_world_size=None, address=("host", 29500))
    assert announcement_of(words) == expected


def test_a_pytorchjob_s_words_are_read_which_name_no_local_rank():
    found = announcement_of({"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"})
    expected = Announcement(
        rank=2, local_rank=0, world_size=4, local_world_size=None, address=("job-master-0", 23456)
    )
    assert found == expected


def test_one_slurm_task_needs_no_address():
    found = announcement_of({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"})
    assert (found.world_size, found.address) == (1, None)


@pytest.mark.parametrize("words, told", [
    ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}, "MASTER_ADDR is not set.*scontrol"),
    ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK is not set, wanted a number"),
    ({"RANK": "0"}, "WORLD_SIZE is not set, wanted a number"),
    ({"WORLD_SIZE": "2"}, "RANK is not set"),
    ({"RANK": "one", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, "RANK is 'one', wanted a number"),
    ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2"),
])
def test_words_that_make_no_sense_are_named(words, told):
    with pytest.raises(ConfigError, match=told):
        announcement_of(words)


def test_cuda_without_a_gpu_is_the_users_mistake(no_launcher, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no GPU here; set parallel.device=cpu"):
        launch(config(device="cuda"))
    assert not dist.is_initialized()


def test_more_processes_than_gpus_are_the_users_mistake(no_launcher, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"4 processes on a host with 2 GPU\(s\)"):
        launch(config(device="cuda"))


@pytest.mark.parametrize("precision, products, convolutions", [
    ("tf32", "tf32", "tf32"), ("fp32", "ieee", "ieee"), ("fp64", "ieee", "ieee"),
    ("bf16", "tf32", "ieee"),  # for the discriminator's penalties
])
def test_tf32_is_used_only_if_asked_for(no_launcher, precision, products, convolutions):
    with launch(config(precision=precision)):
        assert torch.backends.cuda.matmul.fp32_precision == products
        assert torch.backends.cudnn.conv.fp32_precision == convolutions


@pytest.mark.gpu
def test_with_a_gpu_tensors_of_both_kinds_are_reduced(no_launcher):
    with launch(config(device="auto")) as ranks:
        assert ranks.device == torch.device("cuda", 0)
        for device in ("cpu", ranks.device):
            value = torch.ones(3, device=device)
            dist.all_reduce(value)
            dist.barrier()
            assert value.sum().item() == 3.0
        agree(None)


SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
import torch, torch.distributed as dist
from afm_scale.core.errors import UserError
from afm_scale.parallel.launch import launch
from afm_scale.parallel.config import ParallelConfig
try:
    with launch(ParallelConfig(plan="ddp", device=sys.argv[1], timeout_seconds=60)) as ranks:
        value = torch.tensor([ranks.rank + 1.0])
        dist.all_reduce(value)
        dist.barrier()
        print(ranks.rank, ranks.world_size, ranks.device, value.item())
except UserError as error:
    print(error)
    sys.exit(2)
"""


def start(words: list[dict[str, str]], *arguments: str) -> list[subprocess.Popen]:
    """A process for each of `words`, as a launcher would start them."""
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
    return [
        subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env=clean | mine, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for mine in words
    ]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def slurm_words(world_size: int) -> list[dict[str, str]]:
    port = free_port()
    return [
        {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(world_size),
         "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for rank in range(world_size)
    ]


def test_two_slurm_tasks_find_each_other_without_a_warning():
    processes = start(slurm_words(2), "cpu")
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(out for out, _ in outputs) == ["0 2 cpu 3.0\n", "1 2 cpu 3.0\n"]
    assert [err for _, err in outputs] == ["", ""]


def test_a_host_without_gpus_stops_every_rank_with_one_message():
    """Rank 1 sees no GPU; rank 0 must not wait for it."""
    words = slurm_words(2)
    for mine in words:
        mine["CUDA_VISIBLE_DEVICES"] = ""
    processes = start(words, "cuda")
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert outputs[0] == outputs[1] and "no GPU here" in outputs[0]


def outcomes(cases):
    """What this rank raises, or None, for each of `cases`: a function and its argument on every rank."""
    told = []
    for function, arguments in cases:
        try:
            function(arguments[dist.get_rank()])
            told.append(None)
        except Exception as error:
            told.append((type(error), str(error)))
    return told


def same(text: str) -> None:
    check_same_on_all_ranks(text, "the configuration")


def test_every_rank_raises_the_error_of_the_lowest_rank_that_has_one():
    some = (agree, [None, DataError("shard 7 is missing"), CheckpointError("disk full")])
    none = (agree, [None, None, None])
    assert run_ranks(3, outcomes, [some, none]) == [[(DataError, "shard 7 is missing"), None]] * 3


def test_ranks_that_disagree_are_named_with_the_first_line_that_differs():
    ours = "loop:\n  steps: 100\n  seed: 0\n"
    theirs = "loop:\n  steps: 200\n  seed: 1\n"
    texts = [[ours, ours], [ours, theirs], ["a", "a\nb"], ["a\n", "a"]]
    told = run_ranks(2, outcomes, [(same, pair) for pair in texts])
    assert told[0] == told[1]
    nothing, differing, longer, line_end = told[0]
    assert nothing is None
    assert differing[0] is ConfigError and differing[1].startswith(
        "the ranks disagree on the configuration: rank 0 has 'steps: 100' where rank 1 has 'steps: 200' (ranks that "
        "differ from rank 0: 1)"
    )
    assert "rank 0 has '(nothing)' where rank 1 has 'b'" in longer[1]
    assert "rank 0 has 'other line ends'" in line_end[1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_worker_whose_launcher_is_gone_already_does_not_begin():
    (process,) = start([{"AFM_SCALE_LAUNCHER_PID": "1"}], "cpu")
    output, _ = process.communicate(timeout=100)
    assert (process.returncode, output) == (-signal.SIGKILL, "")


def fail_on_rank_one():
    if dist.get_rank() == 1:
        raise ValueError("only rank 1")
    dist.barrier()


def sleep_long():
    time.sleep(100)


def rank_and_sum(values):
    total = values[dist.get_rank()].clone()
    dist.all_reduce(total)
    return int(os.environ["RANK"]), total


def test_run_ranks_returns_what_each_rank_returned():
    results = run_ranks(2, rank_and_sum, [torch.tensor(1.0), torch.tensor(10.0)])
    assert results == [(0, torch.tensor(11.0)), (1, torch.tensor(11.0))]


def test_run_ranks_tells_which_rank_failed_and_how_and_waits_for_nobody():
    with pytest.raises(RankFailure, match="rank [01] of 2 ended with 1:(?s:.*)only rank 1|Connection .* by peer"):
        run_ranks(2, fail_on_rank_one)


def test_run_ranks_ends_after_its_timeout():
    with pytest.raises(RankFailure, match=r"ranks \[0\] of 1 were still running after 4 seconds"):
        run_ranks(1, sleep_long, timeout=4)
