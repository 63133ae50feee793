"""A real server on port 0, a real Valkey, real TLS. A test that leaves something behind fails."""

from gevent import monkey

monkey.patch_all()

import os
import signal
import socket
import ssl
import struct
import sys
import uuid as uuids
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import gevent
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rendezvous.admin import certificate
from rendezvous.server import listening, shares, tls
from rendezvous.server.registry import RECENT_SECONDS
from rendezvous.server.shares import Shares
from rendezvous.server.worker import Worker
from rendezvous.store import keys
from rendezvous.store import options as local
from rendezvous.store.entries import Entries
from rendezvous.wire import codes

# Where pytest-xdist waits for the next test, another thread wakes it: the hub must not end before.
_another_thread = gevent.get_hub().loop.async_()
_another_thread.start(lambda: None)

# More fixtures, of real programs.
pytest_plugins = [
    'programs',
    'redises',
    'visitor',
    'story',
    'shells',
    'hiding',
    'gateways',
    'behind',
    'three',
]
DEADLINE_SECONDS = 30  # for every wait in a test that says no other: ten times what it takes


@pytest.fixture(autouse=True)
def deadline(request):
    """No test hangs: a minute, or what its mark `deadline(seconds)` says."""
    mark = request.node.get_closest_marker('deadline')
    seconds = mark.args[0] if mark else 60
    before = signal.signal(signal.SIGALRM, hub_is_blocked)
    signal.setitimer(signal.ITIMER_REAL, seconds + 10)
    with gevent.Timeout(seconds, TimeoutError(f'the test took over {seconds} s')):
        yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def hub_is_blocked(*_) -> None:
    """Ends code that never yields: no deadline of gevent's comes then."""
    raise TimeoutError('something runs and never yields')


_kept: list[int] = []  # descriptors


def free_port() -> int:
    """A port for a program that cannot tell which one it got.

    A socket that does not listen keeps it. So a program that names the port may listen on it
    (SO_REUSEADDR), and the system gives it to no other program that asks for any port.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(('127.0.0.1', 0))
    port = sock.getsockname()[1]
    _kept.append(sock.detach())
    return port


def until(condition, what: str, seconds: float = DEADLINE_SECONDS):
    """Waits until `condition()` is true, and returns it."""
    with gevent.Timeout(seconds, AssertionError(f'not within {seconds} s: {what}')):
        while not (found := condition()):
            gevent.sleep(0.005)
    return found


@pytest.fixture(scope='session')
def pair(tmp_path_factory):
    """A key and a certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp('pair')
    files = {name: folder / f'registrar.{name[:3]}' for name in ('key_file', 'crt_file')}
    certificate.write_pair('127.0.0.1', **files)
    return {name: str(file) for name, file in files.items()}


@pytest.fixture
def entries(redis_options):
    entries = Entries(local.DEFAULTS | redis_options)
    # Most tests come from one address: what other tests have guessed is forgotten.
    entries.ask(lambda redis: redis.delete(keys.ADDRESSES, keys.LATEST))
    yield entries
    entries.close()


@pytest.fixture
def uuid(entries):
    """The UUID of an entry."""
    made = str(uuids.uuid4())
    entries.add(made, ['kitchen'])
    yield made
    entries.delete(made)


@pytest.fixture
def two(entries):
    """The UUIDs of two entries; nobody has a name before and after."""
    made = [str(uuids.uuid4()) for _ in range(2)]
    for uuid in made:
        entries.add(uuid, ['kitchen'])
    entries.ask(lambda redis: redis.delete(keys.NAMES))
    yield made
    for uuid in made:
        entries.delete(uuid)
    entries.ask(lambda redis: redis.delete(keys.NAMES))


@pytest.fixture
def start(redis_options, pair, tmp_path_factory):
    """Starts servers with the options given; at the end nothing of them is left."""
    before, servers = descriptors(), []

    def start(*, meeting_place: Path | None = None, which='1/1', is_new=False, **options) -> Worker:
        given = {'rendezvous_port': 0, 'drain': 0.3, 'rendezvous_wait': 0.5}
        chosen = local.DEFAULTS | redis_options | pair | given | options
        descriptor = shares.create(1)
        alone = Shares(descriptor, 1, 1, b'seed')
        os.close(descriptor)
        place = meeting_place or tmp_path_factory.mktemp('workers') / 'alone'
        entries, sock = Entries(chosen), listening.listener(chosen)
        server = Worker(chosen, sock, tls.context(chosen), entries, alone, place, which)
        if not is_new:
            server.rendezvous.registry._since = -RECENT_SECONDS  # as if it had been up for long
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        registry = server.rendezvous.registry
        until(lambda c=server.connections: not c, 'every handler ends with its client')
        until(lambda r=registry: not (r.counts() or r.wanted()), 'nobody waits any more')
        server.stop()
    until(lambda: descriptors() <= before, f'no more descriptors than the {before} before')


@pytest.fixture
def server(start):
    return start()


def client_context(cafile: str | None) -> ssl.SSLContext:
    """For a client that notices an end of TLS without a close_notify.

    In Python 3.11.2, which is Debian 12's, every context ignores that.
    """
    context = ssl.create_default_context(cafile=cafile)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def cut_off():
    """Expects an end without a close_notify; the client must not suppress ragged EOFs."""
    # Python 3.11.2 raises the parent of SSLEOFError; with OpenSSL 3.5 the pipe may be broken.
    return pytest.raises((ssl.SSLError, BrokenPipeError), match=r'(?i)eof|broken pipe')


@pytest.fixture
def connect(start, pair):
    """Connects clients to a server. They are closed before `start` looks at the server."""
    peers = []

    def connect(server: Worker, host: str = '127.0.0.1') -> Peer:
        sock = socket.create_connection((host, server.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # sent is on loopback: is there
        if server.options.key_file:
            context = client_context(pair['crt_file'])
            sock = context.wrap_socket(sock, server_hostname='127.0.0.1')
        peers.append(Peer(sock))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.close()


@pytest.fixture
def register(connect, entries):
    """Makes registrations: hidden servers that got their 200."""

    def register(server: Worker, uuid: str) -> Peer:
        peer = connect(server)
        peer.send(connect_request(uuid, code(entries, uuid)))
        assert peer.receive(len(OK)) == OK
        return peer

    return register


@pytest.fixture
def join(register, connect, uuid):
    """Joins a hidden server and a mobile client: their connections, when the head has come."""

    def join(server: Worker, method: str = 'GET') -> tuple[Peer, Peer]:
        hidden, mobile = register(server, uuid), connect(server)
        mobile.send(get(uuid, '/', method))
        hidden.until(b'\r\n\r\n')
        return hidden, mobile

    return join


OK = b'HTTP/1.1 200 OK\r\n\r\n'


def code(entries: Entries, uuid: str) -> str:
    return codes.totp(entries.get(uuid)['authParams']).now()


def connect_request(uuid: str, code: str) -> bytes:
    return f'CONNECT uuid:{uuid}?response={code} HTTP/1.1\r\nHost: x\r\n\r\n'.encode()


def get(uuid: str, target: str = '/', method: str = 'GET', *fields: str) -> bytes:
    """A mobile client's request for a hidden server."""
    lines = [f'{method} {target} HTTP/1.1', 'Host: x', f'Authorization: Digest username="{uuid}"']
    return '\r\n'.join([*lines, *fields, '', '']).encode()


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes


class Peer:
    """A client's connection."""

    def __init__(self, sock):
        self.sock = sock
        self._octets = bytearray()

    def send(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def _more(self) -> bytes:
        no_more = AssertionError(f'no more after {bytes(self._octets[:1000])!r}')
        with gevent.Timeout(DEADLINE_SECONDS, no_more):
            try:
                return self.sock.recv(65536)
            except ssl.SSLError as error:
                ragged = error.reason == 'UNEXPECTED_EOF_WHILE_READING'
                if ragged and self.sock.suppress_ragged_eofs:
                    return b''  # as other Pythons do by themselves
                raise

    def _take(self, count: int) -> bytes:
        taken = bytes(self._octets[:count])
        del self._octets[:count]
        return taken

    def _need_more(self) -> None:
        more = self._more()
        assert more, f'it ended after {bytes(self._octets[:1000])!r}'
        self._octets += more

    def until(self, mark: bytes) -> bytes:
        """What comes, up to and with `mark`."""
        while mark not in self._octets:
            self._need_more()
        return self._take(self._octets.index(mark) + len(mark))

    def receive(self, count: int) -> bytes:
        """Exactly so many octets."""
        while len(self._octets) < count:
            self._need_more()
        return self._take(count)

    def rest(self) -> bytes:
        """Everything up to the end."""
        while more := self._more():
            self._octets += more
        return self._take(len(self._octets))

    def answer(self, to: str = 'GET') -> Answer:
        """The response to a request with that method; its body has a Content-Length."""
        line, *lines = self.until(b'\r\n\r\n').decode().rstrip().split('\r\n')
        fields: dict[str, str] = {}
        for name, value in (line.split(': ', 1) for line in lines):
            fields[name] = f'{fields[name]}, {value}' if name in fields else value
        body = b'' if to == 'HEAD' else self.receive(int(fields.get('Content-Length', 0)))
        return Answer(int(line.split()[1]), fields, body)

    def shut_sending(self) -> None:
        """A FIN, and this side goes on reading (SSLSocket.shutdown would drop the TLS layer)."""
        gevent.socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def close_notify(self) -> None:
        """What TLS says at the end (RFC 8446 section 6.1), and nothing more."""
        self.sock.settimeout(0.0)
        with pytest.raises(ssl.SSLWantReadError):
            self.sock.unwrap()
        self.sock.settimeout(None)

    def vanish(self) -> None:
        """Is gone without a word, as a machine or a NAT that lost power: an RST answers."""
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: close() sends nothing
        except PermissionError:
            pytest.skip('only root may vanish')
        self.sock.close()

    def reset(self) -> None:
        """Closes with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def descriptors() -> int:
    """The number of open sockets of this process, without those that keep a port."""
    count = -len(_kept)
    for name in os.listdir('/proc/self/fd'):
        with suppress(FileNotFoundError):
            count += os.readlink(f'/proc/self/fd/{name}').startswith('socket:')
    return count
