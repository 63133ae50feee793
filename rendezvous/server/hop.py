"""The hop: a connection between two workers, for questions, and then for one visit.

Two kinds have the same two ends: the Unix socket between workers of one machine is here, the link
between workers of two nodes in nodes.py. A question is a line; the answers are one octet each:

    Y   a registration is reserved; this connection is that visit's from now on
    E   none waits, but the hidden server is expected: Y or N follows
    N   there is none; the connection is kept for the next question

Behind a Y come the octets of the mobile client. Before the first octets of the answer comes an A;
an R instead says that the hidden server was gone before it got anything, so that another one may
be tried. An answer that is whole ends as the connection does that says so (a shutdown, or TLS's
close_notify), and its sender waits until the other side has closed; where it is cut off, be it by
a kill -9, nothing of that comes.
"""

import select
import socket

from rendezvous.wire.sockets import Socket, is_polled

YES, EXPECTED, NO = b'Y', b'E', b'N'
ANSWER, RETRY = b'A', b'R'
# Wait in the kernel for a slow worker, at most, with what it adds: by the usual 208 KB one worker
# waits for the other after every other chunk. Where net.core.wmem_max is less, that is the bound.
UNREAD_BYTES = 512 * 1024
LINE_BYTES = 1000


class Asked(Socket):
    """The end of the worker that asks, whatever the connection is."""

    _unread = b''  # answers behind the one that was read last: they may come together
    _is_visit = _began = False
    has_ended = got_nothing = False
    node = ''  # of the other worker; '' where it is ours

    def answer(self) -> bytes:
        """To a question: YES, EXPECTED or NO; b'' at the end. Raises OSError."""
        came = self._unread or self.receive()
        self._unread = came[1:]
        self._is_visit = came[:1] == YES
        return came[:1]

    def recv_into(self, buffer: memoryview) -> int:
        """Of a visit, as a socket's. Raises ConnectionError where the answer is cut off."""
        try:
            count = super().recv_into(buffer)
        except OSError:
            self.has_ended = True  # nobody knows what the hidden server got
            raise
        if not self._is_visit:
            return count
        if count and not self._began:
            self._began, self.got_nothing = True, buffer[:1] == RETRY
            buffer[: count - 1] = buffer[1:count]
            count = 0 if self.got_nothing else count - 1 or super().recv_into(buffer)
        if not count:
            self.has_ended = True
            if not self.got_nothing and self.is_cut():
                raise ConnectionResetError('cut off')
        return count

    def is_cut(self) -> bool:
        """At the end: whether it did not say that the answer is whole."""
        raise NotImplementedError


class OtherWorker(Asked):
    """A connection to another worker of this machine."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        super().__init__(socket.socket(socket.AF_UNIX))
        try:
            self.raw.connect(path)
        except BaseException:
            self.close()
            raise
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)

    def is_cut(self) -> bool:
        return is_polled(self, select.POLLHUP)


class Visitor(Socket):
    """The end of the worker that answers: of a visit, it says that an answer begins, or that there
    is none.
    """

    origin = 'another node'
    waits_for_end = True  # the other worker closes in any case; a close before is a cut
    _began = False

    def question(self) -> bytes:
        """The next line; b'' where the other side has ended. Raises OSError."""
        octets = b''
        while not octets.endswith(b'\n') and len(octets) < LINE_BYTES:
            more = self.receive()
            if not more:
                return b''
            octets += more
        return octets

    def say(self, octets: bytes) -> None:
        """Sends what is none of the hidden server's. Raises OSError."""
        super().send(octets)

    def send(self, octets: bytes | memoryview) -> None:
        mark, self._began = b'' if self._began else ANSWER, True
        super().send(mark + octets if mark else octets)

    def retry(self) -> None:
        """The hidden server is gone and got nothing. Raises OSError."""
        self._began = True
        self.say(RETRY)


class NearVisitor(Visitor):
    """The same, of a connection from a worker of this machine."""

    origin = 'another worker'

    def __init__(self, raw: socket.socket):
        super().__init__(raw)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
