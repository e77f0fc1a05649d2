"""What this machine must have so that `multiprocessing` can start processes; and memory shared with them.

Its semaphores are files in /dev/shm, and its sockets lie in the folder of temporary files. Containers have 64 MB of the
one (Docker's default) or none that can be written; the other may be too long for a socket's address.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import util

import torch
from torch import Tensor

from .errors import UserError

_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # bytes; an address of a socket has at most 107
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def check_processes() -> None:
    """Raises UserError, with what to do, if no processes of `multiprocessing` can be started here."""
    with starting_processes():
        multiprocessing.get_context("fork").Semaphore()  # of this context it has no name, and leaves nothing behind


@contextmanager
def starting_processes() -> Iterator[None]:
    """To be around what starts processes: sockets get a folder of a short path, an OSError becomes a UserError."""
    _settle_sockets()
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
            remedy = "allow more open files, processes and memory (ulimit -n, ulimit -u), or ask for fewer workers"
        else:
            remedy = "give it a /dev/shm that can be written and has free space (Docker: --shm-size=1g or --ipc=host)"
        raise UserError(f"processes that work for this one cannot be started: {reason}; {remedy}") from error


def shared_memory(shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
    """A tensor without content that another process can be handed without a copy. It takes nothing of /dev/shm."""
    size = max(math.prod(shape), 1) * dtype.itemsize
    if sys.platform == "linux":
        descriptor = os.memfd_create("tensor")
        try:
            os.ftruncate(descriptor, size)
            storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, size)
        finally:
            os.close(descriptor)  # the storage has one of its own
    else:
        storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=dtype).set_(storage)[: math.prod(shape)].view(*shape)


def _settle_sockets() -> None:
    """Has `multiprocessing` choose its folder now, under another one if that of temporary files is too long."""
    before = tempfile.tempdir
    for folder in (None, *_SHORT_FOLDERS):
        try:
            tempfile.tempdir = tempfile.gettempdir() if folder is None else folder
            if len(os.fsencode(tempfile.tempdir)) <= _LONGEST_FOLDER:
                util.get_temp_dir()  # it is asked once: processes that are started inherit it
                return
        except OSError:  # no such folder, or one that cannot be written
            continue
        finally:
            tempfile.tempdir = before
    raise UserError(
        f"TMPDIR is {os.environ.get('TMPDIR', 'not set')}, which cannot be written or has more than {_LONGEST_FOLDER} "
        f"letters, too many for a socket, and neither can {', '.join(_SHORT_FOLDERS)}; set TMPDIR to another folder"
    )
