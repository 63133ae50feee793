"""Keeps registrations waiting at the rendezvous server, each for a visit to the local server.

There is a slot for each registration that is to wait. The greenlet of a slot loops: it dials until
it has a registration, then waits until that one is taken by a mobile client, ended or old. An old
one is replaced, since a middlebox may have forgotten it silently; it goes on waiting until the next
one waits. The connection of a registration has a greenlet of its own, which owns it to the end.
"""

import logging
import math
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache, partial

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.pool import Pool

from rendezvous.hidden import dial
from rendezvous.hidden.http_proxy import way
from rendezvous.hidden.local_server import LocalServer
from rendezvous.hidden.surroundings import Surroundings, clock
from rendezvous.hidden.target import Target, address
from rendezvous.wire import codes, proxy_line, sockets
from rendezvous.wire.addresses import Peer
from rendezvous.wire.greenlets import keep_running
from rendezvous.wire.http_head import Refusal

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger('hidden')

LIFETIME_SECONDS = 15 * 60  # of a registration that waits, then it is replaced
TUNNEL_SECONDS = 4 * 60  # of one through a proxy: many end what is silent for five minutes
CHECK_SECONDS = 1  # between two checks whether a registration is still good
REPLACED_SECONDS = 0.1  # between two checks whether the next registration waits
SETTLED_SECONDS = 10  # a registration that lasted so long was no failure
GOODBYE_SECONDS = 1  # to close all connections, at the end
# The shortest pause between two tries and the longest. In between it is a share of the time for
# which the server has been away: one that restarts is found again at once. A wrong code does not
# become right sooner if it is tried more often. The certificate is wrong for a while behind the
# login page of a hotel.
LOST_PAUSES_SECONDS, LOST_SHARE = (0.1, 1.5), 0.02  # no connection, no answer, a 5xx
CLOSED_PORT_SHARE = 0.004  # where the system refuses a connection, which costs next to nothing
CERTIFICATE_PAUSES_SECONDS, CERTIFICATE_SHARE = (2.0, 4.0), 0.02
REFUSED_PAUSES_SECONDS, REFUSED_SHARE = (15, 60), 1
LOGGED_PAUSE_SECONDS = 5  # a longer pause is mentioned in the log
LONGEST_PAUSE_SECONDS = 60  # whatever Retry-After says: `enable` works within a minute
HANG_UP_PAUSES_SECONDS = 0.1, 15  # after a 200 and an early end; each time twice as long
HANG_UPS = 4  # after so many in a row there is a warning
# Each worker of the server is to have one of our registrations: else visits cross from worker to
# worker. So many more dials are made for one registration.
EXTRA_DIALS = 7
LINE_SECONDS = 15  # for all of a PROXY line; nearly always all of it comes at once
BUG_SECONDS = 1  # pause after a bug of ours
DESCRIPTORS = 10_240  # a pipe needs two; macOS gives no more, and so many pipes need some 400 MB
OWN_DESCRIPTORS = 64  # for everything else than registrations and pipes


class Registration:
    """A connection that got its 200; `worker` as in dial.Connection."""

    def __init__(
        self, sock: sockets.TLSSocket, worker: dial.Worker | None = None, through: str = ''
    ):
        self.sock, self.worker, self.began = sock, worker, clock()
        lifetime = TUNNEL_SECONDS if through else LIFETIME_SECONDS
        self.ends = self.began + lifetime * random.uniform(0.9, 1)
        self.greenlet: gevent.Greenlet  # that owns it
        self.over = Event()  # it is time to make the next one
        self.replaced = False  # the next one waits: this one may end
        self.settled = False  # it was no failure


class Slot:
    """One registration after the other."""

    def __init__(self, *, is_probed: bool):
        self.is_probed = is_probed
        self.registration: Registration | None = None  # the latest
        self.hang_ups = 0  # in a row


class HiddenServer:
    """Keeps `count` registrations of an entry waiting."""

    def __init__(self, entry: dict, target: Target, count: int, proxy: str | None = None):
        """`entry`: what an ID.json holds; `proxy`: the URL of one, if not of the environment.

        Raises BadProxy, and any exception where the entry makes no sense.
        """
        self._uuid, server = entry['uuid'][0], entry['server']
        host, port = address(server['hostname'] + f':{server["port"]}')
        self._way = way(host, port, proxy)
        self._server = dial.RendezvousServer(host, port, server.get('ca'), self._way)
        self._surroundings = Surroundings(self._way)
        # Where the server has names, the URL says it all.
        without_names = f'https://{self._server.name.removesuffix(":443")}/ and the user name '
        self._url = server.get('url') or without_names + self._uuid
        self._totp = codes.totp(entry['authParams'])
        if not codes.UUID.fullmatch(self._uuid):
            raise ValueError('uuid holds no UUID')
        # A dead connection is found soon by the probes of one, then the others are replaced.
        self._slots = [Slot(is_probed=number == 0) for number in range(count)]
        self._slot_greenlets = Pool(None)
        # A greenlet for each registration, and one more for each pipe: as many as descriptors.
        self._connections = Pool(None)
        self._max_connections = descriptors() - OWN_DESCRIPTORS - count
        self._local_server = LocalServer(target, self._uuid, self._connections)
        self._waiting: set[Registration] = set()  # not in a pipe yet
        self._suspect_before = -math.inf  # clock(): registrations that are older may be dead
        self._offline = Event()  # set while no registration succeeds: then one slot tries for all
        self._offline.set()
        self._offline_since, self._one_at_a_time = time.monotonic(), Semaphore()
        self._most_extra_dials = EXTRA_DIALS
        self._logged_state = ''
        self._warn_once, self._say_once = cache(log.warning), cache(log.info)

    def start(self) -> None:
        slots = [partial(self._fill, slot) for slot in self._slots]
        for run in (sockets.keep_watch, self._check_surroundings, *slots):
            self._slot_greenlets.spawn(keep_running, run, BUG_SECONDS)

    def stop(self, seconds: float) -> None:
        """Ends what waits; pipes may finish for so many seconds."""
        self._slot_greenlets.kill()
        gevent.sleep(0)  # new greenlets start: one that is killed before that closes nothing
        pipes = len(self._connections) - len(self._waiting)
        for registration in list(self._waiting):
            registration.greenlet.kill(sockets.Ended, block=False)
        if pipes:
            log.info('stopping: pipes may take %d seconds to finish', seconds)
        self._connections.join(timeout=seconds)
        self._connections.kill(sockets.Ended, timeout=GOODBYE_SECONDS)

    def _check_surroundings(self) -> None:
        gevent.sleep(CHECK_SECONDS)
        if change := self._surroundings.change():
            log.info('%s: all registrations are replaced', change)
            self._suspect_before = clock()

    # A slot's greenlet

    def _fill(self, slot: Slot) -> None:
        """Makes a registration, and returns when it is time for the next one."""
        self._pause_after_hang_ups(slot)
        connection = self._dial()
        registration = Registration(connection.sock, connection.worker, self._way.through)
        if slot.registration:
            slot.registration.replaced = True
        slot.registration = registration
        self._waiting.add(registration)
        serve = partial(self._serve, registration, connection.octets, slot.is_probed)
        registration.greenlet = self._connections.spawn(serve)
        gevent.wait([registration.over, registration.greenlet], count=1)
        slot.hang_ups = 0 if registration.settled else slot.hang_ups + 1
        if slot.hang_ups == HANG_UPS:
            who = ' or '.join(filter(None, ('the server', self._way.through)))
            sentence = f'{who} keeps hanging up: if more than its max_waiting register, '
            self._warn_once(f'{sentence}set --registrations to less')

    def _pause_after_hang_ups(self, slot: Slot) -> None:
        """Ends early where another slot finds the server offline: then it will be back."""
        if slot.hang_ups:
            first, longest = HANG_UP_PAUSES_SECONDS
            self._offline.wait(jittered(min(longest, first * 2 ** min(slot.hang_ups - 1, 16))))
        if self._offline.is_set():
            slot.hang_ups = 0

    def _dial(self) -> dial.Connection:
        """Tries until the server gives a 200, however long that takes.

        Workers that have one of ours already refuse, as long as another one may be found. Something
        in front of the server may lead us to the same worker each time: after a search in vain the
        next one is half as long, until one succeeds.
        """
        extra_dials = sent_on = 0
        while True:
            with self._one_at_a_time if self._offline.is_set() else nullcontext():
                kept = self._kept()
                covered = _covered(kept) if extra_dials < self._most_extra_dials else []
                ours = Counter(each.node for each in kept)
                try:
                    connection = self._server.register(self._uuid, self._totp, covered, ours)
                except dial.WorkerCovered:
                    extra_dials += 1
                except dial.Leaving as error:  # a balancer in front may lead us elsewhere
                    sent_on += 1
                    is_lost = sent_on > EXTRA_DIALS
                    self._sleep(self._pause_after_failure(error) if is_lost else pause_after(error))
                except (dial.NotRegistered, OSError) as error:
                    self._sleep(self._pause_after_failure(error))
                else:
                    if extra_dials:
                        shorter = max(1, self._most_extra_dials // 2)
                        self._most_extra_dials = EXTRA_DIALS if covered else shorter
                    self._offline.clear()
                    through = f' through {self._way.through}' if self._way.through else ''
                    state = f'registered at {self._server.name} as {self._uuid}{through}'
                    self._log_state(logging.INFO, state)
                    self._say_once('mobile clients use %s', self._url)
                    return connection

    def _pause_after_failure(self, error: Exception) -> float:
        """Logs why, and gives the seconds until the next try."""
        if not self._offline.is_set():
            self._offline_since = time.monotonic()
            self._offline.set()
        pause = pause_after(error, time.monotonic() - self._offline_since)
        why = dial.why(error)
        if pause > LOGGED_PAUSE_SECONDS:
            why += f'; the next try is in {pause:.0f} s'
        self._log_state(logging.WARNING, f'not registered at {self._server.name}: {why}')
        return pause

    def _sleep(self, seconds: float) -> None:
        """Ends early when the surroundings have changed: then a try may succeed."""
        began = clock()
        while self._suspect_before < began and (left := began + seconds - clock()) > 0:
            gevent.sleep(min(left, CHECK_SECONDS))

    def _kept(self) -> list[dial.Worker]:
        """The workers of the registrations that wait, as far as they are known."""
        return [each.worker for each in self._waiting if each.worker and not self._is_due(each)]

    # A connection's greenlet

    def _serve(self, registration: Registration, octets: bytes, is_probed: bool) -> None:
        """The life of a registration's connection; `octets` came behind its 200."""
        sock = registration.sock
        close: Callable[[sockets.TLSSocket], None] = sockets.close_gracefully
        try:
            if is_probed:
                dial.probe_often(sock)
            octets = self._wait(registration, octets)
            if octets and self._is_full():
                # The slot waits until this one is closed: so there are never many of them.
                sock.send(Refusal(503, 'too many at a time', 'Retry-After: 5').octets())
            elif octets:
                registration.over.set()
                sockets.keep_alive(sock)  # no probe_often any more
                visitor, octets = _visitor(sock, octets)
                self._local_server.pipe(sock, octets, visitor)
            elif registration.replaced:
                close = _close_at_once
        except (sockets.Ended, OSError):
            pass
        except Exception:
            log.exception('a registration failed')
        finally:
            close(sock)

    def _is_full(self) -> bool:
        return len(self._connections) + self._local_server.connecting >= self._max_connections

    def _wait(self, registration: Registration, octets: bytes) -> bytes:
        """The first octets of a mobile client, or b'': it ended, or it is replaced."""
        try:
            octets = octets or self._first_octets(registration)
        except OSError:
            self._suspect_all()
        finally:
            self._waiting.discard(registration)
        lasted = clock() - registration.began
        registration.settled |= bool(octets) or lasted > SETTLED_SECONDS
        return octets

    def _first_octets(self, registration: Registration) -> bytes:
        """As _wait. Raises OSError where the connection breaks."""
        sock = registration.sock
        while True:
            sock.settimeout(self._check_after(registration))
            try:
                octets = sock.receive()
                sock.settimeout(None)
                return octets
            except BlockingIOError:
                return b''  # replaced, and nothing has come; no yield from here to its close
            except TimeoutError as error:
                if error.errno:  # the system's: the peer is dead
                    raise
            if self._is_due(registration):
                registration.settled = True
                registration.over.set()

    def _check_after(self, registration: Registration) -> float:
        """The seconds for which it may wait until it is checked again; 0 where it may end."""
        if registration.over.is_set():
            return 0 if registration.replaced else REPLACED_SECONDS
        return min(max(registration.ends - clock(), 0) + 0.001, CHECK_SECONDS)

    def _is_due(self, registration: Registration) -> bool:
        """Whether it is to be replaced."""
        is_old = clock() >= registration.ends or registration.began < self._suspect_before
        return is_old or registration.over.is_set()

    def _suspect_all(self) -> None:
        """One broke, so the others may be dead, too. But not if that happens again and again."""
        if clock() - self._suspect_before > SETTLED_SECONDS:
            self._suspect_before = clock()

    def _log_state(self, level: int, state: str) -> None:
        """Logs a change of state, once for all slots."""
        if state != self._logged_state:
            self._logged_state = state
            log.log(level, state)


def _covered(kept: list[dial.Worker]) -> list[dial.Worker]:
    """The workers that have one of ours, if another one of their nodes has none."""
    counts: dict[str, int] = {}  # of the workers of each node
    for each in kept:
        counts[each.node] = max(each.of, counts.get(each.node, 0))
    covered = {each for each in kept if each.of == counts[each.node]}
    return sorted(covered) if len(covered) < sum(counts.values()) else []


def _visitor(sock: sockets.TLSSocket, octets: bytes) -> tuple[Peer | None, bytes]:
    """Who asks, where the server says so in front of the first octets; and those.

    Raises OSError.
    """
    with gevent.Timeout(LINE_SECONDS, TimeoutError('half a PROXY line')):
        while not (found := proxy_line.split(octets)):
            more = sock.receive()
            if not more:
                raise ConnectionError('ended in a PROXY line')
            octets += more
    return found


def _close_at_once(sock: sockets.TLSSocket) -> None:
    """Closes a connection on which nothing has come.

    A request that is on its way gets an RST in place of an ACK. So the server knows that nobody
    has read it, and gives it to another registration.
    """
    with suppress(OSError):
        sock.close_notify()
    sock.close()


def pause_after(error: Exception, offline_seconds: float = 0) -> float:
    """Seconds until the next try, where no try has succeeded for `offline_seconds`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        (shortest, longest), share = CERTIFICATE_PAUSES_SECONDS, CERTIFICATE_SHARE
    elif getattr(error, 'status', 500) < 500:
        (shortest, longest), share = REFUSED_PAUSES_SECONDS, REFUSED_SHARE
    else:
        (shortest, longest), share = LOST_PAUSES_SECONDS, LOST_SHARE
        if isinstance(error, ConnectionRefusedError):
            share = CLOSED_PORT_SHARE
    pause = jittered(min(longest, max(shortest, share * offline_seconds)))
    return min(LONGEST_PAUSE_SECONDS, pause + getattr(error, 'retry_after', 0))


def jittered(seconds: float) -> float:
    """So that many hidden servers do not all come at the same moment."""
    return seconds * random.uniform(0.5, 1)


def descriptors() -> int:
    """How many descriptors this process may have; raises its limit."""
    if not resource:
        return DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return count
