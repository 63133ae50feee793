"""The options: `local.py` over the defaults, and each mistake in it one sentence."""

import errno
import ipaddress
import os
import re
import runpy
import sys
from pathlib import Path

EX_CONFIG, EX_IOERR = 78, 74  # of sysexits.h; Windows has no names for them
HERE = Path(__file__).resolve().parents[2]
MAKE_CERT = '.venv/bin/python make_cert.py'  # what makes key and certificate, in sentences

# name: (default, the types it may have, the least it may be, the most it may be)
_OPTIONS: dict[str, tuple] = {
    'rendezvous_host': ('127.0.0.1', (str,), None, None),
    'rendezvous_port': (8899, (int,), 0, 65535),
    'listen_host': (None, (str, type(None)), None, None),
    'key_file': ('registrar.key', (str, type(None)), None, None),
    'crt_file': ('registrar.crt', (str,), None, None),
    'redis_host': ('127.0.0.1', (str,), None, None),
    'redis_port': (6379, (int,), 1, 65535),
    'redis_auth': ('', (str,), None, None),
    'wrong_codes_per_address': (10, (int,), 0, 1000),
    'wrong_codes_per_day': (50, (int,), 0, 1000),
    'unknown_per_minute': (100, (int,), 0, 100_000),
    'max_connections': (4000, (int,), 8, 1_000_000),
    'max_connections_per_address': (1000, (int,), 0, 1_000_000),
    'max_pipes_per_address': (100, (int,), 0, 1_000_000),
    'max_waiting': (32, (int,), 1, 100_000),
    'rendezvous_wait': (10, (int, float), 0, 3600),
    'drain': (5, (int, float), 0, 3600),
    'page_host': (None, (str, type(None)), None, None),
}
DEFAULTS = {name: default for name, (default, *_) in _OPTIONS.items()}

# RFC 1123 section 2.1, and the underscores that people use
_LABEL = re.compile('[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?', re.I | re.A)


class Mistake(Exception):
    """What an administrator can mend: one sentence that says what to write or to do instead."""


def main(run) -> None:
    """Runs a program; a Mistake is its last words and exit status 78 (EX_CONFIG).

    So is a full disk under what it prints, with status 74 (EX_IOERR).
    """
    try:
        sys.exit(run())
    except Mistake as mistake:
        _complain(mistake)
        sys.exit(EX_CONFIG)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _complain(error.strerror)
        os._exit(EX_IOERR)  # or what could not be printed would be tried once more


def _complain(sentence) -> None:
    print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)


def load(path: Path = HERE / 'local.py') -> dict:
    """The options of `local.py`, checked, and the defaults of the others. Raises Mistake."""
    if not path.exists():
        raise Mistake('there is no local.py: cp local.example.py local.py, and set rendezvous_host')
    try:
        given = runpy.run_path(str(path)).get('options')
    except (Exception, SystemExit) as error:
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        sentence = f'local.py can not be read: {why}; write it as local.example.py is written'
        raise Mistake(sentence) from None
    if not isinstance(given, dict):
        raise Mistake('local.py must set options = {...}, as local.example.py does')
    for name, value in given.items():
        _check(name, value)
    if given.get('redis_auth') and path.stat().st_mode & 0o007:
        raise Mistake('every user of this machine may read redis_auth: chmod 600 local.py')
    return DEFAULTS | given


def _check(name, value) -> None:
    if name not in _OPTIONS:
        raise Mistake(f'local.py: there is no option {name!r}; there are {", ".join(_OPTIONS)}')
    default, types, least, most = _OPTIONS[name]
    example = default if default is not None else '192.0.2.1'
    if isinstance(value, bool) or not isinstance(value, types):
        wanted = ' or '.join('None' if kind is type(None) else kind.__name__ for kind in types)
        raise Mistake(f'local.py: {name} must be {wanted}, like {example!r}')
    if least is not None and not least <= value <= most:
        raise Mistake(f'local.py: {name} must be from {least} to {most}')
    if name.endswith('host') and value is not None and not _is_host(value):
        raise Mistake(f'local.py: {name} must be an IP address or a DNS name, like {example!r}')
    if name.endswith('file') and value == '':
        raise Mistake(f'local.py: {name} must not be empty, but like {example!r}')
    if isinstance(value, str) and not value.isprintable():
        raise Mistake(f'local.py: {name} must be without line breaks and control characters')


def _is_host(text: str) -> bool:
    labels = text.split('.')
    # RFC 3696 section 2: a name that ends in digits alone is a mistyped address
    is_name = all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    return is_number(text) or is_name


def is_number(host: str) -> bool:
    """Whether it is an IP address, no name."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def authority(host: str, port: int) -> str:
    """Host and port as they stand in a URL (RFC 3986 section 3.2): IPv6 ones in brackets."""
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def file(name: str) -> Path:
    """A path in the options: relative ones are relative to `local.py`."""
    return HERE / name
