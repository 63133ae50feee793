"""Who may use the page: what logs in, and what other pages and other users are refused."""

import re
import resource
import signal
import socket
from contextlib import ExitStack, closing, suppress
from urllib.parse import urlsplit

import gevent
import pytest
import requests
from conftest import Peer, until
from programs import listens
from visitor import LINK, Visitor, link

FORMS = '/entries', '/entries/{}/rename', '/entries/{}/delete', '/entries/{}/secret', '/logout'


@pytest.fixture
def stranger(page):
    """Sends requests without the cookie."""

    def ask(method: str, path: str, **more) -> requests.Response:
        return requests.request(method, page.url + path, timeout=10, **more)

    return ask


def test_link_works_once_and_a_new_one_is_shown(page, stranger):
    _, code = link(page.program)
    response = stranger('POST', '/login', data={'code': code}, allow_redirects=False)
    assert (response.status_code, response.headers['Location']) == (303, '/')
    until(lambda: link(page.program)[1] != code, 'it shows another link')
    assert stranger('POST', '/login', data={'code': code}).status_code == 403


def test_who_fetches_the_link_beforehand_uses_up_nothing(page, stranger):
    _, code = link(page.program)
    before = page.program.said()
    for _ in range(3):
        response = stranger('GET', f'/login?code={code}')
        assert (response.status_code, response.cookies.get_dict()) == (200, {})
    assert page.program.said() == before
    assert stranger('POST', '/login', data={'code': code}, allow_redirects=False).ok


def test_whole_link_may_be_pasted_in(page, stranger):
    url, code = link(page.program)
    data = {'code': f' {url}/login?code={code}\n'}
    assert stranger('POST', '/login', data=data, allow_redirects=False).status_code == 303


def test_cookie_is_no_script_s_and_no_other_site_s(page, stranger):
    _, code = link(page.program)
    response = stranger('POST', '/login', data={'code': code}, allow_redirects=False)
    name, *flags = response.headers['Set-Cookie'].split('; ')
    assert re.fullmatch(rf'rendezvous-{urlsplit(page.url).port}=[\w.-]+', name)
    assert set(flags) == {'HttpOnly', 'Path=/', 'SameSite=Strict'}


@pytest.mark.parametrize('cookie', ['', 'wrong', '\xff'])
def test_without_a_session_nothing_is_shown_or_done(page, stranger, cookie):
    uuid = page.made(label='kitchen')
    headers = {'Cookie': f'rendezvous-{urlsplit(page.url).port}={cookie}'}
    paths = '/', f'/entries/{uuid}', f'/entries/{uuid}.json', '/registrar.crt', '/nothing'
    for path in paths:
        response = stranger('GET', path, headers=headers)
        assert response.status_code == 403
        assert 'Log in' in response.text
        assert not {uuid, 'kitchen', 'BEGIN'} & set(re.findall(r'[\w-]+', response.text))
    for path in FORMS:
        data = {'token': page.token, 'label': 'x'}
        response = stranger('POST', path.format(uuid), data=data, headers=headers)
        assert response.status_code == 403
    assert page.listed() == {uuid: 'kitchen'}


def test_wrong_codes_are_rationed(folder):
    page = Visitor(folder)
    _, code = link(page.program)
    for wrong in ['', 'wrong', code[:-1], code + 'x', code.swapcase(), '\xe9', '\0', 'x' * 1000]:
        assert page.refusal(page.log_in(wrong), 403).startswith('This code is wrong or was used')
    assert [page.log_in('wrong').status_code for _ in range(2)] == [403, 403]
    response = page.log_in('wrong')
    assert 0 < int(response.headers['Retry-After']) <= 60
    assert page.refusal(response, 429).startswith('Too many wrong codes: try again in ')
    assert page.ask('GET').ok  # who is in stays in
    page.cookies.clear()
    page.log_in(code)  # nobody can lock out who has the right one
    assert page.ask('GET').ok


def test_session_ends_after_its_time(folder):
    login = folder.path / 'rendezvous/admin/login.py'
    login.write_text(re.sub('(?m)^SESSION_SECONDS = .*', 'SESSION_SECONDS = 1', login.read_text()))
    page = Visitor(folder)
    assert page.ask('GET').ok
    until(lambda: page.ask('GET').status_code == 403, 'the session ends')


def test_who_logs_out_is_out(page):
    page.log_in(link(page.program)[1])
    mine = dict(page.cookies)
    assert 'Log in' in page.send('/logout').text
    assert page.ask('GET', cookies=mine).status_code == 403
    page.log_in(link(page.program)[1])
    assert page.ask('GET').ok


def test_no_login_asks_for_none_but_for_the_token(folder):
    program = folder.start('users_app.py', '--port', '0', '--no-login')
    url = program.until_it_says(r'The page is at (http://\S+)\n')[1]
    with requests.Session() as session:
        token = re.search('name="token" value="(.*?)"', session.get(url).text)[1]
        assert session.post(f'{url}/entries', data={'label': 'x'}).status_code == 403
        data = {'label': 'x', 'token': token}
        assert session.post(f'{url}/entries', data=data, allow_redirects=False).status_code == 303
    assert not LINK.search(program.said())


@pytest.mark.parametrize('path', FORMS)
def test_form_without_the_token_of_this_session_is_refused(page, path):
    uuid = page.made(label='kitchen')
    other = page.token
    page.log_in(link(page.program)[1])
    assert other != page.token
    for token in ('', 'x', other, page.token[:-1], page.token.upper(), '\xe9'):
        response = page.send(path.format(uuid), token=token, label='other')
        assert page.refusal(response, 403).startswith('This form is out of date: ')
    assert page.listed() == {uuid: 'kitchen'}


@pytest.mark.parametrize(
    'headers',
    [
        {'Origin': 'http://evil.example'},
        {'Origin': 'null'},
        {'Origin': 'https://{host}'},
        {'Origin': 'http://127.0.0.1:1'},
        {'Origin': 'http://{host}.'},
        {'Sec-Fetch-Site': 'cross-site'},
        {'Sec-Fetch-Site': 'same-site', 'Origin': 'http://{host}'},  # another port of this host
        {'Sec-Fetch-Site': 'none'},
    ],
)
def test_what_another_page_sends_is_refused_even_with_cookie_and_token(page, headers):
    uuid = page.made()
    host = urlsplit(page.url).netloc
    headers = {name: value.format(host=host) for name, value in headers.items()}
    for path in (*FORMS, '/login'):
        if path == '/login' and headers == {'Origin': 'null'}:
            continue  # who knows the code may come
        response = page.send(path.format(uuid), headers=headers)
        assert page.refusal(response, 403).startswith('This came from another web page')
    assert page.folder.redis('KEYS', '*') == [uuid]
    assert page.ask('GET').ok


@pytest.mark.parametrize(
    'host',
    [
        'evil.example',
        'evil.example:{port}',
        '127.0.0.1.evil.example:{port}',
        '127.0.0.1:{port}.evil.example',
        'localhost.evil.example',
        'page.example.evil.example',
        '192.0.2.1',
        '[::ffff:192.0.2.1]',
        '',
        'evil_host.example',
        '@127.0.0.1',
        '127.0.0.1@evil.example',
    ],
)
def test_foreign_host_is_refused(page, host):
    uuid = page.made()
    host = host.format(port=urlsplit(page.url).port)
    paths = '/', '/login', '/static/style.css', '/registrar.crt', f'/entries/{uuid}.json'
    for path in paths:
        response = page.ask('GET', path, headers={'Host': host})
        assert response.status_code == 403
        assert uuid not in response.text
    for path in FORMS:
        headers = {'Host': host, 'Origin': f'http://{host}'}
        assert page.send(path.format(uuid), headers=headers).status_code == 403
    assert page.folder.redis('KEYS', '*') == [uuid]


def test_host_that_makes_no_sense_is_refused_where_no_page_host_is_set(folder):
    page = Visitor(folder)
    for host in ('', 'evil_host.example', 'b\xfccher.example', ':80', '127.0.0.1:99999'):
        assert page.ask('GET', '/static/page.js', headers={'Host': host}).status_code == 403


@pytest.mark.parametrize(
    'name', ['127.0.0.1', '127.8.9.1', 'localhost', 'LOCALHOST', '[::1]', 'page.example']
)
def test_our_own_names_are_welcome(page, stranger, name):
    host = f'{name}:{urlsplit(page.url).port}'
    headers = {'Host': host, 'Origin': f'http://{host}'}
    data = {'code': link(page.program)[1]}
    response = stranger('POST', '/login', data=data, headers=headers, allow_redirects=False)
    headers['Cookie'] = response.headers['Set-Cookie'].partition(';')[0]
    text = stranger('GET', '/', headers=headers).text
    data = {'token': re.search('name="token" value="(.*?)"', text)[1], 'label': name}
    assert stranger('POST', '/entries', data=data, headers=headers, allow_redirects=False).ok
    assert list(page.listed().values()) == [name]


def test_each_answer_is_fenced(page, stranger):
    uuid = page.made()
    answers = [
        *(page.ask('GET', path) for path in ('/', '/?page=9', f'/entries/{uuid}', '/nothing')),
        page.ask('GET', f'/entries/{uuid}.json'),
        page.ask('GET', '/static/page.js'),
        page.ask('GET', headers={'Host': 'evil.example'}),
        page.ask('PUT'),
        page.change(uuid, 'secret'),
        page.create('malformed'),
        stranger('GET', '/'),
        stranger('POST', '/login', data={'code': 'x'}),
    ]
    for answer in answers:
        policy = dict(
            each.strip().split(' ', 1)
            for each in answer.headers['Content-Security-Policy'].split(';')
        )
        assert policy == {
            'default-src': "'none'",
            'script-src': "'self'",
            'style-src': "'self'",
            'connect-src': "'self'",
            'img-src': 'data:',
            'form-action': "'self'",
            'base-uri': "'none'",
            'frame-ancestors': "'none'",
        }
        assert answer.headers['X-Frame-Options'] == 'DENY'
        assert answer.headers['X-Content-Type-Options'] == 'nosniff'
        assert answer.headers['Cross-Origin-Resource-Policy'] == 'same-origin'
        assert answer.headers['Referrer-Policy'] in ('same-origin', 'no-referrer')
        assert answer.headers['Cache-Control'] in ('no-store', 'no-cache')
        assert not re.search(r'<script>|style=|\son\w+=|javascript:', answer.text)


def test_what_shows_a_secret_is_kept_nowhere_and_tells_nobody(page, stranger):
    uuid = page.made()
    for answer in (
        page.change(uuid, 'secret'),
        page.ask('GET', f'/entries/{uuid}.json'),
        page.ask('GET', f'/entries/{uuid}.js'),
        stranger('GET', f'/login?code={link(page.program)[1]}'),
    ):
        assert answer.ok
        assert answer.headers['Cache-Control'] == 'no-store'
        assert answer.headers['Referrer-Policy'] == 'no-referrer'


def test_no_secret_and_no_code_that_was_typed_in_is_said(page):
    uuid = page.made()
    secret = re.search('[A-Z2-7]{64}', page.change(uuid, 'secret').text)[0]
    page.ask('GET', '/login?code=typed-in')
    page.log_in('typed-in')
    page.ask('GET', f'/entries/{uuid}.json')
    for garbage in (b'GET /login?code=typed-in HTTP/9.9', b'GET /login?code=typed-in', b'\x16\x03'):
        with socket.create_connection(('127.0.0.1', urlsplit(page.url).port)) as sock:
            sock.sendall(garbage + b'\r\n\r\n')
            sock.recv(1000)
    said = page.program.said()
    assert 'typed-in' not in said
    assert secret not in said
    assert re.fullmatch(f'(To log in, open this link, .*: {LINK.pattern})+', said)


@pytest.mark.parametrize('path', ['/entries', '/login'])
def test_large_body_is_refused(page, path):
    body = f'token={page.token}&label='.encode() + b'x' * 100_000
    headers = {'Content-Type': 'application/x-www-form-urlencoded'}
    assert page.ask('POST', path, data=body, headers=headers).status_code == 413
    chunks = iter([body])
    assert page.ask('POST', path, data=chunks, headers=headers).status_code == 411
    assert page.listed() == {}


def test_no_variable_of_the_environment_turns_on_debugging(folder, monkeypatch):
    for name in ('FLASK_DEBUG', 'FLASK_ENV', 'FLASK_TESTING', 'WERKZEUG_RUN_MAIN', 'DEBUG'):
        monkeypatch.setenv(name, '1')
    (folder.path / 'rendezvous/admin/templates' / 'secret.html').write_text('{{ 1 / 0 }}')
    page = Visitor(folder)
    response = page.change(page.made(), 'secret')
    assert response.status_code == 500
    assert 'That did not work' in response.text  # our own page, and fenced
    assert 'Content-Security-Policy' in response.headers
    assert 'ZeroDivisionError' not in response.text
    assert 'Werkzeug' not in response.headers.get('Server', '')
    assert page.ask('GET', '/console').status_code == 404


def test_beyond_loopback_only_when_told_and_then_it_says_so(folder):
    program = folder.start('users_app.py', '--port', '0', '--host', '0.0.0.0')
    url, _ = link(program)
    assert listens(urlsplit(url).port, '127.8.9.1')
    assert program.end(signal.SIGTERM) == 0
    sentence = 'the page listens on 0.0.0.0, beyond this machine, and nothing is encrypted'
    assert sentence in program.said()


def test_host_that_is_not_here_is_one_sentence(folder):
    hosts = '192.0.2.1', 'no such host', 'x' * 70
    start = 'users_app.py', '--port', '0', '--host'
    running = [gevent.spawn(folder.run, *start, host) for host in hosts]
    for host, ran in zip(hosts, running, strict=True):
        status, said, complaint = ran.get()
        assert (status, said) == (1, '')
        assert complaint.startswith(f'Error: cannot listen on port 0 of {host}: ')


def test_more_header_fields_than_python_reads_are_a_400_and_nothing_is_said(page, stranger):
    before = page.program.said()
    headers = {f'X-{number}': 'y' for number in range(150)}
    assert stranger('GET', '/', headers=headers).status_code == 400
    assert page.program.said() == before


@pytest.fixture
def soon(folder):
    """A page whose deadlines come soon."""
    server = folder.path / 'rendezvous/admin/page_server.py'
    shorter = re.sub('(?m)^(SILENT|REQUEST)_SECONDS = .*', r'\1_SECONDS = 1', server.read_text())
    server.write_text(shorter)
    page = Visitor(folder)
    yield page
    assert 'Traceback' not in page.program.said()


@pytest.fixture
def connect():
    """Makes bare connections to a page."""
    with ExitStack() as opened:

        def connect(page) -> Peer:
            address = '127.0.0.1', urlsplit(page.url).port
            return opened.enter_context(closing(Peer(socket.create_connection(address))))

        yield connect


def asks(page, more: str = '') -> bytes:
    """A request of somebody who has logged in."""
    cookie = '; '.join(f'{name}={value}' for name, value in page.cookies.items())
    host = urlsplit(page.url).netloc
    return f'GET / HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n{more}\r\n'.encode()


def test_connections_that_never_finish_their_head_shut_nobody_out(page, connect):
    pid, files = page.program.pid, resource.RLIMIT_NOFILE
    before, (soft, hard) = resource.prlimit(pid, files), resource.getrlimit(files)
    resource.setrlimit(files, (min(4096, hard), hard))  # for our ends of them
    resource.prlimit(pid, files, (256, before[1]))  # what macOS gives
    try:
        kept = connect(page)
        kept.send(asks(page))
        assert kept.answer().status == 200
        for number in range(1100):
            connect(page).send(b'GET / HTTP/1.1\r\nHost: x\r\n'[: number % 28])
            if number % 100 == 99:
                kept.send(asks(page))
                assert kept.answer().status == 200
                assert page.ask('GET').status_code == 200
        assert page.made(label='kitchen') in page.listed()
        assert 'Error' not in page.program.said()
    finally:
        resource.prlimit(pid, files, before)
        resource.setrlimit(files, (soft, hard))


def test_request_of_a_session_is_answered_however_many_others_come(page, connect):
    busy = [connect(page) for _ in range(3)]
    page.folder.redis('CLIENT', 'PAUSE', '1500')
    for each in busy:
        each.send(asks(page))
    others = [connect(page) for _ in range(300)]
    assert others[0].rest() == b''  # its place was needed
    for each in busy:
        assert each.answer().status == 200


@pytest.mark.parametrize(
    'begun',
    [
        b'G',
        b'GET / HTTP/1.1\r\nX: ',
        b'POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\ncode=',
        b'POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n'
        b'Content-Length: 999\r\n\r\ncode=',
    ],
)
def test_head_and_body_have_a_deadline_however_slowly_they_drip(soon, connect, begun):
    silent, dripping = connect(soon), connect(soon)
    for each in (silent, dripping):
        each.send(begun)

    def drip() -> None:
        with suppress(OSError):
            while True:
                dripping.send(b'x')
                gevent.sleep(0.05)

    drips = gevent.spawn(drip)  # until it is refused
    for each in (silent, dripping):
        assert each.until(b'\r\n\r\n').startswith(b'HTTP/1.1 408 Request Timeout\r\n')
    assert silent.rest() == b''
    drips.join()


def test_connection_without_a_request_is_closed(soon, connect):
    silent, kept = connect(soon), connect(soon)
    kept.send(asks(soon))
    assert kept.answer().status == 200
    assert (silent.rest(), kept.rest()) == (b'', b'')


def test_who_does_not_read_its_answers_is_reset(soon, connect):
    peer = connect(soon)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    style = b'GET /static/style.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'

    def ask() -> None:
        while True:
            peer.send(style * 100)

    with pytest.raises(ConnectionError):
        ask()
    assert soon.ask('GET').ok


@pytest.mark.parametrize('field', ['Content-Length: 100000000000', 'Transfer-Encoding: chunked'])
def test_what_is_not_read_of_a_body_does_not_keep_the_connection(page, connect, field):
    peer = connect(page)
    peer.send(f'POST /entries HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}\r\n\r\n'.encode())
    assert peer.answer().status in (403, 411)
    assert peer.rest() == b''


def test_answer_to_a_body_that_is_not_read_arrives(page, connect):
    field = 'Content-Length: 5000000\r\n'
    stranger = f'POST /entries HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}\r\n'.encode()
    for status, head in {403: stranger, 413: asks(page, field)}.items():
        peer = connect(page)
        peer.send(head + b'x' * 5_000_000)
        assert peer.answer().status == status


def test_body_that_waits_to_be_asked_for_is_asked_for(page, connect):
    body = f'token={page.token}&label=x'.encode()
    peer, more = connect(page), f'Content-Length: {len(body)}\r\nExpect: 100-continue\r\n'
    more += 'Content-Type: application/x-www-form-urlencoded\r\n'
    peer.send(asks(page, more).replace(b'GET /', b'POST /entries'))
    assert peer.until(b'\r\n\r\n') == b'HTTP/1.1 100 Continue\r\n\r\n'
    peer.send(body)
    assert peer.until(b'\r\n').startswith(b'HTTP/1.1 303 ')


def test_large_head_is_refused(page, connect):
    peer = connect(page)
    line = b'X: ' + b'x' * 60_000 + b'\r\n'
    peer.send(b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n' + line)
    peer.send(line)
    assert peer.until(b'\r\n').startswith(b'HTTP/1.1 400 ')


def test_client_that_resets_is_told_to_nobody(page, connect):
    before = page.program.said()
    cut = b'GET / HTTP/1\r\n', b'GET / HTTP/1.1\r\nX', asks(page, 'Content-Length: 9\r\n')
    for sent in (*cut, asks(page) * 20):
        peer = connect(page)
        peer.send(sent)
        peer.reset()
    assert page.ask('GET').ok
    assert page.program.said() == before
