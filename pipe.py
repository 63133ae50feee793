"""The pipe: octets both ways between two sockets until either ends, and a proper goodbye.

The only file that knows that sockets are awkward. The greenlet that owns a socket is the only one
that reads it, says goodbye on it and closes it; in a pipe it writes to the other's socket. To end
a pipe, the side that is through raises Ended in the other's greenlet, which then says goodbye on
its own. Octets are held nowhere but in the one chunk that is being written: a slow reader slows the
writer.
"""

import select
import socket
import struct
import time
import weakref
from contextlib import suppress
from typing import NamedTuple

import gevent
from gevent.monkey import get_original
from gevent.socket import wait_write
from gevent.ssl import (
    PROTOCOL_TLS_CLIENT,
    SSLContext,
    SSLError,
    SSLSocket,
    SSLWantReadError,
    SSLWantWriteError,
)

CHUNK_BYTES = 64 * 1024  # a TLS read gives one record, 16 KiB at the most, whatever is asked for
TURN_BYTES = 1024 * 1024  # a pipe that never has to wait lets the others run after so much
# A peer that still sends is read off for so long, lest an RST destroy our last words. What is on
# its way then fits into the buffers of the two machines; who sends more does not listen.
LINGER_SECONDS, LINGER_BYTES = 10, 64 * 1024 * 1024
# The first probe comes early enough to keep NAT mappings open; three unanswered ones are the end.
KEEPALIVE_SECONDS, PROBE_SECONDS, PROBES = 30, 10, 3
KEEP_BYTES = 64 * 1024  # of a request, until the hidden server is known to live
USER_TIMEOUT_SECONDS = 60  # RFC 5482: an end that acknowledges nothing for so long is dead
WATCH_SECONDS = 15


class Ended(gevent.GreenletExit):
    """Raised in the greenlet that owns a socket: say goodbye, it is over."""


class End:
    """One end of a pipe: a socket and the greenlet that owns it, by default the current one."""

    def __init__(self, sock, name: str, greenlet: gevent.Greenlet | None = None):
        self.sock, self.name = sock, name
        # A greenlet that has not started yet is false.
        self.greenlet = gevent.getcurrent() if greenlet is None else greenlet
        self.octets = 0  # read from it so far
        self.read_at = 0.0  # time.monotonic() of the last ones
        self.filling = False  # somebody is writing to it


class Pipe:
    """Joins a mobile client's end to a hidden server's; each end's greenlet runs its own method.

    `drain`: the seconds for which the hidden server may be silent once the mobile client sends no
    more; 0: it ends at once.
    """

    def __init__(self, mobile: End, hidden: End, drain: float):
        self.mobile, self.hidden, self._drain_seconds = mobile, hidden, drain
        self.over = False
        self.how = ''  # it ended
        self._acked = _tcp_info(hidden.sock).octets_acked
        self._kept: bytes | None = b''  # what the mobile client sent; None: too much to keep
        self._untouched = False  # the hidden server is gone, and got nothing
        _watched.update((mobile.sock, hidden.sock))

    def from_mobile(self, octets: bytes) -> bytes:
        """Sends `octets`, then what the mobile client sends, until the pipe is over.

        Where the hidden server turned out to be gone before it got anything, gives what is to be
        sent to another one.
        """
        try:
            how = self._copy(octets, self.mobile, self.hidden)
            self.how = self.how or how  # the hidden server may have ended it in the same moment
            if not how.endswith('reset'):
                self._drain()
            self._end(self.hidden)
        except Ended:
            pass
        left = self.how.startswith(self.mobile.name)
        return self._kept or b'' if self._untouched and not left else b''

    def from_hidden(self, octets: bytes = b'') -> None:
        """Sends `octets`, then what the hidden server sends, until the pipe is over."""
        try:
            how = self._copy(octets, self.hidden, self.mobile)
            self._untouched = not self._hidden_lived()
            self.how = self.how or how
            self._end(self.mobile)
        except Ended:
            pass

    def _hidden_lived(self) -> bool:
        """Whether it ever sent or acknowledged something."""
        return bool(self.hidden.octets) or _tcp_info(self.hidden.sock).octets_acked > self._acked

    def _keep(self, octets: bytes) -> None:
        if self._kept is not None:
            enough = len(self._kept) + len(octets) > KEEP_BYTES or self._hidden_lived()
            self._kept = None if enough else self._kept + octets

    def _copy(self, octets: bytes, source: End, sink: End) -> str:
        """Copies until one of the two ends; says which, and how."""
        turn = 0
        while not self.over:
            if octets:
                if source is self.mobile:
                    self._keep(octets)
                else:
                    self._kept = None
                source.octets += len(octets)
                source.read_at = time.monotonic()
                sink.filling = True
                try:
                    send(sink.sock, octets)
                except OSError:
                    return f'{sink.name} lost'
                sink.filling = False
                turn += len(octets)
                if turn >= TURN_BYTES:
                    turn = 0
                    gevent.sleep(0)
            try:
                octets = source.sock.recv(CHUNK_BYTES)
            except OSError:
                return f'{source.name} reset'
            if not octets:
                return f'{source.name} closed'
        return ''

    def _drain(self) -> None:
        """The mobile client sends no more: waits until the hidden server has been silent."""
        closed_at, seconds = time.monotonic(), self._drain_seconds
        while seconds and not self.over:
            silent = time.monotonic() - max(closed_at, self.hidden.read_at)
            if self.mobile.filling:  # the hidden server is not silent, the mobile client is slow
                silent = 0
            if silent >= seconds:
                return
            gevent.sleep(seconds - silent)

    def _end(self, other: End) -> None:
        """Ends the pipe in the other's greenlet, too, which has left our socket alone then."""
        if self.over:
            gevent.sleep(USER_TIMEOUT_SECONDS)  # the other was first: Ended is on its way to us
        self.over = True  # no yield between the two: only one side gets here
        other.greenlet.kill(Ended, block=False)
        gevent.sleep(0)  # it is raised before we go on


def join(mobile: End, near, name: str, octets: bytes, drain: float, spawn=gevent.spawn) -> None:
    """Sends `octets` to `near` and pipes between the two, until the pipe is over; raises nothing.

    The current greenlet owns the mobile client's end, one that is spawned for it owns `near`.
    """

    def answer() -> None:
        try:
            joined.from_hidden()
        finally:
            goodbye(near)

    joined = Pipe(mobile, End(near, name, spawn(answer)), drain)
    gevent.sleep(0)  # it runs: one that is ended before that never says goodbye
    joined.from_mobile(octets)


def send(sock, octets: bytes) -> None:
    """All of `octets`, however long the reader takes; less work a call than sendall."""
    sent = sock.send(octets)
    while sent < len(octets):  # only without TLS: OpenSSL writes all or nothing
        sent += sock.send(memoryview(octets)[sent:])


_scratch = SSLContext(PROTOCOL_TLS_CLIENT)


def _forgetting(method):
    """The method of an SSLSocket, that leaves nothing behind in OpenSSL's queue of errors.

    The queue is the thread's. CPython takes what OpenSSL says of its own out of it, but not what
    the system says, and the next connection that has to wait is taken for broken, too:
    https://github.com/python/cpython/issues/148594 (seen with OpenSSL 3.5, not with 3.0).
    """

    def forgetting(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except SSLError:
            raise
        except OSError:
            with suppress(SSLError):
                _scratch.set_ciphers('')  # fails, and empties it: no yield since it was filled
            raise

    return forgetting


class TLSSocket(SSLSocket):
    """An SSLSocket whose errors are its own."""

    do_handshake = _forgetting(SSLSocket.do_handshake)
    read = _forgetting(SSLSocket.read)
    send = _forgetting(SSLSocket.send)
    unwrap = _forgetting(SSLSocket.unwrap)


def wrap(context: SSLContext, sock, **how) -> TLSSocket:
    """Puts TLS on a connection, less the handshake; `how` as for wrap_socket. Raises OSError."""
    sock.getpeername()  # raises where it has left: wrap_socket would lose the socket
    context.sslsocket_class = TLSSocket
    return context.wrap_socket(sock, do_handshake_on_connect=False, **how)


def keep_alive(sock) -> None:
    """Sets how soon a dead peer is noticed, and that no octet waits for company."""
    for name, value in (
        ('TCP_NODELAY', 1),
        ('TCP_KEEPIDLE', KEEPALIVE_SECONDS),
        ('TCP_KEEPALIVE', KEEPALIVE_SECONDS),  # the same, on macOS
        ('TCP_KEEPINTVL', PROBE_SECONDS),
        ('TCP_KEEPCNT', PROBES),
        ('TCP_USER_TIMEOUT', USER_TIMEOUT_SECONDS * 1000),
    ):
        _set_tcp(sock, name, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _set_tcp(sock, name: str, value: int) -> None:
    """Sets an option of TCP where the system has it: hidden.py runs on macOS and Windows, too."""
    if hasattr(socket, name):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def goodbye(sock) -> None:
    """Closes: all that was sent arrives, and TLS says that this was all (RFC 8446 section 6.1).

    Only for the greenlet that owns the socket. Nothing is raised, and the peer need not answer.
    """
    _watched.discard(sock)
    try:
        with suppress(OSError):  # it may be a Unix socket
            _set_tcp(sock, 'TCP_USER_TIMEOUT', USER_TIMEOUT_SECONDS * 1000)
        if isinstance(sock, SSLSocket):
            _close_notify(sock)
        sock.shutdown(socket.SHUT_WR)  # drops the TLS layer, too: what is read now is ciphertext
        left = LINGER_BYTES
        with gevent.Timeout(LINGER_SECONDS, False):
            while left > 0 and (octets := sock.recv(CHUNK_BYTES)):
                left -= len(octets)
                gevent.sleep(0)  # one that floods us never makes us wait
    except (OSError, ValueError, Ended):
        pass  # it is gone already
    finally:
        sock.close()


def _close_notify(sock) -> None:
    """Sends close_notify and does not wait for the peer's; the user timeout ends a stuck one."""
    sock.settimeout(0.0)
    while True:
        try:
            sock.unwrap()
        except SSLWantWriteError:
            wait_write(sock.fileno())
            continue
        except (SSLWantReadError, OSError, ValueError):
            pass  # sent; or it cannot be, since the connection is broken
        break
    sock.settimeout(None)


class TcpInfo(NamedTuple):
    """The few fields that are needed of Linux's struct tcp_info."""

    probes: int = 0  # in a row, that were not answered
    segments_unacked: int = 0
    octets_acked: int = 0
    octets_not_sent: int = 0


def _tcp_info(sock) -> TcpInfo:
    if not hasattr(socket, 'TCP_INFO'):
        return TcpInfo()
    with suppress(OSError):  # it may be closed already
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
        return TcpInfo(*struct.unpack('=3xB20xI92xQ16xI', info))
    return TcpInfo()


def has_shut(sock) -> bool:
    """Whether its peer sends no more: it has left, or has shut its sending side."""
    return _polled(sock, select.POLLRDHUP)


def has_spoken(sock) -> bool:
    """Whether there is something to read, be it the end."""
    return _polled(sock, select.POLLIN | select.POLLRDHUP)


def _polled(sock, events: int) -> bool:
    """Whether one of these, an error or a hang-up is there, without a yield."""
    poll = get_original('select', 'poll')()
    poll.register(sock, events)
    return bool(poll.poll(0))


_watched: weakref.WeakSet = weakref.WeakSet()


def watch() -> None:
    """For ever: lets a peer in a pipe stop reading for as long as it likes, a paused film, say.

    Linux takes a window that stays closed for TCP_USER_TIMEOUT for a dead peer, though it answers
    each probe; so it is off while what was sent is acknowledged and the probes are answered.
    """
    while True:
        gevent.sleep(WATCH_SECONDS)
        for sock in list(_watched):
            info = _tcp_info(sock)
            paused = info.octets_not_sent and not info.segments_unacked and info.probes < PROBES
            milliseconds = 0 if paused else USER_TIMEOUT_SECONDS * 1000
            with suppress(OSError):  # it may be closed meanwhile
                _set_tcp(sock, 'TCP_USER_TIMEOUT', milliseconds)
