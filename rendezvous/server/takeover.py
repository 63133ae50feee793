"""A new server takes over from the one that runs, and no client notices.

The running one answers on `server.sock`, a Unix socket that only its own user can open. The new one
asks it for the listening socket: whoever waits in its queue stays there. As soon as the new one
serves it says so, and has a `server.sock` of its own. From then on the old one accepts nobody, ends
its waiting registrations a few at a time, which come back to the new one, and passes mobile clients
on that it has accepted already. The new one tells it which are back, and which a mobile client
wants: they are ended first. Where the new one dies before it serves, nothing has changed.
"""

import json
import logging
import os
import socket
from contextlib import suppress

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.server import StreamServer

log = logging.getLogger('takeover')

PATH = 'server.sock'  # in the working directory: a path from the root may be too long for a socket
LISTENER, READY = b'listener', b'ready'
BACK = '+'  # before a UUID: a registration is back; without it, one is wanted
ANSWER_SECONDS = 20  # until the running one answers, which gives its socket to one at a time
TRIES = 3  # where another one that is started at the same time was faster
LINE_BYTES = 1000


class Predecessor:
    """The server that runs already, and its listening socket."""

    def __init__(self, control: socket.socket, descriptor: int):
        self._control, self._serving, self._early = control, False, b''
        self.listener = socket.socket(fileno=descriptor)

    def let_go(self) -> None:
        """Tells it that its successor serves."""
        self._serving = True
        with suppress(OSError):
            self._control.sendall(READY + b'\n' + self._early)
        self._control.setblocking(False)

    def want(self, uuid: str) -> None:
        """Has it end the registrations of a UUID now, if it has some: they are wanted here."""
        self._tell(uuid)

    def has_back(self, uuid: str) -> None:
        """One of these is registered here: the next one may come."""
        self._tell(BACK + uuid)

    def _tell(self, line: str) -> None:
        octets = f'{line}\n'.encode()
        if not self._serving:
            self._early += octets
            return
        try:
            self._control.send(octets)
        except BlockingIOError:
            pass  # it is busy, and ends all of them in time anyhow
        except OSError:
            self._control.close()  # it has ended


def predecessor() -> Predecessor | None:
    """The server that runs in this folder, if one does; it may take a minute to answer."""
    for _ in range(TRIES):
        control = socket.socket(socket.AF_UNIX)
        try:
            with gevent.Timeout(ANSWER_SECONDS, TimeoutError('no answer')):
                control.connect(PATH)
                control.sendall(LISTENER + b'\n')
                _, descriptors, *_ = socket.recv_fds(control, 1, 1)
                if descriptors:
                    return Predecessor(control, *descriptors)
        except (FileNotFoundError, ConnectionRefusedError):
            control.close()
            return None
        except OSError as error:
            log.warning('what runs here does not hand over: %s', error)
        control.close()  # somebody else was faster: then that one is asked
    return None


def pass_on(address: tuple[str, int], uuid: str) -> socket.socket:
    """A connection to our successor for a mobile client of ours. Raises OSError."""
    near = socket.socket(socket.AF_UNIX)
    try:
        near.connect(PATH)
        near.sendall(json.dumps([address, uuid]).encode() + b'\n')
    except OSError:
        near.close()
        raise
    return near


class Door:
    """`server.sock`: a successor gets the listening socket, and brings mobile clients later.

    `handle` serves these; `wanted` is told of each UUID whose registrations the successor wants,
    and '' when it has ended; `back` of each that is registered there.

    `taken_over` is set when a successor serves.
    """

    def __init__(self, listener: socket.socket, handle, wanted, back):
        self._listener, self._handle = listener, handle
        self._wanted, self._back, self.taken_over = wanted, back, Event()
        self._asked = Semaphore()  # by one successor at a time
        new = f'{PATH}.{os.getpid()}'
        with suppress(FileNotFoundError):
            os.unlink(new)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(new)
        sock.listen()
        os.rename(new, PATH)  # in one step: there is one at any time
        self._server = StreamServer(sock, self._answer)
        self._server.start()

    def close(self) -> None:
        """Nobody can take over any more."""
        self._server.close()
        if not self.taken_over.is_set():  # or it is the successor's
            with suppress(FileNotFoundError):
                os.unlink(PATH)

    def _answer(self, sock, _) -> None:
        try:
            line, octets = _line(sock)
            if line != LISTENER:
                (host, port), uuid = json.loads(line)
                self._handle(sock, (host, port), uuid, octets)
                return
            with self._asked:
                if self.taken_over.is_set():
                    return
                line, octets = self._hand_over(sock)
            while line and self.taken_over.is_set():
                line, octets = _line(sock, octets)
                uuid = line.decode()
                tell = self._back if uuid.startswith(BACK) else self._wanted
                tell(uuid.removeprefix(BACK))
        except (OSError, ValueError, TypeError) as error:
            log.warning('server.sock: %s', error)
        finally:
            sock.close()

    def _hand_over(self, sock) -> tuple[bytes, bytes]:
        """Waits until it serves or ends: given up and serving after all, there would be two.

        What it said, and the octets behind that.
        """
        socket.send_fds(sock, [b'.'], [self._listener.fileno()])
        line, octets = _line(sock)
        if line == READY:
            self.taken_over.set()
        return line, octets


def _line(sock, octets: bytes = b'') -> tuple[bytes, bytes]:
    """A line less its end, and the octets behind it; ends where the other side does."""
    more = b'any'
    while more and b'\n' not in octets and len(octets) < LINE_BYTES:
        octets += (more := sock.recv(LINE_BYTES))
    line, _, rest = octets.partition(b'\n')
    return line, rest
