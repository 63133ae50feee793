"""Who asks: the server's line of the PROXY protocol, dropped or passed on to the local server."""

import subprocess

import pytest
from conftest import OK, free_port, get, until
from gevent.event import AsyncResult
from hiding import HEAD_ENDS, asked, said, until_waiting
from programs import listens
from test_docs import needs

from rendezvous.hidden import hidden_server
from rendezvous.hidden.target import Target, target

REQUEST = b'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
LINE = b'PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n'
LINE_6 = b'PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n'
UNKNOWN = b'PROXY UNKNOWN\r\n'
NOBODY_KNOWN = b'PROXY TCP4 127.0.0.1 127.0.0.1 0 0\r\n'


@pytest.fixture
def visit(stranger, hide, listen):
    """What a local server hears of a visit whose octets come in such pieces."""

    def visit(*pieces: bytes, **how) -> bytes:
        heard, visits = AsyncResult(), [pieces]

        def register(peer):
            peer.until(HEAD_ENDS)
            peer.send(OK)
            for piece in visits.pop() if visits else ():
                peer.send(piece)
            peer.rest()

        def hear(peer):
            heard.set(peer.until(HEAD_ENDS))

        near = Target('127.0.0.1', listen(hear).port, **how)
        hide(stranger(register), near, count=1)
        return heard.get(timeout=10)

    return visit


def test_each_registration_asks_for_the_line(registrar, hide):
    hide(registrar)
    registrar.until_made(2)
    assert all(b'\r\nProxy-Protocol: 1\r\n' in head for head in registrar.heads)


def octet_by_octet(octets: bytes) -> list[bytes]:
    return [octets[at : at + 1] for at in range(len(octets))]


WAYS = {'in one piece': lambda octets: [octets], 'octet by octet': octet_by_octet}


@pytest.mark.parametrize('split', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize('line', [LINE, UNKNOWN])
def test_line_is_dropped_unless_the_local_server_wants_it(visit, line, split):
    assert visit(*split(line + REQUEST)) == REQUEST


@pytest.mark.parametrize('split', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ('line', 'told'),
    [(LINE, LINE), (LINE_6, LINE_6), (UNKNOWN, NOBODY_KNOWN), (b'', NOBODY_KNOWN)],
    ids=['IPv4', 'IPv6', 'unknown', 'a server of before'],
)
def test_local_server_that_wants_the_line_gets_it_first(visit, line, told, split):
    assert visit(*split(line + REQUEST), wants_proxy_line=True) == told + REQUEST


@pytest.mark.parametrize('split', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize('method', [b'PROXY', b'P'])
def test_request_that_begins_alike_is_no_line(visit, method, split):
    request = method + REQUEST.removeprefix(b'GET')
    assert visit(*split(request)) == request


@pytest.mark.parametrize('end', ['close', 'silence'])
def test_half_a_line_reaches_nobody(stranger, hide, listen, monkeypatch, capfd, end):
    monkeypatch.setattr(hidden_server, 'LINE_SECONDS', 0.1)
    ended = []

    def register(peer):
        peer.until(HEAD_ENDS)
        peer.send(OK + LINE[:20])
        if end == 'silence':
            ended.append(peer.rest())

    strange, near = stranger(register), listen(lambda peer: None)
    hide(strange, near, count=1)
    until(lambda: len(strange.tries) > 2, 'it goes on registering')
    assert end == 'close' or not any(ended)
    assert not near.tries
    assert 'Traceback' not in capfd.readouterr().err


NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {{ }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  ssl_certificate {crt_file}; ssl_certificate_key {key_file};
  server {{
    listen 127.0.0.1:{port} proxy_protocol;
    listen 127.0.0.1:{tls_port} ssl proxy_protocol;
    listen unix:{path} proxy_protocol;
    set_real_ip_from 127.0.0.1; set_real_ip_from unix:; real_ip_header proxy_protocol;
    location /fields {{ return 200 "$remote_addr $http_x_forwarded_for $http_host"; }}
    location / {{ return 200 "$remote_addr $proxy_protocol_port $scheme"; }}
  }}
}}
"""


@pytest.fixture
def nginx(pair, tmp_path):
    """An nginx that wants the line, in three ways."""
    port, tls_port, path = free_port(), free_port(), tmp_path / 'nginx.sock'
    text = NGINX.format(port=port, tls_port=tls_port, path=path, **pair)
    (tmp_path / 'nginx.conf').write_text(text)
    with subprocess.Popen(['nginx', '-p', tmp_path, '-c', 'nginx.conf', '-e', 'stderr']) as process:
        try:
            until(lambda: listens(port), 'nginx listens')
            texts = f'127.0.0.1:{port}', f'https://127.0.0.1:{tls_port}', f'unix:{path}'
            yield dict(zip(('plain', 'tls', 'unix'), map(target, texts), strict=True))
        finally:
            process.terminate()


@needs('nginx')
@pytest.mark.parametrize('way', ['plain', 'tls', 'unix'])
def test_nginx_is_told_who_asks(stranger, hide, monkeypatch, pair, nginx, way):
    monkeypatch.setenv('SSL_CERT_FILE', pair['crt_file'])
    answers = AsyncResult()

    def register(peer):
        peer.until(HEAD_ENDS)
        peer.send(OK)
        if not answers.ready():
            peer.send(LINE_6 + REQUEST)
            answers.set(peer.answer())
        peer.rest()

    hide(stranger(register), nginx[way]._replace(wants_proxy_line=True), count=1)
    scheme = 'https' if way == 'tls' else 'http'
    assert answers.get(timeout=10).body == f'2001:db8::7 50000 {scheme}'.encode()


@needs('nginx')
def test_our_server_tells_nginx_who_asks(server, uuid, hide, nginx, connect, caplog):
    hide(server, nginx['plain']._replace(wants_proxy_line=True))
    until_waiting(server, uuid, 2)
    mobile = asked(connect, server, uuid)
    port = mobile.sock.getsockname()[1]
    assert mobile.answer().body == f'127.0.0.1 {port} http'.encode()
    assert not said(caplog)


@needs('nginx')
def test_nginx_gets_the_line_and_the_fields_where_it_wants_both(server, uuid, hide, nginx, connect):
    near = nginx['plain']._replace(wants_proxy_line=True, forwarding_as='kitchen')
    hide(server, near)
    until_waiting(server, uuid, 2)
    mobile = connect(server)
    for _ in range(2):  # on one connection
        mobile.send(get(uuid, '/fields', 'GET', 'X-Forwarded-For: 192.0.2.7'))
        assert mobile.answer().body == b'127.0.0.1 127.0.0.1 kitchen'
