"""Out through an HTTP proxy: which one, what it is asked, what it may answer."""

import re
import socket
import subprocess
from base64 import b64encode
from contextlib import suppress

import gevent
import pytest
from conftest import OK, free_port, until
from hiding import HEAD_ENDS, MEGABYTE, asked, hello, said, says, until_waiting
from programs import listens
from test_docs import needs

from rendezvous.hidden import dial, hidden_server, http_proxy
from rendezvous.hidden.http_proxy import HttpProxy, Tunnel

HOST, PORT = 'rendezvous.example.com', 8899
LIKE = (
    'is not like http://10.0.0.1:3128 or http://USER:PASSWORD@10.0.0.1:3128, '
    'with what is special in USER and PASSWORD written as %40 for @'
)


@pytest.mark.parametrize(
    ('url', 'means'),
    [
        ('http://10.0.0.1:3128', HttpProxy('10.0.0.1', 3128, b'')),
        ('http://proxy.example.com/', HttpProxy('proxy.example.com', 80, b'')),
        ('proxy:3128', HttpProxy('proxy', 3128, b'')),
        ('HTTP://u:p@[::1]:3128', HttpProxy('::1', 3128, b'u:p')),
        ('http://u@proxy:3128', HttpProxy('proxy', 3128, b'u:')),
        (
            'http://a%40b:p%3a%2f%23%C3%A4@proxy:3128',
            HttpProxy('proxy', 3128, 'a@b:p:/#ä'.encode()),
        ),
    ],
)
def test_url_of_a_proxy(url, means):
    assert http_proxy.proxy(url, '--proxy') == means


@pytest.mark.parametrize(
    'url',
    [
        *('http://', 'http://:3128', '10.0.0.1:x', 'http://x:65536', 'http://a b:1', 'http://[::1'),
        *('http://u:secret#1@x:1', 'http://u:12#secret@x:1', 'http://u:12/secret@x:1'),
        *('http://u:12?secret@x:1', 'http://u:sec:ret@', 'http://x:3128/path'),
    ],
)
def test_url_that_is_none_is_a_sentence_without_what_may_be_a_password(url):
    with pytest.raises(http_proxy.BadProxy) as caught:
        http_proxy.proxy(url, 'https_proxy')
    assert str(caught.value) == f'https_proxy {LIKE}'


@pytest.mark.parametrize('scheme', ['https', 'socks5', 'socks5h'])
def test_other_proxies_are_a_sentence(scheme):
    with pytest.raises(http_proxy.BadProxy, match='--proxy must begin with http://'):
        http_proxy.proxy(f'{scheme}://x:1', '--proxy')


ENVIRONMENTS = [
    ({}, ''),
    ({'https_proxy': 'http://a:1'}, 'the proxy a:1'),
    ({'HTTPS_PROXY': 'http://a:1'}, 'the proxy a:1'),
    ({'https_proxy': 'http://u:p@a:1', 'HTTPS_PROXY': 'http://b:1'}, 'the proxy a:1'),
    ({'http_proxy': 'http://a:1'}, ''),
    ({'https_proxy': ''}, ''),
    ({'https_proxy': 'http://a:1', 'no_proxy': 'x.org, example.com'}, ''),
    ({'https_proxy': 'http://a:1', 'no_proxy': f'{HOST}:{PORT}'}, ''),
    ({'https_proxy': 'http://a:1', 'no_proxy': f'{HOST}:443'}, 'the proxy a:1'),
    ({'https_proxy': 'http://a:1', 'NO_PROXY': '*'}, ''),
    ({'https_proxy': 'socks5://a:1', 'no_proxy': HOST}, ''),
]


@pytest.mark.parametrize(('environment', 'through'), ENVIRONMENTS)
def test_environment_names_the_proxy(monkeypatch, environment, through):
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert http_proxy.way(HOST, PORT, None).through == through


def test_option_is_stronger_than_the_environment(monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://a:1')
    monkeypatch.setenv('no_proxy', '*')
    assert http_proxy.way(HOST, PORT, 'http://b:1').through == 'the proxy b:1'


def test_proxy_that_is_none_is_a_mistake_of_its_own(folder, run_hidden, registrar):
    program = run_hidden(registrar, None, '--proxy', 'http://u:secret@')
    assert program.process.wait(timeout=20) == 78
    assert program.said() == f'hidden.py: --proxy {LIKE}\n'


# What a proxy may answer

ESTABLISHED = b'HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n'


@pytest.fixture
def tunnel(listen):
    """What comes of a tunnel where a proxy answers so: its request, and a connection or why not."""

    def tunnel(*pieces: bytes, stays=True, credentials=b'u:p', to='box:8899'):
        heads = []

        def handle(peer):
            heads.append(peer.until(HEAD_ENDS))
            for piece in pieces:
                peer.send(piece)
            if stays:
                peer.rest()

        near = listen(handle)
        try:
            with Tunnel(HttpProxy('127.0.0.1', near.port, credentials), to).connect()[0]:
                return heads[0], ''
        except http_proxy.NoTunnel as error:
            return error, dial.why(error).replace(near.address, 'P')

    return tunnel


@pytest.mark.parametrize(
    'answer',
    [
        ESTABLISHED,
        b'HTTP/1.1 200\r\n\r\n',
        b'HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n',
        b'HTTP/1.1 299 OK\r\nX: ' + b'y' * 10_000 + HEAD_ENDS,
    ],
)
def test_tunnel_begins_behind_any_2xx(tunnel, answer):
    request = b'CONNECT box:8899 HTTP/1.1\r\nHost: box:8899\r\n'
    basic = b'Proxy-Authorization: Basic ' + b64encode(b'u:p')
    assert tunnel(answer) == (request + basic + HEAD_ENDS, '')
    assert tunnel(answer, credentials=b'') == (request + b'\r\n', '')
    octet_by_octet = (answer[at : at + 1] for at in range(min(len(answer), 100)))
    assert tunnel(*octet_by_octet, answer[100:])[1] == ''


REFUSALS = [
    (b'407 Proxy Authentication Required', 'refuses the user name or the password'),
    (b'401 Unauthorized', 'refuses the user name or the password'),
    (b'403 Forbidden', 'allows no connection to box:8899: ask who runs it'),
    (b'400 Bad Request', 'answers 400 to a CONNECT'),
    (b'302 Found', 'answers 302 to a CONNECT'),
    (b'503 Service Unavailable', 'cannot connect to box:8899'),
    (b'500 Unable to connect', 'cannot connect to box:8899'),
]


@pytest.mark.parametrize(('status', 'says'), REFUSALS)
def test_refusal_of_a_proxy_is_a_sentence(tunnel, status, says):
    error, why = tunnel(b'HTTP/1.1 ' + status + b'\r\nContent-Length: 2\r\n\r\nno')
    assert why.startswith(f'the proxy P {says}')
    assert why.endswith(f'({status[:3].decode()})')
    is_lasting = hidden_server.pause_after(error, 0) > 5
    assert is_lasting == (status < b'5')


def test_proxy_that_wants_credentials_is_told_from_one_that_refuses_them(tunnel):
    _, why = tunnel(b'HTTP/1.1 407 x\r\n\r\n', credentials=b'')
    assert why.startswith('the proxy P wants a user name and a password')


STRANGE = {
    'garbage': (b'SSH-2.0-OpenSSH_9.2\r\n\r\n', 'what answers at the proxy P is no HTTP proxy'),
    'endless': (b'HTTP/1.1 200 OK\r\n' + b'x: y\r\n' * 5000, 'what answers at the proxy P is no'),
    'no status': (b'HTTP/1.1 20 OK\r\n\r\n', 'what answers at the proxy P is no HTTP proxy'),
    'more': (ESTABLISHED + b'more\r\n\r\n', 'the proxy P says more than it may'),
}


@pytest.mark.parametrize(('answer', 'says'), STRANGE.values(), ids=STRANGE)
def test_strange_answer_is_a_sentence(tunnel, answer, says):
    assert tunnel(answer)[1].startswith(says)


def test_proxy_that_hangs_up_or_says_nothing_or_half_is_a_sentence(tunnel, monkeypatch):
    assert tunnel(ESTABLISHED[:30], stays=False)[1] == 'the proxy P hangs up'
    monkeypatch.setattr(dial, 'CONNECT_SECONDS', 0.2)
    for answer in (b'', ESTABLISHED[:-2]):
        assert tunnel(answer)[1] == 'the proxy P: no answer to the CONNECT'


def test_proxy_that_is_not_there_is_named(server, hide, caplog):
    port = free_port()
    hide(server, proxy=f'http://u:secret@127.0.0.1:{port}')
    until(lambda: said(caplog), 'it says so')
    why = f'the proxy 127.0.0.1:{port}: Connection refused'
    assert said(caplog)[0] == f'not registered at 127.0.0.1:{server.port}: {why}'


# A whole way


@pytest.fixture
def forward(listen):
    """A proxy of the test's own: it makes a tunnel for everybody."""
    heads = []

    def handle(peer):
        heads.append(peer.until(HEAD_ENDS))
        host, port = re.match(rb'CONNECT (\S+):(\d+) ', heads[-1]).groups()
        with socket.create_connection((host, int(port))) as far:
            peer.send(ESTABLISHED)
            ends = [(peer.sock, far), (far, peer.sock)]
            gevent.joinall([gevent.spawn(copy, *each) for each in ends], count=1)

    proxy = listen(handle)
    proxy.heads = heads
    return proxy


def copy(source, sink) -> None:
    with suppress(OSError):
        while octets := source.recv(65536):
            sink.sendall(octets)


@pytest.mark.parametrize('by', ['option', 'environment'])
def test_registers_and_answers_through_a_proxy(
    server, uuid, hide, listen, connect, forward, caplog, monkeypatch, by
):
    def answer(peer):
        peer.until(HEAD_ENDS)
        peer.send(OK + MEGABYTE)

    caplog.set_level('INFO', 'hidden')
    url = f'http://u:secret@{forward.address}'
    if by == 'environment':
        monkeypatch.setenv('https_proxy', url)
        monkeypatch.setenv('no_proxy', 'example.com')
    hide(server, listen(answer), proxy=url if by == 'option' else None)
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).rest() == OK + MEGABYTE
    until_waiting(server, uuid, 2)
    assert len(forward.heads) >= 3
    through = f'as {uuid} through the proxy {forward.address}'
    assert said(caplog)[0] == f'registered at 127.0.0.1:{server.port} {through}'
    assert 'secret' not in caplog.text
    assert 'WARNING' not in caplog.text


def test_registration_through_a_proxy_is_replaced_sooner(server, hide, forward, monkeypatch):
    monkeypatch.setattr(hidden_server, 'TUNNEL_SECONDS', 0.3)
    hide(server, proxy=forward.address)
    until(lambda: len(forward.heads) >= 6, 'both are replaced')


def test_proxy_that_cuts_what_is_silent_is_no_reason_to_warn(
    server, uuid, hide, listen, monkeypatch, caplog
):
    monkeypatch.setattr(hidden_server, 'SETTLED_SECONDS', 0.05)
    caplog.set_level('INFO', 'hidden')

    def handle(peer):
        peer.until(HEAD_ENDS)
        with socket.create_connection(('127.0.0.1', server.port)) as far:
            peer.send(ESTABLISHED)
            both = [gevent.spawn(copy, *each) for each in ((peer.sock, far), (far, peer.sock))]
            gevent.joinall(both, timeout=0.3, count=1)
            gevent.killall(both)

    proxy = listen(handle)
    hide(server, proxy=proxy.address)
    until(lambda: len(proxy.tries) >= 8, 'it registers again and again')
    until_waiting(server, uuid, 2)
    assert [each for each in said(caplog) if not each.startswith(('registered', 'mobile'))] == []


TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 600
MaxClients 20
BasicAuth u p
ConnectPort {allowed}
"""


@pytest.fixture
def tinyproxy(tmp_path, server):
    """The port of a tinyproxy that takes u and p, and lets connections to the server through."""
    port = free_port()
    file = tmp_path / 'tinyproxy.conf'
    file.write_text(TINYPROXY.format(port=port, allowed=server.port))
    with subprocess.Popen(['tinyproxy', '-d', '-c', file], stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port), 'tinyproxy listens')
            yield port
        finally:
            process.terminate()


@needs('tinyproxy')
def test_tinyproxy_lets_it_through_with_the_password_alone(
    server, uuid, hide, listen, connect, tinyproxy, caplog
):
    hide(server, listen(hello), proxy=f'http://u:p@127.0.0.1:{tinyproxy}')
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert not said(caplog)


@needs('tinyproxy')
@pytest.mark.parametrize(
    ('credentials', 'says'),
    [('', 'wants a user name and a password'), ('u:secret@', 'refuses the user name')],
)
def test_tinyproxy_refuses_the_rest(server, hide, tinyproxy, caplog, credentials, says):
    hide(server, proxy=f'http://{credentials}127.0.0.1:{tinyproxy}')
    until(lambda: said(caplog), 'it says so')
    assert f': the proxy 127.0.0.1:{tinyproxy} {says}' in said(caplog)[0]
    assert 'secret' not in caplog.text


@needs('tinyproxy')
def test_tinyproxy_allows_some_ports_alone(stranger, hide, tinyproxy, caplog):
    other = stranger(says(b''))
    hide(other, proxy=f'http://u:p@127.0.0.1:{tinyproxy}')
    until(lambda: said(caplog), 'it says so')
    assert f'allows no connection to 127.0.0.1:{other.port}' in said(caplog)[0]
    assert not other.tries
