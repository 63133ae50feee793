"""One connection's life, top to bottom: handshake, head, who is it, wait or join, pipe, close."""

import logging
import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path

import gevent

from rendezvous.server import credentials, dialogue, pages
from rendezvous.server.accepted import Connection
from rendezvous.server.admission import Admission
from rendezvous.server.counters import Counters
from rendezvous.server.crossing import Crossing
from rendezvous.server.following import Following
from rendezvous.server.hop import Visitor
from rendezvous.server.limits import ConnectionLimits, Evicted, ThrottledWarning, UnknownUuids
from rendezvous.server.meeting import Meeting
from rendezvous.server.names import Names
from rendezvous.server.nodes import Nodes
from rendezvous.server.registry import Held, Registration, Registry
from rendezvous.server.shares import Shares
from rendezvous.server.visits import Visit, Visits
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options
from rendezvous.store.presence import Presence
from rendezvous.store.state import Why
from rendezvous.wire import proxy_line
from rendezvous.wire.addresses import Peer
from rendezvous.wire.http_head import Head, Refusal
from rendezvous.wire.pipe import End, How, Pipe
from rendezvous.wire.programs import VERSION
from rendezvous.wire.sockets import Ended, Socket, close_gracefully

log = logging.getLogger('rendezvous')

# Between two registrations that end because new workers serve: all at once would keep these busy
# for seconds, and everybody waiting. What has not come back yet can be claimed here.
PACE_SECONDS = 0.005
LOOK_SECONDS = 0.02  # between two looks whether all connections have ended
# Between two looks at how many octets have passed in open pipes: each costs a disk write.
OCTETS_SECONDS = 10
# Between two looks for hidden servers of which two processes wait: of 10,000, one takes 30 ms, in
# slices.
TWINS_SECONDS = 60
# A hidden server that is to register elsewhere does so meanwhile, before the next one of it ends.
ROUND_SECONDS = 1
DRAINED = 'this node is being drained: connect to another one'
RETRY_SECONDS = 10  # then no other registration is tried: all may have died in silence

Close = Callable[[Socket], object]


class Rendezvous:
    """What the connections of a worker share; `handle` is the life of one of them."""

    def __init__(
        self,
        options: Options,
        entries: Entries,
        context: ssl.SSLContext | None,
        shares: Shares,
        meeting_place: Path,
        which: str,
        since: float = 0,
    ):
        """`which`: this worker's number, a slash, and how many there are. `since`: when their
        parent began, in seconds since 1970; 0: now.
        """
        self.options, self.entries, self.context, self.which = options, entries, context, which
        self.since, self.counters = since or time.time(), Counters()
        self.registry = Registry(options.max_waiting)
        self.meeting = Meeting(meeting_place, self.registry, self.visit)
        self.ask_for = self.meeting.ask_for
        self.presence = Presence(entries, self.about)
        self.nodes = self._among_nodes() if options.node_host else None
        self.admission = Admission(options, entries, self.presence)
        each = options.max_connections_per_address, options.max_pipes_per_address
        self.limits = ConnectionLimits(options.max_connections, *each, shares)
        self.names = Names(entries, options.names_domain)
        self.visits = Visits()
        parts = self.presence, self.registry, self.admission, self.names, self.visits
        self.following = Following(entries, *parts, self.have_drained)
        self.unknown_uuids = UnknownUuids(options.unknown_per_minute)
        self.connections: set[Connection] = set()
        self.draining, self._hands_over = 0.0, False  # since when, in seconds since 1970
        self._noted_at = self._twins_at = 0.0  # time.monotonic()
        self._warn = ThrottledWarning()

    def _among_nodes(self) -> Nodes:
        """Has mobile clients meet hidden servers of other nodes, too."""
        entries, presence = self.entries, self.presence
        answer = partial(self.meeting.answer, absent=presence.note_absent)
        number = int(self.which.partition('/')[0])
        nodes = Nodes(self.options, entries, presence.name, number, answer)
        self.ask_for = Crossing(self.meeting, nodes, entries, presence).ask_for
        return nodes

    def handle(self, sock, address: tuple) -> None:
        """Serves the connection on `sock`, in a greenlet of its own."""
        connection = Connection(Socket(sock), _peer(address))
        self.connections.add(connection)
        self._own(connection, self._greet, connection)

    def _own(self, connection: Connection, serve: Callable[..., Close | None], *what) -> None:
        """In the greenlet that owns the connection: closes it by what `serve` gives, in any case,
        but for None: a registration waits.
        """
        close: Close | None = close_gracefully
        try:
            close = serve(*what)
        except Evicted:
            connection.sock.close()  # at once: its place is needed
        except Ended:
            pass
        except Exception:
            log.exception('%s failed', connection.peer)
        finally:
            if close:
                connection.may_finish = True
                self.limits.mark_leaving(connection)
                close(connection.sock)
                self.limits.release(connection)
                self.connections.discard(connection)

    def _greet(self, connection: Connection) -> Close | None:
        """What a connection begins with; gives what closes it, None where a registration waits."""
        near = connection.peer
        try:
            if self.options.proxy_protocol:
                connection.peer = self._announced(connection)
            self.limits.admit(connection)
            if self.context:
                connection.sock = self._shake_hands(connection, self.context)
            return self._serve(connection)
        except Refusal as refusal:
            level = logging.DEBUG if refusal.is_routine else logging.INFO
            log.log(level, '%s refused: %s %s', connection.peer, refusal.status, refusal.why)
            with suppress(OSError):  # where it is gone, there is nobody to tell
                connection.sock.send(refusal.octets())
                self.counters.refused(refusal)
        except OSError as error:
            # A proxy in front looks each second whether we are there, and just hangs up.
            is_check = self.options.proxy_protocol and str(connection.peer) == str(near)
            level = logging.DEBUG if is_check else logging.INFO
            log.log(level, '%s lost: %s', connection.peer, _why(error))
        return close_gracefully

    def _shake_hands(self, connection: Connection, context: ssl.SSLContext) -> Socket:
        """Raises Refusal, OSError or Evicted."""
        try:
            shaken = dialogue.shake_hands(connection.sock, context)
        except OSError:
            self.counters.handshakes_failed += 1
            raise
        except ValueError as error:
            self.counters.handshakes_failed += 1
            self._warn(
                '%s %s: closed; set proxy_protocol to True in local.py', connection.peer, error
            )
            raise Evicted from None
        self.counters.handshakes += 1
        return shaken

    def visit(self, visitor: Visitor, peer: Peer, uuid: str, held: Held, octets: bytes) -> None:
        """Serves a mobile client that another worker has accepted, with a registration of ours."""
        how, mobile, began = How.ENDED, End(visitor), time.monotonic()
        try:
            while octets:
                if held.is_good():  # it may have ended while the first octets were on their way
                    log.info('%s rendezvous with %s, from %s', peer, uuid, visitor.origin)
                    how, octets = self._pipe(Pipe(mobile, held, drain=0), peer, octets)
                else:
                    self.registry.unclaim(held)
                if octets:
                    _check_retry(began)
                    held = self.registry.claim(uuid, 0, visitor)
        except Refusal:  # none is left that is to be tried
            visitor.retry()
        except Ended:
            pass
        finally:
            close_gracefully(visitor, how.is_whole)

    def stop(self, pipes: bool = False) -> None:
        """Ends every connection that is not in a pipe, each with a close that says so; with
        `pipes` all.
        """
        for connection in list(self.connections):
            if pipes or not connection.may_finish:
                connection.interrupt()

    def join(self, seconds: float) -> None:
        """Waits until all connections have ended, or for so long."""
        until = time.monotonic() + seconds
        gevent.sleep(LOOK_SECONDS)  # one that was accepted just now begins
        while self.connections and time.monotonic() < until:
            gevent.sleep(LOOK_SECONDS)

    def hand_over(self) -> None:
        """New workers serve: ends the registrations that wait, and they come back to those."""
        self._hands_over = True
        while self._end_oldest():
            pass

    def drain(self) -> None:
        """Without end: this node is to be left. Ends one registration after the other, so that none
        of a hidden server's ends before the one before is back, with another node.
        """
        self.draining = time.time()
        while True:
            self._end_oldest()
            gevent.sleep(ROUND_SECONDS)

    def _end_oldest(self) -> bool:
        """Of each hidden server ends one that waits, one after the other; whether there was any."""
        was_any = False
        for uuid in list(self.registry.counts()):
            if registration := self.registry.oldest(uuid):
                self.registry.end(registration)
                was_any = True
                gevent.sleep(PACE_SECONDS)
        return was_any

    def have_drained(self) -> tuple[int, int]:
        """An administrator wants this node drained, which is the parent's work; how many
        registrations wait here, and how many other connections there are.
        """
        if not self.draining:
            log.info('this node is to be drained: its parent is told')
            os.kill(os.getppid(), signal.SIGUSR1)
        waiting = self.registry.totals()[0]
        return waiting, len(self.connections) - waiting

    def write_presence(self) -> None:
        """Without end: writes who is here, for the page."""
        self.presence.run(self._counts)

    def _counts(self) -> dict[str, tuple[int, int]]:
        """Who is here; now and then it also notes the octets of pipes that are open, and of whom
        two processes wait.
        """
        if time.monotonic() - self._noted_at > OCTETS_SECONDS:
            self._noted_at = time.monotonic()
            for moved in self.visits.moved():
                self.presence.note_octets(*moved)
        if time.monotonic() - self._twins_at > TWINS_SECONDS:
            self._twins_at = time.monotonic()
            for uuid, one, other in self.registry.twins():
                self.presence.note_refusal(uuid, one, Why('twins', other=other))
        return self.registry.counts()

    def about(self) -> dict:
        """What this worker says of itself, with each sign that it lives."""
        number, workers = map(int, self.which.split('/'))
        host = socket.gethostname()
        waiting, pipes = self.registry.totals()
        return {
            'node': self.options.node_host or host,
            'host': host,
            'address': self.options.node_address(number),
            'number': number,
            'workers': workers,
            'pid': os.getppid(),
            'version': VERSION,
            'since': self.since,
            'connections': self.limits.taken,
            'most': self.limits.places,
            'waiting': waiting,
            'pipes': pipes,
            'links': self.nodes.count() if self.nodes else 0,
            'not_reached': self.nodes.not_reached() if self.nodes else [],
            'draining': self.draining,
            'memory': _memory(),
            'counters': self.counters.now(self.visits, self.entries.errors),
        }

    def _announced(self, connection: Connection) -> Peer:
        """Who connects through a proxy in front; itself where it names nobody. Raises Evicted."""
        self.limits.await_header(connection)
        proxy = connection.peer
        try:
            return dialogue.read_proxy_header(connection.sock.raw) or proxy
        except ValueError as error:
            self._warn(
                '%s %s: closed; have the proxy in front send one (HAProxy: send-proxy-v2), '
                'or set proxy_protocol to False in local.py',
                *(proxy, error),
            )
            raise Evicted from None

    def _serve(self, connection: Connection) -> Close | None:
        """Gives what closes the connection, or None, as the next one does."""
        sock = connection.sock
        octets: bytes | None = b''
        while octets is not None:
            head, octets = dialogue.read_head(sock, octets)
            if head is None:
                break
            if head.method == 'CONNECT':
                target, fields = head.target, _Fields(head)
                head = None  # it may wait for days: nothing is kept for that
                return self._hidden_server(connection, target, fields, octets)
            try:
                uuid, forwarded = self._wanted(head)
                if uuid:
                    return self._mobile_client(connection, uuid, forwarded + octets)
                if dialogue.asks_whether_to_come(head):
                    self._say_whether_to_come(sock)
                    break
                octets = dialogue.ask_who(sock, head, octets)
            except Refusal as refusal:
                refusal.without_body = head.method == 'HEAD'
                if refusal.status == 503 and pages.are_for(head):
                    refusal.page = pages.NOBODY
                raise
        return close_gracefully

    def _wanted(self, head: Head) -> tuple[str | None, bytes]:
        """As credentials.wanted; but with a name all header fields are the hidden server's own."""
        named = self.names.wanted(head)
        return (named, head.octets()) if named else credentials.wanted(head)

    def _say_whether_to_come(self, sock: Socket) -> None:
        """Raises Refusal where new connections are to go to another node."""
        if self.draining:
            refusal = Refusal(503, DRAINED, 'Retry-After: 0')
            refusal.is_routine = True  # a balancer asks each second
            raise refusal
        dialogue.welcome(sock)

    def _hidden_server(
        self, connection: Connection, target: str, asked: '_Fields', octets: bytes
    ) -> Close | None:
        sock, peer = connection.sock, connection.peer
        uuid, code = credentials.registration(target)
        number, node = self.which.partition('/')[0], self._node
        if (f'{number}@{node}' if node else number) in asked.covered:
            raise self._covered()
        stamp = self._authenticate(sock, uuid, code, peer.host, octets)
        if self.draining:
            raise Refusal(503, DRAINED, 'Retry-After: 0')
        if self._hands_over:
            raise Refusal(503, 'this worker is being replaced: connect again', 'Retry-After: 0')
        try:
            self.limits.identify(connection, 'hidden server')
        except Refusal:
            self.presence.note_refusal(uuid, peer.host, Why('full'))
            raise
        registration = Registration(uuid, stamp, connection)
        registration.instance = asked.instance
        registration.wants_line = asked.proxy_line
        if other := self.registry.other(registration):  # two machines with one ID.json
            self.presence.note_refusal(uuid, peer.host, Why('twins', other=other))
        # No yield from here until it waits: no head that is forwarded overtakes the 200.
        dialogue.say_at_once(
            sock, dialogue.registered(other, self._which_fields() if asked.which_worker else ())
        )
        evicted = self.registry.add(registration)
        if evicted:
            evicted.interrupt()
            log.info('%s has max_waiting registrations: the oldest is ended', uuid)
        log.info('%s registered %s, %d wait', peer, uuid, self.registry.count(uuid))
        self.counters.registrations += 1
        self.presence.note_online(uuid, peer.host)
        connection.wait(partial(gevent.spawn, self._own, connection, self._go_on, registration))
        return None

    def _which_fields(self) -> list[str]:
        """The fields that say which worker this is."""
        node = self._node
        return [f'Worker: {self.which}', *([f'Node: {node}'] if node else [])]

    @cached_property
    def _node(self) -> str:
        """A name of this node that tells nothing else of it; '' where it is alone."""
        host = self.options.node_host
        return blake2b(f'{host} {self.since}'.encode(), digest_size=4).hexdigest() if host else ''

    def _covered(self) -> Refusal:
        """For a hidden server that looks for a worker that has no registration of it yet."""
        sentence = 'this worker has a registration of it already'
        refusal = Refusal(503, sentence, 'Retry-After: 0', *self._which_fields())
        refusal.is_routine = True  # hidden.py gets some for each visit
        return refusal

    def _go_on(self, registration: Registration) -> Close:
        """There is something to read for one that waited, or it is ended: in a new greenlet."""
        connection, uuid = registration.connection, registration.uuid
        octets: bytes | None = None
        try:
            connection.own()
            # In a pipe it is the pipe that reads: it tells a reset from an end.
            octets = b'' if registration.pipe else connection.sock.receive()
        except OSError:
            octets = b''  # the connection broke
        except Ended:
            if not registration.pipe:
                raise
            # The mobile client was faster: there is nothing of the hidden server's to pass on. Or
            # the server stops, and the mobile client came in this moment.
            registration.pipe.cut(How.ENDED)
        finally:
            self.registry.remove(registration)
            self.presence.note_online(uuid, connection.peer.host)
        if registration.pipe:
            if octets is not None:
                registration.pipe.from_hidden(octets)
            registration.pipe = None  # which has us: nothing is left for the garbage collector
            return partial(close_gracefully, may_stop=True)
        why = 'it sent octets before a mobile client came' if octets else 'it hung up'
        log.info('%s no longer waits for %s: %s', connection.peer, uuid, why)
        return close_gracefully

    def _authenticate(self, sock: Socket, uuid: str, code: str, address: str, octets: bytes) -> int:
        """The stamp of the entry, as it is now; raises Refusal. `octets` came behind the head."""
        while True:
            before = self.admission.admitted.changes
            stamp = self.admission.admit(uuid, code, address)
            if octets or dialogue.spoke(sock):
                raise Refusal(409, 'send nothing behind the CONNECT until the 200 has come')
            # A change that we were told of in between may have been one of this entry.
            if before == self.admission.admitted.changes:
                return stamp

    def _mobile_client(self, connection: Connection, uuid: str, octets: bytes) -> Close:
        peer = connection.peer
        if self.context and not self.options.proxy_protocol:
            reached = _peer(connection.sock.raw.getsockname())
            peer = connection.peer = peer._replace(reached=reached)
        self.unknown_uuids.check(peer.host)
        self.limits.begin_visit(connection, uuid)
        try:
            return self._join(connection, peer, uuid, octets)
        except Refusal:  # of whatever kind: it got no answer of the hidden server's
            self.presence.note_failure(uuid, self.admission.knows(uuid))
            raise

    def _join(self, connection: Connection, peer: Peer, uuid: str, octets: bytes) -> Close:
        """Pipes to one registration after the other, until one has got something."""
        mobile, at, began, left = End(connection.sock), time.time(), time.monotonic(), octets
        leaving = partial(self.limits.mark_leaving, connection)
        while True:
            held = self._claim(connection, uuid)
            log.info('%s rendezvous with %s%s', peer, uuid, held.where)
            self.counters.crossed += held.is_far
            connection.may_finish = True
            mobile.octets = held.octets = 0
            pipe, octets, left = Pipe(mobile, held, self.options.drain, leaving), left, b''
            visit = self.visits.begin(uuid, peer.host, at, pipe)
            try:
                how, left = self._pipe(pipe, peer, octets)
                if held.is_far and how is How.HIDDEN_RESET:
                    pipe.how = How.FAR_RESET
            finally:
                self.visits.end(visit)
                if not left:
                    self._record(peer, visit, pipe.passed_at - began)
            if not left:
                return partial(close_gracefully, is_whole=how.is_whole)
            _check_retry(began)

    def _claim(self, connection: Connection, uuid: str) -> Held:
        """A registration, of this worker or of another one, for a mobile client. Raises Refusal."""
        peer = connection.peer
        seconds = self.options.rendezvous_wait
        try:
            held = self.registry.claim(uuid, seconds, connection.sock, self.ask_for(seconds, peer))
        except Refusal:
            gevent.sleep(self.unknown_uuids.note(peer.host, uuid))
            raise
        try:
            self.limits.identify(connection, 'mobile client')
        except (Refusal, Evicted):
            self.registry.unclaim(held)
            raise
        return held

    def _pipe(self, pipe: Pipe, peer: Peer, octets: bytes) -> tuple[How, bytes]:
        """Pipes to the end: how that was, and what is to be sent to another hidden server."""
        held, left = pipe.hidden, b''
        # No yield from here until the pipe is known to both ends.
        if isinstance(held, Registration):
            held.pipe = pipe
            if held.wants_line:
                held.preface = proxy_line.line(peer, peer.reached)
            held.connection.may_finish = True
            self.limits.mark_visited(held.connection)
            self.registry.pipe_began(held)
        else:
            held.greenlet = gevent.spawn(_answer_from_elsewhere, pipe)
            gevent.sleep(0)  # it runs: one that is ended before that never closes its socket
        try:
            left = pipe.from_mobile(octets)
        except Evicted:
            pipe.cut(How.MOBILE_CLOSED)  # only one that drains is ever evicted
            raise
        except Ended:
            pipe.cut(How.ENDED)
        finally:
            if isinstance(held, Registration):
                self.registry.pipe_ended(held)
        return pipe.how or How.ENDED, left

    def _record(self, peer: Peer, visit: Visit, seconds: float) -> None:
        """The log, and the page, of a rendezvous that is over. `seconds`: to its last octet; the
        connection may have been kept for long after that.
        """
        pipe = visit.pipe
        how, sent, received = (pipe.how or How.ENDED).value, pipe.mobile.octets, pipe.hidden.octets
        log.info(
            f'{peer} closed after {seconds:.1f} s: {how}; '
            f'{sent} octets from the mobile client, {received} from {visit.uuid}'
        )
        self.presence.note_rendezvous(
            visit.uuid,
            at=visit.at,
            address=visit.address,
            seconds=round(seconds, 3),
            sent=sent,
            received=received,
            how=how,
            counted=(visit.up, visit.down),
        )


def _memory() -> int:
    """Octets that this process has for itself; 0 where the system does not tell."""
    status = ''
    with suppress(OSError):
        status = Path('/proc/self/status').read_text()
    found = re.search('^RssAnon:\\s+([0-9]+) kB$', status, re.M)
    return int(found[1]) * 1024 if found else 0


class _Fields:
    """What the CONNECT of a hidden server asks for beside its registration."""

    def __init__(self, head: Head):
        self.instance = (head.values('instance') or [''])[0][:32]
        self.proxy_line = '1' in head.values('proxy-protocol')  # of version 1
        self.which_worker = bool(head.values('which-worker'))
        # The workers that have a registration of it already: it looks for another one.
        self.covered = re.findall('[0-9a-f@]+', ','.join(head.values('has-worker')))


def _peer(address: tuple) -> Peer:
    """From the address of a socket: an IPv4 one as such, where the socket is for both."""
    return Peer(address[0].removeprefix('::ffff:'), address[1])


def _check_retry(began: float) -> None:
    """Raises Refusal where a visit that began then is not to be tried with another registration."""
    if time.monotonic() - began > RETRY_SECONDS:
        raise Refusal(503, 'the hidden server does not answer', 'Retry-After: 5')


def _answer_from_elsewhere(pipe: Pipe) -> None:
    """The other end of a pipe, where another worker holds the registration."""
    try:
        pipe.from_hidden()
    finally:
        pipe.hidden.sock.close()


def _why(error: BaseException) -> str:
    """What OpenSSL or the system says of it, in a few words of theirs and none of the client's."""
    if isinstance(error, ssl.SSLError):
        return f'TLS: {(error.reason or "connection broken").lower().replace("_", " ")}'
    return str(error) or type(error).__name__
