"""The PROXY protocol as octets: what is a header, what is none, and who asks."""

import ipaddress
import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz import fuzz, read

from rendezvous.wire import proxy_line
from rendezvous.wire.addresses import Peer

SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
IPV4 = Peer('192.0.2.7', 5000, Peer('198.51.100.1', 443))
IPV6 = Peer('2001:db8::7', 5000, Peer('2001:db8::1', 443))
LINE4 = b'PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n'
LINE6 = b'PROXY TCP6 2001:db8::7 2001:db8::1 5000 443\r\n'
LONGEST = b'PROXY UNKNOWN ' + b'f' * 91 + b'\r\n'


def binary(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    """A header of version 2; `length` is what it says of itself, if that is not true."""
    length = len(block) if length is None else length
    return SIGNATURE + struct.pack('!BBH', command, family, length) + block


def block(peer: Peer) -> bytes:
    """The addresses in it."""
    ends = (peer, peer.reached)
    ports = struct.pack('!HH', *(end.port for end in ends))
    return b''.join(ipaddress.ip_address(end.host).packed for end in ends) + ports


TLVS = b'\3\0\4abcd\5\0\3xyz'  # CRC32C, UNIQUE_ID
GOOD = {
    LINE4: IPV4,
    LINE6: IPV6,
    b'PROXY TCP6 2001:DB8:0::7 2001:db8::1 5000 443\r\n': IPV6,
    b'PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 5000 443\r\n': IPV4,
    b'PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n': Peer(
        '0.0.0.0', 0, Peer('255.255.255.255', 65535)
    ),
    b'PROXY UNKNOWN\r\n': None,
    b'PROXY UNKNOWN ::1 ::1 1 2\r\n': None,
    LONGEST: None,
    binary(0x21, 0x11, block(IPV4)): IPV4,
    binary(0x21, 0x21, block(IPV6)): IPV6,
    binary(0x21, 0x11, block(IPV4) + TLVS): IPV4,
    binary(0x21, 0x21, block(IPV6) + b'\r\n' * 2000): IPV6,
    binary(0x20, 0x00, b''): None,
    binary(0x20, 0x11, block(IPV4)): None,  # LOCAL: a health check
    binary(0x20, 0xFF, b'x'): None,  # its family is ignored
    binary(0x21, 0x00, TLVS): None,
    binary(0x21, 0x31, b'/run/socket'.ljust(108, b'\0') * 2): None,
}
BAD = [
    b'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
    b'\x16',  # TLS
    b'\x16\3\1\2\0\1\0\1\xfc\3\3\0',
    b'PROXY / HTTP/1.1\r\nHost: x\r\n\r\n',
    b'PROXY TCP4 \r\n  ',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\n'.ljust(200),
    b'PROXY TCP4 192.0.2.7 198.51.100.1 5000  443\r\n',
    b'PROXY TCP4 192.0.2.7  198.51.100.1 5000 443\r\n',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 5000 443 \r\n',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 5000 65536\r\n',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 99999 443\r\n',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 -1 443\r\n',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 050 443\r\n',
    b'PROXY TCP4 192.0.2.7 198.51.100.1 5000\r\n',
    b'PROXY TCP4 192.0.2.07 198.51.100.1 5000 443\r\n',
    b'PROXY TCP4 192.0.2 198.51.100.1 5000 443\r\n',
    b'PROXY TCP4 2001:db8::7 2001:db8::1 5000 443\r\n',
    b'PROXY TCP6 192.0.2.7 198.51.100.1 5000 443\r\n',
    b'PROXY TCP6 fe80::1%eth0 fe80::2 5000 443\r\n',
    b'PROXY TCP5 192.0.2.7 198.51.100.1 5000 443\r\n',
    b'PROXY UNKNOWNS\r\n',
    b'proxy TCP4 192.0.2.7 198.51.100.1 5000 443\r\n',
    LONGEST[:-2] + b'f\r\n',
    SIGNATURE[:-1] + b'\r',
    binary(0x21, 0x11, block(IPV4)[:-1]),
    binary(0x21, 0x21, block(IPV6)[:-1]),
    binary(0x21, 0x12, block(IPV4)),  # UDP
    binary(0x21, 0x41, block(IPV4)),
    binary(0x22, 0x11, block(IPV4)),
    binary(0x11, 0x11, block(IPV4)),
    binary(0x21, 0x11, block(IPV4), length=4097),
    binary(0x20, 0x00, b'', length=65535),
]


def header(octets: bytes) -> tuple[Peer | None, bytes] | None:
    """Reads a header as the server does: who asks, and what is left; None for too few octets."""
    end = proxy_line.end(octets)
    return None if end is None else (proxy_line.read(octets[:end]), octets[end:])


@pytest.mark.parametrize(('octets', 'peer'), GOOD.items())
def test_header_says_who_asks_and_nothing_behind_it_is_touched(octets, peer):
    for behind in (b'', b'\x16\3\1', b'\r\n', b'PROXY UNKNOWN\r\n'):
        assert header(octets + behind) == (peer, behind)
    assert not any(header(octets[:end]) for end in range(len(octets)))


@pytest.mark.parametrize('octets', BAD)
def test_what_is_no_header_is_refused(octets):
    with pytest.raises(ValueError, match=r'^(does not begin with|sends) a .*PROXY (header|line)'):
        header(octets)


HOSTS = st.ip_addresses().map(str) | st.sampled_from(['::ffff:192.0.2.7', 'fe80::1%eth0'])
PEERS = st.none() | st.builds(Peer, HOSTS, st.integers(0, 65535))


def plain(peer: Peer) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(peer.host.partition('%')[0])
    return getattr(ip, 'ipv4_mapped', None) or ip


@given(PEERS, PEERS, st.binary(), st.integers(0, 106))
@example(Peer('::ffff:192.0.2.7', 1), Peer('::1', 2), b'', 0)
@fuzz
def test_line_is_read_as_it_was_written(source, destination, behind, end):
    written = proxy_line.line(source, destination)
    found, rest = proxy_line.split(written + behind)
    assert (found, rest) == (proxy_line.read(written), behind)
    assert len(written) <= 107
    if source and destination and plain(source).version == plain(destination).version:
        assert found == (str(plain(source)), source.port, found.reached)
        assert found.reached == (str(plain(destination)), destination.port, None)
    else:
        assert written == b'PROXY UNKNOWN\r\n'
        assert found is None
    assert not proxy_line.split(written[: min(end, len(written) - 1)])


OCTETS = st.one_of(
    st.binary(max_size=120),
    st.lists(st.sampled_from(b'PROXY TCP4 \r\n0123.:f'), max_size=120).map(bytes),
    st.builds(
        lambda octets, at, more: octets[: at % len(octets)] + more + octets[at % len(octets) :],
        st.sampled_from([*GOOD, *BAD]),
        st.integers(0, 5000),
        st.binary(max_size=3),
    ),
)


@given(OCTETS)
@example(b'PROXY / HTTP/1.1\r\nHost: x\r\n\r\n')
@example(b'PROXY UNKNOWN HTTP/1.1\r\nHost: x\r\n\r\n')
@example(b'PROXY TCP4 HTTP/1.1\r\nHost: x\r\n\r\n')
@fuzz
def test_any_octets_are_a_header_or_none_and_no_line_is_a_request(octets):
    with suppress(ValueError):
        found = header(octets)
        assert found is None or octets.endswith(found[1])
    found = proxy_line.split(octets)
    if found and found[1] != octets:
        assert octets == proxy_line.line(found[0], found[0] and found[0].reached) + found[1] or (
            octets.startswith((b'PROXY TCP4 ', b'PROXY TCP6 '))
        )
        assert read(octets) == 400, 'a client that began so would get no further'
    elif not found:
        assert len(octets) < 107


@pytest.mark.parametrize('host', ['localhost', '', '192.0.2.7 1', '192.0.2.7\r\nX'])
def test_what_is_no_address_is_not_written(host):
    assert proxy_line.line(Peer(host, 1), Peer(host, 2)) == b'PROXY UNKNOWN\r\n'


def test_longest_address_has_room():
    long = Peer(socket.inet_ntop(socket.AF_INET6, b'\xff' * 16), 65535)
    assert len(proxy_line.line(long, long)) == 104
