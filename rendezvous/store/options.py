"""The options: `local.py` over the defaults, and each mistake in it one sentence."""

import dataclasses
import logging
import os
import re
import runpy
import socket
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from rendezvous.store import embedded, redis_url
from rendezvous.wire.addresses import authority, is_host, is_loopback, is_number
from rendezvous.wire.programs import HERE, Mistake

log = logging.getLogger('options')

MAKE_CERT = '.venv/bin/python make_cert.py'  # what makes key and certificate, in sentences
PLAIN = 'redis_host', 'redis_port', 'redis_auth'  # what redis_url says, too
SECRETS = 'redis_auth', 'redis_url', 'node_secret', 'metrics_token'
LOOK_SECONDS = 1  # a listener on this machine accepts at once

OLD_FILES = 'password', 'store.log'  # in data/, of versions whose embedded store had a port
OLD_STORE = (
    'local.py: redis_host %r means the embedded store of an earlier version, with its entries in '
    "%s: write 'redis_host': None, and remove redis_port and redis_auth"
)

# So many characters at least: nobody guesses 100 bits, nor 192 where there is no limit of tries.
TOKENS = {'metrics_token': 20, 'node_secret': 32}
MAKE_TOKEN = ".venv/bin/python -c 'import secrets; print(secrets.token_urlsafe())'"
# RFC 6750 section 2.1
_TOKEN = re.compile('[a-z0-9._~+/-]+=*', re.I | re.A)
# A path that needs no encoding, and that no proxy and no browser writes anew.
_PATH = re.compile('(/[a-z0-9_~-][a-z0-9._~-]*)*/?', re.I | re.A)


@dataclass(frozen=True)
class Options:
    """What `local.py` may set, with the defaults; local.example.py says what each is."""

    rendezvous_host: str = '127.0.0.1'
    rendezvous_port: int = 8899
    names_domain: str | None = None
    listen_host: str | None = None
    proxy_protocol: bool = False
    key_file: str | None = 'registrar.key'
    crt_file: str = 'registrar.crt'
    redis_host: str | None = None  # the embedded store
    redis_port: int = 6379
    redis_auth: str = ''
    redis_url: str = ''
    node_host: str | None = None  # the server is no node: it has no others
    node_port: int = 8900
    node_secret: str = ''
    wrong_codes_per_address: int = 10
    wrong_codes_per_day: int = 50
    unknown_per_minute: int = 100
    max_connections: int = 4000
    max_connections_per_address: int = 1000
    max_pipes_per_address: int = 100
    workers: int | None = None
    max_waiting: int = 32
    rendezvous_wait: int | float = 10
    drain: int | float = 5
    page_host: str | None = None
    page_url: str | None = None
    metrics_token: str = ''

    def __or__(self, changed: dict[str, Any]) -> 'Options':
        return dataclasses.replace(self, **changed)

    def node_address(self, number: int) -> str:
        """HOST:PORT, where other nodes reach the worker of that number; '': this is no node."""
        return authority(self.node_host, self.node_port + number - 1) if self.node_host else ''

    @property
    def has_embedded_store(self) -> bool:
        return self.redis_host is None and not self.redis_url

    @property
    def knows_addresses(self) -> bool:
        """Whether a connection's address is its client's: whoever terminates TLS hides it."""
        return bool(self.key_file or self.proxy_protocol)

    @property
    def page_origin(self) -> str:
        """Scheme, host and port of `page_url`, as browsers write them; '' without it."""
        host = urlsplit(self.page_url or '').netloc.lower().removesuffix(':443')
        return f'https://{host}' if host else ''

    @property
    def page_prefix(self) -> str:
        """The path of `page_url`, without a slash at its end: '' where it is the root."""
        return urlsplit(self.page_url or '').path.rstrip('/')


DEFAULTS = Options()
NAMES = [field.name for field in fields(Options)]
_TYPES = get_type_hints(Options)
_KINDS = {  # in sentences
    (str,): 'a string',
    (str, NoneType): 'a string or None',
    (int,): 'a whole number',
    (int, NoneType): 'a whole number or None',
    (int, float): 'a number',
    (bool,): 'True or False',
}
_LIMITS = {  # the least and the most that it may be
    'rendezvous_port': (0, 65535),
    'redis_port': (1, 65535),
    'node_port': (1, 65535 - 64),  # each worker has one
    'wrong_codes_per_address': (0, 1000),
    'wrong_codes_per_day': (0, 1000),
    'unknown_per_minute': (0, 100_000),
    'max_connections': (8, 1_000_000),
    'max_connections_per_address': (0, 1_000_000),
    'max_pipes_per_address': (0, 1_000_000),
    'max_waiting': (1, 100_000),
    'workers': (1, 64),
    'rendezvous_wait': (0, 3600),
    'drain': (0, 3600),
}


def load(path: Path = HERE / 'local.py', warn: bool = True) -> Options:
    """The options of `local.py`, checked, and the defaults of the others. Raises Mistake.

    `warn`: the log gets a line where they were written for an earlier version.
    """
    if not path.exists():
        raise Mistake('there is no local.py: cp local.example.py local.py, and set rendezvous_host')
    try:
        given = runpy.run_path(str(path)).get('options')
    except PermissionError as error:
        raise Mistake(f'cannot read {path}: {error.strerror}; let this user read it') from None
    except (Exception, SystemExit) as error:
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        sentence = f'local.py cannot be read: {why}; write it as local.example.py is written'
        raise Mistake(sentence) from None
    if not isinstance(given, dict):
        raise Mistake('local.py must set options = {...}, as local.example.py does')
    for name, value in given.items():
        _check(name, value)
    secrets = [name for name in SECRETS if _has_secret(name, given.get(name))]
    if secrets and path.stat().st_mode & 0o007:
        raise Mistake(f'every user of this machine may read {secrets[0]}: chmod 600 local.py')
    is_old = 'redis_host' not in given and not given.get('redis_url')
    if is_old and given.keys() & {'redis_port', 'redis_auth'}:
        given['redis_host'] = '127.0.0.1'  # the default of earlier versions
    options = DEFAULTS | given
    if _means_the_embedded_store(options):
        if warn:
            log.warning(OLD_STORE, options.redis_host, embedded.DATA)
        options |= {'redis_host': None}
    _check_redis(options)
    return options


def _has_secret(name: str, value: str | None) -> bool:
    if name != 'redis_url' or not value:
        return bool(value)
    place = redis_url.place(value)
    return bool(place.password or place.more.get('sentinel_password'))


def _check_redis(options: Options) -> None:
    """Raises Mistake where options contradict each other."""
    place = redis_url.place(options.redis_url) if options.redis_url else None
    plain = [name for name in PLAIN if getattr(options, name) != getattr(DEFAULTS, name)]
    if place and plain:
        raise Mistake(f'local.py: redis_url says where Redis is: remove {" and ".join(plain)}')
    if options.node_host and options.has_embedded_store:
        sentence = 'local.py: a node needs a Redis that all nodes share: set redis_url to it'
        raise Mistake(f'{sentence}, or remove node_host')
    for name, file in place.files.items() if place else ():
        if not (os.access(path_of(file), os.R_OK) and path_of(file).is_file()):
            sentence = f'cannot read {path_of(file)}: let this user read it'
            raise Mistake(f'{sentence}, or name another file as {name} in redis_url')


def check_readable(file: Path) -> None:
    """Raises Mistake where `file`, key_file or crt_file, is no file that this user may read."""
    if os.access(file, os.R_OK) and file.is_file():
        return
    advice = 'let this user read it'
    try:
        file.stat()
    except FileNotFoundError:
        advice = f'{MAKE_CERT} makes it'
    except OSError:
        pass  # a folder above it is closed to this user
    raise Mistake(f'cannot read {file}: {advice}, or set it in local.py')


def _means_the_embedded_store(options: Options) -> bool:
    """Whether redis_host names the embedded store of an earlier version, on a loopback port.

    Its files are in `data/`, and no Redis listens in its place. While the store of this version
    runs on them, all programs that start use it.
    """
    host = options.redis_host
    is_old = any(os.path.exists(embedded.DATA / name) for name in OLD_FILES)
    if host is None or not is_loopback(host) or not is_old:
        return False
    return embedded.listens() or _nobody_listens(host, options.redis_port)


def _nobody_listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=LOOK_SECONDS).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False


def _check(name: str, value: object) -> None:
    if name not in NAMES:
        raise Mistake(f'local.py: there is no option {name!r}; there are {", ".join(NAMES)}')
    types, default = get_args(_TYPES[name]) or (_TYPES[name],), getattr(DEFAULTS, name)
    example = default if default is not None else 2 if int in types else _example(name)
    if not isinstance(value, types) or isinstance(value, bool) is not (types == (bool,)):
        raise Mistake(f'local.py: {name} must be {_KINDS[types]}, for example {example!r}')
    least, most = _LIMITS.get(name, (0, 0))
    if name in _LIMITS and isinstance(value, int | float) and not least <= value <= most:
        raise Mistake(f'local.py: {name} must be from {least} to {most}')
    if not isinstance(value, str):
        return
    if name.endswith('host') and not is_host(value):
        sentence = f'local.py: {name} must be an IP address or a DNS name'
        raise Mistake(f'{sentence}, for example {example!r}')
    if name == 'names_domain' and not _is_domain(value):
        sentence = f'local.py: {name} must be a DNS name with a dot in it'
        raise Mistake(f'{sentence}, for example {example!r}')
    if name.endswith('file') and value == '':
        raise Mistake(f'local.py: {name} must not be empty; for example {example!r}')
    if name == 'page_url' and not _is_page_url(value):
        sentence = 'local.py: page_url must be https://, a host and perhaps a port and a path'
        raise Mistake(f'{sentence}, for example {example!r}')
    if name in TOKENS:
        _check_token(name, value)
    if name == 'node_host' and is_number(value) and ip_address(value).is_unspecified:
        sentence = 'local.py: node_host must be an address by which the other nodes reach this one'
        raise Mistake(f'{sentence}, for example {example!r}')
    if not value.isprintable():
        raise Mistake(f'local.py: {name} must be without line breaks and control characters')
    if name == 'redis_url' and value:
        redis_url.place(value)


def _check_token(name: str, token: str) -> None:
    if token and not (_TOKEN.fullmatch(token) and len(token) >= TOKENS[name]):
        what = f'at least {TOKENS[name]} letters, digits and -._~+/, for example what this'
        raise Mistake(f'local.py: {name} must be {what} prints: {MAKE_TOKEN}')


def _example(name: str) -> str:
    examples = {'names_domain': 'rendezvous.example.com', 'page_url': 'https://admin.example.com/'}
    return examples.get(name, '192.0.2.1')


def _is_page_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        host, port = url.hostname or '', url.port
    except ValueError:  # the port is no number, or too large
        return False
    named = (f'[{host}]' if ':' in host else host) + ('' if port is None else f':{port}')
    is_plain = text.lower() == f'https://{named}{url.path}'.lower()  # no user, no query, no spaces
    return is_plain and port != 0 and is_host(host) and bool(_PATH.fullmatch(url.path))


def _is_domain(text: str) -> bool:
    # No client takes a certificate for *.localhost or *.com.
    return '.' in text and is_host(text) and not is_number(text)


def path_of(name: str) -> Path:
    """A path in the options: relative ones are relative to `local.py`."""
    return HERE / name
