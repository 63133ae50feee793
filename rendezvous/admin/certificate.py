"""The server's certificate: makes it and what signs it, renews it, reads it, warns of an end.

`crt_file` holds the certificate and then the authority that signed it. So it is the one file that
clients need, and a copy of it trusts each later certificate of that authority, too.

A renewal writes `crt_file` and nothing else. The key stays the same, so key and certificate go
together at each moment, also for a server that starts in between.
"""

import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from rendezvous.admin import atomic, authority
from rendezvous.admin.authority import Authority, now
from rendezvous.store import options as local
from rendezvous.store.options import MAKE_CERT, Options
from rendezvous.wire.programs import Mistake

RENEW_SHARE = 1 / 3  # of its time, when so much is left: as certbot does
# Before the end, at the most; public ones may be valid for a few days alone. certbot has renewed
# by then.
WARN_BEFORE, WARN_SHARE = datetime.timedelta(days=30), 1 / 4

_NEW = f'{MAKE_CERT} --force makes a new one, which hidden servers and clients need too'

_WRITABLE = 'let this user write there, or set key_file and crt_file in local.py'


class Found(NamedTuple):
    """What is in `crt_file`."""

    pem: str  # all of it
    leaf: x509.Certificate  # the server's own
    authority: x509.Certificate | None  # where that is one of ours

    @property
    def is_self_signed(self) -> bool:
        return self.leaf.issuer == self.leaf.subject

    @property
    def is_ours(self) -> bool:
        """Whether clients trust it only where somebody brings it to them."""
        return self.is_self_signed or self.authority is not None


def beside(file: Path) -> Path:
    """The authority's certificate beside that of the server, or its key beside the server's."""
    return file.with_name(f'{file.stem}-ca{file.suffix}')


def write_pair(
    host: str, key_file: Path, crt_file: Path, names_domain: str | None = None
) -> x509.Certificate:
    """Makes an authority, a key and its certificate, and writes them. Raises Mistake."""
    names = authority.names_for(host, names_domain)
    made, key = Authority.made(host, names), ec.generate_private_key(ec.SECP256R1())
    leaf = made.sign(host, names, key.public_key())
    for file, private in ((beside(key_file), made.key), (key_file, key)):
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(file, pem, 0o400)
    _write(beside(crt_file), pem_of(made.certificate), 0o444)
    _write(crt_file, pem_of(leaf, made.certificate), 0o444)
    return leaf


def renew(options: Options) -> x509.Certificate | None:
    """Writes the next certificate of our authority, where one is due. None: none is.

    One is due when a third of its time is left, and when the options name what it is not for. What
    no authority of ours has signed stays as it is. Raises Mistake.
    """
    try:
        found = read(options)
    except Mistake:
        return None  # the server says what is wrong with such a file
    host, names = options.rendezvous_host, _names(options)
    if not found.authority or not _is_due(found.leaf, found.authority, names):
        return None
    signing = _authority(options, found.authority)
    leaf = signing.sign(host, names, found.leaf.public_key())
    _write(local.path_of(options.crt_file), pem_of(leaf, found.authority), 0o444)
    return leaf


def _write(file: Path, octets: bytes, mode: int) -> None:
    try:
        atomic.write(file, octets, mode)
    except OSError as error:
        why = f'{error.filename or file}: {error.strerror}'
        raise Mistake(f'cannot write {why}: {_WRITABLE}') from None


def _names(options: Options) -> list[x509.GeneralName]:
    return authority.names_for(options.rendezvous_host, options.names_domain)


def _is_due(
    leaf: x509.Certificate, signer: x509.Certificate, names: list[x509.GeneralName]
) -> bool:
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now() < begin or not {*names} <= authority.names_in(leaf):
        return True  # when it was made the clock was wrong, or the options were others
    return end - now() < RENEW_SHARE * (end - begin) and end < authority.end_of_next(signer)


def _authority(options: Options, certificate: x509.Certificate) -> Authority:
    """That of `certificate`, where it may sign for the options now. Raises Mistake."""
    foreign = [name for name in _names(options) if not authority.permits(certificate, name)]
    if foreign:
        names = ' and '.join(str(name.value) for name in foreign)
        raise Mistake(f'the authority in {options.crt_file} may not sign for {names}: {_NEW}')
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now() < end:
        valid = f'the authority in {options.crt_file} is valid from {begin:%Y-%m-%d} to'
        clock = f'{end:%Y-%m-%d}, and the clock of this machine says {now():%Y-%m-%d}'
        raise Mistake(f'{valid} {clock}: set the clock; if it is right, {_NEW}')
    file = beside(local.path_of(str(options.key_file)))
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        why = error.strerror
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = 'it holds no key'
    else:
        belongs = key.public_key() == certificate.public_key()
        if isinstance(key, ec.EllipticCurvePrivateKey) and belongs:
            return Authority(certificate, key)
        why = f'it is not the key of the authority in {options.crt_file}'
    sentence = f'cannot renew the certificate with {file} ({why}): bring back the right file'
    raise Mistake(f'{sentence}, or {_NEW}')


def pem_of(*certificates: x509.Certificate) -> bytes:
    return b''.join(each.public_bytes(Encoding.PEM) for each in certificates)


def read(options: Options) -> Found:
    """What is in `crt_file`, which is read again once it has changed. Raises Mistake."""
    crt_file = local.path_of(options.crt_file)
    local.check_readable(crt_file)
    try:
        about = crt_file.stat()
    except OSError as error:
        raise Mistake(f'cannot read {crt_file}: {error.strerror}') from None
    return _read(crt_file, about.st_ino, about.st_mtime_ns, about.st_size)


@lru_cache(4)
def _read(crt_file: Path, *_: int) -> Found:
    """The page asks several times a second. What follows the file tells one state of it from
    another one.
    """
    try:
        pem = crt_file.read_text('ascii', 'ignore')
        leaf, *others = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        sentence = f'{crt_file} holds no certificate: set crt_file in local.py'
        raise Mistake(f'{sentence}, or {MAKE_CERT} --force makes a new pair') from None
    signers = [each for each in others if authority.is_ours(each) and each.subject == leaf.issuer]
    return Found(pem, leaf, signers[0] if signers else None)


def notice(options: Options) -> str:
    """What is or soon will be wrong with the certificate, and what to do; '' if nothing."""
    if not options.key_file:
        return ''
    authority_key = beside(local.path_of(options.key_file))
    if _everybody_may_read(authority_key):
        return f'Every user of this machine may read {authority_key}: chmod 400 {authority_key}'
    try:
        found = read(options)
    except Mistake as mistake:
        return str(mistake)
    if found.authority and (when := _ends_soon(found.authority)):
        return f'The authority of the certificate {when}: {_NEW}.'
    if not (when := _ends_soon(found.leaf)):
        return ''
    if found.authority:
        return f'The certificate {when}: {MAKE_CERT} --renew makes the next one, or says why not.'
    return f'The certificate {when}: {_NEW if found.is_self_signed else "renew it"}.'


def _everybody_may_read(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & 0o007)
    except OSError:
        return False  # it may be kept on another machine


def _ends_soon(certificate: x509.Certificate) -> str:
    """When it ends or has ended, in words; '' if there is time."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end - now() > min(WARN_BEFORE, WARN_SHARE * (end - begin)):
        return ''
    return f'ends on {end:%Y-%m-%d}' if end > now() else f'ended on {end:%Y-%m-%d}'
