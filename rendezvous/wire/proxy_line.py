"""The PROXY protocol (HAProxy's proxy-protocol.txt): who asks, said before the first octet.

A proxy in front of the server says it in a header, of version 1 (a line of text) or 2 (binary):
`end(octets) -> int | None`, `read(header) -> Peer | None`. The server says it to a hidden server
that asked for it, in a line of version 1 before the first head of a mobile client:
`line(source, destination) -> bytes`, `split(octets) -> tuple[Peer | None, bytes] | None`. A Peer
that was read has the address at which it arrived in `reached`. Here are no sockets.
"""

import ipaddress
import re
from functools import lru_cache

from rendezvous.wire.addresses import REMEMBERED, Peer

LINE_BYTES = 107  # section 2.1: no line is longer, with its CRLF
# Of version 2, behind the first 16. The length has 16 bits, and senders use some hundred octets.
BLOCK_BYTES = 4096
FIRST_BYTES = 12  # by so many a header is known; each has more
_SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
_UNKNOWN = b'PROXY UNKNOWN\r\n'
_BEGINNINGS = b'PROXY TCP4 ', b'PROXY TCP6 ', b'PROXY UNKNOWN'
_PORT = rb'(0|[1-9][0-9]{0,4})'
_LINE = re.compile(rb'PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) %s %s\r\n' % (_PORT, _PORT))
_ADDRESS_BYTES = {0x11: 4, 0x21: 16}  # TCP over IPv4 and over IPv6
_NO_ADDRESS = 0x00, 0x31  # unspecified; a Unix socket

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def line(source: Peer | None, destination: Peer | None) -> bytes:
    """The line of version 1; `PROXY UNKNOWN` where the two are not of one family or not known."""
    if not (source and destination):
        return _UNKNOWN
    hosts = _hosts(source.host, destination.host)
    return f'PROXY {hosts} {source.port} {destination.port}\r\n'.encode() if hosts else _UNKNOWN


@lru_cache(REMEMBERED)
def _hosts(source: str, destination: str) -> str:
    """The family and both addresses; '' where there is no line of them."""
    try:
        hosts = (each.partition('%')[0] for each in (source, destination))
        here, there = map(_unmapped, map(ipaddress.ip_address, hosts))
    except ValueError:
        return ''
    return f'TCP{here.version} {here} {there}' if here.version == there.version else ''


def split(octets: bytes) -> tuple[Peer | None, bytes] | None:
    """Who asks, and what comes behind the line; None where more octets are needed to know.

    Without a line all octets are given back. It must be as `line` writes it: `PROXY / HTTP/1.1` is
    a good request, and so is `PROXY UNKNOWN HTTP/1.1`.
    """
    found, end, behind = octets.partition(b'\r\n')
    if not end and len(octets) < LINE_BYTES and _may_begin(octets):
        return None
    if found + end == _UNKNOWN:
        return None, behind
    try:
        return _text(found + end), behind
    except ValueError:
        return None, octets


def end(octets: bytes) -> int | None:
    """How many of these octets are a header; None: all, and more of it are to come.

    Raises ValueError where they do not begin with a header.
    """
    if octets.startswith(_SIGNATURE):
        length = 16 + int.from_bytes(octets[14:16], 'big')
        if length > 16 + BLOCK_BYTES:
            raise ValueError(f'sends a PROXY header longer than {BLOCK_BYTES} bytes')
        return length if length <= len(octets) else None
    if _SIGNATURE.startswith(octets):
        return None
    if not _may_begin(octets):
        raise ValueError('does not begin with a PROXY header')
    found = octets.find(b'\r\n', 0, LINE_BYTES)
    if found < 0 and len(octets) >= LINE_BYTES:
        raise ValueError(f'sends a PROXY line longer than {LINE_BYTES} bytes')
    return found + 2 if found >= 0 else None


def read(header: bytes) -> Peer | None:
    """Who asks, by a whole header; None where it gives no address: the proxy asks for itself.

    Raises ValueError where it is malformed.
    """
    if re.fullmatch(rb'PROXY UNKNOWN( [^\r\n]*)?\r\n', header):
        return None
    try:
        return _binary(header) if header.startswith(_SIGNATURE) else _text(header)
    except ValueError:
        raise ValueError('sends a malformed PROXY header') from None


def is_begun(octets: bytes) -> bool:
    """Whether these are the first of a header, as far as FIRST_BYTES tell."""
    return octets.startswith((_SIGNATURE, *_BEGINNINGS[:2], _BEGINNINGS[2][:FIRST_BYTES]))


def _may_begin(octets: bytes) -> bool:
    return any(octets.startswith(each[: len(octets)]) for each in _BEGINNINGS)


def _text(octets: bytes) -> Peer:
    """Section 2.1. Raises ValueError."""
    found = _LINE.fullmatch(octets)
    if not found or len(octets) > LINE_BYTES:
        raise ValueError
    version, *texts = (each.decode() for each in found.groups())
    ips, ports = list(map(ipaddress.ip_address, texts[:2])), list(map(int, texts[2:]))
    if any(ip.version != int(version) for ip in ips) or max(ports) > 65535:
        raise ValueError
    return _peer(ips, ports)


def _binary(octets: bytes) -> Peer | None:
    """Section 2.2; what stands behind the addresses is skipped. Raises ValueError."""
    command, family, block = octets[12], octets[13], octets[16:]
    if command == 0x20 or (command == 0x21 and family in _NO_ADDRESS):  # 0x20: LOCAL
        return None
    count = _ADDRESS_BYTES.get(family, 0)
    if command != 0x21 or not count or len(block) < 2 * count + 4:
        raise ValueError
    ips = [ipaddress.ip_address(block[at : at + count]) for at in (0, count)]
    ports = [int.from_bytes(block[at : at + 2], 'big') for at in (2 * count, 2 * count + 2)]
    return _peer(ips, ports)


def _peer(ips: list[_Ip], ports: list[int]) -> Peer:
    source, destination = map(str, map(_unmapped, ips))
    return Peer(source, ports[0], Peer(destination, ports[1]))


def _unmapped(ip: _Ip) -> _Ip:
    """The IPv4 address that an IPv6 one stands for, if it does: one peer has one address."""
    return getattr(ip, 'ipv4_mapped', None) or ip
