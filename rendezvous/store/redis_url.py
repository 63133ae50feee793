"""redis_url, an option: what it says, and each mistake in it one sentence without the password.

The parent checks it, too: it needs nothing but the standard library.
"""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from rendezvous.wire.addresses import authority
from rendezvous.wire.programs import Mistake

PORT, SENTINEL_PORT = 6379, 26379
SENTINEL, CLUSTER, UNIX = 'sentinel', 'cluster', 'unix'
EXAMPLES = {
    '': 'redis://USER:PASSWORD@redis.example.com:6379/0',
    UNIX: 'unix:///run/redis/redis.sock?db=0',
    SENTINEL: 'redis+sentinel://USER:PASSWORD@192.0.2.1:26379,192.0.2.2:26379/SERVICE/0',
    CLUSTER: 'redis+cluster://USER:PASSWORD@192.0.2.1:6379,192.0.2.2:6379',
}
SCHEMES = (
    'redis://',
    'rediss://',
    'unix://',
    'redis+sentinel://',
    'rediss+sentinel://',
    'redis+cluster:// or rediss+cluster://',
)
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
        raise _mistake('', 'has an address in brackets that is none') from None
    scheme, _, kind = parts.scheme.partition('+')
    kind = scheme if scheme == UNIX and not kind else kind
    if scheme not in ('redis', 'rediss', UNIX) or kind not in EXAMPLES:
        raise _mistake('', f'must begin with {", ".join(SCHEMES)}')
    if kind == UNIX and scheme != UNIX:
        raise _mistake('', f'must begin with {", ".join(SCHEMES)}')
    login, _, named = parts.netloc.rpartition('@')
    user, _, password = (unquote(part) or None for part in login.partition(':'))
    if parts.fragment or '@' in login:
        raise _mistake(
            kind, 'must have %23 for #, %2F for /, %3F for ? and %40 for @ in a password'
        )
    path, service, database = _path(kind, unquote(parts.path))
    more = _query(kind, scheme == 'rediss', parts.query)
    if kind == UNIX:
        database = more.pop('db', '')
        if named or not path:
            raise _mistake(kind, 'must have the absolute path of a socket')
    if not re.fullmatch('[0-9]{0,5}', database, re.A):
        raise _mistake(kind, 'must end with the number of a database')
    hosts = [_host(kind, each) for each in named.split(',')] if kind != UNIX else []
    if len(hosts) > 1 and not kind:
        raise _mistake(
            SENTINEL, 'names several hosts: begin it with redis+sentinel:// or redis+cluster://'
        )
    return Place(
        kind, hosts, path, service, int(database or 0), scheme == 'rediss', user, password, more
    )


def _path(kind: str, path: str) -> tuple[str, str, str]:
    """The path of a Unix socket, the name of a service, and the number of a database."""
    if kind == UNIX:
        return path, '', ''
    service, _, database = path.strip('/').rpartition('/')
    if kind == SENTINEL and not service:
        service, database = database, ''
    if bool(service) is not (kind == SENTINEL):
        what = 'must name the service that Sentinels watch' if kind == SENTINEL else 'has a path'
        raise _mistake(kind, what)
    if kind == CLUSTER and database:
        raise _mistake(kind, 'must have no database: a Redis Cluster has but one')
    return '', service, database


def _host(kind: str, text: str) -> tuple[str, int]:
    default = SENTINEL_PORT if kind == SENTINEL else PORT
    try:
        parts = urlsplit(f'//{text}')
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise _mistake(kind, 'must have a host, and perhaps a port, where the example has it')
    return host, port or default


def _query(kind: str, has_tls: bool, query: str) -> dict[str, str]:
    allowed = [*(TLS_FILES if has_tls else ()), *(SENTINEL_USER if kind == SENTINEL else ())]
    allowed += ['db'] if kind == UNIX else []
    found = dict(parse_qsl(query, keep_blank_values=True))
    if found.keys() <= set(allowed) and all(found.values()):
        return found
    what = f'can have {", ".join(allowed)} behind its ?' if allowed else 'must have no ?'
    raise _mistake(kind, f'{what}, and each with a value' if allowed else what)


def _mistake(kind: str, why: str) -> Mistake:
    return Mistake(f'local.py: redis_url {why}; for example {EXAMPLES[kind]!r}')
