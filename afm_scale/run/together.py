"""Whether the ranks are of one mind before they begin: versions and code, and the folder that all of them see."""

from __future__ import annotations

import hashlib
import platform
import secrets
import socket
import time
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from .. import __version__
from ..core.errors import ConfigError
from ..core.files import explained_write, read_regular, write_atomically
from ..parallel.agreement import check_same_on_all_ranks, from_rank_0

SEEN_SECONDS = 10.0  # for a file of rank 0 to be seen by other hosts: network file systems remember what was not there
_PACKAGES = ("torch", "numpy", "safetensors", "triton", "deepspeed", "megatron-core", "torchao", "nvidia-nccl-cu13")
_ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Of all that computes: they have to be equal on all ranks."""
    found = {"python": platform.python_version(), "afm_scale": __version__, "its code": _sum_of_code()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"CUDA": torch.version.cuda or "none"}


def check_versions() -> None:
    """Collective. Raises ConfigError, the same on every rank, where versions or code differ."""
    if dist.is_initialized():
        text = "\n".join(f"{name}: {version}" for name, version in versions().items())
        check_same_on_all_ranks(text, "the versions of packages and code")


def check_seen(folder: Path, rank: int) -> None:
    """Collective: rank 0 writes into the folder, which is there, and all others have to see it.

    Raises ConfigError, the same on every rank, with the hosts that do not.
    """
    if not dist.is_initialized():
        return
    path = folder / ".seen"
    token = from_rank_0(rank, lambda: _written(path))
    seen: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, None if _sees(path, token) else socket.gethostname())
    if rank == 0:
        path.unlink(missing_ok=True)
    blind = {other: host for other, host in enumerate(seen) if host is not None}
    if blind:
        where = ", ".join(f"rank {other} on {host}" for other, host in list(blind.items())[:5])
        raise ConfigError(
            f"the folder {folder} is not the same everywhere: what rank 0 writes there is not seen by {where}"
            f"{f' and {len(blind) - 5} more' if len(blind) > 5 else ''}. Name a folder of a file system that all nodes "
            "share (run.folder)"
        ).of_all_ranks()


def _written(path: Path) -> str:
    token = secrets.token_hex(8)
    with explained_write(path):
        write_atomically(path, lambda file: file.write(token.encode()))
    return token


def _sees(path: Path, token: str) -> bool:
    until = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            if read_regular(path) == token.encode():
                return True
        except OSError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _sum_of_code() -> str:
    found = hashlib.sha256()
    for path in sorted(_ROOT.rglob("*.py")):
        found.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + read_regular(path) + b"\0")
    return found.hexdigest()[:12]
