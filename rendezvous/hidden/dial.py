"""How a hidden server dials out: to an address that answers, and on to the server's 200."""

import json
import logging
import math
import os
import random
import re
import secrets
import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from itertools import zip_longest
from typing import NamedTuple, Protocol

import gevent
import pyotp
from gevent import Greenlet
from gevent.select import POLLOUT, poll

from rendezvous.wire import addresses, codes, sockets

log = logging.getLogger('hidden')

# The system waits 5 seconds for a name server, and as long again after a network came back.
os.environ.setdefault('RES_OPTIONS', 'timeout:2')

CONNECT_SECONDS = 15  # for the handshake and the answer, and for a name that does not resolve
# RFC 8305 section 5: so long after one address the next one is tried, beside it. After a round all
# are tried again: the system itself repeats a try later and later, but a network that is back is to
# be noticed soon.
NEXT_SECONDS, ROUND_SECONDS, ROUNDS = 0.25, 3, 5
MOST_ADDRESSES = 8
KNOWN_SECONDS = 1  # for a name server, where there are addresses of an earlier answer
# An address behind which nobody took a registration is tried last for so long.
SHUNNED_SECONDS = 30
FRESH_SECONDS = 30  # in which no name server is asked again, while one of its addresses answers
ANSWER_BYTES = 16 * 1024
CLOCK_IS_OFF_SECONDS = 30  # a code is right for 30 s before and after its own 30
DAY_SECONDS = 24 * 3600
ENDS_SOON_SECONDS, ENDS_SOON_SHARE = 14 * DAY_SECONDS, 1 / 4  # of a certificate's time, at most
LOOK_SECONDS = 3600  # between two looks when it ends: one costs a twentieth of a visit
# After so long the server has forgotten what a process that was killed here left there.
LEFT_OVER_SECONDS = 120

HAS_POLL = hasattr(select, 'poll')  # Windows has none; gevent's is slower

Address = tuple[socket.AddressFamily, tuple]  # an IP address with its port, as socket takes it


class NotRegistered(Exception):
    """The rendezvous server's answer is not 200; `retry_after` in seconds."""

    def __init__(self, status: int, diagnostic: str, retry_after: int, ahead: float | None):
        super().__init__(f'{status} {diagnostic}')
        self.status, self.retry_after = status, retry_after
        self.ahead = ahead  # seconds that our clock is ahead of the server's, where known


class WorkerCovered(NotRegistered):
    """It has reached a worker that was to be left out."""


class Leaving(NotRegistered):
    """It has reached a worker that is about to end: others take registrations."""


class HungUp(ConnectionError):
    """The rendezvous server, or what is in front of it, closed before its answer was complete."""

    def __init__(self) -> None:
        super().__init__('it hangs up: it may be restarting')


class Worker(NamedTuple):
    """One of the server's, as it says it."""

    number: int  # from 1 on
    of: int  # workers of its machine
    node: str = ''  # which machine, where there are several that may be reached

    def __str__(self) -> str:
        return f'{self.number}@{self.node}' if self.node else str(self.number)


class Connection(NamedTuple):
    """A connection that got its 200."""

    sock: sockets.TLSSocket
    octets: bytes  # that came behind the 200
    worker: Worker | None  # that has it, where the server says so


class Way(Protocol):
    """How the rendezvous server is reached."""

    through: str  # the proxy, in words, or ''

    def connect(self, ours: Mapping[str, int]) -> tuple[socket.socket, Address | None]: ...
    def own(self) -> str: ...

    def learn(self, address: Address | None, node: str) -> None:
        """It leads to that node."""
        return None

    def shun(self, address: Address | None) -> bool:
        """It leads to nobody who takes a registration; whether another one may."""
        return False


class Addresses(Way):
    """The addresses of a host. The one that answered the last time is tried first, or where the
    server has several nodes, one of the node that has the fewest registrations of ours.
    """

    through = ''

    def __init__(self, host: str, port: int):
        self._host, self._port = host, port
        self._known: list[Address] = []
        self._fresh_until = -math.inf  # time.monotonic()
        self._is_number = addresses.is_number(host)
        self._lookup: Greenlet | None = None  # one at a time: each needs a thread
        self.last: Address | None = None  # that answered
        self._nodes: dict[Address, str] = {}  # that they lead to, where the server says so
        self._shunned: dict[Address, float] = {}  # until then (time.monotonic()) others come first
        self._warn_once = cache(log.warning)

    def connect(self, ours: Mapping[str, int] = {}) -> tuple[socket.socket, Address]:
        """A connection to the address that answers first (RFC 8305), and that. Raises OSError.

        `ours`: our registrations by node.
        """
        try:
            known = sorted(self._look_up(), key=partial(self._rank, ours))
            address, sock, silent = _race(known)
        except OSError:
            self._fresh_until = -math.inf  # the host may have moved
            raise
        if silent and address != self.last:
            names = ', '.join(host for _, (host, *_) in silent)
            self._warn_once(f'{names} did not answer: {address[1][0]} of {self._host} did')
        for each in known[: known.index(address)]:
            self.shun(each)
        self.last = address
        return sock, address

    def learn(self, address: Address | None, node: str) -> None:
        if address and node:
            self._nodes[address] = node

    def shun(self, address: Address | None) -> bool:
        now = time.monotonic()
        if address:
            self._shunned[address] = now + SHUNNED_SECONDS
        return any(self._shunned.get(each, 0) < now for each in self._known)

    def _rank(self, ours: Mapping[str, int], address: Address) -> tuple[float, float, float]:
        """By this they are sorted: which one is to be tried first."""
        until = self._shunned.get(address, 0)
        shunned = until if until > time.monotonic() else 0
        if not self._nodes:
            return shunned, 0, address != self.last
        return shunned, ours.get(self._nodes.get(address, ''), 0), random.random()

    def own(self) -> str:
        """The address that this machine has towards the host now; '' where it has none."""
        if not self.last:
            return ''
        try:
            with socket.socket(self.last[0], socket.SOCK_DGRAM) as sock:
                sock.connect(self.last[1])  # sends nothing
                return sock.getsockname()[0]
        except OSError:
            return ''

    def _look_up(self) -> list[Address]:
        """Raises OSError. Earlier addresses will do while no name server answers."""
        seconds = KNOWN_SECONDS if self._known else CONNECT_SECONDS
        lookup = self._lookup
        if not self._known or (not self._is_number and time.monotonic() >= self._fresh_until):
            if lookup is None or lookup.ready():
                lookup = self._lookup = gevent.spawn(self._resolve)
            elif self._known:
                seconds = 0  # somebody has waited for it already
            lookup.join(seconds)
            if not self._known:
                raise lookup.value or TimeoutError('its name does not resolve')
        return self._known

    def _resolve(self) -> OSError | None:
        """An answer that comes late will do for the next time."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            return error
        self._known = by_turns([(family, where) for family, *_, where in found])
        self._fresh_until = time.monotonic() + FRESH_SECONDS
        return None


def by_turns(addresses: list[Address]) -> list[Address]:
    """One of IPv6 and one of IPv4 by turns, as in RFC 8305 section 4; each only once."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    mixed = [each for pair in zip_longest(first, others) for each in pair if each]
    return list(dict.fromkeys(mixed))[:MOST_ADDRESSES]


def _race(addresses: list[Address]) -> tuple[Address, socket.socket, list[Address]]:
    """The address that answers first, the connection, and those tried before it in vain.

    Raises OSError, the last one that came.
    """
    tries: dict[socket.socket, Address] = {}
    began = time.monotonic()
    error: OSError = TimeoutError('timed out')
    try:
        for number, address in enumerate([*addresses * ROUNDS, None]):
            turn, place = divmod(number, len(addresses))
            starts = began + turn * ROUND_SECONDS + place * NEXT_SECONDS
            while tries and (seconds := starts - time.monotonic()) > 0:
                for sock in _ready([*tries], seconds):
                    earlier = [*tries.values()][: [*tries].index(sock)]
                    answered = tries.pop(sock)
                    failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not failed:
                        sock.settimeout(None)
                        return answered, sock, list(dict.fromkeys(earlier))
                    sock.close()
                    error = OSError(failed, os.strerror(failed))
                    if place:
                        starts = 0  # the next address need not wait
            if turn and not place and not tries:
                break  # all have failed
            if address:
                try:
                    tries[_connecting(*address)] = address
                except OSError as failure:
                    error = failure
        raise error
    finally:
        for sock in tries:
            sock.close()


def _ready(socks: list[socket.socket], seconds: float) -> list[socket.socket]:
    """Those that are connected by then, or have failed."""
    poller = poll()
    for sock in socks:
        if HAS_POLL and sockets.is_polled(sock, POLLOUT):
            return [sock]  # one of this machine is made at once
        poller.register(sock, POLLOUT)
    ready = {descriptor for descriptor, _ in poller.poll(1000 * seconds)}
    return [sock for sock in socks if sock.fileno() in ready]


def _connecting(family: int, address: tuple) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        with suppress(BlockingIOError):
            sock.connect(address)
        return sock
    except BaseException:
        sock.close()
        raise


class RendezvousServer:
    """The rendezvous server, as it is reached from this machine."""

    def __init__(self, host: str, port: int, ca: str | None, way: Way):
        """`ca`: its certificate in PEM; None where public CAs are trusted."""
        self._host, self.name, self._way = host, addresses.authority(host, port), way
        self._context = ssl.create_default_context(cadata=ca)
        self._context.set_alpn_protocols(['http/1.1'])
        self._takes_long_codes = True
        # By this the server tells two machines that have the same ID.json from one another.
        self._instance, self._began = secrets.token_hex(8), time.monotonic()
        self._look_at = -math.inf  # time.monotonic(): when its certificate is looked at again
        self._warn_once = cache(log.warning)

    def register(
        self,
        uuid: str,
        totp: pyotp.TOTP,
        covered: Iterable[Worker] = (),
        ours: Mapping[str, int] = {},
    ) -> Connection:
        """`covered`: the workers that are not to take it; `ours`: our registrations by node.

        Raises NotRegistered, OSError.
        """
        try:
            if self._takes_long_codes:
                code = codes.long_code(totp, time.time())
                return self._register(self._request(uuid, code, covered), ours)
            return self._register(self._request(uuid, totp.now(), covered), ours)
        except NotRegistered as refused:
            if refused.status != 400 or not self._takes_long_codes:
                raise
            self._takes_long_codes = False
        except OSError:
            self._takes_long_codes = True  # the server may come back in a newer version
            raise
        return self._register(self._request(uuid, totp.now(), covered), ours)

    def _register(self, request: bytes, ours: Mapping[str, int]) -> Connection:
        """Where one address fails, the next one is tried at once."""
        while True:
            raw, address = self._way.connect(ours)
            try:
                connection = self._ask(raw, request)
            except (Leaving, OSError):
                if not self._way.shun(address):
                    raise
            else:
                self._way.learn(address, connection.worker.node if connection.worker else '')
                return connection

    def _ask(self, raw: socket.socket, request: bytes) -> Connection:
        try:
            sockets.keep_alive(raw)
            sock = sockets.TLSSocket(self._context, raw, self._host)
            with gevent.Timeout(CONNECT_SECONDS, TimeoutError('no answer to the CONNECT')):
                with _naming_hang_ups():
                    sock.do_handshake(request)
                answer, octets = read_answer(sock)
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + LOOK_SECONDS
                self._warn_of_end(sock.getpeercert())
            self._warn_of_others(answer)
            return Connection(sock, octets, worker(answer))
        except BaseException:
            raw.close()
            raise

    def _request(self, uuid: str, code: str, covered: Iterable[Worker]) -> bytes:
        head = f'CONNECT uuid:{uuid}?response={code} HTTP/1.1\r\nHost: {self.name}\r\n'
        fields = f'Instance: {self._instance}\r\nWhich-Worker: 1\r\nProxy-Protocol: 1\r\n'
        if has := ', '.join(map(str, covered)):
            fields += f'Has-Worker: {has}\r\n'
        return f'{head}{fields}\r\n'.encode()

    def _warn_of_end(self, certificate: dict) -> None:
        """Warns once of a certificate that ends soon."""
        begins, ends = (
            ssl.cert_time_to_seconds(certificate[name]) for name in ('notBefore', 'notAfter')
        )
        left = ends - time.time()
        if left < min(ENDS_SOON_SECONDS, ENDS_SOON_SHARE * (ends - begins)):
            at = f'{datetime.fromtimestamp(ends, UTC):%Y-%m-%d at %H:%M} UTC'
            self._warn_once(f'the certificate of {self.name} ends soon, on {at}')

    def _warn_of_others(self, head: bytes) -> None:
        """Warns once of another machine that has the same ID.json, where the server tells so."""
        other = re.search(rb'\r\nother-instance: *([0-9a-f.:]{2,45})', head, re.I)
        if other and time.monotonic() - self._began > LEFT_OVER_SECONDS:
            who = f'a machine at {other[1].decode()}'
            self._warn_once(f'{who} has the same file, and gets some of the visits')


def probe_often(sock: sockets.TLSSocket) -> None:
    """Has the system find within seconds that the connection is dead: one for all that wait.

    After 4 s where a router or the server has forgotten it and says so, else after 12.
    """
    for name, value in (
        ('TCP_KEEPIDLE', 4),
        ('TCP_KEEPALIVE', 4),  # the same, on macOS
        ('TCP_KEEPINTVL', 2),
        ('TCP_KEEPCNT', 4),
        ('TCP_USER_TIMEOUT', 12_000),
    ):
        sockets.set_tcp(sock, name, value)


@contextmanager
def _naming_hang_ups() -> Iterator[None]:
    """Makes HungUp of an end or a reset."""
    try:
        yield
    except (ConnectionError, ssl.SSLZeroReturnError):
        raise HungUp from None


def read_answer(sock: sockets.Socket) -> tuple[bytes, bytes]:
    """The head of the 200, and what came behind it. Raises NotRegistered, OSError."""
    octets, more = b'', b'any'
    while more and b'\r\n\r\n' not in octets and len(octets) < ANSWER_BYTES:
        with _naming_hang_ups():
            more = sock.receive()
        octets += more
    head, end, rest = octets.partition(b'\r\n\r\n')
    status = re.match(rb'HTTP/1\.[01] ([0-9]{3})', head)
    if not more and not end and (status or not octets):
        raise HungUp
    # RFC 9110 section 9.3.6: a 2xx for a CONNECT has no body; that of a web server may have one
    page = re.search(rb'\r\n(content-(length|type)|transfer-encoding):', head, re.I)
    if not (status and end) or (status[1] == b'200' and page):
        raise ConnectionError('what answers there is no rendezvous server')
    if status[1] == b'200':
        return head, rest
    with gevent.Timeout(1, False):  # some servers do not close after a refusal
        while len(rest) < ANSWER_BYTES and (more := sock.receive()):
            rest += more
    raise _refused(int(status[1]), head, rest)


def worker(head: bytes) -> Worker | None:
    """The `Worker: N/M` of an answer, the only one in it; None where it makes no sense."""
    found = re.findall(rb'\r\nworker:[ \t]*([^\r\n]*)', head, re.I)
    numbers = (
        re.fullmatch(rb'([0-9]{1,4})/([0-9]{1,4})[ \t]*', found[0]) if len(found) == 1 else None
    )
    if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
        return None
    node = re.search(rb'\r\nnode:[ \t]*([0-9a-f]{1,32})[ \t]*\r\n', head + b'\r\n', re.I)
    return Worker(int(numbers[1]), int(numbers[2]), node[1].decode() if node else '')


def _refused(status: int, head: bytes, body: bytes) -> NotRegistered:
    try:
        diagnostic = json.loads(body)['error']['diagnostic']
    except (ValueError, TypeError, KeyError, RecursionError):
        diagnostic = 'without a reason'
    printable = re.sub('[^ -~]', '?', str(diagnostic))[:200]
    retry_after = re.search(rb'\r\nretry-after: *([0-9]{1,6})', head, re.I)
    seconds = int(retry_after[1]) if retry_after else 0
    kind = NotRegistered
    if status == 503:
        kind = WorkerCovered if worker(head) else Leaving if retry_after and not seconds else kind
    return kind(status, printable, seconds, _ahead(head))


def _ahead(head: bytes) -> float | None:
    """Seconds that this machine's clock is ahead of the server's Date, if there is one."""
    date = re.search(rb'\r\ndate: *([ -~]{1,40})', head, re.I)
    try:
        return time.time() - parsedate_to_datetime(date[1].decode()).timestamp() if date else None
    except (ValueError, OverflowError):
        return None


def why(error: Exception) -> str:
    """The error in words that help an administrator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _why_not_trusted(error)
    if isinstance(error, NotRegistered) and error.status == 401:
        return f'{error}: {_why_wrong(error.ahead)}'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def _why_not_trusted(error: ssl.SSLCertVerificationError) -> str:
    clock = f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if error.verify_code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
        return f'its certificate is not valid yet: {clock}, is that right?'
    if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        return f'its certificate has expired: {clock}, is that right?'
    return f'its certificate is not the one it should be ({error.verify_message})'


def _why_wrong(ahead: float | None) -> str:
    """Why a code may be wrong, judged by the clocks."""
    if ahead is None:
        return 'is the entry still there, and is the clock of this machine right?'
    if abs(ahead) < CLOCK_IS_OFF_SECONDS:
        return 'is the entry still there, and is its file the newest?'
    return f"this machine's clock is {_span(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}"


def _span(seconds: float) -> str:
    """Seconds in words, in the largest unit of which there are two or more."""
    for unit, size in (('days', DAY_SECONDS), ('hours', 3600), ('minutes', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:.0f} {unit}'
    return f'{seconds:.0f} seconds'
