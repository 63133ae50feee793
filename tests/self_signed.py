"""Pairs of key and certificate as others make them, and as make_cert.py made them before."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

IP = x509.IPAddress(ipaddress.ip_address('127.0.0.1'))


def pair(begins: float = -1, ends: float = 3653, issuer: str = '127.0.0.1') -> tuple[bytes, bytes]:
    """A key and its certificate for 127.0.0.1, in PEM; it begins and ends so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, signer = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in ('127.0.0.1', issuer)
    )
    begin, end = (
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        for days in (begins, ends)
    )
    made = (
        x509.CertificateBuilder(signer, subject, key.public_key(), 1, begin, end)
        .add_extension(x509.SubjectAlternativeName([IP]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, made.public_bytes(Encoding.PEM)


def write(
    folder: Path, *, begins: float = -1, ends: float = 3653, issuer: str = '127.0.0.1'
) -> None:
    """Such a pair in place of the files that are there."""
    names = 'registrar.key', 'registrar.crt'
    for name, octets in zip(names, pair(begins, ends, issuer), strict=True):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(octets)
        (folder / name).chmod(0o400)
    for ours in folder.glob('registrar-ca.*'):
        ours.unlink()
