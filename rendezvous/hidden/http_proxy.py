"""Out through a company's HTTP proxy: a tunnel to the rendezvous server (RFC 9110 section 9.3.6).

The proxy is what `--proxy` says, or else the environment variable https_proxy, unless no_proxy
names the rendezvous server. On macOS and Windows the settings of the system count, too.
"""

import base64
import re
import socket
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import gevent

from rendezvous.hidden import dial
from rendezvous.hidden.target import address
from rendezvous.wire import addresses
from rendezvous.wire.programs import Mistake

HEAD_END = b'\r\n\r\n'
PORT = 80  # of an http:// URL without one


class BadProxy(Mistake):
    """The URL of a proxy is none. Its text is never shown: a password may be in it."""


class NoTunnel(ConnectionError):
    """The proxy gives none; `status` of its answer, as pause_after wants it."""

    def __init__(self, sentence: str, status: int = 500):
        super().__init__(sentence)
        self.status = status


class HttpProxy(NamedTuple):
    """An HTTP proxy."""

    host: str
    port: int
    credentials: bytes  # USER:PASSWORD, or b''

    def __str__(self) -> str:
        return f'the proxy {addresses.authority(self.host, self.port)}'


def way(host: str, port: int, url: str | None) -> dial.Way:
    """How the rendezvous server is reached; `url`: of the proxy. Raises BadProxy."""
    names = host, addresses.authority(host, port)
    if url:
        return Tunnel(proxy(url, '--proxy'), names[1])
    url = urllib.request.getproxies().get('https')
    if not url or any(map(urllib.request.proxy_bypass, names)):
        return dial.Addresses(host, port)
    return Tunnel(proxy(url, 'https_proxy'), names[1])


def proxy(url: str, source: str) -> HttpProxy:
    """What the URL means; `source`: where it stands. Raises BadProxy."""
    try:
        parts = urlsplit(url if '://' in url else f'http://{url}')
        host, port = address(f'{parts.hostname or ""}:{parts.port or PORT}')
        if parts.path.strip('/') or parts.query or parts.fragment:
            raise ValueError('a "/", "?" or "#" in the password ends the host')
    except (ValueError, Mistake):  # the error may show the password
        raise BadProxy(
            f'{source} is not like http://10.0.0.1:3128 or http://USER:PASSWORD@10.0.0.1:3128, '
            'with what is special in USER and PASSWORD written as %40 for @'
        ) from None
    if parts.scheme != 'http':
        sentence = f'{source} must begin with http://: no other proxies are supported'
        raise BadProxy(f'{sentence}; no_proxy names the hosts that are reached without one')
    user, password = (unquote(each or '') for each in (parts.username, parts.password))
    return HttpProxy(host, port, f'{user}:{password}'.encode() if user else b'')


class Tunnel(dial.Way):
    """The way to a host and port through a proxy."""

    def __init__(self, proxy: HttpProxy, to: str):
        self._proxy, self._to = proxy, to
        self._addresses = dial.Addresses(proxy.host, proxy.port)
        self.through = str(proxy)

    def own(self) -> str:
        """As dial.Addresses has it: the address towards the proxy."""
        return self._addresses.own()

    def connect(self, ours: Mapping[str, int] = {}) -> tuple[socket.socket, None]:
        """A connection to the other end of the tunnel. Raises NoTunnel."""
        try:
            sock, _ = self._addresses.connect()
            try:
                with gevent.Timeout(dial.CONNECT_SECONDS, TimeoutError('no answer to the CONNECT')):
                    self._open(sock)
                return sock, None
            except BaseException:
                sock.close()
                raise
        except NoTunnel:
            raise
        except OSError as error:
            raise NoTunnel(f'{self._proxy}: {dial.why(error)}') from None

    def _open(self, sock: socket.socket) -> None:
        """Raises OSError."""
        sock.sendall(self._request())
        answer = b''
        while HEAD_END not in answer and len(answer) < dial.ANSWER_BYTES:
            more = sock.recv(dial.ANSWER_BYTES)
            if not more:
                raise NoTunnel(f'{self._proxy} hangs up')
            answer += more
        head, end, rest = answer.partition(HEAD_END)
        status = re.match(rb'HTTP/1\.[01] ([0-9]{3})\b', head)
        if not (status and end):
            raise NoTunnel(f'what answers at {self._proxy} is no HTTP proxy')
        if not status[1].startswith(b'2'):
            raise self._refused(int(status[1]))
        if rest:
            raise NoTunnel(f'{self._proxy} says more than it may')  # the server speaks second

    def _request(self) -> bytes:
        head = f'CONNECT {self._to} HTTP/1.1\r\nHost: {self._to}\r\n'.encode()
        if self._proxy.credentials:  # RFC 7617
            basic = base64.b64encode(self._proxy.credentials)
            head += b'Proxy-Authorization: Basic ' + basic + b'\r\n'
        return head + b'\r\n'

    def _refused(self, status: int) -> NoTunnel:
        sentence = f'answers {status} to a CONNECT'
        if status in (401, 407):  # the first one is tinyproxy's, for a wrong password
            sentence = 'wants a user name and a password: write http://USER:PASSWORD@HOST:PORT'
            if self._proxy.credentials:
                sentence = 'refuses the user name or the password, or takes none by Basic'
        elif status == 403:
            sentence = f'allows no connection to {self._to}: ask who runs it; most allow port 443'
        elif status >= 500:
            sentence = f'cannot connect to {self._to}'
        return NoTunnel(f'{self._proxy} {sentence} ({status})', status)
