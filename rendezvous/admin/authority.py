"""An authority of our own: what it may sign, and what it signs.

It is valid for ten years, and for the names of one server alone: nobody who trusts it has to trust
it for anything else. What it signs is valid for a year, as phones demand (RFC 5280 throughout).
"""

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_VALID = datetime.timedelta(days=3653)  # ten years: every client needs the next one
# Apple takes 825 days at most, also of an authority that the user has installed. Public ones may
# give 398.
VALID = datetime.timedelta(days=397)
BACKDATED = datetime.timedelta(days=1)  # for a client whose clock is slow

# Ours are known by it in a file, and people see it in their phones. No public one begins so.
TITLE = 'Rendezvous'


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def names_for(host: str, names_domain: str | None = None) -> list[x509.GeneralName]:
    """What the certificate is for: the host, each name of a hidden server, and this machine."""
    try:
        first: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        first = x509.DNSName(host)
    domains = [f'*.{names_domain}', names_domain] if names_domain else []
    return list(dict.fromkeys([first, *map(x509.DNSName, [*domains, 'localhost'])]))


def names_in(certificate: x509.Certificate) -> set[x509.GeneralName]:
    """What a certificate of ours is for."""
    return {*certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


def is_ours(certificate: x509.Certificate) -> bool:
    """Whether it is that of an authority that was made here."""
    own = certificate.issuer == certificate.subject
    return own and certificate.subject.rfc4514_string().startswith(f'CN={TITLE} ')


def permits(certificate: x509.Certificate, name: x509.GeneralName) -> bool:
    """Whether an authority of ours may sign for `name`: for one that it names, and all below."""
    constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    permitted = [each.value for each in constraints.permitted_subtrees or ()]
    if isinstance(name, x509.IPAddress):
        return any(name.value in each for each in permitted if not isinstance(each, str))
    below = f'.{name.value}'.lower()
    return any(below.endswith(f'.{each}'.lower()) for each in permitted if isinstance(each, str))


@dataclass(frozen=True)
class Authority:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(cls, host: str, names: list[x509.GeneralName]) -> 'Authority':
        """A new one, which may sign for `names`, and makes no authority below it."""
        key = ec.generate_private_key(ec.SECP256R1())
        # The date tells it from the one before.
        name = _name(f'{TITLE} {now():%Y-%m-%d} {host}')
        usage = x509.KeyUsage(*[False] * 5, *[True] * 2, *[False] * 2)  # keyCertSign, cRLSign
        certificate = (
            _unsigned(name, name, key.public_key(), now() + AUTHORITY_VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_constraints(names), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def sign(
        self, host: str, names: list[x509.GeneralName], key: CertificatePublicKeyTypes
    ) -> x509.Certificate:
        """A certificate of a server for `names`."""
        authority = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority)
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        return (
            _unsigned(_name(host), self.certificate.subject, key, end_of_next(self.certificate))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)  # digitalSignature
            .add_extension(server, critical=False)
            .add_extension(identifier, critical=False)  # Python 3.13 takes none without
            .sign(self.key, hashes.SHA256())
        )


def end_of_next(certificate: x509.Certificate) -> datetime.datetime:
    """When what that authority signs now ends: not later than itself."""
    return min(now() - BACKDATED + VALID, certificate.not_valid_after_utc)


def _name(text: str) -> x509.Name:
    """RFC 5280 appendix A.1: at most 64 characters."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now() - BACKDATED)
        .not_valid_after(end)
        .add_extension(identifier, critical=False)
    )


def _constraints(names: list[x509.GeneralName]) -> x509.NameConstraints:
    """Permits these names and all below them, and nothing else (RFC 5280 section 4.2.1.10).

    What is said of names leaves addresses free: those that are not named are excluded.
    """
    addresses = [
        x509.IPAddress(ipaddress.ip_network(name.value))
        for name in names
        if isinstance(name, x509.IPAddress)
    ]
    domains = [name.value.removeprefix('*.') for name in names if isinstance(name, x509.DNSName)]
    permitted = [*addresses, *map(x509.DNSName, dict.fromkeys(domains))]
    every = map(ipaddress.ip_network, ('0.0.0.0/0', '::/0'))
    named = {address.value.version for address in addresses}
    excluded = [x509.IPAddress(each) for each in every if each.version not in named]
    return x509.NameConstraints(permitted, excluded)
