"""Key and certificate of a node, from the secret that all nodes share: the same on each one.

So a node trusts one certificate, its own, and whoever has its key knows the secret. Ed25519: its
signatures have no random part (RFC 8032), so the certificate is the same wherever it is made.
"""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NAME = 'rendezvous-node'  # of all nodes; links.py asks for it
PURPOSE = b'rendezvous: the key of a node, version 1'  # RFC 5869 section 3.2
KEY_BYTES = 32  # RFC 8032 section 5.1.5
# No clock decides who is a member: not even one that has no battery.
BEGIN = datetime.datetime(1970, 1, 1)
END = datetime.datetime(9999, 12, 31, 23, 59, 59)  # RFC 5280 section 4.1.2.5: it has no end


def pem_for(secret: bytes) -> bytes:
    """Key and certificate, in PEM. The secret has 256 random bits: so no salt."""
    octets = HKDF(SHA256(), KEY_BYTES, salt=None, info=PURPOSE).derive(secret)
    key = Ed25519PrivateKey.from_private_bytes(octets)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, BEGIN, END)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)
