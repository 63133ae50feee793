"""Visits through the gateway of --forwarded: what hidden.py does with one, and a mobile client."""

import ssl

import gevent
import pytest
from conftest import Peer, client_context, until
from gevent.pool import Pool
from gevent.server import StreamServer
from test_hostile import UUID

from rendezvous.hidden.local_server import LocalServer
from rendezvous.hidden.target import Target
from rendezvous.wire import addresses, sockets

VISITOR = addresses.Peer('192.0.2.7', 4711)


class Visits:
    """Makes visits to local servers on loopback; the rendezvous server is left out."""

    def __init__(self, pair: dict):
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pair['crt_file'], pair['key_file'])
        self._client_context = client_context(pair['crt_file'])
        self._connections, self._servers = Pool(None), {}
        self._peers: list[Peer] = []

    def __call__(self, port: int, forwarding_as: str | None = '') -> Peer:
        """A mobile client's connection to the local server on that port."""
        target = Target('127.0.0.1', port, forwarding_as=forwarding_as)
        if target not in self._servers:
            local = LocalServer(target, UUID, self._connections)
            server = StreamServer(('127.0.0.1', 0), self._visit(local), spawn=self._connections)
            server.start()
            self._servers[target] = server
        address = '127.0.0.1', self._servers[target].server_port
        sock = self._client_context.wrap_socket(
            gevent.socket.create_connection(address),
            server_hostname='127.0.0.1',
            suppress_ragged_eofs=False,
        )
        self._peers.append(Peer(sock))
        return self._peers[-1]

    def _visit(self, local: LocalServer):
        def visit(raw, _) -> None:
            sock = sockets.TLSSocket(self._context, raw)
            try:
                sock.do_handshake()
                local.pipe(sock, b'', VISITOR)
            except (OSError, sockets.Ended):
                pass
            finally:
                sockets.close_gracefully(sock)

        return visit

    def end(self) -> None:
        for each in [*self._peers, *self._servers.values()]:
            each.close()
        until(lambda: not self._connections, 'each visit ends')


@pytest.fixture
def visit(start, pair):
    """Makes visits; no greenlet of one is left at the end."""
    visits = Visits(pair)
    yield visits
    visits.end()
