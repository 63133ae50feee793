"""Links: connections between workers of two nodes, over TLS. membership.py says who is a node.

Behind the handshake the one that was called says `rendezvous 1 WORKER` and a line feed: so the
caller knows that its proof was accepted, and by which worker. From then on hop.py says what goes
over it. Who proves nothing gets what TLS itself says, and no more.
"""

import logging
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import gevent
from gevent.pool import Pool

from rendezvous.server.hop import UNREAD_BYTES, Asked, Visitor
from rendezvous.server.limits import ThrottledWarning
from rendezvous.server.listening import LINKS
from rendezvous.server.membership import NAME, Contexts, Membership
from rendezvous.wire.addresses import Peer, is_number
from rendezvous.wire.sockets import Descriptor, Ended, TLSSocket, keep_alive, set_tcp, take_turn

log = logging.getLogger('nodes')

PROVE_SECONDS = 10  # that a caller may take for its handshake
UNPROVEN = 64  # callers in their handshake at a time
IDLE = LINKS // 2  # links without a question: one more takes the place of the oldest
PAUSE_SECONDS = 0.1  # after an error of accept: all descriptors may be used up
STRANGER_SECONDS = 60  # between two lines of the log about callers that are no nodes
GREETING_BYTES = 100
GREETING = re.compile(rb'rendezvous 1 ([0-9a-f]{16})\n')


class Link(Asked, TLSSocket):
    """The end of the worker that has called, and asks."""

    worker = ''  # the name of that at the other end

    def __init__(
        self, contexts: Contexts, node: str, raw: socket.socket, session: ssl.SSLSession | None
    ):
        super().__init__(contexts.asks, raw, server_hostname=NAME)
        self.node = node  # its host
        if session:
            self.tls.session = session

    def prove(self) -> float:
        """The handshake, and whose link it is: gives the seconds from the end of our part of it to
        the other's greeting, a trip and how busy that worker is. Raises OSError.
        """
        self.do_handshake()
        began, came = monotonic(), b''
        while not came.endswith(b'\n') and len(came) < GREETING_BYTES:
            more = self.receive()
            if not more:
                raise ConnectionError('it hung up without a greeting')
            came += more
        greeting = GREETING.fullmatch(came)
        if not greeting:
            raise ConnectionError('its greeting is none of a node')
        self.worker = greeting[1].decode()
        return monotonic() - began

    def is_cut(self) -> bool:
        return not self.has_said_goodbye


class NodeVisitor(Visitor, TLSSocket):
    """The end of the worker that was called, and answers."""

    def __init__(self, contexts: Contexts, raw: socket.socket, idle: dict[socket.socket, None]):
        """`idle`: it is there as long as it has no question."""
        super().__init__(contexts.answers, raw)
        self._idle = idle

    def question(self) -> bytes:
        self._idle[self.raw] = None
        try:
            return super().question()
        finally:
            self._idle.pop(self.raw, None)

    def close(self) -> None:
        # OpenSSL forgets the session of a connection that ends without a goodbye. So it makes one
        # where the answer was cut off, too, which nobody gets.
        with suppress(ssl.SSLError, ValueError):
            self.tls.unwrap()
        self._take()
        super().close()


def call(
    contexts: Contexts, host: str, port: int, session: ssl.SSLSession | None
) -> tuple[Link, float]:
    """A new link, and what `Link.prove` gives. Raises OSError."""
    link = Link(contexts, host, _connected(host, port), session)
    try:
        _prepare(link)
        return link, link.prove()
    except BaseException:
        link.close()
        raise


def _connected(host: str, port: int) -> socket.socket:
    """create_connection has a thread look up each address, which costs as much as half of a
    handshake. Raises OSError.
    """
    if not is_number(host):
        return socket.create_connection((host, port))
    raw = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
    try:
        raw.connect((host, port))
    except BaseException:
        raw.close()
        raise
    return raw


def _prepare(sock: Descriptor) -> None:
    """As any connection; but what one worker sends in one go, the kernel takes in one go."""
    keep_alive(sock)
    set_tcp(sock, 'TCP_NOTSENT_LOWAT', UNREAD_BYTES)


class Door:
    """Where workers of other nodes call this one. Strangers get no further than this."""

    def __init__(
        self, membership: Membership, name: str, answer: Callable[[NodeVisitor], object]
    ) -> None:
        """`answer` serves a caller that is a node, and closes."""
        self._membership, self._answer = membership, answer
        self._greeting = f'rendezvous 1 {name}\n'.encode()
        self._greenlets = Pool(None)
        # The oldest first: callers in their handshake, and links without a question.
        self._unproven: dict[socket.socket, None] = {}
        self._idle: dict[socket.socket, None] = {}
        self._listener: socket.socket | None = None
        self._accepting: gevent.Greenlet | None = None
        self._warn, self._warn_of_stranger = ThrottledWarning(), ThrottledWarning(STRANGER_SECONDS)

    def open(self, listener: socket.socket) -> None:
        _prepare(listener)  # each connection inherits it (Linux)
        self._listener = listener
        self._accepting = self._greenlets.spawn(self._accept, listener)

    def close(self) -> None:
        """No new callers."""
        if self._listener is not None and self._accepting is not None:
            self._accepting.kill()
            self._listener.close()

    def stop(self) -> None:
        """Ends all."""
        self.close()
        self._greenlets.kill(Ended)

    def count(self) -> int:
        """Links of others to this worker."""
        return len(self._greenlets) - len(self._unproven) - (self._accepting in self._greenlets)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                raw, address = listener.accept()
            except OSError as error:
                self._warn('cannot accept a connection of a node: %s', error.strerror)
                gevent.sleep(PAUSE_SECONDS)
                continue
            if len(self._unproven) >= UNPROVEN:
                _turn_away(self._unproven)
            self._unproven[raw] = None
            self._greenlets.spawn(self._receive, raw, Peer(*address[:2]))
            take_turn()

    def _receive(self, raw: socket.socket, peer: Peer) -> None:
        """A caller, from its handshake on."""
        contexts = self._membership.contexts
        if not contexts:  # the secret is not known yet
            self._unproven.pop(raw, None)
            raw.close()
            return
        visitor = NodeVisitor(contexts, raw, self._idle)
        if self._is_node(visitor, peer):
            # Who continues a session needs no ticket: each is one more session in memory.
            contexts.answers.num_tickets = 0 if visitor.tls.session_reused else 1
            if len(self._idle) >= IDLE:
                _turn_away(self._idle)
            self._answer(visitor)
        else:
            visitor.close()

    def _is_node(self, visitor: NodeVisitor, peer: Peer) -> bool:
        try:
            with gevent.Timeout(PROVE_SECONDS, TimeoutError('it proves nothing')):
                visitor.do_handshake()
                visitor.say(self._greeting)
            return True
        except (ssl.SSLError, TimeoutError) as error:
            why = getattr(error, 'reason', None) or str(error)
            self._warn_of_stranger(
                'a node needs the node_secret of the others, and nobody else should reach '
                'node_port: set a firewall; closed %s: %s',
                *(peer, why.lower().replace('_', ' ')),
            )
        except (OSError, Ended) as error:
            log.debug('closed %s: %s', peer, error)
        finally:
            self._unproven.pop(visitor.raw, None)
        return False


def _turn_away(some: dict[socket.socket, None]) -> None:
    """The oldest. Its greenlet, which may not have started yet, notices and closes."""
    raw = next(iter(some))
    del some[raw]
    with suppress(OSError):  # it has gone by itself
        raw.shutdown(socket.SHUT_RDWR)
