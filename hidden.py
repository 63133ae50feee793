"""The hidden server's end: registers at the rendezvous server and pipes to a local HTTP server.

A few registrations wait side by side. The moment one is taken, the next one is made in its place.
One that has waited for long is replaced, the new one first: a middlebox may have forgotten it
without a word. Needs only gevent and pyotp.
"""

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
from pathlib import Path

import gevent
from gevent.event import Event
from gevent.pool import Pool

import auth
import options as local
import pipe
from http_head import Refusal
from options import Mistake

log = logging.getLogger('hidden')

CONNECT_SECONDS = 15  # for the connection, and again for the handshake and the answer
LIFETIME_SECONDS = 15 * 60
SETTLED_SECONDS = 10  # a registration that lasted so long was no failure
PAUSES_SECONDS = 0.1, 1.5  # after a failure: the first pause and the bound, in between it doubles
REFUSED_PAUSES_SECONDS = 15, 300  # trying faster does not make a wrong code right
ANSWER_BYTES = 16 * 1024


class Refused(Exception):
    """The rendezvous server's answer is not 200."""

    def __init__(self, status: int, diagnostic: str, retry_after: int):
        super().__init__(f'{status} {diagnostic}')
        self.status, self.retry_after = status, retry_after


class Registration:
    """A connection that got its 200, and the octets that came with it."""

    def __init__(self, sock, octets: bytes):
        self.sock, self._octets = sock, octets
        self.replaced = False  # the next one waits: this one may go
        self.needs_successor = Event()
        self.taken = False

    def wait(self) -> bytes:
        """The first octets of a mobile client, or b'': it hung up, or has been replaced."""
        self.sock.settimeout(LIFETIME_SECONDS * random.uniform(0.9, 1))
        while not (self._octets or self.replaced):
            try:
                self._octets = self.sock.recv(pipe.CHUNK_BYTES)
                break
            except TimeoutError:
                self.needs_successor.set()
                self.sock.settimeout(1)
            except OSError:
                break
        self.sock.settimeout(None)
        self.taken = bool(self._octets)
        return self._octets


class HiddenServer:
    """Keeps `count` registrations of an entry waiting, each for a pipe to the local server."""

    def __init__(self, entry: dict, local_address: tuple[str, int], count: int):
        self._uuid, self._parameters = entry['uuid'][0], entry['authParams']
        self._host, self._port = entry['server']['hostname'], int(entry['server']['port'])
        self._context = ssl.create_default_context(cadata=entry['server'].get('ca'))
        self._context.set_alpn_protocols(['http/1.1'])
        self._local_address, self._count = local_address, count
        self._greenlets = Pool(None)
        self._said = ''
        auth.totp(self._parameters)  # a mistake in them is better found now

    def start(self) -> None:
        self._greenlets.spawn(pipe.watch)
        for _ in range(self._count):
            self._greenlets.spawn(self._keep_one)

    def stop(self) -> None:
        self._greenlets.kill(pipe.Ended, timeout=2)

    def _keep_one(self) -> None:
        """Keeps one registration waiting, for ever."""
        previous, failures = None, 0
        while True:
            try:
                registration = self._register()
            except (Refused, OSError) as error:
                self._say(logging.WARNING, f'not registered at {self._host}: {_why(error)}')
                gevent.sleep(_pause(failures, error))
                failures += 1
                continue
            self._say(logging.INFO, f'registered at {self._host}:{self._port} as {self._uuid}')
            if previous:
                previous.replaced = True
            began = time.monotonic()
            self._greenlets.spawn(self._live, registration)
            registration.needs_successor.wait()
            previous = registration
            if registration.taken or time.monotonic() - began > SETTLED_SECONDS:
                failures = 0
            else:
                gevent.sleep(_pause(failures))
                failures += 1

    def _live(self, registration: Registration) -> None:
        """A registration's life: waits, makes room for the next one, pipes, says goodbye."""
        try:
            octets = registration.wait()
            registration.needs_successor.set()
            if octets:
                self._pipe(registration.sock, octets)
        except pipe.Ended:
            pass
        finally:
            pipe.goodbye(registration.sock)

    def _register(self) -> Registration:
        """Connects and shows a fresh code. Raises Refused or OSError."""
        address = self._host, self._port
        with gevent.Timeout(CONNECT_SECONDS, TimeoutError('no answer to the connection')):
            sock = socket.create_connection(address)
        try:
            pipe.keep_alive(sock)
            sock = self._context.wrap_socket(
                sock, server_hostname=self._host, do_handshake_on_connect=False
            )
            with gevent.Timeout(CONNECT_SECONDS, TimeoutError('no answer to the CONNECT')):
                sock.do_handshake()
                code = auth.totp(self._parameters).now()
                host = f'[{self._host}]' if ':' in self._host else self._host
                sock.sendall(
                    f'CONNECT uuid:{self._uuid}?response={code} HTTP/1.1\r\n'
                    f'Host: {host}:{self._port}\r\n\r\n'.encode()
                )
                return Registration(sock, _octets_behind_200(sock))
        except BaseException:
            sock.close()
            raise

    def _pipe(self, sock, octets: bytes) -> None:
        try:
            near = socket.create_connection(self._local_address, timeout=CONNECT_SECONDS)
        except OSError as error:
            log.warning('the local server %s:%d: %s', *self._local_address, _why(error))
            sock.sendall(Refusal(502, 'the server behind the rendezvous is down').octets())
            return
        near.settimeout(None)
        pipe.keep_alive(near)

        def answer() -> None:
            try:
                joined.from_hidden()
            finally:
                pipe.goodbye(near)

        greenlet = gevent.Greenlet(answer)
        mobile = pipe.End(sock, 'rendezvous server')
        joined = pipe.Pipe(mobile, pipe.End(near, 'local server', greenlet), drain=0)
        self._greenlets.start(greenlet)
        joined.from_mobile(octets)

    def _say(self, level: int, state: str) -> None:
        """Logs a change of state, once for all registrations."""
        if state != self._said:
            self._said = state
            log.log(level, state)


def _octets_behind_200(sock) -> bytes:
    """What came behind the head of the 200. Raises Refused or OSError."""
    octets = b''
    while b'\r\n\r\n' not in octets and len(octets) < ANSWER_BYTES:
        more = sock.recv(ANSWER_BYTES)
        if not more:
            break
        octets += more
    head, _, rest = octets.partition(b'\r\n\r\n')
    status = re.match(rb'HTTP/1\.[01] ([0-9]{3})', head)
    if not status:
        raise ConnectionError('what answers is no rendezvous server')
    if status[1] == b'200':
        return rest
    while len(rest) < ANSWER_BYTES and (more := sock.recv(ANSWER_BYTES)):
        rest += more
    try:
        diagnostic = json.loads(rest)['error']['diagnostic']
    except (ValueError, TypeError, KeyError):
        diagnostic = 'and says no more'
    retry_after = re.search(rb'\r\nretry-after: *([0-9]{1,6})', head, re.I)
    printable = re.sub('[^ -~]', '?', str(diagnostic))[:200]
    raise Refused(int(status[1]), printable, int(retry_after[1]) if retry_after else 0)


def _pause(failures: int, error: Exception | None = None) -> float:
    """Seconds until the next try: growing up to a bound, and never the same for all."""
    refused = isinstance(error, Refused) and 400 <= error.status < 500 and error.status != 408
    hopeless = refused or isinstance(error, ssl.SSLCertVerificationError)
    first, bound = REFUSED_PAUSES_SECONDS if hopeless else PAUSES_SECONDS
    seconds = min(bound, first * 2 ** min(failures, 16)) * random.uniform(0.5, 1)
    return seconds + getattr(error, 'retry_after', 0)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f'its certificate is not the one it should be ({error.verify_message})'
    if isinstance(error, Refused) and error.status == 401:
        return f'{error}: is the entry still there, and is the clock of this machine right?'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def read_entry(file: Path) -> dict:
    """The entry in `entries/ID.json`. Raises Mistake."""
    try:
        return json.loads(file.read_text())
    except OSError as error:
        raise Mistake(f'can not read {file}: {error.strerror}') from None
    except ValueError:
        raise Mistake(f'{file} is not JSON: take the ID.json that users_app.py made') from None


def address(text: str) -> tuple[str, int]:
    """The host and the port in `127.0.0.1:8000`, `[::1]:8000`. Raises Mistake."""
    match = re.fullmatch(r'\[?([^\[\]/]+?)\]?:([0-9]{1,5})', text)
    if not match or not 0 < int(match[2]) < 65536:
        raise Mistake(f'the local server is HOST:PORT, like 127.0.0.1:8000, not {text}')
    return match[1], int(match[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('entry', type=Path, help='entries/ID.json, as users_app.py made it')
    parser.add_argument('local_server', help='HOST:PORT, like 127.0.0.1:8000')
    parser.add_argument('--registrations', type=int, default=4, help='that wait (default: 4)')
    arguments = parser.parse_args()
    if arguments.registrations < 1:
        raise Mistake('--registrations must be 1 or more')
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s')
    local_address = address(arguments.local_server)
    try:
        entry = read_entry(arguments.entry)
        hidden_server = HiddenServer(entry, local_address, arguments.registrations)
    except (LookupError, TypeError, ValueError, AttributeError, ssl.SSLError) as error:
        why = f'{type(error).__name__}: {error}'
        raise Mistake(f'{arguments.entry} is not as users_app.py makes it ({why})') from None
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stopping.set)
    hidden_server.start()
    stopping.wait()
    hidden_server.stop()


if __name__ == '__main__':
    local.main(main)
