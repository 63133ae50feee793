"""Addresses of hosts, as text."""

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

LOCALHOST = 'localhost'
REMEMBERED = 10_000  # addresses whose network is known already, some 3 MB

# RFC 1123 section 2.1, and the underscores that people use
_LABEL = re.compile('[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?', re.I | re.A)


def is_number(host: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Whether it is an IP address or a DNS name."""
    labels = text.split('.')
    # RFC 3696 section 2: a name that ends in digits alone is a mistyped address
    is_name = all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    return is_number(text) or is_name


def is_loopback(host: str) -> bool:
    """Whether it is this machine alone, for whoever is on it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == LOCALHOST or is_below_localhost(host)


def is_below_localhost(host: str) -> bool:
    """Whether it is a name like rendezvous.localhost (RFC 6761 section 6.3).

    It is a loopback address, and browsers and curl know that; not each system's resolver does.
    """
    return host.lower().endswith(f'.{LOCALHOST}')


def to_bind(host: str) -> str:
    """The same host by a name that each system's resolver knows."""
    return LOCALHOST if is_below_localhost(host) else host


def authority(host: str, port: int) -> str:
    """Host and port as a URL has them (RFC 3986 section 3.2): an IPv6 address in brackets."""
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


@lru_cache(REMEMBERED)
def network(address: str) -> str:
    """What counts as one address: for IPv6 a /64, since one household is given that much."""
    ip = ipaddress.ip_address(address.partition('%')[0])
    return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))


class Peer(NamedTuple):
    """The address at the other end of a connection."""

    host: str
    port: int
    reached: 'Peer | None' = None  # the address to which it connected, if both are really known

    def __str__(self) -> str:
        return authority(self.host, self.port)
