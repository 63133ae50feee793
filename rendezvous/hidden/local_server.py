"""The local server: each visit gets a connection to it, and a pipe between the two."""

import logging
import re
import socket
import ssl
from collections.abc import Callable
from functools import cache

import gevent
from gevent.pool import Pool

from rendezvous.hidden import dial
from rendezvous.hidden.gateway import Forwarding
from rendezvous.hidden.target import Target
from rendezvous.wire import pipe, proxy_line, sockets
from rendezvous.wire.addresses import Peer
from rendezvous.wire.http_head import Refusal

log = logging.getLogger('hidden')

CONNECT_SECONDS = 15  # for a Unix socket; dial.Addresses takes as long
FULL_SECONDS = 0.05  # between two tries to connect to a Unix socket that has a full queue
HANDSHAKE_SECONDS = 10  # as the rendezvous server gives its clients
# `PROXY UNKNOWN` would be right, but Apache hangs up at it, and gunicorn answers 400.
NOBODY_KNOWN = b'PROXY TCP4 127.0.0.1 127.0.0.1 0 0\r\n'
# What nginx, Apache and Go answer to plain HTTP on a port for TLS; others send a TLS alert.
WANTS_TLS = re.compile(rb'\x15\x03|HTTP/1\.[01] 400 .*(HTTPS port|SSL-enabled|HTTPS server)', re.S)
NO_TLS = 'WRONG_VERSION_NUMBER', 'PACKET_LENGTH_TOO_LONG'  # what OpenSSL calls plain HTTP


class LocalServer:
    """An HTTP server on this machine, or on another one that this machine can reach."""

    def __init__(self, target: Target, uuid: str, connections: Pool):
        """`uuid`: of the hidden server; `connections` gets a greenlet for each connection to it."""
        self._target, self._connections = target, connections
        self._addresses = dial.Addresses(target.host, target.port)
        self._context = _context(target) if target.is_tls else None
        host = target.forwarding_as
        self._forwarding = None if host is None else Forwarding(uuid, host)
        self.connecting = 0  # visits whose connection is being made
        self._warn_once = cache(log.warning)

    def pipe(self, sock: sockets.TLSSocket, octets: bytes, visitor: Peer | None) -> None:
        """Sends it the first octets of a visit and pipes to the end. Raises OSError, Ended.

        `visitor`: who asks, where the rendezvous server has said so.
        """
        self.connecting += 1
        try:
            near = self._connect(visitor)
        except OSError as error:
            log.warning('cannot connect to the local server %s: %s', self._target, _why(error))
            sock.send(Refusal(502, 'the server behind the rendezvous is down').octets())
            return
        finally:
            self.connecting -= 1
        mobile: sockets.Socket = sock
        if self._forwarding:
            mobile, octets = self._forwarding.around(sock, octets, visitor), b''
        try:
            how = pipe.join(pipe.End(mobile), near, octets, drain=0, spawn=self._connections.spawn)
        except Refusal as refusal:
            log.info('refused a request of %s: %s', visitor or 'somebody', refusal.diagnostic)
            sock.send(refusal.octets())
            return
        except sockets.Ended:
            how = pipe.How.ENDED
        if not how.is_whole:
            sockets.reset(sock)  # an answer that was cut off must not look whole

    def _connect(self, visitor: Peer | None) -> sockets.Socket:
        """Raises OSError."""
        path = self._target.path
        raw = _unix_connection(path) if path else self._addresses.connect()[0]
        try:
            if not path:
                sockets.keep_alive(raw)
            if self._target.wants_proxy_line:
                raw.sendall(_proxy_line(visitor))
            return self._with_tls(raw, self._context) if self._context else self._plain(raw)
        except BaseException:
            raw.close()
            raise

    def _with_tls(self, raw: socket.socket, context: ssl.SSLContext) -> sockets.Socket:
        near = _TLSConnection(context, raw, self._target.host)
        silent = TimeoutError('no answer to the TLS handshake: does it speak TLS?')
        with gevent.Timeout(HANDSHAKE_SECONDS, silent):
            near.do_handshake()
        return near

    def _plain(self, raw: socket.socket) -> sockets.Socket:
        near = _Connection(raw)
        near.on_first_octets = self._warn_if_it_wants_tls
        return near

    def _warn_if_it_wants_tls(self, octets: bytes) -> None:
        if WANTS_TLS.match(octets):
            sentence = f'the local server {self._target} wants TLS, and gets plain HTTP'
            self._warn_once(f'{sentence}: write https:// before it')


class _Connection(sockets.Socket):
    """A connection to the local server that shows the first octets of the answer to somebody."""

    on_first_octets: Callable[[bytes], None] | None = None

    def recv_into(self, buffer: memoryview) -> int:
        count = super().recv_into(buffer)
        if self.on_first_octets:
            self.on_first_octets(bytes(buffer[:count]))
            self.on_first_octets = None
        return count


class _TLSConnection(sockets.TLSSocket):
    """A connection by TLS: an end without a close_notify cuts an answer off (RFC 8446 6.1)."""

    def recv_into(self, buffer: memoryview) -> int:
        """Raises ConnectionError where the answer is cut off."""
        count = super().recv_into(buffer)
        if not (count or self.has_said_goodbye):
            raise ConnectionError('cut off')
        return count


def _proxy_line(visitor: Peer | None) -> bytes:
    return proxy_line.line(visitor, visitor.reached) if visitor else NOBODY_KNOWN


def _context(target: Target) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(['http/1.1'])
    if target.is_insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _unix_connection(path: str) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(0)
        with gevent.Timeout(CONNECT_SECONDS, TimeoutError('it accepts no connections')):
            while not _is_connected(sock, path):
                gevent.sleep(FULL_SECONDS)
        sock.settimeout(None)
        return sock
    except BaseException:
        sock.close()
        raise


def _is_connected(sock: socket.socket, path: str) -> bool:
    """Connects, unless the queue is full: the system does not say when there is place again."""
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


def _why(error: OSError) -> str:
    """The error in words that help an administrator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f'{dial.why(error)}; --insecure takes any certificate'
    if isinstance(error, ssl.SSLError):
        if error.reason in NO_TLS:
            return 'it speaks no TLS: write http:// before it'
        return f'TLS failed ({error.reason})'
    return dial.why(error)
