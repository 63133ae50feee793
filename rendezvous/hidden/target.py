"""Where the local server is, as an administrator writes it: an address, a URL or a Unix socket."""

import re
import socket
from typing import NamedTuple

from rendezvous.wire import addresses
from rendezvous.wire.programs import Mistake

EXAMPLES = '127.0.0.1:8000, https://127.0.0.1:8443 or unix:/run/app.sock'
PORTS = {'http': ':80', 'https': ':443', '': ''}


class Target(NamedTuple):
    """The local server."""

    host: str
    port: int
    path: str = ''  # of its Unix socket, which has no host and no port
    is_tls: bool = False
    is_insecure: bool = False  # any certificate will do
    wants_proxy_line: bool = False  # of the PROXY protocol, in front of each visit
    forwarding_as: str | None = None  # the Host that the gateway writes, '' for that of the client

    def __str__(self) -> str:
        if self.path:
            return f'unix:{self.path}'
        return f'{"https://" if self.is_tls else ""}{addresses.authority(self.host, self.port)}'


def target(text: str) -> Target:
    """What `127.0.0.1:8000`, `http://…`, `https://…`, `unix:/…` mean. Raises Mistake."""
    if text.startswith('unix:/'):
        if not hasattr(socket, 'AF_UNIX'):
            raise Mistake('Python has no Unix sockets on this system: use HOST:PORT')
        return Target('', 0, text.removeprefix('unix:'))
    url = re.fullmatch(r'(https?)://(\[[^]/]+\]|[^:/]+)(:[0-9]+)?/?', text)
    scheme, host, port = url.groups() if url else ('', text, '')
    try:
        where = address(host + (port or PORTS[scheme]))
        return Target(*where, is_tls=scheme == 'https')
    except Mistake:
        raise Mistake(f'{text!r} is no local server: write it as {EXAMPLES}') from None


def address(text: str) -> tuple[str, int]:
    """The host and the port in `127.0.0.1:8000`, `[::1]:8000`. Raises Mistake."""
    label = r'[\w:%-]{1,63}'
    match = re.fullmatch(rf'\[?((?:{label}\.)*{label}\.?)\]?:([0-9]{{1,5}})', text, re.A)
    if not match or not 0 < int(match[2]) < 65536:
        raise Mistake(f'{text!r} is not HOST:PORT, like 127.0.0.1:8000')
    return match[1], int(match[2])
