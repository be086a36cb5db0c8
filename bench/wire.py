"""What the kernel says of the network: names, addresses, and the bytes that an interface has sent. IPv4, Linux."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_TX_BYTES = 8  # the ninth number of a line of /proc/net/dev
LOOPBACK = "lo"


def host_name() -> str:
    """Of this host, as Slurm or else the kernel calls it."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def address_of(interface: str) -> str:
    """The address of an interface.

    Raises:
        ValueError: there is none; names those that are here.
    """
    found = _addresses()
    if interface not in found:
        raise ValueError(f"interface {interface} has no address on {host_name()}, allowed: {', '.join(found)}")
    return found[interface]


def address_towards(host: str) -> str:
    """Our own address on the way to a host, by its name or address; nothing is sent.

    Raises:
        ValueError: the name is not known here, or there is no way.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise ValueError(f"no way from {host_name()} to host {host}: {error.strerror}") from None
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The interface that has an address; all of 127.0.0.0/8 is the loopback's.

    Raises:
        ValueError: none has it.
    """
    if address.startswith("127."):
        return LOOPBACK
    named = [name for name, one in _addresses().items() if one == address]
    if not named:
        raise ValueError(f"no interface of {host_name()} has the address {address}")
    return named[0]


def sent_bytes(interface: str) -> int:
    """Bytes that an interface has sent since it is there, headers of all layers included.

    Raises:
        ValueError: no such interface; names those that are here.
    """
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    counters = {name.strip(): numbers.split() for name, _, numbers in (line.partition(":") for line in lines)}
    if interface not in counters:
        raise ValueError(f"interface {interface} is not on {host_name()}, allowed: {', '.join(counters)}")
    return int(counters[interface][_TX_BYTES])


def _addresses() -> dict[str, str]:
    """The first address of every interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, name.encode().ljust(256, b"\0"))
            except OSError:  # it has no address
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found
