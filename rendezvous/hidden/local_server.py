"""The local server: each visit gets a connection to it, and a pipe between the two."""

import logging
import re
import socket
from collections.abc import Callable
from functools import cache

from gevent.pool import Pool

from rendezvous.hidden import dial
from rendezvous.wire import addresses, pipe, sockets
from rendezvous.wire.http_head import Refusal

log = logging.getLogger('hidden')

# What nginx, Apache and Go answer to plain HTTP on a port for TLS; others send a TLS alert.
WANTS_TLS = re.compile(rb'\x15\x03|HTTP/1\.[01] 400 .*(HTTPS port|SSL-enabled|HTTPS server)', re.S)


class LocalServer:
    """An HTTP server on this machine, or on another one that this machine can reach."""

    def __init__(self, host: str, port: int, connections: Pool):
        """`connections` gets a greenlet for each connection to it."""
        self._name = addresses.authority(host, port)
        self._addresses = dial.Addresses(host, port)
        self._connections = connections
        self.connecting = 0  # visits whose connection is being made
        self._warn_once = cache(log.warning)

    def pipe(self, sock: sockets.TLSSocket, octets: bytes) -> None:
        """Sends it the first octets of a visit and pipes to the end. Raises OSError, Ended."""
        self.connecting += 1
        try:
            connected = self._addresses.connect()
        except OSError as error:
            log.warning('cannot connect to the local server %s: %s', self._name, dial.why(error))
            sockets.send(sock, Refusal(502, 'the server behind the rendezvous is down').octets())
            return
        finally:
            self.connecting -= 1
        near = _Connection(fileno=connected.detach())
        near.on_first_octets = self._warn_if_it_wants_tls
        sockets.keep_alive(near)
        try:
            how = pipe.join(pipe.End(sock), near, octets, drain=0, spawn=self._connections.spawn)
        except sockets.Ended:
            how = pipe.How.ENDED
        if not how.is_whole:
            sockets.reset(sock)  # an answer that was cut off must not look whole

    def _warn_if_it_wants_tls(self, octets: bytes) -> None:
        if WANTS_TLS.match(octets):
            sentence = f'the local server {self._name} wants TLS, and gets plain HTTP'
            self._warn_once(f'{sentence}: give hidden.py a port for plain HTTP')


class _Connection(socket.socket):
    """A connection to the local server that shows the first octets of the answer to somebody."""

    on_first_octets: Callable[[bytes], None] | None = None

    def recv(self, *how) -> bytes:
        octets = super().recv(*how)
        if self.on_first_octets:
            self.on_first_octets(octets)
            self.on_first_octets = None
        return octets
