"""Key and certificate of a node: the same on all machines."""

import subprocess
import sys

from conftest import ROOT
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from rendezvous.admin import membership

SECRET = b'a secret of some nodes'
# Nodes of another version, and with other libraries, have to make the same one.
FINGERPRINT = 'affd3a92d66f49a308a59873b98ea300cc4516b473e4815f0d8b47891c1175e8'


def made(secret: bytes = SECRET) -> bytes:
    command = [sys.executable, 'make_cert.py', '--node']
    return subprocess.run(command, input=secret, cwd=ROOT, capture_output=True, check=True).stdout


def test_the_certificate_is_the_same_everywhere():
    certificate = x509.load_pem_x509_certificate(made())
    assert certificate.fingerprint(hashes.SHA256()).hex() == FINGERPRINT


def test_another_secret_has_another_key():
    key, other = (load_pem_private_key(made(secret), None) for secret in (SECRET, SECRET[::-1]))
    assert key.public_key() != other.public_key()


def test_the_certificate_is_always_valid_and_belongs_to_the_key():
    pem = membership.pem_for(SECRET)
    certificate, key = x509.load_pem_x509_certificate(pem), load_pem_private_key(pem, None)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(certificate)
    years = certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year
    assert years == (1970, 9999)


def test_help_does_not_tell_people_of_it():
    command = [sys.executable, 'make_cert.py', '--help']
    assert '--node' not in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
