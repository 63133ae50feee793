"""Real clients, a real server, hidden.py in front of a real HTTP server: each a process."""

import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import gevent
import pytest
import requests
from behind import serving
from conftest import ROOT, Peer, get, until
from gevent.pool import Pool
from gevent.queue import Queue
from programs import Folder
from requests.auth import HTTPBasicAuth, HTTPDigestAuth

LARGE = os.urandom(20 * 1024 * 1024)
HIDDEN_SERVER_JS = ROOT / 'tests' / 'hidden_server.js'
CLIENT_SECONDS = 20


def summed(octets: bytes) -> bytes:
    return hashlib.sha256(octets).hexdigest().encode()


class Handler(BaseHTTPRequestHandler):
    """The site behind the NAT."""

    protocol_version = 'HTTP/1.1'
    events: Queue

    def do_GET(self) -> None:
        if self.path == '/events':
            self._send_events()
        elif self.path == '/old':
            self.protocol_version, self.close_connection = 'HTTP/1.0', True
            self._send(LARGE)
        else:
            body = LARGE if self.path == '/large' else self.path.encode()
            self._send(body, f'Content-Length: {len(body)}')

    def do_POST(self) -> None:
        left, digest = int(self.headers['Content-Length']), hashlib.sha256()
        while left and (octets := self.rfile.read(min(left, 65536))):
            digest.update(octets)
            left -= len(octets)
        self._send(digest.hexdigest().encode(), 'Content-Length: 64')

    def do_PUT(self) -> None:
        self.do_POST()

    def _send(self, body: bytes, *fields: str) -> None:
        self.send_response(200)
        for field in fields:
            self.send_header(*field.split(': '))
        self.end_headers()
        self.wfile.write(body)

    def _send_events(self) -> None:
        self._send(b'', 'Content-Type: text/event-stream', 'Connection: close')
        for event in self.events:
            self.wfile.write(f'data: {event}\n\n'.encode())

    def log_message(self, *_) -> None:
        pass


class Site(NamedTuple):
    """A rendezvous server and a hidden server; mobile clients reach it by this UUID."""

    folder: Folder
    port: int
    uuid: str
    host: str = '127.0.0.1'

    @property
    def crt_file(self) -> str:
        return str(self.folder.path / 'registrar.crt')

    def url(self, target: str) -> str:
        return f'https://{self.host}:{self.port}{target}'


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """A rendezvous server: its folder and its port."""
    with Folder(tmp_path_factory.mktemp('served')) as folder:
        folder.pair()
        program, port = folder.serve()
        folder.set(rendezvous_port=port)  # for the files of the entries
        yield folder, port
        assert program.end() == 0
        assert 'Traceback' not in folder.log()


@contextmanager
def hidden_py(folder: Folder, port: int, near: int, host: str = '127.0.0.1'):
    """A site of which hidden.py is the hidden server, for a local server at port `near`."""
    (uuid,) = folder.add('kitchen')['uuid']
    hiding = folder.start('hidden.py', f'entries/{uuid}.json', f'{host}:{near}')
    until(lambda: folder.log().count(f'registered {uuid}') >= 4, 'four registrations wait')
    yield Site(folder, port, uuid, host)
    assert hiding.end() == 0
    said = [line for line in hiding.said().splitlines() if ' stopping: ' not in line]
    assert len(said) == 2, said  # it registered, and where: no trouble since then


class IPv6Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


@pytest.fixture(scope='module')
def site(served):
    with serving(Handler) as near, hidden_py(*served, near) as site:
        yield site


def installed(program: str):
    return pytest.mark.skipif(not shutil.which(program), reason=f'{program} is not installed')


def ran(*command: str) -> bytes:
    """What a client says that ends with status 0 and complains of nothing."""
    done = subprocess.run(command, capture_output=True, timeout=CLIENT_SECONDS)
    assert (done.returncode, done.stderr) == (0, b''), done.stderr
    return done.stdout


def curl(site: Site, target: str, *arguments: str) -> list[str]:
    """The command; it authenticates by Digest where nothing else is said."""
    if not {'--basic', '--user'} & {*arguments}:
        arguments = '--digest', '--user', f'{site.uuid}:any', *arguments
    common = '-sSN', '--noproxy', '*', '--cacert', site.crt_file
    return ['curl', *common, *arguments, site.url(target)]


# curl


@installed('curl')
def test_curl_gets_by_digest_and_by_basic(site):
    assert ran(*curl(site, '/a?b=c')) == b'/a?b=c'
    assert ran(*curl(site, '/a?b=c', '--basic', '--user', f'{site.uuid}:any')) == b'/a?b=c'


@installed('curl')
def test_curl_chooses_digest_where_it_may_choose(site):
    arguments = '--anyauth', '--user', f'{site.uuid}:any', '--verbose'
    ran = subprocess.run(curl(site, '/a', *arguments), capture_output=True, timeout=CLIENT_SECONDS)
    assert ran.stdout == b'/a'
    assert b'> Authorization: Digest ' in ran.stderr


@installed('curl')
def test_curl_follows_from_http_to_https(site):
    """People and local servers leave out the s."""
    *command, url = curl(site, '/a', '--location-trusted')
    assert ran(*command, url.replace('https:', 'http:')) == b'/a'


@installed('curl')
def test_curl_posts(site):
    assert ran(*curl(site, '/', '--data', 'x=y')) == summed(b'x=y')


@installed('curl')
@pytest.mark.parametrize('option', ['--upload-file', '--data-binary @'])
def test_curl_uploads_20_mb(site, tmp_path, option):
    file = tmp_path / 'large'
    file.write_bytes(LARGE)
    arguments = f'{option} {file}'.replace('@ ', '@').split(' ', 1)
    assert ran(*curl(site, '/', *arguments)) == summed(LARGE)


@installed('curl')
def test_curl_downloads_20_mb(site):
    assert summed(ran(*curl(site, '/large'))) == summed(LARGE)


@installed('curl')
def test_curl_has_no_complaint_of_a_body_framed_by_close(site):
    """HTTP/1.0 without Content-Length: the TLS close_notify tells that it is whole."""
    assert summed(ran(*curl(site, '/old'))) == summed(LARGE)


@installed('curl')
def test_server_sent_events_arrive_as_they_are_sent(site):
    Handler.events = Queue()
    with subprocess.Popen(curl(site, '/events'), stdout=subprocess.PIPE) as client:
        for event in ('one', 'two', 'three'):
            Handler.events.put(event)
            assert client.stdout.readline() == f'data: {event}\n'.encode()
            assert client.stdout.readline() == b'\n'
        Handler.events.put(StopIteration)
        assert client.stdout.read() == b''
    assert client.returncode == 0


@installed('curl')
def test_everything_over_ipv6(tmp_path):
    with Folder(tmp_path, rendezvous_host='::1') as folder:
        folder.pair('::1')
        _, port = folder.serve()
        folder.set(rendezvous_port=port)
        local = serving(Handler, IPv6Server, '::1')
        with local as near, hidden_py(folder, port, near, host='[::1]') as site:
            assert ran(*curl(site, '/a')) == b'/a'
        assert re.search(r' INFO \[::1\]:\d+ registered ', folder.log())


# Python


@pytest.mark.parametrize('scheme', [HTTPDigestAuth, HTTPBasicAuth])
def test_requests(site, scheme):
    with requests.Session() as session:
        session.trust_env = False  # else an environment that names authorities comes first
        session.auth, session.verify = scheme(site.uuid, 'any'), site.crt_file
        for _ in range(3):
            assert session.get(site.url('/a?b=c')).content == b'/a?b=c'
        assert session.post(site.url('/'), data=LARGE).content == summed(LARGE)
        assert summed(session.get(site.url('/large')).content) == summed(LARGE)


@pytest.mark.parametrize(
    'handlers',
    [
        (urllib.request.HTTPDigestAuthHandler,),
        (urllib.request.HTTPBasicAuthHandler,),
        (urllib.request.HTTPBasicAuthHandler, urllib.request.HTTPDigestAuthHandler),
    ],
    ids=['Digest', 'Basic', 'both'],
)
def test_urllib(site, handlers):
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, site.url('/'), site.uuid, 'any')
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=site.crt_file)),
        *(handler(passwords) for handler in handlers),
    )
    for data, expected in ((None, b'/a?b=c'), (b'x=y', summed(b'x=y'))):
        with opener.open(site.url('/a?b=c'), data, CLIENT_SECONDS) as answer:
            assert answer.read() == expected


def test_requests_uploads_more_than_it_reads_in_between(site):
    """It sends all of a body before it looks whether there is a 401."""
    with requests.Session() as session:
        session.trust_env = False
        session.auth, session.verify = HTTPDigestAuth(site.uuid, 'any'), site.crt_file
        assert session.post(site.url('/'), data=LARGE * 5).content == summed(LARGE * 5)


WEBSOCKET_SERVER = """
from websockets.sync.server import serve

def echo(connection):
    for message in connection:
        connection.send(message)

with serve(echo, '127.0.0.1', 0, max_size=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""
WEBSOCKET_CLIENT = """
import os, ssl, sys
from websockets.sync.client import connect

url, crt_file = sys.argv[1:]
context = ssl.create_default_context(cafile=crt_file)
with connect(url, ssl=context, max_size=None, proxy=None) as connection:
    for message in ('hello', b'', os.urandom(1024 * 1024), *map(str, range(100))):
        connection.send(message)
        assert connection.recv(timeout=5) == message
    assert connection.ping().wait(5)
print(connection.close_code)
"""


def test_websockets(served):
    """Its browsers send no Authorization: the query names the hidden server."""
    command = [sys.executable, '-c', WEBSOCKET_SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as near:
        try:
            with hidden_py(*served, int(near.stdout.readline())) as site:
                url = site.url(f'/socket?rendezvous={site.uuid}').replace('https', 'wss')
                said = ran(sys.executable, '-c', WEBSOCKET_CLIENT, url, site.crt_file)
                assert said == b'1000\n'
        finally:
            near.kill()


# Many


def status(site: Site, context: ssl.SSLContext) -> int:
    """Of one request on a connection of its own."""
    with socket.create_connection(('127.0.0.1', site.port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))
        peer.send(get(site.uuid, '/', 'GET', 'Connection: close'))
        answer = peer.answer()
        peer.close()
        return answer.status


@pytest.mark.parametrize('at_a_time', [1, 10])
def test_200_requests_are_answered_by_four_registrations(site, at_a_time):
    context = ssl.create_default_context(cafile=site.crt_file)
    pool = Pool(at_a_time)
    asking = [pool.spawn(status, site, context) for _ in range(200)]
    gevent.joinall(asking, raise_error=True)
    assert {each.value for each in asking} == {200}


@installed('ab')
def test_ab_counts_no_failure(site):
    command = ['ab', '-q', '-n', '300', '-c', '10', '-A', f'{site.uuid}:x', site.url('/')]
    said = ran(*command).decode()
    counts = dict(re.findall(r'^(\w[\w -]+):\s+(\d+)', said, re.M))
    assert (counts['Complete requests'], counts['Failed requests']) == ('300', '0'), said
    assert not {name for name in counts if name.startswith(('Non-2xx', 'Write'))}, said


# Node.js


@installed('node')
@installed('curl')
def test_hidden_server_in_node_js(served):
    """It requires the ID.js; one registration, and the next one when that is taken."""
    folder, port = served
    (uuid,) = folder.add('node')['uuid']
    site = Site(folder, port, uuid)
    command = ['node', HIDDEN_SERVER_JS, folder.path / 'entries' / f'{uuid}.js']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as node:
        try:
            assert node.stdout.readline() == b'registered\n'
            for _ in range(5):
                assert ran(*curl(site, '/')) == b'GET 0 octets\n'
                assert node.stdout.readline() == b'registered\n'
            assert ran(*curl(site, '/', '--data', 'x' * 100_000)) == b'POST 100000 octets\n'
        finally:
            node.terminate()
