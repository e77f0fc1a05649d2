"""Which of the hosts in $NODES this one is: `python launchers/nodes.py` prints its number and its own address.

NODES is a list of names or addresses, the same everywhere; the first one's is where all meet. NODE_RANK says which of
them this is, from 0; where it is not set, the one whose address belongs to this host is taken. WAIT_SECONDS says how
long the first one's name may take to become known, and PORT to be listened at there (0), where hosts come one by one.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import NoReturn


def refuse(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)


def address_of(name: str, seconds: int = 0) -> str:
    """Of a host whose name may be known only after some seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
        except OSError as error:
            if time.monotonic() >= until:
                refuse(f"NODES: the name {name!r} is not known here ({error.strerror}); name hosts that all know")
        time.sleep(1)


def wait_for(address: str, port: int, seconds: int) -> None:
    """Until somebody listens there, or for so long: torch says what is wrong, and waits for a minute alone."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            socket.create_connection((address, port), timeout=3).close()
        except OSError:
            time.sleep(1)
        else:
            return


def number(name: str) -> int:
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        refuse(f"{name}={text}: wanted a whole number")
    return int(text)


def is_own(address: str) -> bool:
    """Only a host's own addresses can be listened at."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def rank_of(nodes: list[str]) -> int:
    given = os.environ.get("NODE_RANK", "")
    if given:
        if not given.isdecimal() or int(given) >= len(nodes):
            refuse(f"NODE_RANK={given}: wanted a number from 0 to {len(nodes) - 1}, since NODES has {len(nodes)} hosts")
        return int(given)
    own = [rank for rank, name in enumerate(nodes) if is_own(address_of(name))]
    if len(own) != 1:
        found = "none of them is" if not own else f"{', '.join(nodes[rank] for rank in own)} are all"
        here = f"this host ({socket.gethostname()})"
        refuse(f"NODES={' '.join(nodes)!r}: {found} {here}; say which one it is with NODE_RANK=0, 1 ...")
    return own[0]


def address_towards(host: str) -> str:
    """This host's own address on the way to another. Nothing is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            refuse(f"NODES: there is no way from here to the first host, {host} ({error.strerror}); look why")
        return probe.getsockname()[0]


def main() -> None:
    nodes = os.environ.get("NODES", "").replace(",", " ").split()
    if not nodes:
        refuse("NODES is not set: wanted the hosts, the same list on each, such as NODES='node1 node2'")
    if len(set(nodes)) < len(nodes) and not os.environ.get("NODE_RANK"):
        refuse(f"NODES={' '.join(nodes)!r} names a host twice; name each once")
    rank, own = rank_of(nodes), nodes[0]
    if rank != 0:
        seconds, port = number("WAIT_SECONDS"), number("PORT")
        head = address_of(nodes[0], seconds)
        wait_for(head, port, seconds)
        own = address_towards(head)
    print(rank, len(nodes), nodes[0], own)


if __name__ == "__main__":
    main()
