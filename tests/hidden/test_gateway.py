"""What the gateway of --forwarded makes of octets, however they come; no sockets."""

import socket
import tracemalloc
from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import CHANGES, EXAMPLES, HEADS, changed, fuzz, read
from test_hostile import UUID

from rendezvous.hidden import gateway
from rendezvous.hidden.gateway import Answers, Due, Forwarding
from rendezvous.wire.addresses import Peer
from rendezvous.wire.http_head import Refusal
from rendezvous.wire.sockets import Ended

VISITOR = Peer('192.0.2.7', 4711)
HOST = 'Host: kitchen.example.com'
ADDED = [
    'X-Forwarded-For: 192.0.2.7',
    'X-Forwarded-Proto: https',
    'X-Forwarded-Host: kitchen.example.com',
    'Forwarded: for=192.0.2.7;proto=https;host="kitchen.example.com"',
]
SWITCH = b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n'
ASK = ['Upgrade: websocket', 'Connection: Upgrade']


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nothing answers here, so it is no use to wait."""
    monkeypatch.setattr(gateway, 'TURN_SECONDS', 0)
    monkeypatch.setattr(gateway, 'DUE_SECONDS', 0)


class Chunks:
    """Stands for a mobile client's connection whose octets come in these chunks."""

    raw = socket.socket()
    raw.close()  # nobody uses it

    def __init__(self, chunks):
        self._chunks = [chunk for chunk in chunks if chunk]

    def receive(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b''


def passed(*chunks: bytes, host: str = '', visitor: Peer | None = VISITOR) -> bytes:
    """What goes to the local server. Raises Refusal."""
    visit, written = Forwarding(UUID, host).around(Chunks(chunks), b'', visitor), b''
    while octets := visit.receive():
        written += octets
    return written


def request(*fields: str, line: str = 'GET / HTTP/1.1', body: bytes = b'') -> bytes:
    return '\r\n'.join([line, HOST, *fields, '', '']).encode('latin-1') + body


def lines(*fields: str, line: str = 'GET / HTTP/1.1', **options) -> list[str]:
    """The lines of that request's head as the local server gets it, without those of each."""
    octets = passed(request(*fields, line=line), **options)
    found = octets.decode('latin-1').removesuffix('\r\n\r\n').split('\r\n')
    return [each for each in found if each not in (line, HOST, *ADDED)]


def outcome(*chunks: bytes):
    """What passes, or the status of the refusal, or Ended: no answer comes before it here."""
    try:
        return passed(*chunks)
    except Refusal as refusal:
        return refusal.status
    except Ended:
        return Ended


# Fields


def test_local_server_is_told_who_asks_how_and_for_which_host():
    assert passed(request('Accept: */*')).decode().split('\r\n') == [
        *('GET / HTTP/1.1', HOST, 'Accept: */*', *ADDED, '', '')
    ]


def test_address_of_ipv6_is_quoted():
    assert lines(visitor=Peer('2001:db8::7', 1)) == [
        'X-Forwarded-For: 2001:db8::7',
        'Forwarded: for="[2001:db8::7]";proto=https;host="kitchen.example.com"',
    ]


def test_unknown_visitor_is_called_unknown():
    assert lines(visitor=None) == ['Forwarded: for=unknown;proto=https;host="kitchen.example.com"']


def test_request_without_a_host_gets_none():
    octets = passed(b'GET / HTTP/1.0\r\n\r\n').decode().split('\r\n')
    assert octets[1:3] == ADDED[:2]
    assert octets[3:] == ['Forwarded: for=192.0.2.7;proto=https', '', '']


def test_host_is_replaced_and_the_one_before_is_told():
    octets = passed(request('Accept: */*'), host='localhost:8000').decode().split('\r\n')
    assert octets == ['GET / HTTP/1.1', 'Accept: */*', 'Host: localhost:8000', *ADDED, '', '']


STRANGERS = """
Forwarded X-Forwarded X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Forwarded-Port
X-Forwarded-Prefix X-Forwarded-Server X-Forwarded-Scheme X-Forwarded-Ssl X-Forwarded-Protocol
X-Forwarded-Client-Cert Forwarded-For Forwarded-Proto X-Real-IP X-Client-IP Client-IP True-Client-IP
X-Cluster-Client-IP CF-Connecting-IP CF-Connecting-IPv6 Fastly-Client-IP Fly-Client-IP
WL-Proxy-Client-IP X-Azure-ClientIP X-ProxyUser-Ip X-Original-For X-Original-URL X-Original-Host
X-Original-Forwarded-For X-Rewrite-URL Remote-User Remote-Addr X-Remote-User X-Remote-Addr
X-Forward-For CloudFront-Forwarded-Proto X-Azure-SocketIP X-SSL-Client-Verify X-Sendfile-Type
X-Accel-Mapping X-Envoy-External-Address X-Host X-Scheme X-Url-Scheme X-Proto Front-End-Https Proxy
Proxy-Connection Proxy-Authorization Keep-Alive TE Trailer HTTP2-Settings
"""


@pytest.mark.parametrize('name', STRANGERS.split())
def test_field_of_a_stranger_is_removed_however_it_is_written(name):
    written = name, name.upper(), name.lower(), name.replace('-', '_'), name.replace('-', '.', 1)
    assert lines(*(f'{each}: 1' for each in written)) == []


def test_long_names_are_not_kept():
    tracemalloc.start()
    for number in range(50):
        passed(request(f'{number}{"-" * 60_000}: x'))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


@pytest.mark.parametrize('name', ['Content_Length', 'Transfer_Encoding', 'Transfer.Encoding'])
def test_look_alike_of_what_frames_a_body_is_removed(name):
    assert lines(f'{name}: 5') == []


KEPT = """
Accept Cookie Origin Referer User-Agent Via X-Requested-With X-CSRF-Token X-HTTP-Method-Override
X-Request-Id Range If-Match Destination Depth Sec-WebSocket-Key Tailscale x_y Ship-To Zip X-Clip
"""


@pytest.mark.parametrize('name', KEPT.split())
def test_other_field_passes_as_it_came(name):
    line = f'{name}:\t \xe4 b, c '
    assert lines(line) == [line]


@pytest.mark.parametrize(
    ('came', 'goes'),
    [
        ('keep-alive', ['keep-alive']),
        ('Close', ['close']),
        ('close, X-Forwarded-For', ['close']),
        ('Host, Content-Length', []),
        ('upgrade', []),
        ('TE, Keep-Alive , close', ['close, keep-alive']),
    ],
)
def test_connection_is_written_anew(came, goes):
    assert lines(f'Connection: {came}') == [f'Connection: {each}' for each in goes]


def test_upgrade_to_websocket_passes():
    sent = 'Upgrade: WebSocket', 'Connection: keep-alive', 'connection: Upgrade'
    assert lines(*sent) == ['Connection: keep-alive, upgrade', 'Upgrade: websocket']


@pytest.mark.parametrize(
    ('line', 'fields'),
    [
        ('GET / HTTP/1.1', ['Upgrade: h2c', 'Connection: Upgrade, HTTP2-Settings']),
        ('GET / HTTP/1.1', ['Upgrade: websocket, h2c', 'Connection: Upgrade']),
        ('GET / HTTP/1.1', ['Upgrade: websocket', 'Upgrade: websocket', 'Connection: Upgrade']),
        ('GET / HTTP/1.1', ['Upgrade: websocket']),
        ('GET / HTTP/1.0', ASK),
        ('POST / HTTP/1.1', ASK),
    ],
)
def test_other_upgrade_is_not_passed_on(line, fields):
    assert lines(*fields, line=line) == []


def test_upgrade_of_a_request_with_a_body_is_not_passed_on():
    octets = passed(request(*ASK, 'Content-Length: 2', body=b'hi'))
    assert b'pgrade' not in octets
    assert octets.endswith(b'\r\n\r\nhi')


OURS = [
    f'Digest username="{UUID}", realm="rendezvous"',
    f'digest username={UUID.upper()}',
    'Basic ' + b64encode(f'{UUID}:x'.encode()).decode(),
]
OTHERS = [
    'Bearer abc',
    'Digest username="anna", realm="site"',
    'Digest what is this',
    f'Digest username="{UUID[::-1]}"',
    'Basic ' + b64encode(b'anna:secret').decode(),
    'Basic ?',
]


@pytest.mark.parametrize('value', OURS)
def test_authorization_that_names_this_hidden_server_is_removed(value):
    assert lines(f'Authorization: {value}') == []


@pytest.mark.parametrize('value', OTHERS)
def test_other_authorization_passes(value):
    assert lines(f'Authorization: {value}') == [f'Authorization: {value}']


# Requests that are refused


@pytest.mark.parametrize(
    'line',
    [
        'CONNECT kitchen.example.com:443 HTTP/1.1',
        'CONNECT / HTTP/1.1',
        'GET http://kitchen.example.com/ HTTP/1.1',
        'GET * HTTP/1.1',
        'OPTIONS kitchen HTTP/1.1',
    ],
)
def test_target_that_is_no_path_is_refused(line):
    assert outcome(request(line=line)) == 400


def test_asterisk_of_options_passes():
    assert passed(request(line='OPTIONS * HTTP/1.1')).startswith(b'OPTIONS * HTTP/1.1\r\n')


def test_other_host_on_the_connection_is_misdirected():
    again = b'GET / HTTP/1.1\r\nHost: KITCHEN.example.com\r\n\r\n'
    assert isinstance(outcome(again, request(), again), bytes)
    other = b'GET / HTTP/1.1\r\nHost: cellar.example.com\r\n\r\n'
    visit = Forwarding(UUID, '').around(Chunks([again + other]), b'', VISITOR)
    first = visit.receive()
    assert first.startswith(b'GET / HTTP/1.1\r\nHost: KITCHEN')
    assert b'cellar' not in first


def test_answer_is_read_as_it_came_though_its_buffer_is_used_again():
    """The mobile client is slow: meanwhile others read into the buffer, which all share."""
    refused = b'HTTP/1.1 204 No Content\r\nX: '
    buffer = bytearray(refused + b'x' * (len(SWITCH) - len(refused) - 4) + b'\r\n\r\n')

    class Slow(Chunks):
        def send(self, octets):
            buffer[:] = SWITCH

    again = request('X-Forwarded-For: 203.0.113.9')
    visit = Forwarding(UUID, '').around(Slow([request(*ASK), again]), b'', VISITOR)
    assert b'Upgrade: websocket' in visit.receive()
    visit.send(memoryview(buffer))
    assert b'203.0.113.9' not in visit.receive(), 'it passes as if that were a tunnel'


def test_head_passes_only_if_the_server_would_pass_it_on():
    for octets in HEADS:
        head = read(octets)
        if isinstance(head, int):
            assert outcome(octets) == head
        elif head:
            head, rest = head
            is_good = (head.target[0] == '/' or head.target == '*') and head.method != 'CONNECT'
            assert isinstance(outcome(octets.removesuffix(rest)), bytes if is_good else int)


CHUNKED = request('Transfer-Encoding: chunked', line='POST / HTTP/1.1')


def body(octets: bytes) -> bytes:
    """What becomes of a chunked body. Raises Refusal."""
    return passed(CHUNKED + octets).partition(b'\r\n\r\n')[2]


def test_chunks_are_written_anew():
    came = (
        b'003;a="b;c" ; d\r\nabc\r\nA\r\n0123456789\r\n000 ;x\r\nX-Forwarded-For: 1\r\nB: c\r\n\r\n'
    )
    assert body(came) == b'3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n'


@pytest.mark.parametrize(
    'octets',
    [
        b'3\nabc\r\n0\r\n\r\n',
        b'3\r\nabc\n0\r\n\r\n',
        b'3\r\nabcd\r\n0\r\n\r\n',
        b'3\r\nab\r\n0\r\n\r\n',
        b'3 \r\nabc\r\n',
        b' 3\r\nabc\r\n',
        b'+3\r\nabc\r\n',
        b'0x3\r\nabc\r\n',
        b'3_0\r\nabc\r\n',
        b'-3\r\nabc\r\n',
        b'\r\nabc\r\n',
        b'g\r\nabc\r\n',
        b'3;a\rb\r\nabc\r\n',
        b'3;a\nb\r\nabc\r\n',
        b'3;\0\r\nabc\r\n',
        b'3,3\r\nabc\r\n',
        b'0000000000000003\r\nabc\r\n',
        b'fffffffffffffffff\r\nabc\r\n',
        b'3;' + b'a' * 2000 + b'\r\nabc\r\n',
        b'3;' + b'a' * 2000,
        b'0\r\nX: y\n\r\n',
        b'0\r\n x\r\n\r\n',
        b'0\r\nX : y\r\n\r\n',
        b'0\r\nno colon\r\n\r\n',
        b'0\r\n\n\r\n',
    ],
)
def test_chunk_that_could_be_read_in_two_ways_is_refused(octets):
    with pytest.raises(Refusal) as refusal:
        body(octets + b'X' * 10)
    assert refusal.value.status == 400


def test_body_that_never_ends_is_passed_on_as_far_as_it_came():
    assert body(b'5\r\nab') == b'5\r\nab'


# Any split gives the same

SIZES = st.integers(0, 20)
BODIES = st.binary(max_size=40) | st.sampled_from([SWITCH, b'\r\n0\r\n\r\n', CHUNKED])
FIELDS = st.lists(
    st.sampled_from(['X: y', 'X-Real-IP: 1', 'Connection: close', 'Expect: 100-continue', 'A:']),
    max_size=3,
)


def chunked(octets: bytes, size: int) -> bytes:
    parts = [octets[at : at + size] for at in range(0, len(octets), size)]
    written = [b'%X;x=y\r\n%s\r\n' % (len(part), part) for part in parts]
    return b''.join(written) + b'0\r\nT: x\r\n\r\n'


@st.composite
def requests(draw) -> bytes:
    fields, octets = draw(FIELDS), draw(BODIES)
    line = f'{draw(st.sampled_from(["GET", "POST", "HEAD", "PUT"]))} /{draw(SIZES)} HTTP/1.1'
    if draw(st.booleans()):
        body, how = chunked(octets, draw(SIZES) + 1), 'Transfer-Encoding: chunked'
    else:
        body, how = octets, f'Content-Length: {len(octets)}'
    return request(*fields, how, line=line, body=body)


def splits(octets: bytes, cuts: list[int]) -> list[bytes]:
    return [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]


few = settings(fuzz, max_examples=max(EXAMPLES // 4, 1))  # octet by octet takes a while
CUTS = st.lists(st.integers(0, 3000), max_size=8).map(sorted)


@given(st.lists(requests(), min_size=1, max_size=3).map(b''.join), CUTS)
@few
def test_requests_in_any_split_give_the_same(octets, cuts):
    whole = passed(octets)
    assert whole.count(ADDED[0].encode()) >= 1
    assert passed(*splits(octets, cuts)) == whole
    assert passed(*(octets[at : at + 1] for at in range(len(octets)))) == whole
    # What was written anew is written in the same way once more, but for what was added.
    strange = b''.join(f'{line}\r\n'.encode() for line in ADDED)
    assert passed(whole).replace(strange, b'') == whole.replace(strange, b'')


@given(st.builds(changed, requests() | st.sampled_from(HEADS), CHANGES), CUTS)
@few
def test_hostile_requests_in_any_split_give_the_same(octets, cuts):
    whole = outcome(octets)
    assert outcome(*splits(octets, cuts)) == whole
    assert outcome(*(octets[at : at + 1] for at in range(len(octets)))) == whole


# Answers are counted

OK = 'HTTP/1.1 200 OK'


def answer(*fields: str, line: str = OK, body: bytes = b'') -> bytes:
    return '\r\n'.join([line, *fields, '', '']).encode() + body


def counted(octets: bytes, *due: Due, cuts=()) -> Answers:
    answers = Answers()
    answers.due.extend(due)
    for chunk in splits(octets, list(cuts)):
        if chunk:
            answers.feed(chunk)
    return answers


GET, HEAD, UPGRADE = Due('GET', False), Due('HEAD', False), Due('GET', True)
LOOK_ALIKE = SWITCH * 3
# Answers, to which request, and whether it has ended then
ENDED = {
    'a length': (answer(f'Content-Length: {len(LOOK_ALIKE)}', body=LOOK_ALIKE), GET),
    'no body': (answer('content-length:0'), GET),
    'two lengths alike': (answer('Content-Length: 2', 'Content-Length: 2', body=b'hi'), GET),
    'chunks': (answer('Transfer-Encoding: Chunked', body=chunked(LOOK_ALIKE, 7)), GET),
    'chunks and a length': (
        answer('Content-Length: 3', 'Transfer-Encoding: chunked', body=chunked(LOOK_ALIKE, 9)),
        GET,
    ),
    'LF alone': (b'HTTP/1.1 200 OK\nContent-Length: 2\n\nhi', GET),
    'an empty line first': (b'\r\n' + answer('Content-Length: 2', body=b'hi'), GET),
    'no reason': (answer('Content-Length: 2', line='HTTP/1.1 200', body=b'hi'), GET),
    'HTTP/1.0': (answer('Content-Length: 2', line='HTTP/1.0 200 OK', body=b'hi'), GET),
    'to HEAD': (answer('Content-Length: 500'), HEAD),
    '204': (answer(line='HTTP/1.1 204 No Content'), GET),
    '304': (answer('Content-Length: 500', line='HTTP/1.1 304 Not Modified'), GET),
    '100 before': (answer(line='HTTP/1.1 100 Continue') + answer('Content-Length: 0'), GET),
    'refused upgrade': (answer('Content-Length: 2', body=b'no'), UPGRADE),
    '103 and 100 before': (
        answer('Link: x', line='HTTP/1.1 103 Early Hints')
        + answer(line='HTTP/1.1 100 Continue')
        + answer('Content-Length: 0', line='HTTP/1.1 417 No'),
        UPGRADE,
    ),
}


@pytest.mark.parametrize(('octets', 'due'), ENDED.values(), ids=ENDED)
def test_end_of_an_answer_is_found(octets, due):
    for at in range(1, len(octets)):
        begun = counted(octets, due, GET, cuts=[at])
        assert (list(begun.due), begun.is_between) == ([GET], True)
        part = counted(octets[:at], due, GET)
        assert list(part.due) == [due, GET]
    assert (begun.is_last, begun.is_tunnel) == (False, False)
    last = counted(octets + octets, due, due)
    assert (list(last.due), last.is_between, last.is_tunnel) == ([], True, False)


LAST = {
    'no length': answer(body=LOOK_ALIKE),
    'HTTP/1.0': answer('Transfer-Encoding: chunked', line='HTTP/1.0 200 OK', body=b'0\r\n\r\n'),
    'other coding': answer('Transfer-Encoding: gzip', 'Content-Length: 0'),
    'two lengths': answer('Content-Length: 0', 'Content-Length: 3'),
    'a list of lengths': answer('Content-Length: 0, 0'),
    'no chunk': answer('Transfer-Encoding: chunked', body=b'x\r\n'),
    'a chunk that is too long': answer('Transfer-Encoding: chunked', body=b'1\r\nabc\r\n'),
    'no HTTP': b'hello, world\r\n\r\n',
    'endless': b'HTTP/1.1 200 OK\r\nX: ' + b'a' * 300_000,
    '101 that nobody asked for': SWITCH,
}


@pytest.mark.parametrize('octets', LAST.values(), ids=LAST)
def test_answer_that_cannot_be_counted_is_the_last(octets):
    found = counted(octets + SWITCH, GET, UPGRADE)
    assert (found.is_last, found.is_tunnel, found.is_between) == (True, False, False)


def test_answer_that_nobody_asked_for_is_the_last():
    assert counted(answer('Content-Length: 0', line='HTTP/1.1 408 Timeout')).is_last


def test_101_of_the_upgrade_opens_a_tunnel():
    found = counted(answer('Content-Length: 0') + SWITCH + b'words', GET, UPGRADE)
    assert (found.is_tunnel, found.is_last, list(found.due)) == (True, False, [])


@given(
    st.lists(st.sampled_from([*ENDED.values(), *((each, GET) for each in LAST.values())])),
    st.lists(st.integers(0, 2000), max_size=8).map(sorted),
)
@fuzz
def test_answers_in_any_split_are_counted_alike(answers, cuts):
    octets, due = b''.join(each for each, _ in answers), [due for _, due in answers]

    def state(*chunks: bytes):
        found = counted(b'', *due)
        for chunk in chunks:
            if chunk:
                found.feed(chunk)
        return list(found.due), found.is_between, found.is_last, found.is_tunnel

    assert state(*splits(octets, cuts)) == state(octets)
