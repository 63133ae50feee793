"""One connection's life, top to bottom: handshake, head, who is it, wait or join, pipe, goodbye."""

import logging
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import gevent

from rendezvous.server import credentials, dialogue, takeover
from rendezvous.server.admission import Admission
from rendezvous.server.limits import ConnectionLimits, Evicted, UnknownUuids
from rendezvous.server.registry import Moved, Registration, Registry
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.options import Options
from rendezvous.store.presence import Live
from rendezvous.wire.addresses import authority
from rendezvous.wire.http_head import Refusal
from rendezvous.wire.pipe import End, How, Pipe, join
from rendezvous.wire.sockets import Ended, close_gracefully, keep_alive, receive

log = logging.getLogger('rendezvous')

AWAY = 16  # registrations that are ended after a takeover and not back yet: a moment's work
BACK_SECONDS = 1  # one that is not back by then may not come at all
AGAIN_SECONDS = 0.005  # between two looks who is back
RETRY_SECONDS = 10  # then the next registration is not tried: all may have died in silence


class Peer(NamedTuple):
    """Who is at the other end of a connection."""

    host: str
    port: int

    def __str__(self) -> str:
        return authority(*self)


class Rendezvous:
    """What the connections of a server share; `handle` is the life of one of them."""

    def __init__(self, options: Options, entries: Entries, context: ssl.SSLContext | None):
        self.options, self.entries, self.context = options, entries, context
        self.registry = Registry(options.max_waiting)
        self.live = Live(entries, self.registry)
        self.admission = Admission(options, entries, self.live)
        self.limits = ConnectionLimits(
            options.max_connections,
            options.max_connections_per_address,
            options.max_pipes_per_address,
        )
        self.unknown_uuids = UnknownUuids(options.unknown_per_minute)
        self.unjoined: set[gevent.Greenlet] = set()  # those that were in no pipe yet
        self.predecessor: takeover.Predecessor | None = None
        self._away: list[
            tuple[str, float]
        ] = []  # UUIDs; when one of it was ended, the oldest first
        self._changes = 0  # of entries that we were told of

    def handle(self, sock, address, uuid: str = '', octets: bytes = b'') -> None:
        """Serves the connection on `sock`, in a greenlet of its own; closes it in any case.

        With a UUID it is one of a mobile client that our predecessor has accepted.
        """
        peer = Peer(address[0].removeprefix('::ffff:'), address[1])
        greenlet, close = gevent.getcurrent(), close_gracefully
        self.unjoined.add(greenlet)
        try:
            self.limits.admit(greenlet, peer.host)
            if uuid:
                close = self._mobile_client(sock, peer, uuid, octets)
            else:
                keep_alive(sock)
                if self.context:
                    sock = dialogue.shake_hands(sock, self.context)
                close = self._serve(sock, peer)
        except Refusal as refusal:
            log.info('%s refused: %s %s', peer, refusal.status, refusal.why)
            with suppress(OSError):  # where it is gone, there is nobody to tell
                sock.sendall(refusal.octets())
        except OSError as error:
            log.info('%s lost: %s', peer, _why(error))
        except Evicted:
            sock.close()  # at once: its place is needed
        except Ended:
            pass
        except Exception:
            log.exception('%s failed', peer)
        finally:
            self.unjoined.discard(greenlet)
            self.limits.mark_leaving(greenlet)
            close(sock)
            self.limits.release(greenlet)

    def stop(self) -> None:
        """Ends every connection that is not in a pipe, each with a goodbye."""
        for greenlet in self.unjoined:
            greenlet.kill(Ended, block=False)

    def move(self) -> None:
        """Our successor serves: ends the registrations that wait, and they come back to it.

        A few at a time: all at once would keep it busy for seconds, and everybody waiting.
        """
        for registration in self.registry.move():
            while len(self._away) >= AWAY and time.monotonic() < self._away[0][1] + BACK_SECONDS:
                gevent.sleep(AGAIN_SECONDS)
            del self._away[: max(0, len(self._away) - AWAY + 1)]
            if not registration.over:
                registration.greenlet.kill(Ended, block=False)
                self._away.append((registration.uuid, time.monotonic()))

    def move_next(self, uuid: str) -> None:
        """A mobile client of our successor's waits for one of these: they are ended now.

        '' means all: the successor has ended, and nobody can ask for them any more.
        """
        if self.predecessor:
            self.predecessor.want(uuid)  # they may be with that still
        for each in [uuid] if uuid else self.registry.counts():
            for registration in self.registry.all(each):
                if not registration.pipe:
                    registration.greenlet.kill(Ended, block=False)

    def moved(self, uuid: str) -> None:
        """One of these is registered with our successor."""
        away = [number for number, each in enumerate(self._away) if each[0] == uuid]
        if away:
            del self._away[away[0]]
        elif self.predecessor:
            self.predecessor.has_back(uuid)

    def follow(self) -> None:
        """Ends registrations and pipes whose entry is changed, for as long as Redis answers."""
        with suppress(StoreDown):
            for changed in self.entries.changes():
                self._changes += 1
                for uuid in [changed] if changed else self.registry.counts():
                    self._end_outdated(uuid)

    def _end_outdated(self, uuid: str) -> None:
        if not self.registry.all(uuid):
            return  # most changes are of entries of which nobody is here
        entry = self.entries.get(uuid)
        for registration in self.registry.all(uuid):
            if registration.stamp != _stamp(entry):
                log.info('the entry %s is changed: a registration is ended', uuid)
                if registration.pipe:
                    registration.pipe.cut(How.CHANGED)
                else:
                    registration.greenlet.kill(Ended, block=False)

    def _serve(self, sock, peer: Peer) -> Callable[..., None]:
        """Gives what closes the connection, as the next two do."""
        octets = b''
        while octets is not None:
            head, octets = dialogue.read_head(sock, octets)
            if head is None:
                break
            if head.method == 'CONNECT':
                target, (instance, *_) = head.target, [*head.values('instance'), '']
                head = None  # it may wait for days: nothing is kept for that
                return self._hidden_server(sock, peer, target, instance[:32], octets)
            try:
                uuid, forwarded = credentials.wanted(head)
                if uuid:
                    return self._mobile_client(sock, peer, uuid, forwarded + octets)
                octets = dialogue.ask_who(sock, head, octets)
            except Refusal as refusal:
                refusal.without_body = head.method == 'HEAD'
                raise
        return close_gracefully

    def _hidden_server(
        self, sock, peer: Peer, target: str, instance: str, octets: bytes
    ) -> Callable[..., None]:
        uuid, code = credentials.registration(target)
        stamp = _stamp(self._authenticate(uuid, code, peer.host))
        if octets or dialogue.spoke(sock):
            raise Refusal(409, 'send nothing behind the CONNECT until the 200 has come')
        if self.registry.moved:
            raise Refusal(503, 'a new server has taken over: connect again', 'Retry-After: 0')
        self.limits.identify(gevent.getcurrent(), 'hidden server')
        registration = Registration(uuid, stamp, sock)
        registration.instance, registration.host = instance, peer.host
        other = self.registry.other(registration)  # two machines with one ID.json
        # No yield from here until it waits: no head that is forwarded overtakes the 200.
        dialogue.say_at_once(sock, dialogue.registered(other))
        evicted = self.registry.add(registration)
        if evicted:
            evicted.greenlet.kill(Ended, block=False)
            log.info('%s has max_waiting registrations: the oldest is ended', uuid)
        log.info('%s registered %s, %d wait', peer, uuid, self.registry.count(uuid))
        self.live.seen(uuid, peer.host)
        if self.predecessor:
            self.predecessor.has_back(uuid)
        try:
            octets = receive(sock)
        except OSError:
            octets = b''  # the connection broke
        except Ended:
            if not registration.pipe:
                raise
            octets = None  # the mobile client was faster
        finally:
            self.registry.remove(registration)
            self.live.seen(uuid, peer.host)
        if registration.pipe:
            if octets is not None:
                registration.pipe.from_hidden(octets)
            registration.pipe = None  # which has us: nothing is left for the garbage collector
            return partial(close_gracefully, may_stop=True)
        why = 'it spoke out of turn' if octets else 'it hung up'
        log.info('%s waits no more for %s: %s', peer, uuid, why)
        return close_gracefully

    def _authenticate(self, uuid: str, code: str, address: str) -> dict:
        """The entry, as it is now; raises Refusal."""
        before = self._changes
        entry = self.admission.admit(uuid, code, address)
        # A change that we were told of in between may have been one of this entry.
        return entry if before == self._changes else self._authenticate(uuid, code, address)

    def _mobile_client(self, sock, peer: Peer, uuid: str, octets: bytes) -> Callable[..., None]:
        self.unknown_uuids.check(peer.host)
        mobile, began = End(sock), time.monotonic()
        self.limits.begin_visit(mobile.greenlet, uuid)
        while True:
            try:
                registration = self._take(mobile, uuid, peer.host)
            except Moved:
                log.info('%s is passed on to the new server', peer)
                near = takeover.pass_on(peer, uuid)
                how = join(mobile, near, octets, self.options.drain)
                break
            # No yield from here until the pipe is known to both.
            mobile.octets = 0
            draining = partial(self.limits.mark_leaving, mobile.greenlet)
            pipe = registration.pipe = Pipe(mobile, registration, self.options.drain, draining)
            self.unjoined -= {mobile.greenlet, registration.greenlet}
            self.limits.mark_visited(registration.greenlet)
            self.registry.pipe_began(registration)
            log.info('%s rendezvous with %s', peer, uuid)
            octets = self._pipe(pipe, octets, peer, began)
            how = pipe.how
            if not octets:
                break
            if time.monotonic() - began > RETRY_SECONDS:
                raise Refusal(503, 'the hidden server does not answer', 'Retry-After: 5')
        return partial(close_gracefully, is_whole=how.is_whole)

    def _pipe(self, pipe: Pipe, octets: bytes, peer: Peer, began: float) -> bytes:
        """Pipes to the end; gives what is to be sent to another one, as from_mobile does."""
        left = b''
        try:
            left = pipe.from_mobile(octets)
        except Evicted:
            pipe.cut(How.MOBILE_CLOSED)  # only one that drains is ever evicted
            raise
        except Ended:
            pipe.cut(How.ENDED)
        finally:
            self.registry.pipe_ended(pipe.hidden)
            if not left:
                self._tell(peer, pipe, began)
        return left

    def _tell(self, peer: Peer, pipe: Pipe, began: float) -> None:
        """The log, and the page, of a rendezvous that is over."""
        uuid, seconds = pipe.hidden.uuid, pipe.active_until - began
        how, sent, received = pipe.how.value, pipe.mobile.octets, pipe.hidden.octets
        log.info(
            f'{peer} closed after {seconds:.1f} s: {how}; '
            f'{sent} octets from the mobile client, {received} from {uuid}'
        )
        self.live.ended(
            uuid,
            at=time.time() - (time.monotonic() - began),
            address=peer.host,
            seconds=round(seconds, 1),
            sent=sent,
            received=received,
            how=how,
        )

    def _take(self, mobile: End, uuid: str, address: str) -> Registration:
        if self.predecessor and not self.registry.count(uuid):
            self.predecessor.want(uuid)
        try:
            registration = self.registry.claim(uuid, self.options.rendezvous_wait, mobile.sock)
        except Refusal:
            gevent.sleep(self.unknown_uuids.note(address, uuid))
            raise
        try:
            self.limits.identify(mobile.greenlet, 'mobile client')
        except (Refusal, Evicted):
            self.registry.unclaim(registration)
            raise
        return registration


def _stamp(entry: dict | None) -> int:
    """Another one when the entry is deleted, disabled or re-keyed; the same with new labels.

    A few octets: each registration holds one.
    """
    return hash(repr(sorted((entry | {'labels': 0}).items())) if entry else None)


def _why(error: BaseException) -> str:
    """What OpenSSL or the system says of it, in a few words of theirs and none of the client's."""
    if isinstance(error, ssl.SSLError):
        return f'TLS: {(error.reason or "connection broken").lower().replace("_", " ")}'
    return str(error) or type(error).__name__
