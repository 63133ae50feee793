"""Real local servers read each request of a kept connection as the gateway does.

Each says what it read, and with which fields; nginx and Apache pass it on to Node.js, which says
what came. Requests are made of what servers are known to read differently, and hypothesis changes
them. A server that sees a body end elsewhere reads other requests than those that were written.
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import gevent
import pytest
from conftest import DEADLINE_SECONDS, free_port, until
from gateways import VISITOR
from hiding import HEAD_ENDS
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st
from programs import listens
from test_differential import LINES, PIECES
from test_fuzz import EXAMPLES, changed, fuzz
from test_gateway import ASK, CHUNKED, chunked, request
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.uri import parse_uri

from rendezvous.wire.http_head import Head, HeadReader, Refusal

HERE = Path(__file__).parent
STRANGE = '127.6.6.6'  # what strangers say of themselves
LAST = request('Connection: close', line='GET /last HTTP/1.1')
MORE = request(line='GET /more HTTP/1.1') * 5  # for a body that was made longer
READ = re.compile(rb'^x-read: *([0-9a-f]+)\r$', re.I | re.M)


@contextmanager
def runs(*command, port: int, folder: Path):
    with (folder / 'said').open('wb') as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
    try:
        until(lambda: listens(port), f'{command[0]} listens')
        yield port
    finally:
        process.terminate()
        process.wait(timeout=DEADLINE_SECONDS)


@contextmanager
def node(_):
    with subprocess.Popen(['node', HERE / 'echo.js'], stdout=subprocess.PIPE) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {}
http {
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi; ignore_invalid_headers off; merge_slashes off;
  server {
    listen 127.0.0.1:%d;
    location / { proxy_pass http://127.0.0.1:%d; proxy_set_header Host $http_host; }
  }
}
"""


@contextmanager
def nginx(folder: Path):
    port = free_port()
    with node(folder) as behind:
        (folder / 'nginx.conf').write_text(NGINX % (port, behind))
        command = 'nginx', '-p', folder, '-c', 'nginx.conf', '-e', 'stderr'
        with runs(*command, port=port, folder=folder):
            yield port


APACHE = """
ServerRoot {folder}
PidFile {folder}/pid
DefaultRuntimeDir {folder}
ErrorLog {folder}/errors
ServerName localhost
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
MergeSlashes Off
ProxyPass / http://127.0.0.1:{behind}/
ProxyPreserveHost On
ProxyAddHeaders Off
"""


@contextmanager
def apache(folder: Path):
    port = free_port()
    with node(folder) as behind:
        places = {'folder': folder, 'port': port, 'behind': behind}
        modules = '/usr/lib/apache2/modules'
        (folder / 'apache.conf').write_text(APACHE.format(**places, modules=modules))
        command = 'apache2', '-X', '-f', folder / 'apache.conf'
        with runs(*command, port=port, folder=folder):
            yield port


@contextmanager
def gunicorn(folder: Path):
    port = free_port()
    at = '--bind', f'127.0.0.1:{port}', '--worker-class', 'gthread', '--threads', '4'
    more = '--log-level', 'critical', '--pythonpath', HERE, '--worker-tmp-dir', folder
    with runs(sys.executable, '-m', 'gunicorn', *at, *more, 'echo:wsgi', port=port, folder=folder):
        yield port


@contextmanager
def uvicorn(folder: Path):
    port = free_port()
    more = '--port', str(port), '--http', 'h11', '--log-level', 'critical', '--app-dir', HERE
    with runs(sys.executable, '-m', 'uvicorn', *more, 'echo:asgi', port=port, folder=folder):
        yield port


SERVERS = {each.__name__: each for each in (node, nginx, apache, gunicorn, uvicorn)}
NEEDS = {'nginx': ['nginx', 'node'], 'apache': ['apache2', 'node'], 'node': ['node']}


@pytest.fixture(scope='module', params=SERVERS)
def local(request, tmp_path_factory):
    """The name of a local server, and the port where it listens."""
    name = request.param
    if not all(map(shutil.which, NEEDS.get(name, []))) or not (name in NEEDS or find_spec(name)):
        pytest.skip(f'{name} is not installed')
    with SERVERS[name](tmp_path_factory.mktemp('server')) as port:
        yield name, port


def said(octets: bytes) -> list[tuple]:
    """The method, target, fields and body of each request that was read."""
    found = []
    for each in READ.findall(octets):
        read = bytes.fromhex(each.decode()).decode('latin-1')
        method, target, fields, body = json.loads(read)
        named = [(re.sub('[^0-9a-z]', '-', name.lower()), value) for name, value in fields]
        found.append((method, target, named, bytes.fromhex(body)))
    return found


def sent(visit, port: int, octets: bytes) -> bytes:
    """All that comes back."""
    mobile = visit(port)
    speaking = gevent.spawn(mobile.send, octets)
    answers = b''
    with suppress(OSError):  # it may be cut off
        answers = mobile.rest()
    speaking.kill()
    mobile.close()
    return answers


CHUNK = re.compile(rb'([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n')


def body_of(head: Head, octets: bytes) -> tuple[bytes, bytes]:
    """The body of a request, and what is behind it. Raises ValueError where it is not whole."""
    if head.body_bytes is not None:
        if len(octets) < head.body_bytes:
            raise ValueError
        return octets[: head.body_bytes], octets[head.body_bytes :]
    body = b''
    while match := CHUNK.match(octets):
        size, octets = int(match[1], 16), octets[match.end() :]
        if not size:
            trailers = HeadReader()
            trailers.feed(b'GET / HTTP/1.0\r\n')
            _, octets = trailers.feed(octets) or (None, b'')
            return body, octets
        body, octets = body + octets[:size], octets[size:].removeprefix(b'\r\n')
    raise ValueError


def expected(octets: bytes) -> list[tuple]:
    """The method, target and body of each request, up to the first that is not good."""
    found = []
    with suppress(Refusal, ValueError):
        while octets and (read := HeadReader().feed(octets)):
            head, octets = read
            body, octets = body_of(head, octets)
            found.append((head.method, head.target, body))
    return found


# The fields by which servers learn who asks, and what ours begin with; the host is the client's.
OURS = {
    'x-forwarded-for': VISITOR.host,
    'x-forwarded-proto': 'https',
    'x-forwarded-host': '',
    'forwarded': f'for={VISITOR.host};proto=https;host=',
}


def agrees(visit, local: tuple[str, int], octets: bytes) -> int:
    """How many requests the local server read: each as we do, and with our fields alone."""
    wanted, read = expected(octets), said(sent(visit, local[1], octets))
    if local[0] in ('nginx', 'apache'):  # Node behind it refuses other methods, and it goes on
        wanted = [each for each in wanted if each[0] in METHODS]
    if local[0] == 'apache':  # it passes on other targets than it gets: /b for /a/../b
        wanted = [(method, '', body) for method, _, body in wanted]
        read = [(method, '', fields, body) for method, _, fields, body in read]
    assert [(method, target, body) for method, target, _, body in read] == wanted[: len(read)]
    for _, _, fields, _ in read:
        for name, value in OURS.items():
            (only,) = (each for known, each in fields if known == name)
            assert only.startswith(value)
            assert STRANGE not in only
        assert 'x-real-ip' not in dict(fields)
    return len(read)


NAMES = 'X-Forwarded-For', 'x_forwarded_for', 'X-FORWARDED-PROTO', 'Forwarded', 'X-Real-IP'
STRANGERS = [f'{name}: {STRANGE}' for name in NAMES]
METHODS = ['GET', 'GET', 'POST', 'HEAD', 'PUT', 'OPTIONS', 'PATCH', 'get']
TARGETS = ['/', '/a?b=c', '//a//b', '/%2e%20?&=', '/?rendezvous=x', '/a;b']
OTHERS = [line for line in LINES if not re.match(b'host|content|transfer', line, re.I)]
FIELDS = [*STRANGERS, *(line.decode('latin-1') for line in OTHERS), *ASK]
BODIES = st.sampled_from([b'', b'hi', LAST, CHUNKED, b'0\r\n\r\n', b'\r\n\r\n'])


@st.composite
def messages(draw) -> bytes:
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    body = draw(BODIES)
    if draw(st.booleans()):
        how, body = 'Transfer-Encoding: chunked', chunked(body, draw(st.integers(1, 50)))
    else:
        how = f'Content-Length: {len(body)}'
    line = f'{draw(st.sampled_from(METHODS))} {draw(st.sampled_from(TARGETS))} HTTP/1.1'
    return request(*draw(st.permutations([*fields, how])), line=line, body=body)


PARTS = PIECES + [f'{line}\r\n'.encode() for line in STRANGERS]
CHANGES = st.lists(
    st.tuples(st.integers(0, 900), st.integers(0, 2), st.sampled_from(PARTS)), max_size=1
)
CONNECTIONS = st.builds(
    changed, st.lists(messages(), min_size=1, max_size=3).map(b''.join), CHANGES
).map(lambda octets: octets + MORE + LAST)
some = settings(fuzz, max_examples=max(EXAMPLES // 8, 1))


@given(CONNECTIONS)
@example(request('Content-Length: 2', body=b' G') + request(line='ET / HTTP/1.1') + MORE + LAST)
@some
@pytest.mark.deadline(60 + EXAMPLES)
def test_no_request_of_a_connection_is_read_differently(visit, local, octets):
    lengths = re.findall(rb'content.length:[ \t]*([0-9]+)', octets, re.I)
    assume(not any(int(length) > len(MORE) for length in lengths))
    event(f'{local[0]} reads {agrees(visit, local, octets)}')


def test_good_requests_are_read(visit, local):
    octets = request(*STRANGERS, line='POST /1 HTTP/1.1') + CHUNKED + chunked(b'words', 2)
    octets += request('Content-Length: 3', line='PUT /3 HTTP/1.1', body=b'abc')
    assert agrees(visit, local, octets + LAST) == 4


SMUGGLED = request(line='GET /smuggled HTTP/1.1')
ATTEMPTS = {
    'both lengths': request('Content-Length: 6', 'Transfer-Encoding: chunked', body=b'0\r\n\r\nX'),
    'two lengths': request('Content-Length: 0', f'Content-Length: {len(SMUGGLED)}'),
    'a list of lengths': request(f'Content-Length: 0, {len(SMUGGLED)}'),
    'other coding': request('Transfer-Encoding: xchunked', body=b'0\r\n\r\n'),
    'two codings': request('Transfer-Encoding: chunked, identity', body=b'0\r\n\r\n'),
    'coding of HTTP/1.0': request(
        'Transfer-Encoding: chunked', line='GET / HTTP/1.0', body=b'0\r\n'
    ),
    'a blank before the colon': request('Transfer-Encoding : chunked', body=b'0\r\n\r\n'),
    'a folded line': request('X: y\r\n Transfer-Encoding: chunked', body=b'0\r\n\r\n'),
    'LF alone': request('X: y\nContent-Length: 5'),
    'CR alone': request('X: y\rContent-Length: 5'),
    'LF in a chunk': CHUNKED + b'2\nhi\r\n0\r\n\r\n',
    'LF in an extension': CHUNKED + b'2;a\nhi\r\n0\r\n\r\n',
    'a chunk that is too short': CHUNKED + b'5\r\nhi\r\n0\r\n\r\n',
    'a trailer that ends early': CHUNKED + b'0\r\nX: y\n\n',
    'a size with a sign': CHUNKED + b'+2\r\nhi\r\n0\r\n\r\n',
    'a huge size': CHUNKED + b'10000000000000002\r\nhi\r\n0\r\n\r\n',
    'CONNECT': request(line='CONNECT kitchen.example.com:80 HTTP/1.1'),
    'another host in the target': request(line='GET http://cellar.example.com/ HTTP/1.1'),
    'HTTP/2': b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
}


def test_smuggling_is_refused_and_reaches_nobody(visit, local):
    for name, octets in ATTEMPTS.items():
        answers = sent(visit, local[1], request() + octets + SMUGGLED)
        assert re.search(rb'^HTTP/1\.1 (400|505) ', answers, re.M), (name, answers)
        assert '/smuggled' not in [target for _, target, *_ in said(answers)], name


def test_upgrade_of_a_stranger_opens_no_tunnel(visit, local):
    """These servers answer it as any other request."""
    if local[0] == 'uvicorn':
        pytest.skip('it takes them')
    strange = STRANGERS[0]
    octets = request(*ASK) + request(strange) + request('Upgrade: h2c', 'Connection: upgrade')
    assert agrees(visit, local, octets + request(strange) + LAST) == 5


def test_websocket_on_a_kept_connection(visit, local):
    if local[0] != 'uvicorn':
        pytest.skip('it has no WebSockets')
    mobile, protocol = visit(local[1]), ClientProtocol(parse_uri('ws://kitchen.example.com/'))
    mobile.send(request())
    assert mobile.answer().status == 200
    protocol.send_request(protocol.connect())
    mobile.send(b''.join(protocol.data_to_send()))
    head = mobile.until(HEAD_ENDS)
    assert head.startswith(b'HTTP/1.1 101 ')
    protocol.receive_data(head)
    for text in (b'words', SMUGGLED, b'X' * 100_000):
        protocol.send_text(text)
        mobile.send(b''.join(protocol.data_to_send()))
        frames = []
        while not frames:
            protocol.receive_data(mobile.receive(1))
            frames = [each for each in protocol.events_received() if isinstance(each, Frame)]
        assert frames[0].data == text
