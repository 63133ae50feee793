"""How a hidden server dials out: one connection to the rendezvous server, up to its 200."""

import json
import re
import socket
import ssl

import gevent
import pyotp

import options as local
import sockets

CONNECT_SECONDS = 15  # for the connection, and again for the handshake and the answer
RETRY_AFTER_SECONDS = 3600  # a server that says more is not believed
ANSWER_BYTES = 16 * 1024


class Refused(Exception):
    """The rendezvous server's answer is not 200; `retry_after` in seconds."""

    def __init__(self, status: int, diagnostic: str, retry_after: int):
        super().__init__(f'{status} {diagnostic}')
        self.status, self.retry_after = status, min(retry_after, RETRY_AFTER_SECONDS)


def register(
    address: tuple[str, int], context: ssl.SSLContext, uuid: str, totp: pyotp.TOTP
) -> tuple[sockets.TLSSocket, bytes]:
    """A connection that got its 200, and what came behind it. Raises Refused or OSError."""
    sock = socket.create_connection(address, timeout=CONNECT_SECONDS)
    try:
        sock.settimeout(None)
        sockets.keep_alive(sock)
        sock = sockets.wrap(context, sock, address[0])
        with gevent.Timeout(CONNECT_SECONDS, TimeoutError('no answer to the CONNECT')):
            sock.do_handshake()
            target, named = f'uuid:{uuid}?response={totp.now()}', local.authority(*address)
            sock.sendall(f'CONNECT {target} HTTP/1.1\r\nHost: {named}\r\n\r\n'.encode())
            return sock, _octets_behind_200(sock)
    except BaseException:
        sock.close()
        raise


def _octets_behind_200(sock) -> bytes:
    """What came behind the head of the 200. Raises Refused or OSError."""
    octets, more = b'', b'any'
    while more and b'\r\n\r\n' not in octets and len(octets) < ANSWER_BYTES:
        octets += (more := sockets.receive(sock))
    head, end, rest = octets.partition(b'\r\n\r\n')
    status = re.match(rb'HTTP/1\.[01] ([0-9]{3})', head)
    # RFC 9110 section 9.3.6: a 2xx for a CONNECT has no body; that of a web server may have one
    page = re.search(rb'\r\n(content-(length|type)|transfer-encoding):', head, re.I)
    if not (status and end) or (status[1] == b'200' and page):
        raise ConnectionError('what answers there is no rendezvous server')
    if status[1] == b'200':
        return rest
    with gevent.Timeout(1, False):  # not every server hangs up after a refusal
        while len(rest) < ANSWER_BYTES and (more := sockets.receive(sock)):
            rest += more
    try:
        diagnostic = json.loads(rest)['error']['diagnostic']
    except (ValueError, TypeError, KeyError, RecursionError):
        diagnostic = 'and says no more'
    printable = re.sub('[^ -~]', '?', str(diagnostic))[:200]
    retry_after = re.search(rb'\r\nretry-after: *([0-9]{1,6})', head, re.I)
    raise Refused(int(status[1]), printable, int(retry_after[1]) if retry_after else 0)


def why(error: Exception) -> str:
    """What an administrator can make something of."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f'its certificate is not the one it should be ({error.verify_message})'
    if isinstance(error, Refused) and error.status == 401:
        return f'{error}: is the entry still there, and is the clock of this machine right?'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
