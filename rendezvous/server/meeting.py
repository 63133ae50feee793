"""Workers meet: a mobile client gets a hidden server that waits with another worker.

Each worker listens on a Unix socket in `workers/`, a folder that only its own user can enter. A
worker that has no registration of a UUID asks all others: a line with the UUID, the seconds that
the mobile client waits, its address and its port, and, where they are known, the address and the
port to which it connected. hop.py has the answers, and the visits.

The worker that holds a registration decides, between two yields: so none is given twice, nothing
is stale, and Redis is not needed. To hang up gives a reservation back, and ends a question.
"""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import gevent
from gevent.event import AsyncResult, Event
from gevent.pool import Pool
from gevent.server import StreamServer

from rendezvous.server.hop import EXPECTED, NO, YES, Asked, NearVisitor, OtherWorker, Visitor
from rendezvous.server.registry import AskOthers, Held, Others, Registry
from rendezvous.wire.addresses import Peer
from rendezvous.wire.http_head import Refusal
from rendezvous.wire.sockets import Ended, has_spoken

log = logging.getLogger('meeting')

FOLDER = Path('workers')  # in the working directory: a path from the root may be too long
ANSWER_SECONDS = 0.3  # a worker that has not answered by then hangs, and expects nobody
RESERVED_SECONDS = 5  # until the first octets of a visit come: they are there already
PLACE_SECONDS = 1  # between two looks whether the socket is still there
CLOSE_SECONDS = 2  # for visits whose pipes have ended, when this worker does
KEPT = 8  # idle connections to each other worker


class HeldElsewhere(Held):
    """A registration that another worker has reserved for a mobile client of ours."""

    def __init__(self, uuid: str, link: Asked):
        super().__init__(link)
        self.uuid, self.link = uuid, link
        self.is_far = bool(link.node)
        self.where = f', on node {link.node}' if link.node else ', with another worker'

    def got_nothing(self) -> bool:
        return self.link.got_nothing if self.link.has_ended else not self.octets


# Serves the visit of a mobile client on such an end, whose first octets are given.
Visit = Callable[[Visitor, Peer, str, Held, bytes], None]

Absent = Callable[[str], object]


class Meeting:
    """This worker's place in `workers/`: it asks the others and answers them."""

    def __init__(self, path: Path, registry: Registry, visit: Visit):
        """`path`: of this worker's socket; those of the others are beside it."""
        self._path, self._folder = path, str(path.parent)
        self._registry, self._visit = registry, visit
        self._connections = Pool(None)
        self._visits: set[gevent.Greenlet] = set()  # those of them that serve one
        self._kept: dict[str, list[Asked]] = {}
        self._server: StreamServer | None = None
        self._stopping = False

    def keep_place(self) -> None:
        """Looks, after a pause, whether somebody has deleted its socket, and makes it again."""
        gevent.sleep(PLACE_SECONDS)
        if self._server and not (self._stopping or self._path.exists()):
            log.warning('%s was deleted: it is made again', self._path)
            self._server.close()
            try:
                self.start()
            except OSError as error:
                log.error('%s cannot be made: %s', self._path, error.strerror)

    def start(self) -> None:
        """Raises OSError."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._path.unlink(missing_ok=True)  # of a process that was killed and had this number
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self._path))
        sock.listen(1024)
        self._server = StreamServer(sock, self._answer_neighbour, spawn=self._connections)
        self._server.max_accept = 1  # in a turn: questions come one by one
        self._server.start()

    def stop(self) -> None:
        self._stopping = True
        if self._server:
            self._server.close()
            self._path.unlink(missing_ok=True)
        gevent.joinall(list(self._visits), timeout=CLOSE_SECONDS)  # they close: an answer is whole
        self._connections.kill(Ended)
        for socks in self._kept.values():
            for sock in socks:
                sock.close()

    def ask_for(self, seconds: float, peer: Peer) -> AskOthers:
        """What asks all others on behalf of a mobile client that waits for so long."""
        return partial(Question, self, seconds, peer)

    def others(self) -> set[str]:
        """The names of the other workers' sockets."""
        found: set[str] = set()
        with suppress(OSError):  # somebody has deleted the folder
            found = set(os.listdir(self._folder)) - {self._path.name}
        for name in self._kept.keys() - found:  # it has ended
            for sock in self._kept.pop(name):
                sock.close()
        return found

    def connect(self, name: str) -> Asked:
        """A connection to another worker. Raises OSError."""
        kept = self._kept.setdefault(name, [])
        while kept:
            sock = kept.pop()
            if not has_spoken(sock):
                return sock
            sock.close()
        path = f'{self._folder}/{name}'
        try:
            return OtherWorker(path)
        except ConnectionRefusedError:  # it was killed
            Path(path).unlink(missing_ok=True)
            self._kept.pop(name, None)
            raise

    def keep(self, name: str, sock: Asked) -> None:
        kept = self._kept.setdefault(name, [])
        if len(kept) < KEPT:
            kept.append(sock)
        else:
            sock.close()

    def _answer_neighbour(self, sock: socket.socket, _) -> None:
        self.answer(NearVisitor(sock))

    def answer(self, visitor: Visitor, absent: Absent | None = None) -> None:
        """Answers one question after the other, until one becomes a visit; and closes.

        `absent` is told of each UUID that is neither here nor expected.
        """
        try:
            while not self._stopping and (line := visitor.question()):
                uuid, seconds, peer = _asked(line)
                if not self._registry.count(uuid) and self._registry.expects(uuid):
                    visitor.say(EXPECTED)
                try:
                    held = self._registry.claim(uuid, seconds, visitor)
                except Refusal:
                    if absent and not self._registry.expects(uuid):
                        absent(uuid)
                    visitor.say(NO)
                    continue
                if octets := self._first_octets(visitor, held):
                    self._visits.add(gevent.getcurrent())
                    self._visit(visitor, peer, uuid, held, octets)
                return
        except (OSError, ValueError, Ended) as error:
            log.debug('a question ended: %s', error)
        finally:
            self._visits.discard(gevent.getcurrent())
            visitor.close()

    def _first_octets(self, visitor: Visitor, held: Held) -> bytes:
        """What the mobile client says; b'' where it has left: the registration waits on."""
        octets = b''
        try:
            visitor.say(YES)
            with gevent.Timeout(RESERVED_SECONDS, False):
                octets = visitor.receive()
        finally:
            if not octets:
                self._registry.unclaim(held)
        return octets


class Place(Protocol):
    """Where other workers are."""

    def others(self) -> set[str]: ...
    def connect(self, name: str, /) -> Asked: ...
    def keep(self, name: str, sock: Asked, /) -> None: ...


class Question(Others):
    """One mobile client's question to all other workers of a place, for as long as it waits."""

    def __init__(self, place: Place, seconds: float, peer: Peer, uuid: str, result: AsyncResult):
        self._place, self._uuid, self._result = place, uuid, result
        addresses = [*peer[:2], *(peer.reached or ())[:2]]
        self._line = (' '.join(map(str, (uuid, seconds, *addresses))) + '\n').encode()
        self._asked: dict[str, gevent.Greenlet] = {}  # those that have not said yes or no
        self._silent: set[str] = set()  # those that have not said anything
        self._expected, self._known = False, Event()

    def ask(self) -> None:
        new = [name for name in self._place.others() if name not in self._asked]
        self._silent.update(new)
        for name in new:
            self._asked[name] = gevent.spawn(self._ask, name)
        if not self._silent:
            self._known.set()

    def is_expected(self) -> bool:
        self._known.wait(ANSWER_SECONDS)
        return self._expected

    def end(self) -> None:
        if self._asked:
            gevent.killall(list(self._asked.values()), block=False)

    def _ask(self, name: str) -> None:
        sock, answer = None, b''
        try:
            sock = self._place.connect(name)
            sock.send(self._line)
            answer = sock.answer()
            self._heard(name, answer)
            if answer == EXPECTED:
                answer = sock.answer()
            if answer == YES and not self._result.ready():
                self._result.set(HeldElsewhere(self._uuid, sock))
                sock = None  # it is the visit's
        except OSError as error:
            log.debug('%s: %s', name, error)
        finally:
            del self._asked[name]
            self._heard(name, answer)
            if sock and answer == NO:
                self._place.keep(name, sock)
            elif sock:
                sock.close()

    def _heard(self, name: str, answer: bytes) -> None:
        self._expected |= answer in (YES, EXPECTED)
        self._silent.discard(name)
        if self._expected or not self._silent:
            self._known.set()


def _asked(line: bytes) -> tuple[str, float, Peer]:
    """A question: UUID, seconds, and who asks. Raises ValueError."""
    uuid, seconds, host, port, *reached = line.decode().split()
    peer = Peer(host, int(port))
    if reached:
        host, port = reached
        peer = peer._replace(reached=Peer(host, int(port)))
    return uuid, float(seconds), peer
