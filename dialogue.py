"""What is said on a connection before anybody knows who it is, each step under its deadline.

A Refusal is raised where there is something to answer, an OSError where the connection is lost.
"""

import socket
import ssl

import gevent

import auth
from http_head import Head, HeadReader, Refusal, response
from pipe import CHUNK_BYTES

HANDSHAKE_SECONDS = 10  # nginx allows 60: for the slowest phone, four round trips are far less
HEAD_SECONDS = 15  # from the first octet to the last, however they drip
IDLE_SECONDS = 60  # before the first octet of a head; nginx's keepalive_timeout is 75
DROP_BYTES = 64 * 1024  # a longer body is not read only to be thrown away


def shake_hands(sock) -> None:
    with gevent.Timeout(HANDSHAKE_SECONDS, TimeoutError('no TLS handshake')):
        sock.do_handshake()
    # We have nothing to send, and the delayed ACK would hold up a client's request.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def read_head(sock, octets: bytes) -> tuple[Head | None, bytes]:
    """The next head and the octets behind it; None where the client leaves or stays idle."""
    if not octets:
        with gevent.Timeout(IDLE_SECONDS, False):
            octets = sock.recv(CHUNK_BYTES)
    if not octets:
        return None, b''
    reader = HeadReader()
    with gevent.Timeout(HEAD_SECONDS, Refusal(408, f'the head took over {HEAD_SECONDS} seconds')):
        while not (found := reader.feed(octets)):
            octets = _more(sock)
    return found


def ask_who(sock, head: Head, octets: bytes) -> bytes | None:
    """Sends the challenge; gives the octets behind the body, None where it is to be closed."""
    length = head.body_bytes
    close = length is None or length > DROP_BYTES or head.version == 'HTTP/1.0'
    close = close or head.values('expect') or head.has_token('connection', 'close')
    if not close:
        too_slow = Refusal(408, f'the body took over {HEAD_SECONDS} seconds')
        with gevent.Timeout(HEAD_SECONDS, too_slow):
            while len(octets) < length:
                octets += _more(sock)
    fields = ['Connection: close'] if close else []
    sock.sendall(response(401, *auth.challenge(), 'Content-Length: 0', *fields))
    return None if close else octets[length:]


def _more(sock) -> bytes:
    octets = sock.recv(CHUNK_BYTES)
    if not octets:
        raise ConnectionError('hung up within a request')
    return octets


def say_at_once(sock, octets: bytes) -> None:
    """Sends without a yield; raises OSError where it would have to wait for the reader."""
    sock.settimeout(0.0)
    try:
        if sock.send(octets) < len(octets):
            raise ConnectionError('does not read what it is sent')
    finally:
        sock.settimeout(None)


def spoke(sock) -> bool:
    """Whether octets have come that nobody has read, without waiting for any."""
    sock.settimeout(0.0)
    try:
        if sock.recv(1):
            return True
        raise ConnectionError('hung up before the 200')
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    finally:
        sock.settimeout(None)
