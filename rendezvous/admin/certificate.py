"""The server's certificate: makes a self-signed one and its key, reads it, warns of its end."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rendezvous.admin import atomic
from rendezvous.store import options as local
from rendezvous.store.options import MAKE_CERT, Options
from rendezvous.wire.programs import Mistake

VALID = datetime.timedelta(days=3653)  # ten years: every client needs the next one
WARN_BEFORE = datetime.timedelta(days=30)  # Let's Encrypt renews that long before the end
BACKDATED = datetime.timedelta(days=1)  # for a client whose clock is slow


def certificate_for(host: str) -> tuple[bytes, x509.Certificate]:
    """A new P-256 key in PEM and a certificate signed with it, for `host` and localhost.

    It is not an authority (RFC 5280 section 4.2.1.9): a client that trusts it trusts this one
    server and no other.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    names: list[x509.GeneralName]
    try:
        names = [x509.IPAddress(ipaddress.ip_address(host))]
    except ValueError:
        names = [x509.DNSName(host)]
    if host != 'localhost':
        names.append(x509.DNSName('localhost'))
    only_signatures = x509.KeyUsage(True, *[False] * 8)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(only_signatures, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), certificate


def write_pair(host: str, key_file: Path, crt_file: Path) -> x509.Certificate:
    """Makes a key and its certificate and writes them. Raises OSError."""
    key, certificate = certificate_for(host)
    atomic.write(key_file, key, 0o400)
    atomic.write(crt_file, certificate.public_bytes(Encoding.PEM), 0o444)
    return certificate


def read(options: Options) -> tuple[str, x509.Certificate]:
    """The text of `crt_file` and the first certificate in it. Raises Mistake."""
    crt_file = local.path_of(options.crt_file)
    try:
        pem = crt_file.read_text('ascii', 'ignore')
        return pem, x509.load_pem_x509_certificate(pem.encode())
    except OSError:
        raise Mistake(f'cannot read {crt_file}: {MAKE_CERT} makes it') from None
    except ValueError:
        sentence = f'{crt_file} holds no certificate: set crt_file in local.py'
        raise Mistake(f'{sentence}, or {MAKE_CERT} --force makes a new pair') from None


def notice(options: Options) -> str:
    """What is or soon will be wrong with the certificate, and what to do; '' if nothing."""
    if not options.key_file:
        return ''
    try:
        _, found = read(options)
    except Mistake as mistake:
        return str(mistake)
    end, now = found.not_valid_after_utc, datetime.datetime.now(datetime.UTC)
    if end - now > WARN_BEFORE:
        return ''
    when = f'ends on {end:%Y-%m-%d}' if end > now else f'ended on {end:%Y-%m-%d}'
    own = f'{MAKE_CERT} --force makes a new one, which hidden servers and clients need too'
    return f'The certificate {when}: {own if found.issuer == found.subject else "renew it"}.'
