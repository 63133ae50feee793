"""How soon a dead peer is noticed. Needs no gevent: the parent sets it on the listening socket.

On Linux a connection inherits the options of the socket that accepted it.
"""

import socket
from typing import Protocol

# The first probe comes early enough to keep NAT mappings open. After three unanswered probes the
# peer is dead.
KEEPALIVE_SECONDS, PROBE_SECONDS, PROBES = 30, 10, 3
USER_TIMEOUT_SECONDS = 60  # RFC 5482: a peer that acknowledges nothing for so long is dead
UNSENT_BYTES = 128 * 1024  # wait in the kernel for a slow reader, at most, for each connection


class HasOptions(Protocol):
    """A socket, or what has the options of one."""

    def setsockopt(self, level: int, name: int, value: int | bytes, /) -> None: ...


def keep_alive(sock: HasOptions) -> None:
    """Sets how soon a dead peer is noticed, and switches Nagle's algorithm off."""
    for name, value in (
        ('TCP_NODELAY', 1),
        ('TCP_KEEPIDLE', KEEPALIVE_SECONDS),
        ('TCP_KEEPALIVE', KEEPALIVE_SECONDS),  # the same, on macOS
        ('TCP_KEEPINTVL', PROBE_SECONDS),
        ('TCP_KEEPCNT', PROBES),
        ('TCP_USER_TIMEOUT', USER_TIMEOUT_SECONDS * 1000),
        ('TCP_NOTSENT_LOWAT', UNSENT_BYTES),
    ):
        set_tcp(sock, name, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def set_tcp(sock: HasOptions, name: str, value: int) -> None:
    """Sets an option of TCP if the system has it: hidden.py runs on macOS and Windows, too."""
    if hasattr(socket, name):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
