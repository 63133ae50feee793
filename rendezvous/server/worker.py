"""A worker: accepts connections from the socket that all workers share, and serves them.

The parent starts it with `server.py --worker N` and tells it the rest in one variable of the
environment. It says by a signal that it serves. SIGHUP: it reads key and certificate again;
SIGTERM: it lets its pipes finish and ends; SIGUSR2: the same, but others serve already, and nothing
that it has accepted is lost; SIGUSR1: other nodes serve, and it ends with its last pipe, however
long that takes. It never outlives the parent.
"""

import ctypes
import gc
import json
import logging
import math
import os
import select
import signal
import socket
import ssl
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from rendezvous.server import listening, starting, tls
from rendezvous.server.connection import Rendezvous
from rendezvous.server.limits import ThrottledWarning
from rendezvous.server.meeting import FOLDER
from rendezvous.server.shares import Shares
from rendezvous.server.starting import ORDERS, READY
from rendezvous.store import state
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.options import Options
from rendezvous.wire import programs
from rendezvous.wire.background_log import Background
from rendezvous.wire.greenlets import keep_running
from rendezvous.wire.programs import Mistake
from rendezvous.wire.sockets import is_polled, keep_alive, keep_watch

log = logging.getLogger('worker')

AGAIN_SECONDS = 1
TRIM_SECONDS = 2  # it takes half a millisecond, and five where there is much to give back
COLLECT_SECONDS = 60  # between two looks for garbage, in what came since the last one
LOOKS = 24 * 60  # a day; the next one is at everything: each thousand that wait take 18 ms
FINISH_SECONDS = 30  # what pipes may take to finish
HAND_OVER_SECONDS = 60  # more for registrations that have not been ended yet
CLOSE_SECONDS = 2
LOOK_SECONDS = 0.02  # between two looks whether all are accepted
NAMES_SECONDS = 2  # that a start waits for Redis, so that no name is unknown for a moment
# A worker that is ahead lets the others accept for so long, so often: they may hang.
BEHIND_SECONDS, BEHIND_TURNS = 0.002, 3


class Worker:
    """A listening socket and the rendezvous behind it."""

    def __init__(
        self,
        options: Options,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        entries: Entries,
        among: Shares,
        meeting_place: Path,
        which: str = '1/1',
        since: float = 0,
    ):
        """`among`: how many connections all workers have; `which`: its number, and how many.

        `meeting_place`: the path of its socket for the others, beside theirs. `since`: when the
        parent began, in seconds since 1970.
        """
        self.options, self.entries, self.shares = options, entries, among
        keep_alive(listener)  # once: each connection inherits it (Linux)
        self.rendezvous = Rendezvous(options, entries, context, among, meeting_place, which, since)
        self.connections = self.rendezvous.connections
        self._server = Listener(listener, self.rendezvous, among)
        self._greenlets = Pool()

    @property
    def port(self) -> int:
        return self._server.socket.getsockname()[1]

    def start(self) -> None:
        """Meets the other workers, and serves. Raises OSError and Mistake."""
        runs = [keep_watch, self.rendezvous.following.run, self.rendezvous.write_presence]
        runs += [self.rendezvous.meeting.keep_place, give_memory_back, collect_garbage]
        for run in runs:
            self._greenlets.spawn(keep_running, run, AGAIN_SECONDS)
        self.rendezvous.meeting.start()
        if self.rendezvous.nodes:
            self.rendezvous.nodes.start()
        self.rendezvous.names.are_known.wait(NAMES_SECONDS)
        self._server.start()

    def reload(self) -> None:
        """Key and certificate are read again, for connections from now on."""
        try:
            self.rendezvous.context = tls.context(self.options)
            log.info('read key and certificate again')
        except Exception as error:  # whatever it is, it is no reason to end
            log.error('the old key and certificate stay: %s', error)

    def stop(self, hand_over: bool = False, seconds: float = FINISH_SECONDS) -> None:
        """No new connections; pipes may finish for so many seconds; then each is closed.

        With `hand_over` other workers serve from now on.
        """
        self._server.close()
        if self.rendezvous.nodes:
            self.rendezvous.nodes.close()
        handing_over = gevent.Greenlet(self.rendezvous.hand_over)
        if hand_over:
            handing_over.start()
        else:
            self.rendezvous.stop()
        self.rendezvous.join(seconds)
        if hand_over:
            handing_over.join(timeout=HAND_OVER_SECONDS)
        self.rendezvous.stop(pipes=True)
        self.rendezvous.join(CLOSE_SECONDS)
        self.rendezvous.meeting.stop()
        if self.rendezvous.nodes:
            self.rendezvous.nodes.stop()
        self._greenlets.kill()
        with suppress(StoreDown):
            self.rendezvous.presence.stop()
        self.entries.close()

    def drain(self) -> None:
        """Other nodes serve from now on: until the last connection is over. `stop` comes next."""
        ending = gevent.spawn(self.rendezvous.drain)
        try:
            self._warn_where_alone()
            gevent.sleep(listening.LISTEN_SECONDS)
            listening.begin_no_more(self._server.socket)
            gevent.sleep(listening.HANDSHAKES_SECONDS)
            while is_polled(self._server.socket, select.POLLIN):  # some wait to be accepted
                gevent.sleep(LOOK_SECONDS)
            self._server.close()
            self.rendezvous.join(math.inf)
        finally:
            ending.kill()

    def _warn_where_alone(self) -> None:
        """One worker of a node that is drained says where nobody takes over."""
        about = self.rendezvous.about()
        with suppress(StoreDown):
            nodes = {each.node for each in state.server(self.entries).workers}
            if about['number'] == 1 and nodes <= {about['node']}:
                log.warning('no other node lives: nobody can register or visit from now on')


def give_memory_back() -> None:
    """glibc keeps what a crowd has left behind, unless it is told; other libcs do not."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    gevent.sleep(TRIM_SECONDS)


def collect_garbage() -> None:
    """In cycles of references: when we choose, and not whenever many have come."""
    for _ in range(LOOKS):
        gevent.sleep(COLLECT_SECONDS)
        gc.collect()
        gc.freeze()  # what has survived is not looked at until tomorrow
    gc.unfreeze()


class Listener(StreamServer):
    """Accepts connections; where descriptors are used up it makes room and tries again soon."""

    max_delay = 0.1  # seconds between two tries; the first are sooner
    max_accept = 1  # in a turn: the kernel wakes all workers, and each takes one

    def __init__(self, sock: socket.socket, rendezvous: Rendezvous, among: Shares):
        super().__init__(sock, rendezvous.handle)
        self._limits, self._shares = rendezvous.limits, among
        self._warn, self._turns_left = ThrottledWarning(), BEHIND_TURNS

    def do_handle(self, *connection):
        """The handler closes the connection in any case."""
        self._spawn(self._handle, *connection)

    def do_read(self):
        """Lets others accept first where this worker has more connections than they."""
        if self._turns_left and self._shares.is_ahead():
            self._turns_left -= 1
            self.stop_accepting()
            self._timer = self.loop.timer(BEHIND_SECONDS)
            self._timer.start(self._start_accepting_if_started)
            return None
        self._turns_left = BEHIND_TURNS
        try:
            return super().do_read()
        except OSError as error:
            if self.is_fatal_error(error):
                raise
            self._limits.evict()
            self._warn('cannot accept a connection: %s', error.strerror)
            # The one exception for which gevent prints no traceback; it pauses as for any.
            raise gevent.GreenletExit from None


class Orders(NamedTuple):
    """What the parent tells a worker, as JSON in its environment."""

    parent: int  # its process
    number: int  # from 1 on
    workers: int
    listener: int  # a descriptor
    shares: int  # a descriptor
    seed: str  # hexadecimal
    options: dict
    since: float = 0  # when the parent began, in seconds since 1970; 0: an older one started us


def main() -> int:
    """Raises Mistake."""
    if '--check' in sys.argv:
        options = starting.check()
        if not options.has_embedded_store:  # ours is there as soon as the server is
            Entries(options, starts_store=False).open()
        return 0
    orders = Orders(*json.loads(os.environ.pop(ORDERS)))
    programs.die_with(orders.parent, signal.SIGKILL)
    starting.log_to_file(Background)
    sys.excepthook = lambda *error: log.critical('the worker dies', exc_info=error)
    speaks, trouble = orders.number == 1, None  # the others would only say the same
    try:
        worker = prepared(orders)
        if speaks:
            worker.entries.open()
    except StoreDown as error:
        trouble = error
    except Mistake as mistake:
        log.critical('%s', mistake)
        raise
    starting.log_to_stderr(Background)
    if trouble:
        log.error('%s; nobody can register until the store answers', trouble)
    if speaks:
        log.info('%s', worker.entries.where())
    serve(worker, orders)
    return 0


def prepared(orders: Orders) -> Worker:
    """Raises Mistake."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1_000_000_000)  # collect_garbage looks at the old
    options = Options(**orders.options)
    among = Shares(orders.shares, orders.workers, orders.number, bytes.fromhex(orders.seed))
    among.clear()
    entries = Entries(options, starts_store=False)
    listener, which = socket.socket(fileno=orders.listener), f'{orders.number}/{orders.workers}'
    gc.freeze()  # what is there now stays
    place = FOLDER / str(os.getpid())
    context = tls.context(options)
    return Worker(options, listener, context, entries, among, place, which, orders.since)


def serve(worker: Worker, orders: Orders) -> None:
    """Until a signal ends it."""
    stopping, ends = Event(), []

    def stop(number: int) -> None:
        ends.append(number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGUSR2):
        gevent.signal_handler(number, stop, number)
    draining = gevent.Greenlet(worker.drain)
    draining.link(lambda _: stopping.set())
    gevent.signal_handler(signal.SIGHUP, worker.reload)
    gevent.signal_handler(signal.SIGUSR1, draining.start)
    try:
        worker.start()
    except Mistake as mistake:  # of its own port for other nodes
        log.critical('%s', mistake)
        raise
    os.kill(orders.parent, READY)
    stopping.wait()
    draining.kill()
    worker.stop(hand_over=ends == [signal.SIGUSR2])
