"""Which rank this process is, and the process group it shares with the others.

Works under torchrun, deepspeed and srun, and without a launcher as one rank.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch.distributed import constants, distributed_c10d

from ..core.errors import ConfigError, of_scarcity
from ..core.place import Place
from .config import ParallelConfig
from .interface import choose_interface
from .meeting import Meeting
from .precision import fp8_error
from .process import configure_process, set_environment
from .watch import AfterLoss, Watch, without_a_run

DEFAULT_MASTER_PORT = 29500  # torchrun's


@dataclass(frozen=True)
class Ranks(AbstractContextManager["Ranks"]):
    """This process among the others. Leaving the context, or `shutdown`, ends the process group.

    After an error among several ranks it is left as it is: to end it would wait for collectives that never end. The
    process has to end. An error that only says that other ranks are gone becomes the LostRank that `watch` makes of it.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    watch: Watch | None = field(default=None, repr=False, compare=False)  # None: there are no others
    memory: int | None = None  # bytes of each rank's device, where this process stands for others; None: as it says

    @property
    def place(self) -> Place:
        return Place(self.rank, self.world_size, self.device)

    def shutdown(self) -> None:
        if self.watch is not None:
            self.watch.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        _limit_new_groups(constants.default_pg_timeout, constants.default_pg_nccl_timeout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.watch is None:
            self.shutdown()
            return
        scarce = of_scarcity(error)
        lost = self.watch.explained(scarce or error) or scarce
        if lost is not None:
            raise lost from error


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What the launcher said about this process; `address` is None where no other process has to be found."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int | None  # None: the launcher does not say
    address: tuple[str, int] | None


def launch(
    config: ParallelConfig, *, log_of: Callable[[int], Path] | None = None, after_loss: AfterLoss = without_a_run
) -> Ranks:
    """Joins the process group: gloo for tensors on the CPU and, with GPUs, NCCL for those on the GPU.

    Sets this process's device and its arithmetic (TF32, deterministic kernels). `log_of` says where a rank writes the
    traceback of losing the others, `after_loss` how it then ends. Raises ConfigError, the same one on every rank, if
    the device or what is wanted of it is not there, and on its own rank if the launcher's variables make no sense or
    the others are not found.
    """
    announced = announcement_of(os.environ)
    _die_with_launcher()
    timeout = timedelta(seconds=config.timeout_seconds)
    meeting = meeting_of(announced, timeout)
    store = dist.HashStore() if meeting is None else meeting.meet()  # in memory: one rank needs neither port nor file
    store.set_timeout(timeout)
    set_environment(config)  # before CUDA starts, which reads it
    if announced.address is not None:
        choose_interface(announced.address[0])
    on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", announced.local_rank) if on_gpu else torch.device("cpu")
    watch = None
    if meeting is not None:
        watch = Watch(
            meeting, config.timeout_seconds, None if log_of is None else log_of(announced.rank), after_loss
        )
        watch.start()
    ranks = Ranks(announced.rank, announced.local_rank, announced.world_size, device, watch)
    try:
        _join(ranks, config, announced, store)
    except BaseException as error:
        ranks.__exit__(type(error), error, error.__traceback__)
        raise
    return ranks


def _join(ranks: Ranks, config: ParallelConfig, announced: Announcement, store: dist.Store) -> None:
    on_gpu = ranks.device.type == "cuda"
    error = _gpu_error(announced) if on_gpu else ""
    if on_gpu and not error:
        torch.cuda.set_device(ranks.device)
    error = error or (fp8_error(ranks.device) if config.precision == "fp8" else "")
    _agree_in(store, announced, error or _configured(config, ranks.device))
    if ranks.watch is not None:
        ranks.watch.look_at_rank_0()
    timeout = timedelta(seconds=config.timeout_seconds)
    _limit_new_groups(timeout, timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=ranks.rank, world_size=ranks.world_size,
        timeout=timeout, device_id=ranks.device if on_gpu else None,
    )


def announcement_of(environment: Mapping[str, str]) -> Announcement:
    """Reads the variables of torchrun and deepspeed (RANK, ...), else those of Slurm, else takes one rank alone.

    Raises ConfigError if they are incomplete or not numbers.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    elif "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "")
    else:
        return Announcement(rank=0, local_rank=0, world_size=1, local_world_size=1, address=None)
    rank, world_size = _number(environment, names[0]), _number(environment, names[2])
    alone_here = names[0] == "RANK" and environment.get(names[3], "1") == "1"
    # A Kubernetes PyTorchJob of one process a pod does not set LOCAL_RANK.
    local_rank = 0 if alone_here and names[1] not in environment else _number(environment, names[1])
    if not 0 <= rank < world_size:
        raise ConfigError(f"{names[0]}={rank} and {names[2]}={world_size}: a rank is from 0 to {names[2]} - 1")
    address = None
    if world_size > 1:
        if "MASTER_ADDR" not in environment:
            raise ConfigError(
                f"{names[2]}={world_size} but MASTER_ADDR is not set, so the ranks cannot find each other: set it to "
                f"the host of rank 0 (Slurm: the first of `scontrol show hostnames`), or unset {names[0]} and "
                f"{names[2]} to run one process alone"
            )
        port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else DEFAULT_MASTER_PORT
        if not 0 < port < 2**16:
            raise ConfigError(
                f"MASTER_PORT={port} (MASTER_ADDR={environment['MASTER_ADDR']}): a port is a number from 1 to 65535; "
                f"rank {rank} of {world_size} has not looked for the others. Choose a free one, the same for every rank"
            )
        address = (environment["MASTER_ADDR"].strip("[]"), port)  # an IPv6 address may stand in brackets
    local_world_size = _number(environment, names[3]) if names[3] in environment else None
    return Announcement(
        rank=rank, local_rank=local_rank, world_size=world_size, local_world_size=local_world_size, address=address
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    found = environment.get(name)
    if found is None or not found.isdecimal():
        raise ConfigError(
            f"the environment variable {name} is {'not set' if found is None else repr(found)}, wanted a number; "
            f"start the job with torchrun, deepspeed or srun, or without a launcher and its variables"
        )
    return int(found)


def meeting_of(announced: Announcement, timeout: timedelta) -> Meeting | None:
    """None where no other process has to be found."""
    if announced.address is None:
        return None
    host, port = announced.address
    return Meeting(
        rank=announced.rank, world_size=announced.world_size, leads_host=announced.local_rank == 0, host=host,
        port=port, limit=timeout.total_seconds(), local_world_size=announced.local_world_size,
    )


def _limit_new_groups(timeout: timedelta, of_nccl: timedelta | None) -> None:
    """The time limit of groups that are made without one: by our own parts, by meshes, by DeepSpeed and by Megatron.

    torch has no setting for it; its default is half an hour.
    """
    distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout = timeout, of_nccl


def _gpu_error(announced: Announcement) -> str:
    """What is wrong with this host's GPUs, or an empty string."""
    available = torch.cuda.device_count()
    if available == 0:
        return "parallel.device is cuda but torch sees no GPU here; set parallel.device=cpu or use a host with GPUs"
    wanted = max(announced.local_world_size or 0, announced.local_rank + 1)
    if wanted > available:
        return (
            f"{wanted} processes on a host with {available} GPU(s); start at most one process per GPU "
            f"(torchrun: --nproc-per-node {available}), or set parallel.device=cpu"
        )
    return ""


def _agree_in(store: dist.Store, announced: Announcement, error: str) -> None:
    """`agree` for the time before there is a process group: one rank's error would leave the others waiting for it."""
    store.set(f"launch/error/{announced.rank}", error)
    if announced.rank == 0:
        errors = [store.get(f"launch/error/{rank}").decode() for rank in range(announced.world_size)]
        store.set("launch/verdict", next(filter(None, errors), ""))
    verdict = store.get("launch/verdict").decode()
    if not verdict:
        return
    store.add("launch/read", 1)
    while announced.rank == 0 and store.add("launch/read", 0) < announced.world_size:
        time.sleep(0.01)  # the store may live in this process, and has to outlive the others' reading
    raise ConfigError(verdict).of_all_ranks()


def _configured(config: ParallelConfig, device: torch.device) -> str:
    """Configures the process. Returns what is wrong with that, or an empty string."""
    try:
        configure_process(config, device)
    except ConfigError as error:
        return str(error)
    return ""


def _die_with_launcher() -> None:
    """Ends this process when launchers/torchrun.py is killed (SIGKILL).

    Workers are in sessions of their own: without this they would train on, unseen, in the folder of the next run.
    """
    launcher = os.environ.get("AFM_SCALE_LAUNCHER_PID")
    if launcher is None or sys.platform != "linux":
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)
