"""Other parsers read what we pass on as we do: the same method, target and body, or they refuse it.

Heads are made of what parsers are known to read differently, and hypothesis changes them. Those
that the server passes on are sent to Python's http.server, Node.js and nginx, with a body as long
as our parser says and one more request behind it. Each parser says what it read. One that sees the
body end elsewhere does not see the second request where it is.
"""

import re
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import free_port, until
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from programs import listens
from test_fuzz import EXAMPLES
from test_hostile import FILES, UUID, Case

from rendezvous.server import credentials
from rendezvous.wire.http_head import Head, HeadReader, Refusal

SMUGGLED = b'GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n'  # or the first octets of it: the body
CHUNKS = b'%x\r\n%s\r\n0\r\n\r\n' % (len(SMUGGLED), SMUGGLED)
LAST = b'GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
ANSWER_SECONDS = 10
READ = re.compile(rb'HTTP/1\.1 200 .*\r\n(?:.+\r\n)*?X-Read: (.*)\r\n')


class Handler(BaseHTTPRequestHandler):
    """http.server reads no body: that is this handler's part, and it knows no chunks."""

    protocol_version = 'HTTP/1.1'

    def __getattr__(self, name: str):
        if name.startswith('do_'):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        length, coding = (
            self.headers.get(name) for name in ('Content-Length', 'Transfer-Encoding')
        )
        self.rfile.read(int(length or 0))
        if coding:
            self.rfile.read(len(CHUNKS))
        self.send_response(200)
        target = self.requestline.split()[1]  # path is with one slash for two at the start
        self.send_header('X-Read', f'{self.command} {target} {length or "-"} {coding or "-"}')
        self.send_header('Content-Length', '0')
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@contextmanager
def http_server(_):
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def node(_):
    command = ['node', Path(__file__).with_name('parser.js')]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {}
http {
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 10;
  map $http_content_length $length { '' '-'; default $http_content_length; }
  map $http_transfer_encoding $coding { '' '-'; default $http_transfer_encoding; }
  server {
    listen 127.0.0.1:%d; merge_slashes off;
    location / { add_header X-Read "$request_method $request_uri $length $coding"; return 200; }
  }
}
"""


@contextmanager
def nginx(folder: Path):
    port = free_port()
    (folder / 'nginx.conf').write_text(NGINX % port)
    process = subprocess.Popen(['nginx', '-p', folder, '-c', 'nginx.conf', '-e', 'stderr'])
    try:
        until(lambda: listens(port), 'nginx listens')
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)


PARSERS = {'http.server': http_server, 'node': node, 'nginx': nginx}


@pytest.fixture(scope='module', params=PARSERS)
def parser(request, tmp_path_factory):
    """The name of a parser, and the port where it listens."""
    if request.param != 'http.server' and not shutil.which(request.param):
        pytest.skip(f'{request.param} is not installed')
    with PARSERS[request.param](tmp_path_factory.mktemp('parser')) as port:
        yield request.param, port


def passed_on(octets: bytes) -> tuple[Head, bytes] | None:
    """What our parser reads in `octets`, and the head that goes to the hidden server, if one."""
    try:
        head, _ = HeadReader().feed(octets) or (None, b'')
        uuid, forwarded = credentials.wanted(head) if head else (None, b'')
    except Refusal:
        return None
    return (head, forwarded) if uuid and head.method != 'CONNECT' else None


def said(head: Head, name: str) -> list[str]:
    """What a parser says that reads what we read."""
    target = head.target
    if name == 'nginx':  # RFC 9112 section 3.2.2: the authority is not part of its $request_uri
        target = re.sub('^[A-Za-z][A-Za-z0-9+.-]*://[^/?]*', '', target) or '/'
    (length,), (coding,) = (head.values(field) or ['-'] for field in FRAMING)
    return [head.method, target, length, coding]


FRAMING = 'content-length', 'transfer-encoding'


def answer(port: int, octets: bytes) -> bytes:
    """All that comes back, up to the end."""
    found, sock = b'', socket.create_connection(('127.0.0.1', port), timeout=ANSWER_SECONDS)
    with sock, suppress(ConnectionError):  # it may refuse, and hang up, before it has read all
        sock.sendall(octets)
        while more := sock.recv(65536):
            found += more
    return found


def agrees(parser: tuple[str, int], head: Head, forwarded: bytes) -> bool:
    """Whether the parser read it, all of it as we do; False where it refused."""
    name, port = parser
    length = head.body_bytes
    body = CHUNKS if length is None else (SMUGGLED * 30)[:length]
    read = [
        line.decode('latin-1').split()
        for line in READ.findall(answer(port, forwarded + body + LAST))
    ]
    assert read == [said(head, name), ['GET', '/last', '-', '-']][: len(read)]
    return bool(read)


def test_corpus_is_read_alike(parser):
    """And it is read: not all of it is refused."""
    passed = filter(None, (passed_on(b''.join(Case(file, '').sent)) for file in FILES))
    agreed = [agrees(parser, *each) for each in passed if (each[0].body_bytes or 0) < 1000]
    assert sum(agreed) > 30


NAMED = b'Authorization: Digest username="%s"' % UUID.encode()
METHODS = b'GET GET POST POST HEAD PUT DELETE OPTIONS PATCH TRACE get A!'.split()
TARGETS = rb"""
/ / * /a?b=c //a//b /../a/./b /%2e%00%zz /a;b|"<>\^`{|} ? a:80 http://h/a HTTP://h http://h?a
http://u@h:80//b urn:a
""".split()
LINES = b"""\
Content-Length: 5
content-length:38
Content-Length: 0
Content-Length: 0012
Content-Length:\t7 \t
Content_Length: 3
X-Content-Length: 3
Transfer-Encoding: chunked
TRANSFER-ENCODING:\tChunked\t
Transfer_Encoding: chunked
Connection: close
Connection: keep-alive
Connection: Upgrade, X
Upgrade: websocket
Upgrade: h2c
Expect: 100-continue
TE: trailers
Trailer: X
X:
X:\t
X: a\t b
X: \x80\x85\xa0\xff
From x: y
Host: h:80
Host:
""".splitlines()
PIECES = [
    *(bytes([octet]) for octet in b' \t\r\n\0:,;#%+-_"\\05a\x0b\x0c\x1c\x7f\x85\xa0\xff'),
    *(b'', b'\r\n', b'\r\n ', b'chunked', b'Content-Length', b'HTTP/1.1'),
    *(line + b'\r\n' for line in LINES),
]
CHANGES = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 2), st.sampled_from(PIECES)), max_size=2
)


@st.composite
def heads(draw) -> bytes:
    """A head that is well-formed, and then changed at a place or two."""
    line = b' '.join(
        draw(st.sampled_from(each)) for each in (METHODS, TARGETS, [b'HTTP/1.1', b'HTTP/1.0'])
    )
    lines = draw(st.lists(st.sampled_from(LINES), max_size=4, unique=True))
    lines = draw(st.permutations([b'Host: x', NAMED, *lines]))
    octets = b'\r\n'.join([line, *lines, b'', b''])
    for place, less, more in draw(CHANGES):
        place %= len(octets)
        octets = octets[:place] + more + octets[place + less :]
    return octets


@given(heads())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=HealthCheck)
@pytest.mark.deadline(60 + EXAMPLES)
def test_no_head_is_read_differently(parser, octets):
    passed = passed_on(octets)
    assume(passed and (passed[0].body_bytes or 0) < 1000)
    event(f'{parser[0]} reads it: {agrees(parser, *passed)}')
