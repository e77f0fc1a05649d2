"""Which network interface gloo is to use: the one that leads to where the ranks met."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
_VARIABLE = "GLOO_SOCKET_IFNAME"


def choose_interface(host: str) -> None:
    """Sets GLOO_SOCKET_IFNAME, if nobody has, to the interface by which this host reaches `host`.

    Gloo would take the address that this host's own name has. That is 127.0.1.1 on many systems, another network on
    hosts of several, and nothing in containers: ranks of other hosts then do not reach it. Nothing is set where the
    way stays on this host, and where it is not IPv4.
    """
    if _VARIABLE in os.environ or sys.platform != "linux":
        return
    address = address_towards(host)
    if address is None or ipaddress.ip_address(address).is_loopback:
        return
    name = _interface_of(address)
    if name is not None:
        os.environ[_VARIABLE] = name


def address_towards(host: str) -> str | None:
    """This host's own IPv4 address on the way to another; None if there is no way. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except (OSError, UnicodeError):
            return None
        return probe.getsockname()[0]


def _interface_of(address: str) -> str | None:
    import fcntl  # of Unix alone

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
