"""Which rank says what several have met before they found each other: the same mistake in a recipe, at different times.

They have no group to agree in. What they have is the address where they would have met: a rank that refuses leaves a
claim in the store there, of the launcher or of rank 0. The first claim speaks. Rank 0, where the store is its own and
nobody waits in it yet, keeps one for a moment, so that ranks that come later learn that all is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from ..core.errors import ConfigError
from ..core.place import rank_of
from .launch import announcement_of, meeting_of
from .meeting import CLAIMS, HERE, REFUSED, Meeting


@contextmanager
def one_speaker(environment: Mapping[str, str], patience: float) -> Iterator[bool]:
    """Whether this rank is the one to speak, which it does in the block.

    Args:
        environment: what the launcher said.
        patience: seconds; how long rank 0 is waited for, and how long it stays for the others.
    """
    try:
        meeting = meeting_of(announcement_of(environment), timedelta(seconds=patience))
    except ConfigError:  # which may be what there is to say
        if rank_of(environment) != 0:
            time.sleep(patience)
        yield True
        return
    if meeting is None:
        yield True
    elif meeting.hosts_store:
        yield True
        with suppress(ConfigError, dist.DistError):  # its port is taken, or none
            _stay(meeting, patience)
    else:
        yield _is_first(meeting, patience)


def _stay(meeting: Meeting, patience: float) -> None:
    store = meeting.begin_store()
    store.add(CLAIMS, 1)
    until = time.monotonic() + patience
    while store.add(CLAIMS, 0) < meeting.world_size and time.monotonic() < until:
        time.sleep(0.02)


def _is_first(meeting: Meeting, patience: float) -> bool:
    """Of a rank that finds the store elsewhere. It leaves rank 0 the time to speak, if that is not on its way."""
    until = time.monotonic() + patience
    with suppress(dist.DistError):  # it was there, and is gone with rank 0: that has spoken
        store = None
        while time.monotonic() < until:
            if store is None and meeting.can_be_reached():
                store = meeting.connect()
            if store is not None:
                is_claimed, has_met = store.add(CLAIMS, 0) > 0, store.check([HERE.format(rank=0)])
                if is_claimed or has_met or meeting.rank == 0:
                    break
            time.sleep(0.05)
        if store is None:
            return True
        is_first = store.add(CLAIMS, 1) == 1
        if is_first:
            store.set(REFUSED, str(meeting.rank))  # for those who wait for this rank
        return is_first
    return False
