"""What is said on a connection before anybody knows who it is, each step under its deadline.

A Refusal is raised where there is something to answer, an OSError where the connection is lost.
"""

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import NoReturn

import gevent

from rendezvous.server import credentials, pages
from rendezvous.wire import proxy_line
from rendezvous.wire.addresses import Peer
from rendezvous.wire.http_head import HTML, JSON, Head, HeadReader, Refusal, error_body, response
from rendezvous.wire.sockets import Ended, Socket, TLSSocket, has_spoken, set_tcp, take_turn

HANDSHAKE_SECONDS = 10  # nginx allows 60: for the slowest phone, four round trips are far less
HEAD_SECONDS = 15  # from the first octet to the last, however they drip
IDLE_SECONDS = 60  # before the first octet of a head; nginx's keepalive_timeout is 75
HEADER_BYTES = 256  # of a PROXY header at a time: few have more (its authors advise 232)
DROP_BYTES = 64 * 1024  # a longer body is not read only to be thrown away
WHO = 'the user name is the UUID of a hidden server, the password is anything'


def registered(other: str, which: Sequence[str]) -> bytes:
    """The 200 for a CONNECT. `other`: where another process waits that has the same entry; `which`:
    fields that say which worker has the registration, for a hidden server that asked for it.
    """
    fields = [f'Other-Instance: {other}', *which] if other else which
    return '\r\n'.join(['HTTP/1.1 200 OK', *fields, '', '']).encode()


def read_proxy_header(sock: socket.socket) -> Peer | None:
    """Who asks, as the proxy in front says; None where it gives no address. Not an octet behind the
    header is read. Raises ValueError where there is none, Ended for a look whether we are there.
    """
    header, length = b'', None
    with gevent.Timeout(HANDSHAKE_SECONDS, ValueError('sends no whole PROXY header')):
        while length is None:
            take_turn()  # each octet may come by itself
            octets = b''
            with suppress(ConnectionError):
                octets = sock.recv(HEADER_BYTES, socket.MSG_PEEK)
            if not octets and not header:
                raise Ended
            if not octets:
                raise ValueError('hangs up within its PROXY header')
            length = proxy_line.end(header + octets)
            # So no octet is looked at twice: half a header would be there at once, again and again.
            header += sock.recv(len(octets) if length is None else length - len(header))
    return proxy_line.read(header)


def shake_hands(sock: Socket, context: ssl.SSLContext) -> TLSSocket:
    """TLS on a connection. Raises Refusal where the client speaks plain HTTP, ValueError where a
    proxy in front begins it with a header of its own, or OSError.
    """
    with gevent.Timeout(HANDSHAKE_SECONDS, TimeoutError('no TLS handshake')):
        first = sock.receive()
        if proxy_line.is_begun(first):
            raise ValueError('sends a PROXY header')
        if not first[:1].isalpha():  # a handshake begins with 22
            tls = TLSSocket(context, sock.raw, came=first)
            tls.do_handshake()
            if not tls.has_octets():
                # We have nothing to send: the delayed ACK would hold up a client's request.
                set_tcp(tls, 'TCP_QUICKACK', 1)
            return tls
    return _redirect(sock, first)


def _redirect(sock: Socket, first: bytes) -> NoReturn:
    """People and local servers leave out the s. Raises Refusal or OSError."""
    head, _ = read_head(sock, first)
    host = head.values('host') if head else []
    if not head or not any(host) or not head.target.startswith('/'):
        raise Refusal(400, 'this port speaks TLS: https')
    raise _moved(head, host[0])


def _moved(head: Head, host: str) -> Refusal:
    refusal = Refusal(308, 'this port speaks TLS', f'Location: https://{host}{head.target}')
    refusal.without_body = head.method == 'HEAD'
    return refusal


def read_head(sock: Socket, octets: bytes) -> tuple[Head | None, bytes]:
    """The next head and the octets behind it; None where the client leaves or stays idle."""
    take_turn()  # `octets` may hold thousands of requests
    if not octets:
        with gevent.Timeout(IDLE_SECONDS, False):
            octets = sock.receive()
    if not octets:
        return None, b''
    reader = HeadReader()
    if found := reader.feed(octets):  # nearly always: no timer for those
        return found
    with gevent.Timeout(HEAD_SECONDS, Refusal(408, f'the head took over {HEAD_SECONDS} seconds')):
        while not (found := reader.feed(_more(sock))):
            pass
    return found


def ask_who(sock: Socket, head: Head, octets: bytes) -> bytes | None:
    """Sends the challenge; gives the octets behind the body, None where it is to be closed."""
    length = head.body_bytes
    close = length is None or length > DROP_BYTES or head.version == 'HTTP/1.0'
    close = close or bool(head.values('expect')) or head.has_token('connection', 'close')
    if length is not None and not close:
        too_slow = Refusal(408, f'the body took over {HEAD_SECONDS} seconds')
        with gevent.Timeout(HEAD_SECONDS, too_slow):
            while len(octets) < length:
                length -= len(octets)
                octets = _more(sock)
    fields = [*credentials.challenge(), *(['Connection: close'] if close else [])]
    if pages.are_for(head):  # a browser shows it on Cancel
        kind, body = HTML, pages.WHO
    else:
        kind, body = JSON, error_body(WHO, permanent=False)
    answer = response(401, *fields, f'Content-Type: {kind}', body=body)
    sock.send(answer.removesuffix(body) if head.method == 'HEAD' else answer)
    return None if close else octets[length or 0 :]


def asks_whether_to_come(head: Head) -> bool:
    """Whether it is the question of a balancer, that is for no hidden server (RFC 9110 section
    9.3.7).
    """
    return (head.method, head.target) == ('OPTIONS', '*')


def welcome(sock: Socket) -> None:
    """The answer to that where new connections may come. A 204 has no length (RFC 9110, 8.6)."""
    date = formatdate(usegmt=True)
    sock.send(f'HTTP/1.1 204 No Content\r\nDate: {date}\r\nConnection: close\r\n\r\n'.encode())


def _more(sock: Socket) -> bytes:
    octets = sock.receive()
    if not octets:
        raise ConnectionError('hung up within a request')
    return octets


def say_at_once(sock: Socket, octets: bytes) -> None:
    """Sends without a yield; raises OSError where it would have to wait for the reader."""
    sock.settimeout(0.0)
    try:
        sock.send(octets)
    finally:
        sock.settimeout(None)


def spoke(sock: Socket) -> bool:
    """Whether octets have come that nobody has read, without waiting for any."""
    if not (has_spoken(sock) or (isinstance(sock, TLSSocket) and sock.has_octets())):
        return False  # a read that finds nothing costs ten times as much
    sock.settimeout(0.0)
    try:
        with gevent.Timeout(HEAD_SECONDS, ConnectionError('TLS: nothing but records of its own')):
            octets = sock.receive()
        if not octets:
            raise ConnectionError('hung up before the 200')
        return True
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(None)
