"""redis_url, an option: what it says, and each mistake in it one sentence without the password.

The parent checks it, too: it needs nothing but the standard library.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from rendezvous.wire.addresses import authority, is_host
from rendezvous.wire.programs import Mistake

PORT, SENTINEL_PORT, MAX_PORT = 6379, 26379, 65535
SENTINEL, CLUSTER, UNIX = 'sentinel', 'cluster', 'unix'
EXAMPLES = {
    '': 'redis://USER:PASSWORD@redis.example.com:6379/0',
    UNIX: 'unix:///run/redis/redis.sock?db=0',
    SENTINEL: 'redis+sentinel://USER:PASSWORD@192.0.2.1:26379,192.0.2.2:26379/SERVICE/0',
    CLUSTER: 'redis+cluster://USER:PASSWORD@192.0.2.1:6379,192.0.2.2:6379',
}
KINDS = {
    'redis': '',
    'rediss': '',
    'unix': UNIX,
    'redis+sentinel': SENTINEL,
    'rediss+sentinel': SENTINEL,
    'redis+cluster': CLUSTER,
    'rediss+cluster': CLUSTER,
}
TLS_FILES = 'ssl_ca_certs', 'ssl_certfile', 'ssl_keyfile'
SENTINEL_USER = 'sentinel_username', 'sentinel_password'


class Place(NamedTuple):
    """Where a Redis is, or who knows where it is."""

    kind: str  # '': one Redis; UNIX, SENTINEL or CLUSTER
    hosts: list[tuple[str, int]]  # of that Redis, of the Sentinels, of some of the cluster
    path: str = ''  # of a Unix socket
    service: str = ''  # the name by which Sentinels know it
    database: int = 0
    has_tls: bool = False
    user: str | None = None
    password: str | None = None
    more: dict[str, str] = {}  # noqa: RUF012  of TLS_FILES and SENTINEL_USER

    @property
    def files(self) -> dict[str, str]:
        """Those of TLS, by the words of TLS_FILES; relative ones are relative to `local.py`."""
        return {name: file for name, file in self.more.items() if name in TLS_FILES}

    def __str__(self) -> str:
        """For the log: without user names and passwords."""
        hosts = ', '.join(authority(*host) for host in self.hosts)
        number = f', database {self.database}' if self.database else ''
        if self.kind == SENTINEL:
            return f'Redis {self.service} of the Sentinels {hosts}{number}'
        if self.kind == CLUSTER:
            return f'the Redis Cluster of {hosts}'
        return f'Redis at {self.path or hosts}{number}'


def place(url: str) -> Place:
    """What a redis_url says. Raises Mistake."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that hold no IPv6 address
        raise _mistake('', 'must have brackets around nothing but an IPv6 address') from None
    if parts.scheme not in KINDS:
        raise _mistake('', f'must begin with {", ".join(KINDS)}, each with :// behind it')
    kind, has_tls = KINDS[parts.scheme], parts.scheme.startswith('rediss')
    login, _, named = parts.netloc.rpartition('@')
    if parts.fragment or '@' in login:
        raise _mistake(kind, 'must have %23 for # and %40 for @ in a password')
    user, _, password = (unquote(part) or None for part in login.partition(':'))
    more = _query(kind, has_tls, parts.query)
    path, service, database = _path(kind, unquote(parts.path))
    database = more.pop('db', database)
    if not re.fullmatch('[0-9]{0,5}', database, re.A):
        raise _mistake(kind, 'must have a number where it names a database')
    where = _hosts(kind, named), path, service, int(database or 0)
    return Place(kind, *where, has_tls, user, password, more)


def _path(kind: str, path: str) -> tuple[str, str, str]:
    """The path of a Unix socket, the name of a service, and the number of a database."""
    if kind == UNIX:
        if path.strip('/') == '':
            raise _mistake(kind, 'must have the path of a socket')
        return path, '', ''
    if kind == SENTINEL:
        service, _, database = path.strip('/').partition('/')
        if not service:
            raise _mistake(kind, 'must name the service that the Sentinels watch')
        return '', service, database
    if kind == CLUSTER and path.strip('/'):
        raise _mistake(kind, 'must end with the hosts: a Redis Cluster has one database')
    return '', '', path.strip('/')


def _hosts(kind: str, text: str) -> list[tuple[str, int]]:
    if kind == UNIX:
        if text:
            raise _mistake(kind, 'must have an absolute path behind unix://')
        return []
    found = [_host(kind, each) for each in text.split(',')]
    if len(found) > 1 and not kind:
        raise _mistake(SENTINEL, 'with several hosts must begin with redis+sentinel:// or so')
    return found


def _host(kind: str, text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f'//{text}')
        host, port = parts.hostname or '', parts.port
    except ValueError:  # the port is no number, or too large
        if text.rpartition(':')[2].isdecimal():
            raise _mistake(kind, f'must have a port that is at most {MAX_PORT}') from None
        host, port = '', None
    if not is_host(host) or port == 0:
        raise _mistake(kind, 'must have an IP address or a DNS name, and perhaps a port')
    return host, port or (SENTINEL_PORT if kind == SENTINEL else PORT)


def _query(kind: str, has_tls: bool, query: str) -> dict[str, str]:
    allowed = [*(TLS_FILES if has_tls else ()), *(SENTINEL_USER if kind == SENTINEL else ())]
    allowed += ['db'] if kind == UNIX else []
    pairs = [pair.partition('=') for pair in query.split('&') if pair]
    found = {name: unquote(value) for name, _, value in pairs}
    if not allowed and found:
        names = ', '.join(TLS_FILES)
        raise _mistake(kind, f'must have no ? ({names}: with TLS); in a password write %3F')
    if not found.keys() <= set(allowed) or not all(found.values()):
        raise _mistake(kind, f'must have only {", ".join(allowed)} behind its ?, each with a value')
    return found


def _mistake(kind: str, why: str) -> Mistake:
    return Mistake(f'local.py: redis_url {why}; for example {EXAMPLES[kind]!r}')
