"""How the ranks find each other: a store at MASTER_ADDR:MASTER_PORT, in rank 0 or in the launcher.

torch would say nothing for minutes and then show a traceback for each rank. Here every wait has an end, after ten
seconds somebody says who is missing, and what goes wrong is one message with the address and the ranks.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from ..core.errors import ConfigError
from ..core.screen import note_at_once

NOTE_SECONDS = 10.0  # of waiting, before it is said who is missing
NAME_SECONDS = 60.0  # a host's name may become known only when its machine has started
FOREIGN_SECONDS = 5.0  # for whoever listens at the port to show that it is a store
_ATTEMPT_SECONDS = 3.0
_UNKNOWN = "is not known"
_MARGIN_SECONDS = 5.0  # rank 0 gives up first, and tells the others

HERE = "meet/who/{rank}"  # of a rank that has come
CLAIMS = "meet/claims"  # how many ranks have refused to come: see speaker.py
REFUSED = "meet/refused"  # the one of them that has said why

# torch's own greeting of a store, for a look that leaves no pages of warnings: "validate" with a number, then "ping".
_VALIDATE, _PING, _MAGIC = 0, 13, 0x3C85F7CE


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """One rank on its way to the others."""

    rank: int
    world_size: int
    leads_host: bool  # whether it is the one that speaks for its host
    local_world_size: int | None = None  # None: the launcher does not say
    host: str
    port: int
    limit: float  # seconds

    def __str__(self) -> str:
        return f"MASTER_ADDR={self.host} MASTER_PORT={self.port}"

    @property
    def is_in_launcher(self) -> bool:
        """Whether the store is, rather than in rank 0."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    @property
    def hosts_store(self) -> bool:
        return self.rank == 0 and not self.is_in_launcher

    def connect(self) -> dist.Store:
        """A connection of its own to the store. Raises torch's DistError."""
        host = "localhost" if self.hosts_store else self.host  # its own name may lead elsewhere, behind a gateway
        return self._part_of(self._store(host, is_master=False))

    def begin_store(self) -> dist.Store:
        """The store, of the rank that has it. Raises ConfigError."""
        return self._part_of(self._hosted())

    def can_be_reached(self) -> bool:
        return not self._look()[0]

    def meet(self) -> dist.Store:
        """Until all ranks are here. Raises ConfigError, and where rank 0 can tell the others the same on every rank."""
        store = self.begin_store() if self.hosts_store else self._part_of(self._found())
        who = f"{socket.gethostname()}, process {os.getpid()}"
        if store.add(f"meet/count/{self.rank}", 1) > 1:
            raise self._told(
                f"two processes say that they are rank {self.rank} of {self.world_size} ({self}): this one ({who}) and "
                f"{store.get(HERE.format(rank=self.rank)).decode().partition(' ')[2]}; give each its own RANK"
            )
        store.set(f"meet/local/{self.rank}", str(self.local_world_size or ""))
        store.set(HERE.format(rank=self.rank), f"{self.world_size} {who}")
        self._wait_for_all(store)
        return store

    def _store(self, host: str, is_master: bool) -> dist.Store:
        return dist.TCPStore(
            host, self.port, self.world_size, is_master, timeout=timedelta(seconds=self.limit),
            wait_for_workers=False, multi_tenant=is_master,
        )

    def _part_of(self, store: dist.Store) -> dist.Store:
        """What was agreed on before a launcher started the workers again is still in its store."""
        attempt = os.environ.get("AFM_SCALE_MEETING") or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"attempt_{attempt}", store)

    def _hosted(self) -> dist.Store:
        try:
            return self._store("localhost", is_master=True)
        except dist.DistError as error:
            reason = re.search(r"message: ([^.;\n]+)", str(error))
            raise ConfigError(
                f"rank 0 of {self.world_size} cannot listen for the others ({self}): "
                f"{reason[1].strip() if reason else str(error).splitlines()[0]}. Ranks present: 0; missing: "
                f"{listed(range(1, self.world_size))}. Choose a free port from 1024 to 65535 with MASTER_PORT, the "
                f"same for every rank, or end the program that has this one"
            ) from None

    def _found(self) -> dist.Store:
        """The store of rank 0 or of the launcher, once it listens."""
        began, foreign_since, noted = time.monotonic(), 0.0, False
        while True:
            reason, is_foreign = self._look()
            now = time.monotonic()
            if not reason:
                return self._store(self.host, is_master=False)
            foreign_since = (foreign_since or now) if is_foreign else 0.0
            limit = min(self.limit, NAME_SECONDS) if _UNKNOWN in reason else self.limit
            if now - began > limit or is_foreign and now - foreign_since > min(FOREIGN_SECONDS, self.limit):
                raise self._told(
                    f"rank {self.rank} of {self.world_size} does not find the others ({self}): {reason}. Ranks "
                    f"present: {self.rank}, others not known; missing: 0, which listens there. Set MASTER_ADDR to the "
                    f"host of rank 0 and MASTER_PORT to a free port of it, the same for every rank, and start rank 0"
                )
            if now - began > NOTE_SECONDS and not noted and self._speaks:
                noted = True
                note_at_once(f"rank {self.rank} of {self.world_size} waits for rank 0 ({self}): {reason}")
            time.sleep(0.2)

    def _look(self) -> tuple[str, bool]:
        """(what is wrong at the address, or an empty string; whether somebody else listens there)."""
        try:
            with closing(socket.create_connection((self.host, self.port), timeout=_ATTEMPT_SECONDS)) as connection:
                if _greets(connection) or not _greeting_is_known():
                    return "", False
            return "the program that listens there is not a rank of this run", True
        except (socket.gaierror, UnicodeError) as error:
            return f"the name {self.host!r} {_UNKNOWN} ({getattr(error, 'strerror', None) or error})", False
        except TimeoutError:
            return "it does not answer", False
        except OSError as error:
            return f"nobody can be reached there ({error.strerror or error})", False

    def _wait_for_all(self, store: dist.Store) -> None:
        """Rank 0 sees who has come, and says so to the others."""
        began, noted, pause = time.monotonic(), False, 0.02
        keys = [HERE.format(rank=rank) for rank in range(self.world_size)]
        limit = self.limit if self.rank == 0 else self.limit + _MARGIN_SECONDS
        while True:
            if self.rank == 0 and store.check(keys):
                if problem := self._disagreement(store, list(range(self.world_size))):
                    self._end_all(store, problem, self.world_size)
                store.set("meet/verdict", "")
                return
            if self.rank != 0 and store.check(["meet/verdict"]):
                verdict = store.get("meet/verdict").decode()
                store.add("meet/read", 1)
                if verdict:
                    raise ConfigError(verdict).of_all_ranks()
                return
            waited = time.monotonic() - began
            if store.check([REFUSED]):
                self._leave_unsaid(store)
            if waited > NOTE_SECONDS and not noted:
                noted = True
                present, missing = self._attendance(store)
                reason = self._own_address()
                limit = min(limit, NAME_SECONDS) if _UNKNOWN in reason else limit
                if present[0] == self.rank:
                    whom = f"rank {self.rank} of {self.world_size}"
                    note_at_once(f"{whom} waits for rank {listed(missing)} ({self}{reason})")
            if waited > limit:
                self._give_up(store)
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)

    def _attendance(self, store: dist.Store) -> tuple[list[int], list[int]]:
        present = [rank for rank in range(self.world_size) if store.check([HERE.format(rank=rank)])]
        return present, sorted(set(range(self.world_size)) - set(present))

    def _give_up(self, store: dist.Store) -> None:
        present, missing = self._attendance(store)
        text = self._disagreement(store, present) or (
            f"not all of the {self.world_size} ranks came in time ({self}{self._own_address()}). Ranks present: "
            f"{listed(present)}; missing: {listed(missing)}. Look whether they were started, with the same "
            "MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and whether their hosts reach this address; or give them more "
            f"time with parallel.timeout_seconds, now {self.limit:.0f}"
        )
        if self.rank == 0:
            self._end_all(store, text, len(present))
        raise self._told(text, speaks=present[0] == self.rank)

    def _leave_unsaid(self, store: dist.Store) -> NoReturn:
        """A rank that will not come has said why. Where the store is, the others who will not are waited for."""
        until = time.monotonic() + _MARGIN_SECONDS
        store.add("meet/read", 1)
        while self.hosts_store and time.monotonic() < until:
            if store.add("meet/read", 0) + store.add(CLAIMS, 0) >= self.world_size:
                break
            time.sleep(0.02)
        error = ConfigError(f"rank {store.get(REFUSED).decode()} of {self.world_size} does not come, and has said why")
        error.is_told = True
        raise error

    def _end_all(self, store: dist.Store, text: str, present: int) -> NoReturn:
        """Rank 0 raises, and the others who are there raise the same."""
        store.set("meet/verdict", text)
        until = time.monotonic() + _MARGIN_SECONDS
        while store.add("meet/read", 0) < present - 1 and time.monotonic() < until:
            time.sleep(0.01)  # the store may live in this process
        raise ConfigError(text).of_all_ranks()

    def _disagreement(self, store: dist.Store, present: list[int]) -> str:
        """What is wrong with the ranks' numbers of ranks, or an empty string."""
        sizes = {rank: store.get(HERE.format(rank=rank)).decode().partition(" ")[0] for rank in present}
        others = [rank for rank, size in sizes.items() if size != str(self.world_size)]
        if not others:
            return self._unequal_hosts(store, present)
        return (
            f"the ranks disagree on how many they are ({self}): rank {self.rank} has WORLD_SIZE={self.world_size}, "
            f"rank {others[0]} has {sizes[others[0]]}. Ranks present: {listed(present)}. Start all with the same number"
        )

    def _unequal_hosts(self, store: dist.Store, present: list[int]) -> str:
        """What is wrong with the numbers of ranks of the hosts, or an empty string: layouts are of so many on each."""
        told = {rank: store.get(f"meet/local/{rank}").decode() for rank in present}
        told = {rank: number for rank, number in told.items() if number}
        first = next(iter(told), 0)
        other = next((rank for rank in told if told[rank] != told[first]), None)
        if other is None:
            return ""
        who = {rank: store.get(f"meet/who/{rank}").decode() for rank in (first, other)}
        hosts = {rank: text.partition(" ")[2].partition(",")[0] for rank, text in who.items()}
        return (
            f"the hosts run different numbers of ranks ({self}): {told[first]} where rank {first} is ({hosts[first]}), "
            f"{told[other]} where rank {other} is ({hosts[other]}). Start the same number on every host (torchrun: "
            "--nproc-per-node; deepspeed: slots in the hostfile; Slurm: --gpus-per-node)"
        )

    def _own_address(self) -> str:
        """Whether rank 0, where the store lives, reaches it in the way that the others have to."""
        reason = self._look()[0] if self.hosts_store else ""
        return f", where rank 0 itself does not get: {reason}" if reason else ""

    @property
    def _speaks(self) -> bool:
        return self.leads_host or self.rank <= 1

    def _told(self, text: str, speaks: bool | None = None) -> ConfigError:
        """An error that this rank says at once if it is to speak; nobody else may be there to do it."""
        error = ConfigError(text)
        if self._speaks if speaks is None else speaks:
            note_at_once(f"error on rank {self.rank}: {text}" if self.rank else f"error: {text}")
        error.is_told = True
        return error


def listed(ranks: range | list[int]) -> str:
    """Such as '0-3, 5'; 'none'."""
    parts: list[str] = []
    ordered = list(ranks)
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or ordered[end] != ordered[end - 1] + 1:
            first, last = ordered[start], ordered[end - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = end
    return ", ".join(parts) or "none"


def _greets(connection: socket.socket) -> bool:
    """Whether a store of torch answers."""
    number = os.getpid() & 0x7FFFFFFF
    try:
        connection.settimeout(_ATTEMPT_SECONDS)
        connection.sendall(struct.pack("=BIBI", _VALIDATE, _MAGIC, _PING, number))
        answer = b""
        while len(answer) < 4 and (more := connection.recv(4 - len(answer))):
            answer += more
        return answer == struct.pack("=I", number)
    except OSError:
        return False


def _greeting_is_known() -> bool:
    """Whether this version of torch answers it; else nothing follows from silence."""
    store = dist.TCPStore("localhost", 0, 1, True, wait_for_workers=False)
    try:
        with closing(socket.create_connection(("localhost", store.port), timeout=_ATTEMPT_SECONDS)) as connection:
            return _greets(connection)
    except OSError:
        return False
