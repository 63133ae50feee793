"""The hidden server's end: registers at the rendezvous server and pipes to a local HTTP server.

A few registrations wait side by side. The moment one is taken, the next one is made in its place.
One that has waited for long is replaced, the new one first: a middlebox may have forgotten it
without a word. Needs only gevent and pyotp.
"""

import argparse
import json
import logging
import math
import os
import random
import re
import signal
import socket
import ssl
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.pool import Pool

from rendezvous.hidden import dial
from rendezvous.hidden.dial import NotRegistered
from rendezvous.hidden.surroundings import Surroundings, clock
from rendezvous.wire import addresses, codes, logs, pipe, sockets
from rendezvous.wire.background_log import Background
from rendezvous.wire.http_head import Refusal
from rendezvous.wire.programs import Mistake

try:
    import resource
except ImportError:
    resource = None  # Windows

log = logging.getLogger('hidden')

LIFETIME_SECONDS = 15 * 60
LOOK_SECONDS = 1  # between two looks whether what waits is still good
SETTLED_SECONDS = 10  # a registration that lasted so long was no failure
FINISH_SECONDS = 30  # what pipes may take to finish after SIGTERM, as the server's may
GOODBYE_SECONDS = 1  # for all connections together, at the end
# The shortest pause before the next try, the longest, and in between a share of the time that the
# server was gone: one that is restarted is found again in an instant. Trying faster makes no wrong
# code right; but a certificate is wrong for a while behind the login page of a hotel.
LOST_PAUSES_SECONDS, LOST_SHARE = (0.1, 1.5), 0.02  # no connection, no answer, a 5xx
CERTIFICATE_PAUSES_SECONDS, CERTIFICATE_SHARE = (2, 4), 0.02
REFUSED_PAUSES_SECONDS, REFUSED_SHARE = (15, 60), 1
LONG_SECONDS = 5  # a longer pause is worth a word
LONGEST_PAUSE_SECONDS = 60  # whatever the server says: `enable` works within a minute
HANG_UP_PAUSES_SECONDS = 0.1, 15  # a 200, and the end soon after it: each time twice as long
HANG_UPS = 4  # so many in a row are worth a line in the log
AGAIN_SECONDS = 1  # after a mistake of ours
DESCRIPTORS = 10_240  # a pipe needs two; macOS gives no more, and so many pipes need some 400 MB
OWN_DESCRIPTORS = 64  # for what is no registration and no pipe
# What nginx, Apache and Go answer to plain HTTP on a port for TLS; others send an alert of TLS.
WANTS_TLS = re.compile(rb'\x15\x03|HTTP/1\.[01] 400 .*(HTTPS port|SSL-enabled|HTTPS server)', re.S)


class Line:
    """Registrations one after the other, each made when the one before is over."""

    def __init__(self, *, is_scout: bool):
        self.is_scout = is_scout  # is probed often, for all
        self.last: Registration | None = None
        self.hang_ups = 0  # in a row


class Registration:
    """A connection that got its 200, and what came behind it."""

    def __init__(self, sock, octets: bytes):
        self.sock, self.octets, self.began = sock, octets, clock()
        self.ends = self.began + LIFETIME_SECONDS * random.uniform(0.9, 1)
        self.over = Event()  # it is time for the next one
        self.replaced = Event()  # the next one waits: this one may go
        self.settled = False  # it was no failure


class LocalSocket(socket.socket):
    """A connection to the local server; `look` is shown the first octets of the answer."""

    look = None

    def recv(self, *how) -> bytes:
        octets = super().recv(*how)
        if self.look:
            self.look(octets)
            self.look = None
        return octets


class HiddenServer:
    """Keeps `count` registrations of an entry waiting, each for a pipe to the local server."""

    def __init__(self, entry: dict, local_address: tuple[str, int], count: int):
        """Raises anything where `entry` makes no sense."""
        self._uuid, server = entry['uuid'][0], entry['server']
        host, port = address(server['hostname'] + f':{server["port"]}')
        self._server = dial.Server(host, port, server.get('ca'))
        self._surroundings = Surroundings(self._server.addresses)
        self._totp = codes.totp(entry['authParams'])
        if not codes.UUID.fullmatch(self._uuid):
            raise ValueError('uuid holds no UUID')
        self._local = dial.Addresses(*local_address)
        self._local_name = addresses.authority(*local_address)
        self._lines = [Line(is_scout=number == 0) for number in range(count)]
        # A greenlet for each registration, and one more for each pipe: as many as descriptors.
        self._connections, self._connecting = Pool(None), 0
        self._most = descriptors() - OWN_DESCRIPTORS - count
        self._waiting: set[gevent.Greenlet] = set()  # of them, those in no pipe yet
        self._trying = Pool(None)
        self._doubtful_until = -math.inf  # clock(): registrations of before may be dead
        self._gone = Event()  # set while the server does not give a 200: one tries, for all
        self._gone.set()
        self._gone_at, self._turn = time.monotonic(), Semaphore()
        self._said, self._said_once = '', set()

    def start(self) -> None:
        turns = [partial(self._register, line) for line in self._lines]
        for run in (sockets.keep_watch, self._look, *turns):
            self._trying.spawn(for_ever, run)

    def stop(self, seconds: float) -> None:
        """Registers no more and ends what waits; pipes may finish for so many seconds."""
        self._trying.kill()
        gevent.sleep(0)  # one that has just been made begins: before that it can say no goodbye
        pipes = len(self._connections) - len(self._waiting)
        for greenlet in list(self._waiting):
            greenlet.kill(sockets.Ended, block=False)
        if pipes:
            log.info('stopping: pipes may take %d seconds to finish', seconds)
        self._connections.join(timeout=seconds)
        self._connections.kill(sockets.Ended, timeout=GOODBYE_SECONDS)

    def _look(self) -> None:
        gevent.sleep(LOOK_SECONDS)
        if change := self._surroundings.change():
            log.info('%s: all registrations are made anew', change)
            self._doubtful_until = clock()

    def _register(self, line: Line) -> None:
        """Makes a registration, and comes back when it is time for the next one."""
        if line.hang_ups:  # unless another one finds that the server is gone and will be back
            first, longest = HANG_UP_PAUSES_SECONDS
            self._gone.wait(_vary(min(longest, first * 2 ** min(line.hang_ups - 1, 16))))
        if self._gone.is_set():
            line.hang_ups = 0
        registration = Registration(*self._dial())
        if line.last:
            line.last.replaced.set()
        line.last = registration
        if line.is_scout:
            dial.probe_often(registration.sock)
        life = self._connections.spawn(self._live, registration)
        gevent.wait([registration.over, life], count=1)
        line.hang_ups = 0 if registration.settled else line.hang_ups + 1
        if line.hang_ups == HANG_UPS:
            self._say_once('the server keeps hanging up: do more register than its max_waiting?')

    def _dial(self) -> tuple[sockets.TLSSocket, bytes]:
        """A connection that got its 200, and what came behind it, however long that takes."""
        while True:
            with self._turn if self._gone.is_set() else nullcontext():
                try:
                    found = self._server.register(self._uuid, self._totp)
                    self._gone.clear()
                    self._say(logging.INFO, f'registered at {self._server.name} as {self._uuid}')
                    return found
                except (NotRegistered, OSError) as error:
                    if not self._gone.is_set():
                        self._gone_at = time.monotonic()
                        self._gone.set()
                    pause = _pause_after(error, time.monotonic() - self._gone_at)
                    why = dial.why(error)
                    if pause > LONG_SECONDS:
                        why += f'; the next try is in {pause:.0f} s'
                    self._say(logging.WARNING, f'not registered at {self._server.name}: {why}')
                    self._sleep(pause)

    def _sleep(self, seconds: float) -> None:
        """So long, or until something has changed: then a try is worth it."""
        began = clock()
        while self._doubtful_until < began and (left := began + seconds - clock()) > 0:
            gevent.sleep(min(left, LOOK_SECONDS))

    def _live(self, registration: Registration) -> None:
        """A registration's life: waits, pipes, says goodbye."""
        sock = registration.sock
        try:
            octets = self._wait(registration)
            if octets and len(self._connections) + self._connecting >= self._most:
                # The next one is made after the goodbye: so those that are refused are never many.
                sock.sendall(Refusal(503, 'too many at a time', 'Retry-After: 5').octets())
            elif octets:
                registration.over.set()
                sockets.keep_alive(sock)  # it is no scout any more
                self._pipe(sock, octets)
        except (sockets.Ended, OSError):
            pass
        except Exception:
            log.exception('a registration failed')
        finally:
            sockets.close_gracefully(sock)

    def _wait(self, registration: Registration) -> bytes:
        """The first octets of a mobile client, or b'': it hung up, or has been replaced."""
        greenlet, octets = gevent.getcurrent(), registration.octets
        self._waiting.add(greenlet)
        try:
            octets = octets or self._first_octets(registration)
        except OSError:
            self._doubt()
        finally:
            self._waiting.discard(greenlet)
        lasted = clock() - registration.began
        registration.settled |= bool(octets) or lasted > SETTLED_SECONDS
        return octets

    def _first_octets(self, registration: Registration) -> bytes:
        """What a mobile client sends first, or b''. Raises OSError where the connection breaks.

        One that is old waits until the next one does. A request that is on its way to a replaced
        one in the very moment when that goes is lost: the server takes the newest, so that needs a
        crowd.
        """
        sock = registration.sock
        while not registration.replaced.is_set():
            left = registration.ends - clock()
            sock.settimeout(LOOK_SECONDS if left < 0 else min(left + 0.001, LOOK_SECONDS))
            try:
                octets = sockets.receive(sock)
                sock.settimeout(None)
                return octets
            except TimeoutError as error:
                if error.errno:  # the system's: the peer is dead
                    raise
            if clock() >= registration.ends or registration.began < self._doubtful_until:
                registration.settled = True
                registration.over.set()
        return b''

    def _doubt(self) -> None:
        """One has broken: those beside it may have, too, unless that happens again and again."""
        if clock() - self._doubtful_until > SETTLED_SECONDS:
            self._doubtful_until = clock()

    def _pipe(self, sock, octets: bytes) -> None:
        """Joins it to the local server. Raises OSError."""
        self._connecting += 1
        try:
            connected = self._local.connect()
        except OSError as error:
            log.warning('the local server %s: %s', self._local_name, dial.why(error))
            sock.sendall(Refusal(502, 'the server behind the rendezvous is down').octets())
            return
        finally:
            self._connecting -= 1
        near = LocalSocket(fileno=connected.detach())
        near.look = self._look_at
        sockets.keep_alive(near)

        try:
            how = pipe.join(pipe.End(sock), near, octets, drain=0, spawn=self._connections.spawn)
        except sockets.Ended:
            how = pipe.How.ENDED
        if not how.is_whole:
            sockets.reset(sock)  # an answer that was cut off must not look whole

    def _look_at(self, octets: bytes) -> None:
        if WANTS_TLS.match(octets):
            self._say_once(f'the local server {self._local_name} wants TLS, and gets plain HTTP')

    def _say(self, level: int, state: str) -> None:
        """Logs a change of state, once for all registrations."""
        if state != self._said:
            self._said = state
            log.log(level, state)

    def _say_once(self, warning: str) -> None:
        if warning not in self._said_once:
            self._said_once.add(warning)
            log.warning(warning)


def for_ever(run) -> None:
    """Begins again at the end, also where that comes of a mistake of ours."""
    while True:
        try:
            run()
        except Exception:
            log.exception('this is a mistake in hidden.py, which goes on')
            gevent.sleep(AGAIN_SECONDS)


def _pause_after(error: Exception, gone_seconds: float) -> float:
    """Seconds until the next try, where none was good for so many."""
    if isinstance(error, ssl.SSLCertVerificationError):
        (shortest, longest), share = CERTIFICATE_PAUSES_SECONDS, CERTIFICATE_SHARE
    elif getattr(error, 'status', 500) < 500:
        (shortest, longest), share = REFUSED_PAUSES_SECONDS, REFUSED_SHARE
    else:
        (shortest, longest), share = LOST_PAUSES_SECONDS, LOST_SHARE
    pause = _vary(min(longest, max(shortest, share * gone_seconds)))
    return min(LONGEST_PAUSE_SECONDS, pause + getattr(error, 'retry_after', 0))


def _vary(seconds: float) -> float:
    """Never the same for all."""
    return seconds * random.uniform(0.5, 1)


def descriptors() -> int:
    """How many descriptors there may be; raises our limit for that."""
    if not resource:
        return DESCRIPTORS
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (math.inf if each == resource.RLIM_INFINITY else each for each in limits)
    if soft < hard and soft < DESCRIPTORS:
        soft = min(hard, DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    return min(soft, DESCRIPTORS)


def address(text: str) -> tuple[str, int]:
    """The host and the port in `127.0.0.1:8000`, `[::1]:8000`. Raises Mistake."""
    label = r'[\w:%-]{1,63}'
    match = re.fullmatch(rf'\[?((?:{label}\.)*{label}\.?)\]?:([0-9]{{1,5}})', text, re.A)
    if not match or not 0 < int(match[2]) < 65536:
        raise Mistake(f'{text!r} is not HOST:PORT, like 127.0.0.1:8000')
    return match[1], int(match[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('entry', type=Path, help='entries/ID.json, as users_app.py made it')
    parser.add_argument('local_server', help='HOST:PORT, like 127.0.0.1:8000')
    parser.add_argument('--registrations', type=int, default=4, help='that wait (default: 4)')
    arguments = parser.parse_args()
    if arguments.registrations < 1:
        raise Mistake('--registrations must be 1 or more')
    local_address = address(arguments.local_server)
    try:
        entry = json.loads(arguments.entry.read_text())
        hidden_server = HiddenServer(entry, local_address, arguments.registrations)
    except Exception as error:  # whatever comes of a file that is none of ours
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise Mistake(f'{arguments.entry} is no ID.json of users_app.py: {why}') from None
    logs.to(Background(logging.StreamHandler()))
    stopping = Event()

    def stop(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            os._exit(1)  # Ctrl-C, and again: somebody does not want to wait
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop, number)
    hidden_server.start()
    stopping.wait()
    hidden_server.stop(FINISH_SECONDS)
