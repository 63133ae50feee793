"""The pipe: octets both ways between two sockets until either ends.

The greenlet that owns a socket is the only one that reads it, says goodbye on it and closes it; in
a pipe it writes to the other's socket. To end a pipe, the side that is through raises Ended in the
other's greenlet, which then says goodbye on its own. Octets are held nowhere but in the one chunk
that is being written: a slow reader slows the writer.
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
    close_gracefully,
    receive,
    send,
    tcp_info,
    watch,
)

KEEP_BYTES = 64 * 1024  # of a request, until the hidden server is known to live
# How long a hidden server may be silent that has answered since the mobile client's last octets:
# nearly all that shut their sending side have left, and what they leave behind costs two places.
ANSWERED_SECONDS = 1


class How(Enum):
    """How a pipe ended. In `hidden.py` the local server plays the hidden server's part."""

    MOBILE_CLOSED = 'mobile client closed'
    MOBILE_RESET = 'mobile client reset'
    HIDDEN_CLOSED = 'hidden server closed'
    HIDDEN_RESET = 'hidden server reset'
    CHANGED = 'entry changed'
    ENDED = 'ended by the server'

    @property
    def is_whole(self) -> bool:
        """Whether the answer may have been all: neither its sender nor we cut it off."""
        return self in (How.MOBILE_CLOSED, How.HIDDEN_CLOSED)


class End:
    """One end of a pipe: a socket and the greenlet that owns it, by default the current one."""

    def __init__(self, sock, greenlet: gevent.Greenlet | None = None):
        self.sock = sock
        # A greenlet that has not started yet is false.
        self.greenlet = gevent.getcurrent() if greenlet is None else greenlet
        self.octets = 0  # read from it so far
        self.read_at = 0.0  # time.monotonic() of the last ones
        self.filling = False  # somebody is writing to it
        self._acked = 0

    def begin(self) -> None:
        """Its pipe begins: what it acknowledges from now on is of this pipe."""
        self._acked = tcp_info(self.sock).octets_acked

    def got_nothing(self) -> bool:
        """Whether it has neither sent nor acknowledged an octet in its pipe."""
        return not self.octets and tcp_info(self.sock).octets_acked <= self._acked


class Pipe:
    """Joins a mobile client's end to a hidden server's; each end's greenlet runs its own method.

    `drain`: the seconds for which the hidden server may be silent once the mobile client sends no
    more, and ANSWERED_SECONDS at the most where it has answered; 0: it ends at once. `draining` is
    called when that begins.
    """

    def __init__(
        self, mobile: End, hidden: End, drain: float, draining: Callable[[], None] = lambda: None
    ):
        self.mobile, self.hidden, self._drain_seconds = mobile, hidden, drain
        self._draining = draining
        self.how: How | None = None
        self.over = False
        self._closed_at = 0.0  # time.monotonic(); when the mobile client sent no more
        hidden.begin()
        self._kept: bytearray | None = bytearray()  # of the mobile client's; None: too much to keep
        self._untouched = False  # the hidden server is gone, and got nothing
        self._lost = False  # the hidden server, as a write to it found
        self._hidden_ended = Event()
        watch(mobile.sock, hidden.sock)

    def from_mobile(self, octets: bytes) -> bytes:
        """Sends `octets`, then what the mobile client sends, until the pipe is over.

        Where the hidden server turned out to be gone before it got anything, gives what is to be
        sent to another one. Raises Ended where somebody else ends it.
        """
        try:
            how = self._copy(octets, self.mobile, self.hidden)
            if how is How.HIDDEN_RESET:  # what it sent before is to be delivered, too
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
            if self._lost:  # the write to it was told of the reset, so that the read was not
                how = How.HIDDEN_RESET
            self._untouched = self.hidden.got_nothing()
            self._hidden_ended.set()
            self._end(how, self.mobile)
        except Ended:
            pass

    def cut(self, how: How) -> None:
        """Ends it from outside, or from the greenlet of one of its ends, that Ended was raised in.

        Then the other end's greenlet has left our socket alone.
        """
        if not self.over:
            self.how, self.over = how, True
            for end in (self.hidden, self.mobile):
                if end.greenlet is not gevent.getcurrent():
                    end.greenlet.kill(Ended, block=False)
            gevent.sleep(0)

    @property
    def active_until(self) -> float:
        """time.monotonic() of its end, less the silence in which it drained."""
        if self._closed_at:
            return max(self._closed_at, self.hidden.read_at)
        return time.monotonic()

    def _keep(self, octets: bytes) -> None:
        if self._kept is not None:
            if len(self._kept) + len(octets) > KEEP_BYTES or not self.hidden.got_nothing():
                self._kept = None
            else:
                self._kept += octets

    def _copy(self, octets: bytes, source: End, sink: End) -> How:
        """Copies until one of the two ends; says which, and how."""
        from_mobile = source is self.mobile
        while True:
            if octets:
                if from_mobile:
                    self._keep(octets)
                else:
                    self._kept = None
                source.octets += len(octets)
                source.read_at = time.monotonic()
                sink.filling = True
                try:
                    send(sink.sock, octets)
                except OSError as error:
                    # EPIPE: it had ended before, and whether well the one who reads it knows
                    self._lost |= from_mobile and error.errno != errno.EPIPE
                    return How.HIDDEN_RESET if from_mobile else How.MOBILE_RESET
                sink.filling = False
            try:
                octets = receive(source.sock)
            except OSError:
                return How.MOBILE_RESET if from_mobile else How.HIDDEN_RESET
            if not octets:
                return How.MOBILE_CLOSED if from_mobile else How.HIDDEN_CLOSED

    def _drain(self) -> None:
        """The mobile client sends no more: waits until the hidden server has been silent."""
        self._closed_at = time.monotonic()
        self._draining()
        while not self.over:
            silent = time.monotonic() - self.active_until
            if self.mobile.filling:  # the hidden server is not silent, the mobile client is slow
                silent = 0
            seconds = self._drain_seconds
            if self.hidden.read_at > self.mobile.read_at:
                seconds = min(seconds, ANSWERED_SECONDS)
            if silent >= seconds:
                return
            gevent.sleep(min(seconds - silent, ANSWERED_SECONDS))

    def _end(self, how: How, other: End) -> None:
        """Ends the pipe in the other's greenlet, too, which has left our socket alone then."""
        if self.over:
            gevent.sleep(USER_TIMEOUT_SECONDS)  # the other was first: Ended is on its way to us
        self.how, self.over = how, True  # no yield between the two: only one side gets here
        other.greenlet.kill(Ended, block=False)
        gevent.sleep(0)  # it is raised before we go on


def join(mobile: End, near, octets: bytes, drain: float, spawn=gevent.spawn) -> How:
    """Sends `octets` to `near` and pipes between the two, until the pipe is over; says how it was.

    The current greenlet owns the mobile client's end, one that is spawned for it owns `near`.
    Raises Ended where somebody else ends it.
    """

    def answer() -> None:
        try:
            joined.from_hidden()
        finally:
            close_gracefully(near, may_stop=True)

    joined = Pipe(mobile, End(near, spawn(answer)), drain)
    gevent.sleep(0)  # it runs: one that is ended before that never says goodbye
    try:
        joined.from_mobile(octets)
    finally:
        joined.cut(How.ENDED)
    return joined.how
