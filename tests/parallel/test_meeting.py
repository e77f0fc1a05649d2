"""How ranks find each other, and the one message of each that does not."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import closing

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.parallel.launch import Ranks, announcement_of
from afm_scale.parallel.meeting import listed
from tests.launched import Launched, free_port, words_of

LIMIT = 4


def nothing(ranks: Ranks) -> None:
    pass


def listener() -> socket.socket:
    """Somebody else's program: it takes connections and says nothing."""
    found = socket.create_server(("localhost", 0))

    def take():
        kept = []
        try:
            while True:
                kept.append(found.accept()[0])
        except OSError:
            pass

    threading.Thread(target=take, daemon=True).start()
    return found


def start(rank: int, port: int, *, world_size: int = 2, address: str = "localhost", limit: int = LIMIT,
          local: int | None = None) -> Launched:
    words = words_of(rank, world_size, port, address) | ({"LOCAL_WORLD_SIZE": str(local)} if local else {})
    return Launched(words, nothing, limit)


def test_each_fault_of_a_meeting_is_one_message_with_the_address_and_the_ranks():
    with closing(listener()) as foreign:
        taken = foreign.getsockname()[1]
        ports = {name: free_port() for name in ("rank 1 missing", "rank 0 missing", "name", "two and three", "unequal")}
        started = {
            "taken": start(0, taken),
            "foreign": start(1, taken),
            "rank 1 missing": start(0, ports["rank 1 missing"], world_size=3, limit=8),
            "rank 2 present": start(2, ports["rank 1 missing"], world_size=3, limit=60),
            "rank 0 missing": start(1, ports["rank 0 missing"]),
            "two and three": start(0, ports["two and three"], limit=60),
            "three": start(1, ports["two and three"], world_size=3, limit=60),
            "unequal": start(0, ports["unequal"], world_size=3, limit=60, local=2),
            "second of it": start(1, ports["unequal"], world_size=3, limit=60, local=2),
            "third of it": start(2, ports["unequal"], world_size=3, limit=60, local=1),
            "name": start(1, ports["name"], address="nosuch.invalid"),
        }
        found = {name: rank.end() for name, rank in started.items()}
    assert {code for code, _ in found.values()} == {2}, found
    said = {
        name: [line for line in text.splitlines() if not line.startswith("[W")] for name, (_, text) in found.items()
    }
    silent = ("rank 2 present", "three", "second of it", "third of it")
    assert [said.pop(name) for name in silent] == [[]] * 4  # rank 0 speaks for them
    assert all(len(lines) == 1 for lines in said.values()), said
    for name, pattern in {
        "taken": rf"error: rank 0 of 2 cannot listen .*MASTER_ADDR=localhost MASTER_PORT={taken}\): address already in "
                 "use. Ranks present: 0; missing: 1",
        "foreign": rf"error on rank 1: .*MASTER_PORT={taken}\): the program that listens there is not .*missing: 0",
        "rank 1 missing": r"error: not all of the 3 ranks came in time \(.*Ranks present: 0, 2; missing: 1\.",
        "rank 0 missing": r"error on rank 1: .*nobody can be reached there \(Conn.* refused\)\. Ranks present: 1",
        "two and three": r"error: the ranks disagree .*: rank 0 has WORLD_SIZE=2, rank 1 has 3\. Ranks present: 0-1",
        "unequal": r"error: the hosts run different numbers of ranks \(.*\): 2 where rank 0 is \(.*\), 1 where rank 2",
        "name": r"error on rank 1: .*MASTER_ADDR=nosuch.invalid .*the name 'nosuch.invalid' is not known",
    }.items():
        assert re.match(pattern, said[name][0]), said[name]


@pytest.mark.parametrize("port", ["0", "99999"])
def test_a_port_that_is_none_is_named_before_anybody_is_looked_for(port):
    with pytest.raises(ConfigError, match=rf"MASTER_PORT={port} \(MASTER_ADDR=host\): a port is a number from 1 to"):
        announcement_of(words_of(0, 2, int(port), "host"))


def test_ranks_are_listed_in_runs():
    assert [listed(ranks) for ranks in ([], [3], [0, 1, 2, 3, 5, 7, 8])] == ["none", "3", "0-3, 5, 7-8"]
