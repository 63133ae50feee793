"""Who may use the page: what logs in, and what other pages and other users are refused."""

import json
import re
import signal
import socket
from html import unescape
from urllib.parse import urlsplit

import gevent
import pytest
import requests
from conftest import free_port, until
from programs import Folder, listens
from visitor import LINK, Visitor, link

FORMS = (
    *('/entries', '/entries/{}/save', '/entries/{}/delete', '/entries/{}/end'),
    *('/entries/{}/secret', '/several', '/logout'),
)


def entries(page) -> list[str]:
    """The UUIDs of those in Redis."""
    return page.folder.redis('KEYS', '-'.join('?' * count for count in (8, 4, 4, 4, 12)))


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
        assert 'press <strong>Log in</strong>' in response.text
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
        shown = response.text.replace(f'name="next" value="{path}"', '')  # as they know already
        assert not {uuid, 'kitchen', 'BEGIN'} & set(re.findall(r'[\w-]+', shown))
    for path in FORMS:
        data = {'token': page.token, 'label': 'x'}
        response = anonymous('POST', path.format(uuid), data=data, headers=headers)
        assert response.status_code == 403
    assert page.listed() == {uuid: 'kitchen'}


def test_wrong_codes_are_limited(folder):
    page = Visitor(folder)
    mine, page.cookies = page.cookies, requests.cookies.RequestsCookieJar()
    _, code = link(page.program)
    for wrong in ['', 'wrong', code[:-1], code + 'x', code.swapcase(), '\xe9', '\0', 'x' * 1000]:
        assert page.refusal(page.log_in(wrong), 403).startswith('This code is wrong or was used')
    assert [page.log_in('wrong').status_code for _ in range(2)] == [403, 403]
    response = page.log_in('wrong')
    assert 0 < int(response.headers['Retry-After']) <= 60
    assert page.refusal(response, 429).startswith('Too many wrong codes: try again in ')
    assert page.ask('GET', cookies=dict(mine)).ok  # who is in stays in
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
    assert entries(page) == [uuid]
    assert page.ask('GET').ok


@pytest.mark.parametrize(
    'host',
    [
        'evil.example',
        'evil.example:{port}',
        '127.0.0.1.evil.example:{port}',
        '127.0.0.1:{port}.evil.example',
        'localhost.evil.example',
        'evil.localhost:{port}',
        'page.example.evil.example',
        '192.0.2.1',
        '[::ffff:192.0.2.1]',
        '',
        'evil_host.example',
        'a..example',
        '.',
        f'{"x" * 64}.example',
        'x' * 20_000,
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
    assert page.ask('GET', '/metrics', headers={'Host': host}).status_code == 403
    for path in FORMS:
        headers = {'Host': host, 'Origin': f'http://{host}'}
        assert page.send(path.format(uuid), headers=headers).status_code == 403
    assert entries(page) == [uuid]


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


def test_metrics_without_a_token_are_refused_as_any_other_path(page, anonymous):
    for path in ('/metrics', '/nothing'):
        assert anonymous('GET', path).status_code == 403
        assert 'This page is not called' in anonymous('GET', path, headers={'Host': 'a.b'}).text
        assert page.ask('GET', path).status_code == 404


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


def test_host_below_localhost_is_this_machine_alone(folder):
    program = folder.start('users_app.py', '--port', '0', '--host', 'page.localhost')
    url, _ = link(program)
    assert urlsplit(url).hostname == 'localhost'
    assert requests.get(f'{url}/login', timeout=20).status_code == 200
    assert program.end(signal.SIGTERM) == 0
    assert 'other machines' not in program.said()


def test_unusable_host_is_one_sentence(folder):
    hosts = '192.0.2.1', 'no such host', 'x' * 70
    start = 'users_app.py', '--port', '0', '--host'
    running = [gevent.spawn(folder.run, *start, host) for host in hosts]
    for host, ran in zip(hosts, running, strict=True):
        status, said, complaint = ran.get()
        assert (status, said) == (1, '')
        assert complaint.startswith(f'Error: cannot listen on port 0 of {host}: ')


NEXT = re.compile('name="next" value="(.*?)"')
INPUT = re.compile('<input type="hidden" name="(.*?)" value="(.*?)">', re.S)


def hidden(text: str, action: str) -> list[tuple[str, str]]:
    """Names and values of the hidden inputs of a form."""
    (form,) = re.findall(f'<form[^>]* action="{re.escape(action)}".*?</form>', text, re.S)
    return [(name, unescape(value)) for name, value in INPUT.findall(form)]


@pytest.fixture
def fresh(page):
    """The page, with a session that has just begun; in the next test, too."""
    page.cookies.clear()
    page.log_in(link(page.program)[1])
    yield page
    page.cookies.clear()
    page.log_in(link(page.program)[1])


def end_session(page) -> None:
    """The cookie is that of another start of the page."""
    name = f'rendezvous-{urlsplit(page.url).port}'
    page.cookies.set(name, 'eyJpZCI6Ing.aaaa.bbbb', domain='127.0.0.1', path='/')


def log_in_with(page, answer, code: str = '') -> requests.Response:
    """Sends the login form that an answer holds, with the code that is right now."""
    fields = hidden(answer.text, '/login')
    return page.ask('POST', '/login', data=[*fields, ('code', code or link(page.program)[1])])


def test_link_that_is_opened_again_goes_to_the_page(fresh):
    _, code = link(fresh.program)
    for again in (code, 'used'):
        response = fresh.ask('GET', f'/login?code={again}')
        assert (response.url, response.status_code) == (f'{fresh.url}/', 200)
    assert link(fresh.program)[1] == code  # and is not used up
    response = fresh.log_in('used')  # as a browser that sent no cookie with the link's GET
    assert (response.url, response.status_code) == (f'{fresh.url}/', 200)
    assert fresh.log_in(code).ok


def test_who_had_to_log_in_comes_to_where_they_wanted_to_go(fresh):
    uuid = fresh.made(label='kitchen')
    for path in (f'/entries/{uuid}', '/?q=kit%20chen&page=2', '/log?uuid=' + uuid, '/'):
        fresh.cookies.clear()
        answer = fresh.ask('GET', path)
        assert answer.status_code == 403
        assert 'Your session has ended' not in answer.text  # there was none
        response = log_in_with(fresh, answer)
        assert response.url == fresh.url + path
        assert [each.status_code for each in response.history] == [303]


@pytest.mark.parametrize(
    'path',
    [
        *('https://evil.example/', '//evil.example/', '/\\evil.example/', '\\\\evil.example'),
        *(
            '/\t/evil.example',
            '/%0d%0aLocation:x',
            '/../../x',
            '/static/../../x',
            '/static/page.js',
        ),
        *(
            '/logout',
            '/login',
            '/nothing',
            '/metrics',
            '/registrar.crt',
            'entries',
            '',
            ' /',
            '/é',
            '/log\r\nX: y',
        ),
        *('javascript:alert(1)', '/entries/x', '///', '/.//evil.example', '/log/../evil'),
    ],
)
@pytest.mark.parametrize('posts', [{}, {'posts': '1', 'held-label': 'x'}])
def test_next_is_only_ever_a_page_of_ours(fresh, path, posts):
    fresh.cookies.clear()
    data = {'code': link(fresh.program)[1], 'next': path, **posts}
    response = fresh.ask('POST', '/login', data=data, allow_redirects=False)
    assert (response.status_code, response.headers['Location']) == (303, '/')
    assert fresh.ask('GET').ok


def test_old_login_form_that_is_reloaded_after_a_login_in_another_tab_is_what_was_wanted(fresh):
    uuid = fresh.made(label='kitchen')
    end_session(fresh)
    assert 'Paste here the link' in fresh.ask('GET', f'/entries/{uuid}').text
    sent = {'label': 'attic', 'token': fresh.token}
    assert 'Paste here the link' in fresh.ask('POST', f'/entries/{uuid}/save', data=sent).text
    fresh.log_in(link(fresh.program)[1])
    assert fresh.ask('GET', f'/entries/{uuid}').ok
    reloaded = fresh.ask('POST', f'/entries/{uuid}/save', data=sent)
    fields = hidden(reloaded.text, f'/entries/{uuid}/save')
    assert fresh.ask('POST', f'/entries/{uuid}/save', data=fields).ok
    assert fresh.listed() == {uuid: 'attic'}


def test_what_was_typed_when_a_session_ended_is_shown_again_and_done_when_they_say_so(fresh):
    uuid = fresh.made(label='kitchen')
    note = 'beside the "oven" &amp;\r\n<b>second</b> line'
    end_session(fresh)
    answer = fresh.change(uuid, 'save', label='attic', note=note)
    assert (answer.status_code, answer.url) == (403, f'{fresh.url}/entries/{uuid}/save')
    assert 'Your session has ended, and <strong>nothing was changed</strong>' in answer.text
    again = log_in_with(fresh, log_in_with(fresh, answer, 'wrong'))
    assert (again.status_code, again.url) == (200, f'{fresh.url}/login')
    assert 'Not done yet' in again.text
    assert '<b>second' not in again.text
    assert fresh.listed() == {uuid: 'kitchen'}
    (*fields,) = hidden(again.text, f'/entries/{uuid}/save')
    assert dict(fields) == {'token': dict(fields)['token'], 'label': 'attic', 'note': note}
    assert fresh.token not in dict(fields).values()  # that of the session that is over
    response = fresh.ask('POST', f'/entries/{uuid}/save', data=fields)
    assert response.ok
    assert fresh.listed() == {uuid: 'attic'}
    assert fresh.folder.redis('GET', uuid).count('second') == 1


def test_what_was_typed_without_any_session_is_said_to_come_again_after_the_login(fresh):
    uuid = fresh.made(label='kitchen')
    fresh.cookies.clear()
    answer = fresh.change(uuid, 'save', label='attic')
    assert 'You are not logged in, and <strong>nothing was changed</strong>' in answer.text
    assert 'you see again what you typed' in answer.text
    assert 'then you come back to what you typed' in answer.text
    wrong = log_in_with(fresh, answer, 'wrong')
    assert 'then you come back to what you typed' in wrong.text
    again = log_in_with(fresh, wrong)
    assert ('label', 'attic') in hidden(again.text, f'/entries/{uuid}/save')
    fresh.cookies.clear()
    assert 'nothing was changed' not in fresh.ask('GET', f'/entries/{uuid}').text


def test_all_that_will_be_saved_is_shown_before(fresh):
    uuid = fresh.made(label='kitchen')
    fields = [('token', fresh.token), ('label', ''), ('note', ''), ('named', '0'), ('named', '1')]
    end_session(fresh)
    answer = fresh.ask('POST', f'/entries/{uuid}/save', data=fields)
    again = ' '.join(re.sub('<[^>]*>', ' ', log_in_with(fresh, answer).text).split())
    assert 'Hidden server kitchen Label none Notes none Host name its label Save it' in again


def test_what_was_not_touched_before_the_login_is_neither_shown_nor_saved(fresh):
    uuid = fresh.made(label='kitchen')
    fields = {'was_label': 'kitchen', 'label': 'kitchen', 'was_note': '', 'note': 'a note'}
    fields |= {'was_named': '0', 'named': '0'}
    end_session(fresh)
    answer = fresh.change(uuid, 'save', **fields)
    log_in = log_in_with(fresh, answer)
    again = ' '.join(re.sub('<[^>]*>', ' ', log_in.text).split())
    assert 'Hidden server kitchen Notes a note Save it' in again
    fresh.folder.run('users_app.py', 'rename', uuid, 'cellar')
    fields = hidden(log_in.text, f'/entries/{uuid}/save')
    assert fresh.ask('POST', f'/entries/{uuid}/save', data=fields).ok
    assert fresh.listed() == {uuid: 'cellar'}
    assert 'a note' in fresh.folder.redis('GET', uuid)


def test_all_fields_of_a_name_are_kept_but_not_that_they_were_sure(fresh):
    uuids = [fresh.made(label=label) for label in ('kitchen', 'attic')]
    fields = [('token', fresh.token), ('what', 'delete'), ('sure', '1')]
    end_session(fresh)
    answer = fresh.ask('POST', '/several', data=[*fields, *(('uuid', uuid) for uuid in uuids)])
    again = hidden(log_in_with(fresh, answer).text, '/several')
    assert again[1:] == [('what', 'delete'), *(('uuid', uuid) for uuid in uuids)]
    confirmation = fresh.ask('POST', '/several', data=again)
    assert 'Delete 2 hidden servers?' in confirmation.text
    assert set(fresh.listed()) == set(uuids)


def test_again_is_shown_again_where_it_is_reloaded(fresh):
    end_session(fresh)
    answer = fresh.create(label='kitchen')
    data = [*hidden(answer.text, '/login'), ('code', link(fresh.program)[1])]
    first, second = (fresh.ask('POST', '/login', data=data) for _ in range(2))
    assert 'Not done yet' in first.text
    assert 'Not done yet' in second.text
    assert fresh.listed() == {}
    assert fresh.ask('POST', '/entries', data=hidden(second.text, '/entries')).ok
    assert list(fresh.listed().values()) == ['kitchen']


def test_form_of_a_session_that_ended_in_another_tab_is_shown_again(fresh):
    uuid, other = fresh.made(label='kitchen'), fresh.token
    fresh.log_in(link(fresh.program)[1])
    response = fresh.change(uuid, 'save', token=other, label='attic')
    assert fresh.refusal(response, 403) == 'This form is out of date: nothing was done.'
    assert fresh.listed() == {uuid: 'kitchen'}
    fields = hidden(response.text, f'/entries/{uuid}/save')
    assert fresh.ask('POST', f'/entries/{uuid}/save', data=fields).ok
    assert fresh.listed() == {uuid: 'attic'}


@pytest.mark.parametrize(
    'headers', [{'Origin': 'http://evil.example'}, {'Sec-Fetch-Site': 'cross-site'}]
)
def test_another_page_cannot_put_fields_into_the_login_form(fresh, headers):
    fresh.cookies.clear()
    for path, data in {
        '/entries': {'label': 'evil'},
        '/login': {'next': '/entries', 'posts': '1', 'held-label': 'evil'},
    }.items():
        response = fresh.ask('POST', path, data=data, headers=headers)
        assert fresh.refusal(response, 403).startswith('This came from another web page')
        assert 'evil' not in response.text


def test_session_of_an_earlier_start_of_the_page_is_said_to_have_ended(folder):
    page = Visitor(folder)
    cookies = dict(page.cookies)
    port = str(urlsplit(page.url).port)
    assert page.program.end() == 0
    again = folder.start('users_app.py', '--port', port)
    link(again)
    answer = requests.get(page.url, cookies=cookies, timeout=30)
    assert answer.status_code == 403
    assert 'Your session has ended.' in answer.text
    assert 'Paste here the link' in answer.text


def test_token_is_another_one_in_each_answer_and_all_of_a_session_work(fresh):
    tokens = [re.search('name="token" value="(.*?)"', fresh.ask('GET').text)[1] for _ in range(3)]
    assert len(set(tokens)) == 3
    for number, token in enumerate(tokens):
        assert fresh.create(label=str(number), token=token).ok
    assert sorted(fresh.listed().values()) == ['0', '1', '2']
    mixed = tokens[0][:16] + tokens[1][16:]
    assert fresh.create(token=mixed).status_code == 403


def test_log_of_changes_has_logins_with_the_short_name_of_the_session(fresh):
    fresh.log_in(link(fresh.program)[1])
    fresh.made(label='kitchen')
    fresh.send('/logout')
    rows = [json.loads(row) for row in fresh.folder.redis('LRANGE', 'log', 0, 2)]
    assert [row['what'] for row in rows] == ['logged out', 'made', 'logged in']
    (who,) = {row['who'] for row in rows}
    assert re.fullmatch('page, session [0-9a-f]{4}', who)
    assert rows[2]['detail'] == 'from 127.0.0.1'


def test_shell_prints_a_fresh_link_of_the_page_that_runs(fresh, anonymous):
    _, announced = link(fresh.program)
    links = [fresh.folder.run('users_app.py', 'link') for _ in range(2)]
    assert [(each.status, each.stderr) for each in links] == [(0, '')] * 2
    found = [LINK.search(each.stdout) for each in links]
    assert {each[1] for each in found} == {fresh.url}
    codes = [each[2] for each in found]
    assert len({announced, *codes}) == 3
    for code in reversed(codes):
        assert anonymous('POST', '/login', data={'code': code}, allow_redirects=False).ok
        assert anonymous('POST', '/login', data={'code': code}).status_code in (403, 429)
    assert link(fresh.program)[1] == announced  # which still works
    assert anonymous('POST', '/login', data={'code': announced}, allow_redirects=False).ok
    files = [path for path in fresh.folder.path.rglob('*') if path.is_file()]
    assert not [path for path in files if codes[0].encode() in path.read_bytes()]
    assert codes[0] not in fresh.program.said()


def test_link_of_the_shell_ends_after_ten_minutes(folder):
    login = folder.path / 'rendezvous/admin/login.py'
    login.write_text(re.sub('(?m)^LINK_SECONDS = .*', 'LINK_SECONDS = 0', login.read_text()))
    page = Visitor(folder)
    code = LINK.search(folder.run('users_app.py', 'link').stdout)[2]
    page.cookies.clear()
    assert page.log_in(code).status_code == 403


def test_where_no_page_runs_the_shell_says_so(folder):
    ran = folder.run('users_app.py', 'link')
    assert (ran.status, ran.stdout) == (1, '')
    assert ran.stderr.startswith('Error: no page runs in this folder: start users_app.py')
    assert len(ran.stderr.splitlines()) == 1


BEHIND = 'https://admin.example/rendezvous/'


@pytest.fixture(scope='module')
def behind(tmp_path_factory):
    """A page behind a TLS proxy, under a path, with what it says and the code."""
    with Folder(tmp_path_factory.mktemp('behind'), page_url=BEHIND) as folder:
        folder.pair()
        program = folder.start('users_app.py', '--port', str(free_port()))
        said = program.until_it_says(r'open this link, which works once: (\S+)\n')
        port = re.search('--port (\\d+)', ' '.join(program.process.args))[1]
        yield folder, program, f'http://127.0.0.1:{port}', said[1]


def test_page_behind_a_proxy_has_its_own_link_host_and_cookie(behind):
    folder, _, url, said = behind
    shell = folder.run('users_app.py', 'link').stdout
    code = re.search(r'(\S+)\?code=(\S+)', shell)
    assert said.startswith(f'{BEHIND}login?code=')
    assert code[1] == f'{BEHIND}login'
    headers = {'Host': 'admin.example', 'Origin': 'https://admin.example'}

    def ask(method: str, path: str, headers: dict = headers, **more) -> requests.Response:
        more |= {'timeout': 30, 'allow_redirects': False}
        return requests.request(method, url + path, headers=headers, **more)

    answer = ask('POST', '/rendezvous/login', data={'code': code[2]})
    assert (answer.status_code, answer.headers['Location']) == (303, '/rendezvous/')
    name, *flags = answer.headers['Set-Cookie'].split('; ')
    assert name.startswith('rendezvous-443=')
    assert set(flags) == {'HttpOnly', 'Path=/rendezvous/', 'SameSite=Strict', 'Secure'}
    mine = headers | {'Cookie': name}
    text = ask('GET', '/rendezvous/', mine).text
    token = re.search('name="token" value="(.*?)"', text)[1]
    data = {'token': token, 'label': 'kitchen'}
    for origin in ('https://evil.example', 'https://admin.example:444', 'null'):
        refused = ask('POST', '/rendezvous/entries', mine | {'Origin': origin}, data=data)
        assert refused.status_code == 403
    made = ask('POST', '/rendezvous/entries', mine, data=data)
    assert made.headers['Location'].startswith('/rendezvous/entries/')
    # A proxy that hands on its own name for us: the browser's Origin is still ours.
    there = mine | {'Host': urlsplit(url).netloc}
    assert ask('POST', '/rendezvous/entries', there, data=data).status_code == 303
    for host in ('evil.example', 'rendezvous.example', 'admin.example.evil.example'):
        assert ask('GET', '/rendezvous/', mine | {'Host': host}).status_code == 403


@pytest.mark.parametrize('path', ['/', '/other/', '//evil.example', '/rendezvous', '/rendezvousx/'])
def test_next_of_a_page_under_a_path_stays_under_it(behind, path):
    folder, _, url, _ = behind
    code = re.search(r'code=(\S+)', folder.run('users_app.py', 'link').stdout)[1]
    answer = requests.post(
        f'{url}/rendezvous/login',
        data={'code': code, 'next': path},
        headers={'Host': 'admin.example'},
        timeout=30,
        allow_redirects=False,
    )
    assert (answer.status_code, answer.headers['Location']) == (303, '/rendezvous/')


def test_wish_of_a_page_under_a_path_leads_there(behind):
    folder, _, url, _ = behind
    headers = {'Host': 'admin.example', 'Origin': 'https://admin.example'}
    more = {'headers': headers, 'timeout': 30, 'allow_redirects': False}
    text = requests.get(f'{url}/rendezvous/log?page=2', **more).text
    assert NEXT.search(text)[1] == '/rendezvous/log?page=2'
    text = requests.post(f'{url}/rendezvous/entries', data={'label': 'attic'}, **more).text
    fields = hidden(text, '/rendezvous/login')
    code = re.search(r'code=(\S+)', folder.run('users_app.py', 'link').stdout)[1]
    answer = requests.post(f'{url}/rendezvous/login', data=[*fields, ('code', code)], **more)
    assert ('label', 'attic') in hidden(answer.text, '/rendezvous/entries')
