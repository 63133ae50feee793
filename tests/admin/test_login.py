"""Who may use the page: what logs in, and what other pages and other users are refused."""

import re
import signal
import socket
from urllib.parse import urlsplit

import gevent
import pytest
import requests
from conftest import until
from programs import listens
from visitor import LINK, Visitor, link

FORMS = (
    *('/entries', '/entries/{}/rename', '/entries/{}/name', '/entries/{}/delete'),
    *('/entries/{}/secret', '/logout'),
)


def test_link_works_once_and_a_new_one_is_shown(page, anonymous):
    _, code = link(page.program)
    response = anonymous('POST', '/login', data={'code': code}, allow_redirects=False)
    assert (response.status_code, response.headers['Location']) == (303, '/')
    until(lambda: link(page.program)[1] != code, 'it shows another link')
    assert anonymous('POST', '/login', data={'code': code}).status_code == 403


def test_fetching_the_link_does_not_use_it_up(page, anonymous):
    _, code = link(page.program)
    before = page.program.said()
    for _ in range(3):
        response = anonymous('GET', f'/login?code={code}')
        assert (response.status_code, response.cookies.get_dict()) == (200, {})
    assert page.program.said() == before
    assert anonymous('POST', '/login', data={'code': code}, allow_redirects=False).ok


def test_whole_link_can_be_pasted(page, anonymous):
    url, code = link(page.program)
    data = {'code': f' {url}/login?code={code}\n'}
    assert anonymous('POST', '/login', data=data, allow_redirects=False).status_code == 303


def test_cookie_is_kept_from_scripts_and_other_sites(page, anonymous):
    _, code = link(page.program)
    response = anonymous('POST', '/login', data={'code': code}, allow_redirects=False)
    name, *flags = response.headers['Set-Cookie'].split('; ')
    assert re.fullmatch(rf'rendezvous-{urlsplit(page.url).port}=[\w.-]+', name)
    assert set(flags) == {'HttpOnly', 'Path=/', 'SameSite=Strict'}


@pytest.mark.parametrize('cookie', ['', 'wrong', '\xff'])
def test_without_a_session_nothing_is_shown_or_done(page, anonymous, cookie):
    uuid = page.made(label='kitchen')
    headers = {'Cookie': f'rendezvous-{urlsplit(page.url).port}={cookie}'}
    files = f'/entries/{uuid}.json', f'/entries/{uuid}.pyz', '/registrar-ca.crt'
    for path in ('/', f'/entries/{uuid}', *files, '/nothing'):
        response = anonymous('GET', path, headers=headers)
        assert response.status_code == 403
        assert 'Log in' in response.text
        assert not {uuid, 'kitchen', 'BEGIN'} & set(re.findall(r'[\w-]+', response.text))
    for path in FORMS:
        data = {'token': page.token, 'label': 'x'}
        response = anonymous('POST', path.format(uuid), data=data, headers=headers)
        assert response.status_code == 403
    assert page.listed() == {uuid: 'kitchen'}


def test_wrong_codes_are_limited(folder):
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


def test_logout_ends_the_session_for_a_copy_of_the_cookie_too(page):
    page.log_in(link(page.program)[1])
    mine = dict(page.cookies)
    assert 'Log in' in page.send('/logout').text
    assert page.ask('GET', cookies=mine).status_code == 403
    page.log_in(link(page.program)[1])
    assert page.ask('GET').ok


def test_no_login_needs_no_code_but_the_token(folder):
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
def test_our_own_names_are_welcome(page, anonymous, name):
    host = f'{name}:{urlsplit(page.url).port}'
    headers = {'Host': host, 'Origin': f'http://{host}'}
    data = {'code': link(page.program)[1]}
    response = anonymous('POST', '/login', data=data, headers=headers, allow_redirects=False)
    headers['Cookie'] = response.headers['Set-Cookie'].partition(';')[0]
    text = anonymous('GET', '/', headers=headers).text
    data = {'token': re.search('name="token" value="(.*?)"', text)[1], 'label': name}
    assert anonymous('POST', '/entries', data=data, headers=headers, allow_redirects=False).ok
    assert list(page.listed().values()) == [name]


def test_each_answer_has_the_security_headers(page, anonymous):
    uuid = page.made()
    answers = [
        *(page.ask('GET', path) for path in ('/', '/?page=9', f'/entries/{uuid}', '/nothing')),
        page.ask('GET', f'/entries/{uuid}.json'),
        page.ask('GET', '/static/page.js'),
        page.ask('GET', headers={'Host': 'evil.example'}),
        page.ask('PUT'),
        page.change(uuid, 'secret'),
        page.create('malformed'),
        anonymous('GET', '/'),
        anonymous('POST', '/login', data={'code': 'x'}),
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


def test_answers_with_a_secret_are_not_cached_and_send_no_referrer(page, anonymous):
    uuid = page.made()
    for answer in (
        page.change(uuid, 'secret'),
        page.ask('GET', f'/entries/{uuid}.json'),
        page.ask('GET', f'/entries/{uuid}.js'),
        page.ask('GET', f'/entries/{uuid}.pyz'),
        anonymous('GET', f'/login?code={link(page.program)[1]}'),
    ):
        assert answer.ok
        assert answer.headers['Cache-Control'] == 'no-store'
        assert answer.headers['Referrer-Policy'] == 'no-referrer'


def test_neither_secrets_nor_typed_codes_are_logged(page):
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


def test_it_listens_beyond_loopback_only_with_host_and_warns(folder):
    program = folder.start('users_app.py', '--port', '0', '--host', '0.0.0.0')
    url, _ = link(program)
    assert listens(urlsplit(url).port, '127.8.9.1')
    assert program.end(signal.SIGTERM) == 0
    sentence = 'other machines can reach the page on 0.0.0.0, and nothing is encrypted'
    assert sentence in program.said()


def test_unusable_host_is_one_sentence(folder):
    hosts = '192.0.2.1', 'no such host', 'x' * 70
    start = 'users_app.py', '--port', '0', '--host'
    running = [gevent.spawn(folder.run, *start, host) for host in hosts]
    for host, ran in zip(hosts, running, strict=True):
        status, said, complaint = ran.get()
        assert (status, said) == (1, '')
        assert complaint.startswith(f'Error: cannot listen on port 0 of {host}: ')
