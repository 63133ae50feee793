"""What is awkward about sockets: fairness, TLS, dead peers, a graceful close.

One greenlet owns a socket: it alone reads from the socket and closes it. Another greenlet may write
to it meanwhile.
"""

import select
import socket
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from ssl import MemoryBIO, SSLContext, SSLError, SSLWantReadError
from time import monotonic
from typing import Any, NamedTuple, Protocol

import gevent
from gevent import get_hub
from gevent.lock import Semaphore
from gevent.monkey import get_original
from gevent.socket import wait

CHUNK_BYTES = 384 * 1024  # of one read; a slow reader holds as much
RECORD_BYTES = 16 * 1024  # in the largest TLS record (RFC 8446 section 5.1)
WHOLE_RECORD_BYTES = 5 + RECORD_BYTES + 2048  # with its header, and what TLS 1.2 may add
BUFFER_BYTES = CHUNK_BYTES + WHOLE_RECORD_BYTES
# OpenSSL handles all records that it is given in one call, and a KeyUpdate takes it 30 us. So it is
# given at most so many at a time.
FEED_RECORDS = 32
READ = 1  # libev's name is EV_READ, and libuv's UV_READABLE
INTERRUPTED = TimeoutError, BlockingIOError  # by settimeout: the connection is as good as before
RECORD_TYPES = 20, 21, 22, 23  # change_cipher_spec, alert, handshake, application_data
# A greenlet that always finds something to read lets the others run after so much time, or so many
# reads, of all greenlets since the hub last polled the sockets.
TURN_SECONDS, TURN_READS = 0.004, 256
NEXT_TURN_SECONDS = 1e-6  # after sleep(0) up to 50 turns may come before the hub polls the sockets
# Before a close, what the peer still sends is read until it has been silent for so long (nginx's
# lingering_timeout). Otherwise an RST would destroy what we sent last.
LINGER_SECONDS = 5
MOMENT_SECONDS = 0.5  # for a peer that does not stop sending, after it has all that we sent
# The first probe comes early enough to keep NAT mappings open. After three unanswered probes the
# peer is dead.
KEEPALIVE_SECONDS, PROBE_SECONDS, PROBES = 30, 10, 3
USER_TIMEOUT_SECONDS = 60  # RFC 5482: a peer that acknowledges nothing for so long is dead
UNSENT_BYTES = 128 * 1024  # wait in the kernel for a slow reader, at most, for each connection
WATCH_SECONDS = 15
LOOK_SECONDS = 0.1  # between two looks whether a waiting peer is still there


class Descriptor(Protocol):
    """What the system knows of a socket, whoever waits for it."""

    def fileno(self) -> int: ...
    def setsockopt(self, level: int, name: int, value: int | bytes, /) -> None: ...
    def getsockopt(self, level: int, name: int, most: int, /) -> bytes: ...


class Ended(gevent.GreenletExit):
    """Raised in the greenlet that owns a socket: it is to close that socket now."""


class _Turn:
    """How long and how often greenlets have read since the hub last polled the sockets."""

    def __init__(self) -> None:
        self._iteration: int | None = None
        self._began, self._reads = 0.0, 0

    def take(self) -> None:
        """Lets the others run if this turn is over: every loop that is driven by input calls it."""
        iteration = get_hub().loop.iteration
        if iteration != self._iteration:
            self._iteration, self._began, self._reads = iteration, monotonic(), 1
            return
        self._reads += 1
        if self._reads > TURN_READS or monotonic() - self._began > TURN_SECONDS:
            if iteration < 0:  # libuv has no count: each greenlet has a turn of its own
                self._iteration = None
            gevent.sleep(NEXT_TURN_SECONDS)


take_turn = _Turn().take


# What all connections share, each from one yield to the next: octets in records as they came, and
# without TLS; and what OpenSSL reads from and writes to.
_records, _octets = memoryview(bytearray(BUFFER_BYTES)), memoryview(bytearray(BUFFER_BYTES))
_chunk = _records[:CHUNK_BYTES]
_in, _out = MemoryBIO(), MemoryBIO()
_record = struct.Struct('>BxxH').unpack_from  # the type of a record and its length


def _end_of_records(came: bytes | memoryview, start: int) -> int:
    """Where the last of the next few whole records ends (RFC 8446 section 5.1)."""
    stop = len(came)
    for _ in range(FEED_RECORDS):
        if start + 5 > stop:
            break
        kind, length = _record(came, start)
        end = start + 5 + length
        if end == stop or kind not in RECORD_TYPES or length > WHOLE_RECORD_BYTES - 5:
            return stop  # of what is no record OpenSSL says what is wrong with it
        if end > stop:
            break
        start = end
    return start


class Socket:
    """A plain connection. What waits for it lets the others run.

    Each read takes its turn: a loop of reads keeps nobody waiting, however much there is to read.
    """

    waits_for_end = False  # before a close, for as long as the peer reads what was sent last

    def __init__(self, raw: socket.socket):
        self.raw = raw
        self._native: socket.socket = raw._sock  # type: ignore[attr-defined] # which never waits
        self.is_read_off = False  # the last read took all that there was
        self._readable: Any = None  # the watcher that waits for more

    def receive(self) -> bytes:
        """What comes next, b'' at the end. Raises OSError."""
        return bytes(_octets[: self.recv_into(_octets)])

    def receive_shared(self) -> memoryview:
        """The same, in a buffer that belongs to the caller until the next yield."""
        return _octets[: self.recv_into(_octets)]

    def recv_into(self, buffer: memoryview) -> int:
        """The same, into a buffer: the number of octets. TLS needs one of BUFFER_BYTES.

        To ask in vain costs 20 us: so behind a short read it waits first. It takes its turn
        afterwards: of a hundred that waited, not all read in the same one.
        """
        while True:
            if self.is_read_off:
                self._wait()
            take_turn()
            try:
                count = self._native.recv_into(buffer)
            except BlockingIOError:
                if self.raw.timeout == 0:
                    raise
                self.is_read_off = True
            else:
                self.is_read_off = count < len(buffer)
                return count

    def _wait(self) -> None:
        """Until there is something to read. Raises TimeoutError."""
        timeout, hub = self.raw.timeout, get_hub()
        if self._readable is None:
            self._readable = hub.loop.io(self._native.fileno(), READ)
        if timeout is None:
            hub.wait(self._readable)
        elif timeout:
            wait(self._readable, timeout)

    def send(self, octets: bytes | memoryview) -> None:
        """Sends all of `octets`, however slow the reader is. Raises OSError."""
        octets = bytes(octets)  # they may be in a buffer of all, and others may run before the end
        sent = self.raw.send(octets)
        while sent < len(octets):
            take_turn()
            sent += self.raw.send(memoryview(octets)[sent:])

    def drop(self) -> int:
        """Reads what has come on the connection below, and drops it: how many octets, 0 at its end.

        Raises OSError.
        """
        count = Socket.recv_into(self, _octets)
        self.is_read_off = False  # behind the last octets, a goodbye, the end is there already
        return count

    def fileno(self) -> int:
        return self.raw.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self.raw.settimeout(seconds)

    def setsockopt(self, *option: Any) -> None:
        self.raw.setsockopt(*option)

    def getsockopt(self, *option: Any) -> Any:
        return self.raw.getsockopt(*option)

    def close(self) -> None:
        if self._readable:
            self._readable.close()
        self._readable, self.is_read_off = None, False
        self.raw.close()


class TLSSocket(Socket):
    """TLS over a connection.

    OpenSSL does not see the connection, only octets in memory. So it can be given few records at a
    time, an error of one connection does not stay for the next one
    (https://github.com/python/cpython/issues/148594), and a reset is not taken for an end.

    All connections share that memory: OpenSSL gets whole records and uses them up at once, what it
    has written is taken at once, and no other greenlet runs in between. So a connection that waits
    holds no buffer, and the buffers are in the cache of the processor.
    """

    def __init__(
        self,
        context: SSLContext,
        sock: socket.socket,
        server_hostname: str | None = None,
        came: bytes = b'',
    ) -> None:
        """A server's side, or a client's, which verifies that name. `do_handshake` comes next.

        `came`: octets that were read from `sock` already.
        """
        super().__init__(sock)
        server_side = server_hostname is None
        self.tls = context.wrap_bio(_in, _out, server_side, server_hostname)
        self._came, self._given = came, 0  # octets from the connection; OpenSSL has so many of them
        self.is_read_off = True  # what comes first is waited for
        self._encrypted = b''  # records that are to be sent
        self._has_ended = False
        self._is_broken = False
        self.has_said_goodbye = False  # the peer, by a close_notify: what came is all
        self._sending = Semaphore()  # one greenlet at a time, or records would be mixed up
        self.is_whole = True  # no record has been sent in part

    def do_handshake(self, octets: bytes = b'') -> None:
        """`octets` go out with a client's last flight. Raises OSError, of which SSLError is one."""
        if self._came:
            self._give_records()
        while not self._is_open():
            self._flush()
            self._give_records()
            if self._has_ended:
                raise ConnectionError('TLS: hung up during the handshake')
        if octets:
            self.send(octets)
        else:
            self._flush()

    def recv_into(self, buffer: memoryview) -> int:
        """As a plain connection's: 0 if the peer has ended, with or without a close_notify."""
        count = 0
        while not (count or self._has_ended):
            if self._is_broken:
                raise ConnectionError('TLS: connection broken')
            if self._encrypted and self._may_flush():
                self._flush()
            self._give_records()
            count = self._decrypt(buffer)
        return count

    def send(self, octets: bytes | memoryview) -> None:
        while self._sending.locked():
            octets = bytes(octets)  # they may be in a buffer of all
            self._sending.wait()
        try:
            self.tls.write(octets)
        finally:
            self._encrypted += _out.read()
        self._flush()

    def close_notify(self) -> None:
        """Says that this was all (RFC 8446 section 6.1), unless a record was sent in part."""
        while self._sending.locked():
            self._sending.wait()
        if self.is_whole:
            try:
                self.tls.unwrap()
            except (SSLError, ValueError):  # wants the peer's close_notify; or is broken
                pass
            finally:
                self._take()
            self._flush()

    def _is_open(self) -> bool:
        """Whether the handshake is over; if not, the peer has to send more. Raises OSError."""
        try:
            self.tls.do_handshake()
            # What came behind the handshake.
            self._came, self._given = _in.read() + self._came[self._given :], 0
            return True
        except SSLWantReadError:
            return False
        except SSLError:
            self._take()
            with suppress(OSError):
                self._flush()  # the alert that says why
            raise
        finally:
            self._take()

    def _decrypt(self, buffer: memoryview) -> int:
        """The octets of the records that were given: maybe none, some are for OpenSSL alone."""
        count = 0
        try:
            while _in.pending:
                more: Any = self.tls.read(RECORD_BYTES, buffer[count:] if count else buffer)
                count += more
                if not more:  # a close_notify
                    self._has_ended = self.has_said_goodbye = True
                    break
        except SSLWantReadError:
            pass  # the last one was for OpenSSL alone
        except SSLError:
            self._is_broken = True
            if not count:  # or what came before goes first
                raise
        finally:
            if _out.pending or _in.pending:
                self._take()
        return count

    def _take(self) -> None:
        """Clears the memory that all connections share: what OpenSSL wrote there is to be sent."""
        if _out.pending:
            self._encrypted += _out.read()
        if _in.pending:
            _in.read()  # behind an error, or behind the end

    def _give_records(self) -> None:
        """Gives OpenSSL a few whole records."""
        if self._came:
            take_turn()  # there may be thousands of records, without octets for us
            start, self._given = self._given, _end_of_records(self._came, self._given)
            if self._given > start:
                _in.write(memoryview(self._came)[start : self._given])
                return
        self._came, self._given = self._came[self._given :], 0  # of a record that is not whole
        end = 0
        while not end:
            kept = len(self._came)
            count = Socket.recv_into(self, _records[kept : kept + CHUNK_BYTES] if kept else _chunk)
            if not count:
                self._has_ended = True
                return
            if kept:
                _records[:kept] = self._came
            came = _records[: kept + count]
            end = _end_of_records(came, 0)
            self._came = bytes(came[end:]) if end < kept + count else b''
        _in.write(came[:end] if self._came else came)

    def _may_flush(self) -> bool:
        """Another greenlet that sends will send it, too; but its reader may have stopped."""
        return len(self._encrypted) > RECORD_BYTES or not self._sending.locked()

    def _flush(self) -> None:
        """Sends what OpenSSL has written; nearly always the system takes all of it at once.

        Where that is interrupted, the rest is kept, and goes before the next records.
        """
        if not self._encrypted:
            return
        octets, sent = b'', 0
        if not self._sending.locked():
            octets, self._encrypted = self._encrypted, b''
            try:
                sent = self._native.send(octets)
            except BlockingIOError:
                sent = 0
            self.is_whole = sent == len(octets)
            if self.is_whole:
                return
        with self._sending:  # no yield since a part was sent: the others have to wait for the rest
            while octets or self._encrypted:
                if not octets:
                    octets, sent, self._encrypted = self._encrypted, 0, b''
                    self.is_whole = False
                try:
                    while sent < len(octets):
                        take_turn()
                        sent += self.raw.send(memoryview(octets)[sent:])
                except BaseException as error:
                    if not isinstance(error, OSError) or isinstance(error, INTERRUPTED):
                        self._encrypted = octets[sent:] + self._encrypted
                    raise
                self.is_whole, octets = True, b''

    def has_octets(self) -> bool:
        """Whether octets have come that nobody has read; maybe less than a record."""
        return self._given < len(self._came)

    def getpeercert(self, binary_form: bool = False) -> Any:
        return self.tls.getpeercert(binary_form)


def keep_alive(sock: Descriptor) -> None:
    """Sets how soon a dead peer is noticed, and switches Nagle's algorithm off.

    On Linux a connection inherits all this from the socket that accepted it.
    """
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


def set_tcp(sock: Descriptor, name: str, value: int) -> None:
    """Sets an option of TCP if the system has it: hidden.py runs on macOS and Windows, too."""
    if hasattr(socket, name):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def close_gracefully(sock: Socket, is_whole: bool = True, may_stop: bool = False) -> None:
    """Closes so that all that was sent arrives, and TLS says whether this was all.

    Only for the greenlet that owns the socket. Raises nothing; if Ended is raised in it, it closes
    at once. `is_whole` is false if what was sent has been cut off: without TLS an RST says so. With
    `may_stop` a peer that goes on sending is reset after a moment: nothing else tells it to stop.
    """
    if not (is_whole or isinstance(sock, TLSSocket)):
        return reset(sock)
    _watched.discard(sock)
    try:
        if sock in _paused:
            set_tcp(sock, 'TCP_USER_TIMEOUT', USER_TIMEOUT_SECONDS * 1000)
        if isinstance(sock, TLSSocket) and is_whole:
            sock.close_notify()
        sock.raw.shutdown(socket.SHUT_WR)
        _read_until_end(sock, may_stop)
    except (OSError, ValueError, Ended):
        pass  # it is closed already, or its place is needed
    finally:
        sock.close()


def _read_until_end(sock: Socket, may_stop: bool) -> None:
    """Reads until the peer ends or is silent: an RST would destroy what we sent last."""
    began = monotonic()
    sock.settimeout(None if sock.waits_for_end else LINGER_SECONDS)
    while sock.drop():
        if may_stop and monotonic() - began > MOMENT_SECONDS and is_acknowledged(sock):
            return  # an RST answers what it sends from now on


def reset(sock: Socket) -> None:
    """Closes with an RST, which says that what was sent has been cut off. Raises nothing.

    What was sent before is given a moment to arrive, since an RST overtakes it.
    """
    _watched.discard(sock)
    with suppress(OSError, Ended), gevent.Timeout(MOMENT_SECONDS, False):
        while not is_acknowledged(sock):
            gevent.sleep(0.01)
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.close()


class TcpInfo(NamedTuple):
    """The fields of Linux's struct tcp_info that are needed here."""

    probes: int = 0  # unanswered, in a row
    segments_unacked: int = 0
    octets_acked: int = 0
    octets_not_sent: int = 0


def tcp_info(sock: Descriptor) -> TcpInfo:
    if not hasattr(socket, 'TCP_INFO'):
        return TcpInfo()
    with suppress(OSError):  # it may be closed already
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
        return TcpInfo(*struct.unpack('=3xB20xI92xQ16xI', info))
    return TcpInfo()


def is_acknowledged(sock: Descriptor) -> bool:
    """Whether the peer's system has received all that was sent."""
    info = tcp_info(sock)
    return not (info.segments_unacked or info.octets_not_sent)


def has_shut(sock: Descriptor) -> bool:
    """Whether the peer sends no more: it has closed, or has shut its sending side."""
    return is_polled(sock, select.POLLRDHUP)


def has_spoken(sock: Descriptor) -> bool:
    """Whether there is something to read; the end counts."""
    return is_polled(sock, select.POLLIN | select.POLLRDHUP)


@contextmanager
def hang_up_of(sock: Descriptor, call: Callable[[], object]) -> Iterator[None]:
    """Calls `call` when the peer sends no more, while nobody reads from the socket."""

    def look() -> None:
        if has_shut(sock):
            call()

    watcher = get_hub().loop.timer(LOOK_SECONDS, LOOK_SECONDS)
    watcher.start(look)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()


def is_polled(sock: Descriptor, events: int) -> bool:
    """Whether one of these events, an error or a hang-up is there; no other greenlet runs."""
    poll = _poll_type()()
    poll.register(sock, events)
    return bool(poll.poll(0))


@cache
def _poll_type() -> Any:
    """The one that does not yield. Windows has none, and does not need it."""
    return get_original('select', 'poll')


_watched: weakref.WeakSet[Socket] = weakref.WeakSet()
_paused: weakref.WeakSet[Socket] = weakref.WeakSet()  # those without a TCP_USER_TIMEOUT now


def watch(*socks: Socket) -> None:
    """Has `keep_watch` look at these sockets until they are closed."""
    _watched.update(socks)


def keep_watch() -> None:
    """For ever: lets a peer in a pipe stop reading for as long as it likes (a paused film, say).

    When a peer's window has been closed for TCP_USER_TIMEOUT, Linux takes the peer for dead, though
    it answers each probe. So the option is off while the peer has acknowledged all that was sent
    and answers the probes.
    """
    while True:
        gevent.sleep(WATCH_SECONDS)
        for sock in list(_watched):
            take_turn()
            info = tcp_info(sock)
            paused = info.octets_not_sent and not info.segments_unacked and info.probes < PROBES
            if bool(paused) == (sock in _paused):
                continue
            (_paused.add if paused else _paused.discard)(sock)
            with suppress(OSError):  # it may be closed meanwhile
                milliseconds = 0 if paused else USER_TIMEOUT_SECONDS * 1000
                set_tcp(sock, 'TCP_USER_TIMEOUT', milliseconds)
