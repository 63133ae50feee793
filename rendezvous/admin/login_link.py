"""`users_app.py link`: a fresh login link of the page that runs, in a terminal or as a service.

The page listens on a Unix socket in data/, which is closed to other users, and answers a line
with a link. So a code goes from the memory of one process to that of another, which is
of the same user or of root: it is never in a file or in the journal. In Redis it would be safe no
more than Redis is, which may be another machine's; and whoever may write there could log in.

A socket has a name of its own, and gets it when somebody listens: one that refuses is left over
from a page that was killed.
"""

import os
import secrets
import socket
from collections.abc import Callable
from contextlib import closing, suppress

from gevent.server import StreamServer

from rendezvous.admin.actions import Unable
from rendezvous.store import embedded
from rendezvous.wire.programs import Mistake

BEGINS, ENDS = 'page-', '.sock'
ANSWER_SECONDS = 5  # a page that makes a large table answers a little later
ASK = b'link\n'


class Links(StreamServer):
    """The page's side. The caller closes it at the end."""

    def __init__(self, make: Callable[[], str]):
        """`make` gives a link that works once. Raises Mistake."""
        self._make = make
        self._path = os.path.join(_folder(), f'{BEGINS}{secrets.token_hex(8)}{ENDS}')
        for living in filter(None, map(_connected, _sockets())):  # the others are removed
            living.close()
        sock = socket.socket(socket.AF_UNIX)
        new = f'{self._path}.new'
        try:
            sock.bind(new)
            os.chmod(new, 0o600)
            sock.listen()
            os.rename(new, self._path)
        except OSError as error:
            sock.close()
            raise Mistake(f'cannot use {embedded.DATA}: {error.strerror}') from None
        super().__init__(sock, self._answer)

    def close(self) -> None:
        super().close()
        with suppress(OSError):
            os.unlink(self._path)

    def _answer(self, sock: socket.socket, _: object) -> None:
        sock.settimeout(ANSWER_SECONDS)
        with closing(sock), suppress(OSError):
            if sock.recv(len(ASK)) == ASK:
                sock.sendall(self._make().encode())


def listen(make: Callable[[], str]) -> Links:
    """Answers `make_link` from now on. Raises Mistake."""
    links = Links(make)
    links.start()
    return links


def make_link() -> str:
    """A link of the page that runs in this folder, of the latest if there are several.

    Raises Unable where there is none, and Mistake where data/ is another user's.
    """
    paths = _sockets() if embedded.DATA.exists() else []
    for sock in filter(None, map(_connected, paths)):
        if link := _received(sock):
            return link
    raise Unable('no page runs in this folder: start users_app.py, or its service')


def _sockets() -> list[str]:
    """Their paths, that of the latest page first."""
    found = []
    for name in os.listdir(_folder()):
        path = os.path.join(_folder(), name)
        if name.startswith(BEGINS) and name.endswith(ENDS):
            with suppress(OSError):  # it has gone this moment
                found.append((os.stat(path).st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def _connected(path: str) -> socket.socket | None:
    """A connection; None where nobody listens any more. Then the path is removed."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(ANSWER_SECONDS)
    try:
        sock.connect(path)
        return sock
    except OSError as error:
        sock.close()
        if isinstance(error, ConnectionRefusedError):
            with suppress(OSError):
                os.unlink(path)
        return None


def _received(sock: socket.socket) -> str:
    """All that comes; '' where nothing does."""
    octets = b''
    with closing(sock), suppress(OSError):
        sock.sendall(ASK)
        while more := sock.recv(4096):
            octets += more
    return octets.decode()


def _folder() -> str:
    """A path of data/ that is short, however deep it is. Raises Mistake."""
    return f'/proc/self/fd/{embedded.open_data()}'
