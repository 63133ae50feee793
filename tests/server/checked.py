"""Requests that are checked octet by octet, and the local server that answers them.

What a body holds follows from the name of its request, so both ends know it. Each answer names the
hidden server that gave it: so it is seen where a mobile client got another one than it asked for.
"""

import hashlib
import re
import socket
import ssl
import time
from contextlib import suppress
from typing import NamedTuple, Protocol

import gevent
from faults import CHUNK_BYTES, linger_not
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

BLOCK_BYTES = 1024 * 1024
WRONG = 'WRONG', 'WRONG UUID'  # what Outcome.saw is where a fault is no excuse
numbers = iter(range(10**9))  # no two requests have the same name


class Place(Protocol):
    """A server that mobile clients ask."""

    host: str
    port: int
    name: str  # that its certificate is for
    context: ssl.SSLContext


def octets(name: str, count: int) -> bytes:
    """The octets that a body of this name has: whoever checks it makes them again."""
    return hashlib.shake_128(name.encode()).digest(count)


class Request(NamedTuple):
    name: str
    up: int = 0  # octets of its body
    down: int = 100  # and of its answer's

    def head(self, uuid: str) -> bytes:
        return (
            f'POST /{self.name}/{self.up}/{self.down} HTTP/1.1\r\nHost: x\r\n'
            f'Authorization: Digest username="{uuid}"\r\nContent-Length: {self.up}\r\n\r\n'
        ).encode()

    def answer(self, uuid: str) -> bytes:
        """That of the hidden server with this UUID."""
        fields = f'X-Hidden: {uuid}\r\nX-Name: {self.name}\r\nContent-Length: {self.down}'
        head = f'HTTP/1.1 200 OK\r\n{fields}\r\n\r\n'
        return head.encode() + octets(f'{self.name} down', self.down)


class Origin:
    """The HTTP server that is hidden: checks what comes, and answers what the request says."""

    def __init__(self, uuid: str = ''):
        self.uuid = uuid  # of its hidden server
        self.wrong: list[str] = []  # requests whose body was
        self.open: dict[str, socket.socket] = {}  # the connections of those under way
        self.served = self.ended = 0
        self.flows = Event()  # cleared: answers stop after their first half
        self.flows.set()
        self._server = StreamServer(('127.0.0.1', 0), self._handle, spawn=Pool(None))
        self._server.start()
        self.address = f'127.0.0.1:{self._server.server_port}'

    def _handle(self, sock, _) -> None:
        with sock, suppress(OSError):
            while head := self._head(sock):
                name, up, down = head.split()[1].decode()[1:].split('/')
                self.open[name] = sock
                try:
                    self._answer(sock, Request(name, int(up), int(down)))
                finally:
                    del self.open[name]
        self.ended += 1

    def _head(self, sock) -> bytes:
        head = b''
        while not head.endswith(b'\r\n\r\n') and (octet := sock.recv(1)):
            head += octet
        return head

    def _answer(self, sock, request: Request) -> None:
        expected, got = octets(f'{request.name} up', request.up), 0
        while got < request.up:
            if not (more := sock.recv(min(CHUNK_BYTES, request.up - got))):
                raise ConnectionError('cut off')
            if more != expected[got : got + len(more)]:
                self.wrong.append(request.name)
            got += len(more)
        answer = request.answer(self.uuid)
        sock.sendall(answer[: len(answer) // 2])
        self.flows.wait()
        sock.sendall(answer[len(answer) // 2 :])
        self.served += 1


class Outcome(NamedTuple):
    request: Request
    saw: str  # 'good', or what came instead; 'WRONG' where an octet was, or the hidden server
    port: int  # of the mobile client
    since: float  # time.monotonic() of its connection
    began: float
    ended: float


class Mobile:
    """A mobile client's connection: one request after the other, each checked."""

    def __init__(self, place: Place, uuid: str, seconds: float = 90, sock=None):
        self._place, self._uuid, self._seconds = place, uuid, seconds
        self._sock, self.port, self.since = sock or socket.socket(), 0, time.monotonic()
        self.gave_up = False

    def ask(self, request: Request) -> Outcome:
        began, got = time.monotonic(), bytearray()
        try:
            with gevent.Timeout(self._seconds, TimeoutError()):
                saw = self._ask(request, got)
        except ConnectionRefusedError:
            saw = 'refused'
        except TimeoutError:
            saw = f'no end within {self._seconds:g} s'
        except (OSError, ValueError):  # ValueError: it has been closed here
            saw = 'cut off'
        if not request.answer(self._uuid).startswith(got):
            status = re.match(rb'HTTP/1\.1 (502|503) [ -~]*\r\n', got)
            theirs = re.search(rb'\r\nX-Hidden: (\S+)\r\n', got[:1000])
            is_theirs = theirs and theirs[1].decode() != self._uuid
            saw = status[1].decode() if status else 'WRONG UUID' if is_theirs else 'WRONG'
        return Outcome(request, saw, self.port, self.since, began, time.monotonic())

    def give_up(self, reset: bool) -> None:
        """Ends in the midst of whatever it does."""
        self.gave_up = True
        self.close(reset=reset)

    def _ask(self, request: Request, got: bytearray) -> str:
        if not self.port:
            self._connect()
        self._sock.sendall(request.head(self._uuid))
        body = octets(f'{request.name} up', request.up)
        for start in range(0, request.up, BLOCK_BYTES):
            self._sock.sendall(body[start : start + BLOCK_BYTES])
        count = len(request.answer(self._uuid))
        while len(got) < count:
            if not (more := self._sock.recv(CHUNK_BYTES)):
                return 'ended early'
            got += more
        return 'good'

    def _connect(self) -> None:
        self._sock.bind(('', 0))  # so no other connection has its port, to whatever address
        self._sock.connect((self._place.host, self._place.port))
        self.port = self._sock.getsockname()[1]
        self._sock = self._place.context.wrap_socket(
            self._sock, server_hostname=self._place.name, suppress_ragged_eofs=False
        )

    def close(self, reset: bool = False) -> None:
        with suppress(OSError):  # it may be closed already
            if reset:
                linger_not(self._sock)
        self._sock.close()


def ask(place: Place, uuid: str, up: int = 0, down: int = 100, **more) -> Outcome:
    """One request on a connection of its own."""
    mobile = Mobile(place, uuid, **more)
    try:
        return mobile.ask(Request(f'r{next(numbers)}', up, down))
    finally:
        mobile.close()
