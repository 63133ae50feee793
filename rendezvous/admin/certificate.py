"""Makes the key and the self-signed certificate of the server, where local.py names them."""

import datetime
import ipaddress
import os

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from rendezvous.store import options as local
from rendezvous.wire.programs import Mistake

VALID = datetime.timedelta(days=3653)  # ten years: nobody has to hand it out anew before that
BACKDATED = datetime.timedelta(days=1)  # for a client whose clock is slow


def certificate_for(host: str) -> tuple[bytes, x509.Certificate]:
    """A new P-256 key in PEM and a certificate signed with it, for `host` and localhost.

    It is no CA's (RFC 5280 section 4.2.1.9): whoever trusts it trusts this one server.
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
    signatures_alone = x509.KeyUsage(True, *[False] * 8)
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
        .add_extension(signatures_alone, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), certificate


def write(path, octets: bytes, mode: int) -> None:
    """Whole or not at all, and never, for no moment, with more rights than `mode`."""
    new = path.with_name(path.name + '.new')
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), 'wb') as file:
            file.write(octets)
            os.fchmod(file.fileno(), mode)
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)  # half a secret is one, too
        raise


@click.command(help=__doc__)
@click.option('--force', is_flag=True, help='Replace what is there: all clients need the new one.')
@click.option('--if-missing', is_flag=True, help='Do nothing where there is a pair.')
def make(force: bool, if_missing: bool) -> None:
    options = local.load()
    if not options.key_file:
        if if_missing:
            return
        raise Mistake('key_file is None in local.py: plain HTTP needs no certificate')
    key_file, crt_file = map(local.path_of, (options.key_file, options.crt_file))
    host = options.rendezvous_host
    try:
        there = [file for file in (key_file, crt_file) if file.exists()]
        both = f'{key_file} and {crt_file}'
        if if_missing and len(there) == 2:
            return
        if len(there) == 2 and not force:
            raise Mistake(f'there is {both} already: --force makes a new pair, for all clients')
        if there and not force:
            sentence = f'of {both} only {there[0]} is there: set key_file and crt_file in local.py'
            raise Mistake(f'{sentence}, or --force makes a new pair, for all clients')
        key, certificate = certificate_for(host)
        write(key_file, key, 0o400)
        write(crt_file, certificate.public_bytes(Encoding.PEM), 0o444)
    except OSError as error:
        why = f'{error.filename or key_file}: {error.strerror}'
        raise Mistake(f'cannot write {why}; set key_file and crt_file in local.py') from None
    end = f'{certificate.not_valid_after_utc:%Y-%m-%d}'
    fingerprint = crypto.X509.from_cryptography(certificate).digest('sha256').decode()
    print(f'made {both} for {host}, good until {end}')
    print(f'SHA-256 fingerprint: {fingerprint}')
    if force:
        from rendezvous.admin import entry_files as files  # which imports this

        count = files.renew(options)
        print(
            f'it is in the files of {count} entries now: bring them to the hidden servers, and it'
        )
        print('to the mobile clients; the server reads it after kill -HUP, or when it is restarted')
