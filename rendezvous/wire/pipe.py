"""The pipe: copies octets both ways between two sockets until either ends.

Each socket has a greenlet that owns it: that one alone reads from it and closes it, and writes to
the other's socket. When one greenlet ends the pipe, it raises Ended in the other, which then closes
its own socket. Only the chunk that is being written is held: a slow reader slows the writer.
"""

import errno
import time
from collections.abc import Callable
from enum import Enum

import gevent
from gevent.event import Event

from rendezvous.wire.sockets import (
    USER_TIMEOUT_SECONDS,
    Ended,
    Socket,
    close_gracefully,
    tcp_info,
    watch,
)

KEEP_BYTES = 64 * 1024  # of a request are kept until the hidden server is known to be alive
# When the mobile client sends no more and the hidden server has answered, the pipe ends after so
# long a silence. Nearly all clients that shut their sending side have closed, and such a pipe
# occupies two connections.
ANSWERED_SECONDS = 1


class How(Enum):
    """How a pipe ended. In `hidden.py` the local server takes the hidden server's part."""

    MOBILE_CLOSED = 'mobile client closed'
    MOBILE_RESET = 'mobile client reset'
    HIDDEN_CLOSED = 'hidden server closed'
    HIDDEN_RESET = 'hidden server reset'
    FAR_RESET = 'hidden server or its node reset'  # a node that is killed looks the same
    CHANGED = 'entry changed'
    ON_PAGE = 'ended on the page'
    ENDED = 'ended by the server'

    @property
    def is_whole(self) -> bool:
        """Whether the answer may be complete: neither its sender nor we cut it off."""
        return self in (How.MOBILE_CLOSED, How.HIDDEN_CLOSED)


class End:
    """One end of a pipe: a socket and the greenlet that owns it, by default the current one."""

    def __init__(self, sock: Socket, greenlet: gevent.Greenlet | None = None) -> None:
        self.sock = sock
        # `greenlet or ...` would be wrong: a greenlet that has not started yet is false.
        self.greenlet: gevent.Greenlet | None = (
            gevent.getcurrent() if greenlet is None else greenlet
        )
        self.octets = 0  # read from it so far
        self.read_at = 0.0  # time.monotonic() of the last read
        self.preface = b''  # goes to it before the other end's first octets, and is none of them
        self.filling = False  # whether the other end's greenlet is writing to it
        self._acked = 0

    def is_mine(self) -> bool:
        """Whether the current greenlet owns it."""
        return self.greenlet is gevent.getcurrent()

    def interrupt(self) -> None:
        """Raises Ended in the greenlet that owns it, soon."""
        if self.greenlet is not None:
            self.greenlet.kill(Ended, block=False)

    def begin(self) -> None:
        """Its pipe begins: octets that were acknowledged before do not count."""
        self._acked = tcp_info(self.sock).octets_acked

    def got_nothing(self) -> bool:
        """Whether it has neither sent nor acknowledged an octet in its pipe."""
        return not self.octets and tcp_info(self.sock).octets_acked <= self._acked


class Pipe:
    """Joins a mobile client's end to a hidden server's; each end's greenlet runs its own method.

    When the mobile client sends no more, the pipe goes on until the hidden server has been silent
    for `drain` seconds (if it has answered, for ANSWERED_SECONDS at most). 0 ends the pipe at once.
    `draining` is called when that wait begins.
    """

    def __init__(
        self, mobile: End, hidden: End, drain: float, draining: Callable[[], None] = lambda: None
    ) -> None:
        self.mobile, self.hidden, self._drain_seconds = mobile, hidden, drain
        self._draining = draining
        self.how: How | None = None
        self.over = False
        self.passed_at = time.monotonic()  # of the last octet that went either way
        self._closed_at = 0.0  # time.monotonic() when the mobile client ended
        hidden.begin()
        self._kept: bytearray | None = bytearray()  # of the mobile client's; None: too much to keep
        self._untouched = False  # the hidden server ended and had received nothing
        self._lost = False  # a write to the hidden server failed: its connection is broken
        self._hidden_ended = Event()
        watch(mobile.sock, hidden.sock)

    def from_mobile(self, octets: bytes) -> bytes:
        """Sends `octets`, then what the mobile client sends, until the pipe is over.

        Returns what is to be sent to another hidden server, if this one ended before it received
        anything; otherwise b''. Raises Ended if it is ended from outside.
        """
        try:
            how = self._copy(octets, self.mobile, self.hidden)
            if how is How.HIDDEN_RESET:  # what it sent before is still to be delivered
                self._hidden_ended.wait()
            elif how is How.MOBILE_CLOSED:
                self._drain()
            self._end(how, self.hidden)
        except Ended:
            if not self.over:
                raise
        gone = self._untouched and self.how in (How.HIDDEN_CLOSED, How.HIDDEN_RESET)
        return bytes(self._kept or b'') if gone else b''

    def from_hidden(self, octets: bytes = b'') -> None:
        """Sends `octets`, then what the hidden server sends, until the pipe is over."""
        try:
            how = self._copy(octets, self.hidden, self.mobile)
            if self._lost:  # the system told the write of the reset, and not the read
                how = How.HIDDEN_RESET
            self._untouched = self.hidden.got_nothing()
            self._hidden_ended.set()
            self._end(how, self.mobile)
        except Ended:
            self._hidden_ended.set()  # nobody reads from it any more

    def cut(self, how: How) -> None:
        """Ends the pipe from outside, or from the greenlet of an end in which Ended was raised.

        When this returns, no other greenlet of the pipe uses the current one's socket.
        """
        if not self.over:
            self.how, self.over = how, True
            for end in (self.hidden, self.mobile):
                if not end.is_mine():
                    end.interrupt()
            gevent.sleep(0)

    def _keep(self, octets: bytes | memoryview) -> None:
        assert self._kept is not None
        too_much = len(self._kept) + len(octets) > KEEP_BYTES
        if too_much or (self._kept and not self.hidden.got_nothing()):
            self._kept = None
        else:
            self._kept += octets

    def _copy(self, octets: bytes | memoryview, source: End, sink: End) -> How:
        """Copies until one of the two ends; returns which, and how."""
        from_mobile = source is self.mobile
        while True:
            if octets:
                if not from_mobile:
                    self._kept = None
                elif self._kept is not None:
                    self._keep(octets)
                source.octets += len(octets)
                source.read_at = time.monotonic()
                preface, sink.preface = sink.preface, b''
                sink.filling = True
                try:
                    sink.sock.send(preface + octets if preface else octets)
                except OSError as error:
                    # EPIPE: it had ended before; the greenlet that reads from it knows how
                    self._lost |= from_mobile and error.errno != errno.EPIPE
                    return How.HIDDEN_RESET if from_mobile else How.MOBILE_RESET
                sink.filling, self.passed_at = False, time.monotonic()
            try:
                octets = source.sock.receive_shared()
            except OSError:
                return How.MOBILE_RESET if from_mobile else How.HIDDEN_RESET
            if not octets:
                return How.MOBILE_CLOSED if from_mobile else How.HIDDEN_CLOSED

    def _drain(self) -> None:
        """After the mobile client's end: waits until the hidden server has been silent."""
        self._closed_at = time.monotonic()
        self._draining()
        while not self.over:
            silent = time.monotonic() - max(self._closed_at, self.hidden.read_at)
            if self.mobile.filling:  # not the hidden server is silent: the mobile client is slow
                silent = 0
            seconds = self._drain_seconds
            if self.hidden.read_at > self.mobile.read_at:
                seconds = min(seconds, ANSWERED_SECONDS)
            if silent >= seconds:
                return
            gevent.sleep(min(seconds - silent, ANSWERED_SECONDS))

    def _end(self, how: How, other: End) -> None:
        """Ends the pipe in the other's greenlet, too, which then no longer uses our socket."""
        if self.over:
            gevent.sleep(USER_TIMEOUT_SECONDS)  # the other was first: Ended will be raised here
        self.how, self.over = how, True  # no yield since the `if`: only one side gets here
        other.interrupt()
        gevent.sleep(0)  # Ended is raised there before this greenlet continues


def join(
    mobile: End,
    near: Socket,
    octets: bytes,
    drain: float,
    spawn: Callable[..., gevent.Greenlet] = gevent.spawn,
) -> How:
    """Sends `octets` to `near` and pipes between the two; returns how the pipe ended.

    The current greenlet owns the mobile client's end; a greenlet that is spawned owns `near`.
    Raises Ended if it is ended from outside.
    """

    def answer() -> None:
        try:
            joined.from_hidden()
        finally:
            close_gracefully(near, may_stop=True)

    joined = Pipe(mobile, End(near, spawn(answer)), drain)
    gevent.sleep(0)  # it starts: a greenlet that is killed before it started would not close `near`
    try:
        joined.from_mobile(octets)
    finally:
        joined.cut(How.ENDED)
    assert joined.how
    return joined.how
