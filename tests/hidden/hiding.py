"""Hidden servers for tests: in this process, where time can be changed, and hidden.py as it is.

The rendezvous server is the real one. A stranger takes its place where it is to misbehave.
"""

import gc
import hashlib
import json
import os
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

import gevent
import pytest
from conftest import OK, Peer, free_port, get, until
from gevent.pool import Pool
from gevent.server import StreamServer

from rendezvous.hidden import hidden_server
from rendezvous.hidden.target import Target
from rendezvous.server.admission import Admission

for name in ('https_proxy', 'HTTPS_PROXY'):
    os.environ.pop(name, None)  # the tests have proxies of their own

HEAD_ENDS = b'\r\n\r\n'
HELLO = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello'
MEGABYTE = os.urandom(1024 * 1024)


class Listener:
    """A server of the test's own on loopback: `handle(peer)` is one connection's life."""

    def __init__(
        self, handle, port: int = 0, context: ssl.SSLContext | None = None, host: str = '127.0.0.1'
    ):
        self._handle, self._context = handle, context
        self.tries: list[float] = []  # time.monotonic() of each connection
        self._server = StreamServer((host, port), self._serve, spawn=Pool(None))
        self._server.start()
        self.port = self._server.server_port
        self.address = f'{host}:{self.port}'

    def _serve(self, sock, _) -> None:
        self.tries.append(time.monotonic())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # sent is on loopback: is there
        with suppress(OSError, AssertionError):  # the other side may leave when it likes
            if self._context:
                sock = self._context.wrap_socket(sock, True, suppress_ragged_eofs=False)
            with sock:
                self._handle(Peer(sock))

    def stop(self) -> None:
        self._server.stop(timeout=0)


@pytest.fixture
def listen(start):
    """Starts local servers."""
    listeners = []

    def listen(handle, *where, **how) -> Listener:
        """`where` and `how`: as of Listener."""
        listeners.append(Listener(handle, *where, **how))
        return listeners[-1]

    yield listen
    for listener in listeners:
        listener.stop()


@pytest.fixture
def stranger(listen, pair):
    """Starts servers that have our certificate and speak for themselves."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair['crt_file'], pair['key_file'])

    def stranger(handle, port: int = 0, tls: bool = True, host: str = '127.0.0.1') -> Listener:
        return listen(handle, port, context if tls else None, host)

    return stranger


@pytest.fixture
def entry(entries, uuid, pair):
    """What the entry's ID.json holds, but for the port."""
    return {
        'authParams': entries.get(uuid)['authParams'],
        'uuid': [uuid],
        'labels': ['kitchen'],
        'server': {'hostname': '127.0.0.1', 'port': 1, 'ca': Path(pair['crt_file']).read_text()},
    }


@pytest.fixture
def hide(start, entry, monkeypatch):
    """Starts hidden servers in this process, for a server and a local server."""
    monkeypatch.setattr(hidden_server, 'CHECK_SECONDS', 0.05)
    hidden_servers = []

    def hide(server, near: Listener | Target | None = None, count: int = 2, **how) -> None:
        entry['server']['port'] = server.port
        if not isinstance(near, Target):
            near = Target('127.0.0.1', near.port if near else free_port())
        hidden_servers.append(hidden_server.HiddenServer(entry, near, count, **how))
        hidden_servers[-1].start()

    yield hide
    for each in hidden_servers:
        each.stop(0)
    until(lambda: not any(map(is_left_over, gc.get_objects())), 'all greenlets end', seconds=5)


def is_left_over(thing) -> bool:
    """Whether it is a greenlet of a hidden server that has not ended."""
    return type(thing) is gevent.Greenlet and not thing.ready() and 'HiddenServer' in repr(thing)


@pytest.fixture
def run_hidden(folder, start, entry):
    """Starts hidden.py as a process of its own."""

    def run_hidden(server, near: Listener | None = None, *arguments: str, program=()):
        entry['server']['port'] = server.port
        (folder.path / 'ID.json').write_text(json.dumps(entry))
        address = near.address if near else f'127.0.0.1:{free_port()}'
        return folder.start(*(program or ['hidden.py']), 'ID.json', address, *arguments)

    return run_hidden


@pytest.fixture
def shown(monkeypatch):
    """The codes that the rendezvous servers in this process are shown."""
    found, admit = [], Admission.admit

    def noted(admission, uuid: str, code: str, address: str) -> int:
        found.append(code)
        return admit(admission, uuid, code, address)

    monkeypatch.setattr(Admission, 'admit', noted)
    return found


class Registrar:
    """A stranger that gives each CONNECT a 200: `made` and, of those, the ones that still wait."""

    def __init__(self, stranger, answer=lambda: OK):
        self._answer = answer
        self.heads: list[bytes] = []
        self.made: list[Peer] = []
        self.waiting: list[Peer] = []
        self.counts: list[int] = []  # of those that waited, at each end of one
        self.port = stranger(self._register).port

    def _register(self, peer: Peer) -> None:
        self.heads.append(peer.until(HEAD_ENDS))
        if refusal := self.refuses(peer, self.heads[-1]):
            peer.send(refusal)
            return
        peer.send(self._answer())
        self.made.append(peer)
        self.waiting.append(peer)
        try:
            peer.rest()
        finally:
            self.waiting.remove(peer)
            self.counts.append(len(self.waiting))

    def refuses(self, peer: Peer, head: bytes) -> bytes:
        """What it says instead of a 200, or b''."""
        return b''

    def until_made(self, count: int) -> None:
        until(lambda: len(self.made) >= count, f'{count} registrations are made')

    def until_all_are_replaced(self, peers: list[Peer]) -> None:
        until(lambda: not {*peers} & {*self.waiting}, 'they are replaced')


@pytest.fixture
def registrar(stranger) -> Registrar:
    return Registrar(stranger)


def waiting(server, uuid: str) -> int:
    return server.rendezvous.registry.count(uuid)


def until_waiting(server, uuid: str, count: int, seconds: float = 5) -> None:
    until(lambda: waiting(server, uuid) == count, f'{count} registrations wait', seconds)


def said(caplog) -> list[str]:
    """What hidden.py in this process has logged."""
    return [record.getMessage() for record in caplog.records if record.name == 'hidden']


def asked(connect, server, uuid: str) -> Peer:
    mobile = connect(server)
    mobile.send(get(uuid))
    return mobile


# What local servers do, and strangers


def hello(peer: Peer) -> None:
    peer.until(HEAD_ENDS)
    peer.send(HELLO)


def speak_at_once(joined: tuple[Peer, Peer]) -> None:
    """Both ends of a visit send, and what each sends arrives whole at the other."""
    speaking = [gevent.spawn(peer.send, MEGABYTE * 16) for peer in joined]
    hearing = [gevent.spawn(peer.receive, len(MEGABYTE) * 16) for peer in joined]
    for heard in hearing:
        assert hashlib.sha256(heard.get()).digest() == hashlib.sha256(MEGABYTE * 16).digest()
    gevent.joinall(speaking, raise_error=True)


def silent(peer: Peer) -> None:
    """Reads and says nothing until the other side ends."""
    peer.rest()


def deaf(peer: Peer) -> None:
    """Neither reads nor says anything."""
    gevent.sleep(60)


def says(octets: bytes):
    return lambda peer: peer.send(octets)


def refuses(status: bytes, *fields: bytes, body: bytes = b'', stays: bool = False):
    """A server that answers so to each CONNECT, and then closes unless it stays."""

    def refuse(peer: Peer) -> None:
        peer.until(HEAD_ENDS)
        peer.send(b'\r\n'.join([b'HTTP/1.1 ' + status, *fields, b'Connection: close', b'', body]))
        if stays:
            peer.rest()

    return refuse
