"""The hidden server's end: registers at the rendezvous server and pipes to a local HTTP server.

A few registrations wait side by side. The moment one is taken, the next one is made in its place.
One that has waited for long is replaced, the new one first: a middlebox may have forgotten it
without a word. Needs only gevent and pyotp.
"""

import in_venv

in_venv.go_on()

from gevent import monkey

monkey.patch_all()

import argparse
import json
import logging
import random
import re
import signal
import socket
import ssl
import time
from contextlib import nullcontext
from pathlib import Path

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.pool import Pool

import auth
import dial
import logs
import options as local
import pipe
import sockets
from dial import Refused
from http_head import Refusal
from options import Mistake

log = logging.getLogger('hidden')

LIFETIME_SECONDS = 15 * 60
SETTLED_SECONDS = 10  # a registration that lasted so long was no failure
GOODBYE_SECONDS = 1  # for all connections together, at the end
# The shortest pause before the next try, and the longest; in between, a share of the time that the
# server was gone: one that is restarted is found again in an instant. Trying faster makes no wrong
# code right, and no bad certificate good.
LOST_PAUSES_SECONDS, LOST_SHARE = (0.1, 1.5), 0.02  # no connection, no answer, a 5xx
REFUSED_PAUSES_SECONDS, REFUSED_SHARE = (15, 300), 1
HANG_UP_PAUSES_SECONDS = 0.1, 15  # a 200, and the end soon after it: each time twice as long
HANG_UPS = 4  # so many in a row are worth a line in the log


class HiddenServer:
    """Keeps `count` registrations of an entry waiting, each for a pipe to the local server."""

    def __init__(self, entry: dict, local_address: tuple[str, int], count: int):
        """Raises anything where `entry` makes no sense."""
        self._uuid, server = entry['uuid'][0], entry['server']
        self._address = address(server['hostname'] + f':{server["port"]}')
        self._where = local.authority(*self._address)
        self._context = ssl.create_default_context(cadata=server.get('ca'))
        self._context.set_alpn_protocols(['http/1.1'])
        self._totp = auth.totp(entry['authParams'])
        if not auth.UUID.fullmatch(self._uuid):
            raise ValueError('uuid holds no UUID')
        self._local_address, self._count = local_address, count
        self._greenlets = Pool(None)
        self._gone = Event()  # set while the server does not give a 200: one tries, for all
        self._gone.set()
        self._gone_at, self._turn = time.monotonic(), Semaphore()
        self._said, self._warned = '', False

    def start(self) -> None:
        self._greenlets.spawn(sockets.keep_watch)
        for _ in range(self._count):
            self._greenlets.spawn(self._live, Event())

    def stop(self) -> None:
        self._greenlets.kill(sockets.Ended, timeout=GOODBYE_SECONDS)

    def _live(self, replaced: Event, hang_ups: int = 0) -> None:
        """A registration's life: registers, waits, has the next one made, pipes, says goodbye.

        `replaced` is set when it waits: the one that it replaces may go.
        """
        if hang_ups:  # unless another one finds that the server is gone and will be back
            first, longest = HANG_UP_PAUSES_SECONDS
            self._gone.wait(_vary(min(longest, first * 2 ** min(hang_ups - 1, 16))))
        if self._gone.is_set():
            hang_ups = 0
        sock, octets = self._dial()
        try:
            replaced.set()
            octets = self._wait(sock, octets, hang_ups)
            if octets:
                self._pipe(sock, octets)
        except (sockets.Ended, OSError):
            pass
        finally:
            sockets.goodbye(sock)

    def _dial(self) -> tuple[sockets.TLSSocket, bytes]:
        """A connection that got its 200, and what came behind it, however long that takes."""
        while True:
            with self._turn if self._gone.is_set() else nullcontext():
                try:
                    found = dial.register(self._address, self._context, self._uuid, self._totp)
                    self._gone.clear()
                    sentence = f'registered at {self._where} as {self._uuid}'
                    self._say(logging.INFO, sentence)
                    return found
                except (Refused, OSError) as error:
                    sentence = f'not registered at {self._where}: {dial.why(error)}'
                    self._say(logging.WARNING, sentence)
                    if not self._gone.is_set():
                        self._gone_at = time.monotonic()
                        self._gone.set()
                    gevent.sleep(_pause_after(error, time.monotonic() - self._gone_at))

    def _wait(self, sock, octets: bytes, hang_ups: int) -> bytes:
        """The first octets of a mobile client, or b'': it hung up, or has been replaced.

        Has the next one made. A request that is on its way to a replaced one in the very moment
        when that goes is lost: the server takes the newest, so that needs a crowd.
        """
        began, replaced, old = time.monotonic(), Event(), False
        sock.settimeout(LIFETIME_SECONDS * random.uniform(0.9, 1))
        while not octets and not replaced.is_set():
            try:
                octets = sockets.receive(sock)
                break
            except TimeoutError:
                if not old:
                    self._greenlets.spawn(self._live, replaced)
                old = True
                sock.settimeout(1)  # from now on it looks whether the new one waits
            except OSError:
                break
        sock.settimeout(None)
        if not old:
            settled = octets or time.monotonic() - began > SETTLED_SECONDS
            hang_ups = 0 if settled else hang_ups + 1
            if hang_ups == HANG_UPS and not self._warned:
                log.warning('the server keeps hanging up: do more register than its max_waiting?')
                self._warned = True
            self._greenlets.spawn(self._live, replaced, hang_ups)
        return octets

    def _pipe(self, sock, octets: bytes) -> None:
        """Joins it to the local server; raises Ended or OSError."""
        try:
            near = socket.create_connection(self._local_address, timeout=dial.CONNECT_SECONDS)
        except OSError as error:
            where = local.authority(*self._local_address)
            log.warning('the local server %s: %s', where, dial.why(error))
            sock.sendall(Refusal(502, 'the server behind the rendezvous is down').octets())
            return
        near.settimeout(None)
        sockets.keep_alive(near)

        how = pipe.join(pipe.End(sock), near, octets, drain=0, spawn=self._greenlets.spawn)
        if how is pipe.How.HIDDEN_RESET:
            sockets.reset(sock)  # as directly: an answer that was cut off must not look whole

    def _say(self, level: int, state: str) -> None:
        """Logs a change of state, once for all registrations."""
        if state != self._said:
            self._said = state
            log.log(level, state)


def _pause_after(error: Exception, gone_seconds: float) -> float:
    """Seconds until the next try, where none was good for so many."""
    bad_certificate = isinstance(error, ssl.SSLCertVerificationError)
    hopeless = bad_certificate or getattr(error, 'status', 500) < 500
    shortest, longest = REFUSED_PAUSES_SECONDS if hopeless else LOST_PAUSES_SECONDS
    share = REFUSED_SHARE if hopeless else LOST_SHARE
    pause = min(longest, max(shortest, share * gone_seconds))
    return _vary(pause) + getattr(error, 'retry_after', 0)


def _vary(seconds: float) -> float:
    """Never the same for all."""
    return seconds * random.uniform(0.5, 1)


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
    logs.to(logs.screen())
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stopping.set)
    hidden_server.start()
    stopping.wait()
    hidden_server.stop()


if __name__ == '__main__':
    local.main(main)
