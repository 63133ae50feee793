"""The listening socket, and how many connections there may be."""

import ctypes
import errno
import logging
import math
import os
import resource
import socket
import struct
import time

from rendezvous.store.options import Options
from rendezvous.wire.addresses import is_loopback, to_bind
from rendezvous.wire.programs import Mistake, PassingMistake

log = logging.getLogger('listening')

MOST_WORKERS = 4  # where the option does not say it
BACKLOG = 1024  # connections that may wait to be accepted; the kernel's own bound is 4096
DESCRIPTORS = 64  # of a worker, for what is no connection: the log, Redis, files
HEADERLESS = 100  # connections of a worker whose PROXY header has not come yet
# Descriptors for each connection, where all pipes are with registrations of other workers (three
# eighths of the connections are mobile clients at the most, three quarters hidden servers).
CROSSING = 1 + 3 / 8 + 3 / 4
IN_USE_SECONDS = 3  # a worker that starts has loaded its modules by then, on a busy machine
LOOK_SECONDS = 0.05
# A node that is drained goes on to listen for so long. Then balancers know that it is to be left,
# and most have come who were on their way by what a name server had said.
LISTEN_SECONDS = 10
HANDSHAKES_SECONDS = 1  # those of TCP that had begun are over by then
SO_ATTACH_FILTER = 26  # of Linux; the socket module has no name for it
# A program for the kernel (classic BPF) that looks at what comes to the listening socket: takes the
# flags of TCP, of these SYN and ACK, and drops a SYN without an ACK.
NO_SYN = [(0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (6, 0, 0, 0), (6, 0, 0, 65536)]
# Of a worker of a node: links that it or another one has opened in advance, and callers at its node
# port that have not proved that they are nodes.
LINKS = 512
FEWEST = 8  # connections of a worker: with less it serves nobody


def address(options: Options) -> tuple[str, int]:
    """Where to listen."""
    host = options.listen_host
    if host is None:
        host = options.rendezvous_host if is_loopback(options.rendezvous_host) else '::'
    if host == '::' and not socket.has_dualstack_ipv6():
        host = '0.0.0.0'  # this machine has no IPv6
    return to_bind(host), options.rendezvous_port


def listener(options: Options, before: socket.socket | None = None) -> socket.socket:
    """The listening socket: that of before, where it is at the same place. Raises Mistake."""
    host, port = address(options)
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if before and before.getsockname()[0] == where[0] and port in (before.getsockname()[1], 0):
            return before
        return _bound(where[:2], family, dual_stack=host == '::')
    except OSError as error:
        what = 'set rendezvous_port or listen_host in local.py, or end what listens there'
        raise _cannot_listen(error, host, port, what) from None


def node_listener(options: Options, number: int, is_first: bool = False) -> socket.socket:
    """Where a worker of that number listens for workers of other nodes. Raises Mistake.

    The worker of before, which ends, and the one that takes its place have it both for a moment.
    With `is_first` nobody may have it: another server of this user would get half of our callers.
    """
    host, port = to_bind(str(options.node_host)), options.node_port + number - 1
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if is_first:
            return _bound(where[:2], family, dual_stack=False)
        return socket.create_server(where[:2], family=family, backlog=BACKLOG, reuse_port=True)
    except OSError as error:
        what = 'set node_port or node_host in local.py, or end what listens there'
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            what = 'node_host must be an address of this machine, or a name that leads to one'
        raise _cannot_listen(error, host, port, what) from None


def _cannot_listen(error: OSError, host: str, port: int, what: str) -> Mistake:
    # An address or a name server that is not there yet, while the machine starts.
    is_early = error.errno in (errno.EADDRNOTAVAIL, socket.EAI_AGAIN)
    why = os.strerror(error.errno or 0) if (error.errno or 0) > 0 else error.strerror
    return (PassingMistake if is_early else Mistake)(
        f'cannot listen on {host}, port {port}: {why}; {what}'
    )


def _bound(where: tuple, family: int, dual_stack: bool) -> socket.socket:
    """A new listening socket. Raises OSError.

    Where a parent was killed while it started a worker, that worker has the socket for a moment.
    """
    until = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            return socket.create_server(
                where, family=family, backlog=BACKLOG, dualstack_ipv6=dual_stack
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
        time.sleep(LOOK_SECONDS)


def begin_no_more(sock: socket.socket) -> None:
    """No connection to a listening socket begins any more; those that have begun may be accepted.

    The kernel resets what waits to be accepted when the listening socket is closed. So the queue
    has to be emptied first, and nothing may come into it meanwhile. Whose SYN is dropped repeats it
    after a second, is told then that nobody listens, and goes to another address.
    """
    octets = b''.join(struct.pack('HBBI', *each) for each in NO_SYN)
    code = ctypes.create_string_buffer(octets)
    program = struct.pack('@HP', len(NO_SYN), ctypes.addressof(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except OSError as error:
        log.warning('a connection that begins in this moment may be lost: %s', error.strerror)


def workers(options: Options) -> int:
    """How many workers there are: the option, or the cores that this process may use, at most 4."""
    return options.workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def connections(options: Options) -> int:
    """How many connections each worker may have; raises our limit of descriptors for them.

    Raises Mistake where descriptors are too few to serve anybody.
    """
    count = workers(options)
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wanted = math.ceil(options.max_connections / count)
    others = DESCRIPTORS + (HEADERLESS if options.proxy_protocol else 0)
    others += LINKS if options.node_host else 0
    there = int((most - others) / (CROSSING if count > 1 or options.node_host else 1))
    how = 'raise ulimit -n (LimitNOFILE= in the unit)'
    if there < FEWEST:
        raise Mistake(f'{most} descriptors are too few to serve anybody: {how}')
    if there < wanted:
        log.warning('max_connections is %d, for %d descriptors: %s', there * count, most, how)
    return min(wanted, there)
