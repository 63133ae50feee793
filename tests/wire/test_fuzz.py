"""Any octets get an answer or an end: never a traceback, and nothing that hangs or stays.

Each run of the tests tries a few examples. This tries more:
FUZZ_EXAMPLES=100000 bin/test.sh tests/wire/test_fuzz.py tests/wire/test_differential.py
"""

import os
import re
import socket
import ssl
from base64 import b64decode, b64encode
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import gevent
import pytest
from conftest import until
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from programs import Folder
from test_hostile import DOMAIN, FILES, UUID, Case

from rendezvous.hidden import dial
from rendezvous.server import credentials
from rendezvous.store import options as local
from rendezvous.store.entries import CONNECTIONS
from rendezvous.wire import codes
from rendezvous.wire.http_head import HeadReader, Refusal
from rendezvous.wire.programs import Mistake
from rendezvous.wire.sockets import Socket

EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', 200))
END_SECONDS = 10

pytestmark = pytest.mark.deadline(60 + EXAMPLES)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=HealthCheck)


# Heads

# Those of the corpus that are not long, and what they are made of
HEADS = [octets for file in FILES if len(octets := b''.join(Case(file, '000000').sent)) < 2000]
LINES = sorted({line for head in HEADS for line in head.splitlines(True)})
PIECES = st.one_of(
    st.sampled_from([*LINES, b'\r\n', b'\r', b'\n', b' ', b'\0', b':', b'a' * 8000]),
    st.binary(max_size=3),
)
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3), PIECES), max_size=4)


def changed(octets: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """With other octets in a few places."""
    for place, less, more in changes:
        place %= len(octets) + 1
        octets = octets[:place] + more + octets[place + less :]
    return octets


OCTETS = st.one_of(
    st.builds(changed, st.sampled_from(HEADS), CHANGES),
    st.lists(PIECES, max_size=12).map(b''.join),
    st.binary(max_size=200),
)


def read(*chunks: bytes):
    """What the chunks give: (head, rest), None for more, or the status of a refusal."""
    reader = HeadReader()
    try:
        for index, chunk in enumerate(chunks):
            found = reader.feed(chunk)
            if found:
                head, rest = found
                return head, rest + b''.join(chunks[index + 1 :])
    except Refusal as refusal:
        return refusal.status
    return None


@given(OCTETS, st.lists(st.integers(0, 2000), max_size=5).map(sorted))
@example(b'GET / HTTP/1.1\r\r\n', [])
@fuzz
def test_any_octets_in_any_split_give_the_same(octets, cuts):
    whole = read(octets)
    assert read(*(octets[i : i + 1] for i in range(len(octets)))) == whole
    chunks = (octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True))
    assert read(*chunks) == whole
    if isinstance(whole, tuple):
        head, rest = whole
        assert head.octets() + rest == octets.removeprefix(b'\r\n')
        ends = (cut for cut in cuts if cut < len(octets) - len(rest))
        assert not any(read(octets[:end]) for end in ends)
    else:
        assert whole in (None, 400, 414, 431, 505)


TOKENS = st.text("!#$%&'*+-.^_`|~0129azAZ", min_size=1, max_size=8).map(str.encode)
VALUES = st.binary(max_size=20).map(
    lambda octets: bytes(o for o in octets if o == 9 or (o >= 32 and o != 127))
)
NAMES = TOKENS.filter(lambda name: name.lower() not in (b'host', b'authorization'))


@given(TOKENS, st.lists(st.tuples(NAMES, VALUES), max_size=5), st.integers(0, 5), st.binary())
@fuzz
def test_what_is_passed_on_differs_by_the_one_line(method, fields, index, behind):
    lines = [name + b':' + value + b'\r\n' for name, value in fields]
    named = b'aUthorization:\t DIGEST username=%s \r\n' % UUID.encode()
    start, host = method + b' /x HTTP/1.1\r\n', b'hOST:x\r\n'
    with_it = [*lines[:index], named, *lines[index:]]
    head, rest = read(b''.join([start, host, *with_it, b'\r\n', behind]))
    assert credentials.wanted(head) == (UUID, b''.join([start, host, *lines, b'\r\n']))
    assert rest == behind


# Credentials

IDS = f'{UUID} {UUID.upper()}'
QUERY_WORDS = f'? rendezvous= & % %2d %u + ; a = uuid: response= 123456 {IDS}'.split()
WORDS = [' ', '\t', *f'username username* = " \\ , : ; realm="x" {IDS}'.split()]
QUERIES = st.lists(st.sampled_from(QUERY_WORDS), max_size=7).map(''.join)
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=9).map(''.join)
BASIC = st.builds(lambda text: 'Basic ' + b64encode(text.encode()).decode(), TEXTS)
AUTHORIZATIONS = st.one_of(
    *(TEXTS.map(each.format) for each in ('{}', 'Digest {}', 'Basic {}')), BASIC
)


def outcome(function, *arguments):
    """What it answers, or the status of its refusal."""
    try:
        return function(*arguments)
    except Refusal as refusal:
        return refusal.status


def spelled_out(authorization: str) -> str:
    with suppress(ValueError):
        authorization += b64decode(authorization[6:]).decode('latin-1')
    return authorization.replace('\\', '')


@given(QUERIES, AUTHORIZATIONS)
@fuzz
def test_who_is_wanted_stands_in_the_head(target, authorization):
    line = b'Authorization: %s\r\n' % authorization.encode()
    octets = b'GET /%s HTTP/1.1\r\nHost: x\r\n%s\r\n' % (target.encode(), line)
    found = read(octets)
    found = outcome(credentials.wanted, found[0]) if isinstance(found, tuple) else found
    if isinstance(found, tuple) and found != (None, octets):
        uuid, forwarded = found
        if forwarded == octets:
            assert f'rendezvous={uuid}' in unquote(target).lower()
        else:
            assert forwarded == octets.replace(line, b'')
            assert uuid in spelled_out(authorization).lower()
    else:
        assert found in (400, (None, octets))


HOSTS = st.lists(st.sampled_from(f'a . : @ / ? // http:// {DOMAIN} {UUID.upper()} []'.split()))


@given(HOSTS.map(''.join), HOSTS.map(''.join))
@example(f'http://{UUID}.{DOMAIN}', f'a.{DOMAIN}')
@fuzz
def test_name_of_a_host_is_one_label_that_stands_before_the_domain(target, host):
    found = read(f'GET {target or "/"} HTTP/1.1\r\nHost: {host}\r\n\r\n'.encode())
    if isinstance(found, tuple):
        name = credentials.name_of_host(found[0], DOMAIN)
        assert name in (target if '://' in target else host).lower()
        assert not name or f'{name}.{DOMAIN}' in (target + host).lower()
        assert not set('.:@/?') & {*name}


PARAMETERS = st.dictionaries(TOKENS.map(bytes.decode).map(str.lower), st.text('a"\\,= é'))


@given(PARAMETERS, st.integers(0, 9), st.sampled_from(['{}', '"{}"', '"\\{}"', '"{} "']), st.data())
@fuzz
def test_user_name_is_found_however_it_is_written(others, place, form, data):
    quoted = [(name, re.sub(r'(["\\])', r'\\\1', value)) for name, value in others.items()]
    written = [f'{name}="{value}"' for name, value in quoted]
    written.insert(place, 'UserName=' + form.format(UUID))
    between = data.draw(st.sampled_from([',', ', ', ' ,\t', ',,']))
    line = b'Authorization: Digest %s\r\n' % between.join(written).encode('latin-1')
    head, _ = read(b'GET / HTTP/1.1\r\nHost: x\r\n%s\r\n' % line)
    assert credentials.wanted(head)[0] == UUID


@given(st.one_of(QUERIES, TEXTS))
@example(f'uuid:{UUID}?response=123456')
@fuzz
def test_target_of_a_connect_is_a_uuid_and_a_code_or_refused(target):
    found = outcome(credentials.registration, target)
    if isinstance(found, tuple):
        uuid, code = found
        assert codes.UUID.fullmatch(uuid)
        assert uuid in target.lower()
        assert re.fullmatch('[0-9]{6,8}', code)
    else:
        assert found in (400, 403, 407)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
PARAMETERS_OF_AN_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        'base32': st.one_of(st.just('A' * 32), st.text('AZ27=az ', max_size=40), JSON),
        'digits': st.one_of(JSON, st.sampled_from([6, 6.0, True])),
        'step': st.one_of(JSON, st.sampled_from([0, -1, 30.0, 1e-300])),
        'algorithm': st.one_of(JSON, st.sampled_from(['SHA1', 'sha512', 'md5'])),
    },
)


@given(st.one_of(JSON, PARAMETERS_OF_AN_ENTRY), st.sampled_from(['000000', '00000000']))
@example({'base32': 'A' * 32, 'digits': 8.0}, '00000000')
@fuzz
def test_entry_that_somebody_else_wrote_lets_nobody_in_or_makes_no_sense(parameters, code):
    said = ''
    try:
        assert codes.code_is_right(parameters, code, 0.0) in (False, True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = str(error)
    assert said.isprintable()


# local.py

VALUES_IN_LOCAL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.text()),
)
LOCALS = st.one_of(
    st.binary(),
    st.text().map(str.encode),
    st.text().map(lambda text: f'options = {text}'.encode()),
    st.dictionaries(st.sampled_from([*local.NAMES, 'other', 1]), VALUES_IN_LOCAL).map(
        lambda given: f'nan, inf = float("nan"), float("inf")\noptions = {given!r}'.encode(
            errors='surrogatepass'
        )
    ),
)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return tmp_path_factory.mktemp('options') / 'local.py'


@given(octets=LOCALS)
@fuzz
def test_whatever_local_py_holds_it_is_options_or_one_sentence(file, octets):
    file.write_bytes(octets)
    said = []
    try:
        local.load(file)
    except Mistake as mistake:
        said = str(mistake).splitlines()
    assert len(said) < 2


# Connections

LOG_LINE = re.compile(r'[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8},[0-9]{3} [A-Z]+ [ -~]+')
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
GROWTH_KIB = 40 * 1024  # OpenSSL remembers 20,480 sessions of TLS 1.2, which need 16 MiB


class Served(NamedTuple):
    """A rendezvous server: its process, its port, and contexts to reach it, by version of TLS."""

    pid: int
    port: int
    contexts: dict

    def connect(self) -> socket.socket:
        return socket.create_connection(('127.0.0.1', self.port), timeout=END_SECONDS)

    def descriptors(self) -> int:
        return len(os.listdir(f'/proc/{self.pid}/fd'))

    def resident_kib(self) -> int:
        status = Path(f'/proc/{self.pid}/status').read_text()
        return int(re.search(r'VmRSS:\s+(\d+) kB', status)[1])


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """A server on which what is done to it leaves nothing but harmless lines in its log."""
    at_once = {'rendezvous_wait': 0, 'unknown_per_minute': 0}
    with Folder(tmp_path_factory.mktemp('fuzz'), **at_once) as folder:
        folder.pair()
        program, port = folder.serve()
        contexts = {}
        for version in VERSIONS:
            contexts[version] = ssl.create_default_context(cafile=folder.path / 'registrar.crt')
            contexts[version].maximum_version = version
        served = Served(program.pid, port, contexts)
        descriptors, resident = served.descriptors(), served.resident_kib()
        yield served
        most = descriptors + CONNECTIONS  # to Redis
        until(lambda: served.descriptors() <= most, 'each connection has ended')
        assert served.resident_kib() - resident < GROWTH_KIB
        assert program.end() == 0
        assert program.said() == ''
        for log in folder.path.glob('server.log*'):
            for line in log.read_text().splitlines():
                assert LOG_LINE.fullmatch(line)


STATUS = b'(400|401|403|407|409|414|429|431|503|505)'
ANSWERS = re.compile(rb'(HTTP/1\.1 %s [ -~]+\r\n([ -~]+\r\n)+\r\n(\{.*\})?)*' % STATUS)


@given(OCTETS)
@fuzz
def test_any_octets_get_an_answer_or_the_end(served, octets):
    context = served.contexts[ssl.TLSVersion.TLSv1_3]
    with context.wrap_socket(served.connect(), server_hostname='127.0.0.1') as sock:
        sock.sendall(octets)
        gevent.socket.socket.shutdown(sock, socket.SHUT_WR)
        assert ANSWERS.fullmatch(rest(sock))


def rest(sock) -> bytes:
    """All that comes up to the end, which may be an RST: what was sent was not read by anybody."""
    found = b''
    with suppress(ConnectionResetError):
        while more := sock.recv(65536):
            found += more
    return found


RECORD = st.builds(
    lambda kind, version, length, octets: (
        bytes([kind]) + version + length.to_bytes(2, 'big') + octets
    ),
    st.sampled_from([20, 21, 22, 23, 24, 0, 255]),
    st.sampled_from([b'\3\0', b'\3\1', b'\3\3', b'\3\4', b'\2\0']),
    st.integers(0, 65535) | st.integers(0, 40),
    st.binary(max_size=40),
)
GARBAGE = st.one_of(st.just(b''), st.binary(max_size=40), RECORD)
TLS_CHANGES = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 5), GARBAGE), min_size=1, max_size=4
)


@given(st.sampled_from(VERSIONS), st.integers(0, 2), TLS_CHANGES)
@fuzz
def test_garbage_in_the_handshake_gets_the_end(served, version, flight, changes):
    """In one of the client's flights: its hello, its last words, or what it sends then."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = served.contexts[version].wrap_bio(incoming, outgoing, server_hostname='127.0.0.1')
    with served.connect() as sock, suppress(ConnectionResetError, BrokenPipeError):
        for number in range(flight + 1):
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
                client.write(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
            octets = outgoing.read()
            if number < flight:
                sock.sendall(octets)
                incoming.write(sock.recv(65536))
        octets = changed(octets, changes)
        sock.sendall(octets)
        sock.shutdown(socket.SHUT_WR)
        plain = not flight and octets[:1].isalpha()  # HTTP without TLS is told so
        assert plain or b'HTTP' not in rest(sock)


WORDS_OF_A_SERVER = st.one_of(
    st.sampled_from([b'HTTP/1.1 200 OK\r\n\r\n', b'HTTP/1.1 4', b'00', b' ', b'\r\n', b'\r\n\r\n']),
    st.sampled_from([b'Retry-After: ', b'{"error": {"diagnostic": "', b'\\n\\u001b', b'"}}', b'[']),
    st.binary(max_size=5),
)


@given(st.one_of(st.binary(max_size=200), st.lists(WORDS_OF_A_SERVER, max_size=9).map(b''.join)))
@fuzz
def test_whatever_a_server_says_hidden_py_makes_one_harmless_line_of_it(octets):
    near, far = socket.socketpair()
    with near, far:
        far.sendall(octets)
        far.shutdown(socket.SHUT_WR)
        said = 'registered'
        try:
            assert octets.endswith(dial.read_answer(Socket(near))[1])
        except (dial.NotRegistered, OSError) as error:
            said = dial.why(error)
    assert re.fullmatch('[ -~]+', said)
