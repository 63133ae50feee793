"""What is sent of a page: whether it is sent again, how large it is, and below which path."""

import json
import re
import subprocess
from urllib.parse import urlsplit

import pytest
import requests
from conftest import free_port, until
from pages import served
from programs import Folder, listens
from visitor import TOKEN, Visitor, link

from rendezvous.store import options as local
from rendezvous.store import saving

UUID = '10000000-0000-4000-8000-000000000001'
OLD = 1_700_000_000  # an entry of that time is not `20 s ago`


@pytest.fixture
def page(redis_options):
    options = redis_options | {'key_file': None, 'metrics_token': 'x' * 30}
    with served(local.DEFAULTS | options) as page:
        entry = {'labels': ['kitchen'], 'created': OLD}
        page.entries.ask(lambda redis: redis.set(UUID, json.dumps(entry)))
        until(lambda: 'kitchen' in page.ask(), 'the page has found it')
        yield page


RANDOM = re.compile('name="(?:token|made_up)" value="(.*?)"')
PAGES = '/', f'/entries/{UUID}', f'/entries/{UUID}/history', '/log'


@pytest.mark.parametrize('path', PAGES)
def test_nothing_is_sent_again_while_nothing_has_changed(page, path):
    def again() -> requests.Response:
        tag = page.get(path).headers['ETag']
        return page.get(path, If_None_Match=tag)

    # Between the two a minute may have ended, and some lengths are of so many minutes.
    response = until(lambda: (found := again()).status_code == 304 and found, 'it is the same')
    assert response.content == b''
    assert response.headers['Cache-Control'] == 'no-store'  # browsers keep nothing by themselves
    assert page.get(path, If_None_Match='W/"another"').status_code == 200


def test_page_is_sent_anew_after_another_login(folder):
    page = Visitor(folder)
    uuid = page.made()

    def ask(tag: str = '') -> requests.Response:
        return page.ask('GET', f'/entries/{uuid}/history', headers={'If-None-Match': tag})

    tag = ask().headers['ETag']
    assert ask(tag).status_code == 304
    page.cookies.clear()
    page.log_in(link(page.program)[1])
    assert ask(tag).status_code == 200  # with the token that its forms need now


def test_what_has_changed_is_sent(page):
    tag = page.get('/').headers['ETag']
    saving.save(page.entries, UUID, labels=['garage'])
    changed = until(
        lambda: (found := page.get('/', If_None_Match=tag)).status_code == 200 and found, 'new'
    )
    assert 'garage' in changed.text
    assert changed.headers['ETag'] != tag


@pytest.mark.parametrize('path', [*PAGES, '/static/style.css'])
def test_pages_are_compressed_for_who_takes_it(page, path):
    plain = page.get(path, Accept_Encoding='identity')
    assert 'Content-Encoding' not in plain.headers
    packed = page.get(path, Accept_Encoding='gzip, deflate, br')
    assert packed.headers['Content-Encoding'] == 'gzip'
    assert 'Accept-Encoding' in packed.headers['Vary']
    assert int(packed.headers['Content-Length']) < len(plain.content) / 2
    assert RANDOM.sub('', packed.text) == RANDOM.sub('', plain.text) or path == '/'
    assert page.get(path, Accept_Encoding='gzip;q=0').headers.get('Content-Encoding') is None


def test_what_would_tell_a_secret_by_its_length_is_not_compressed(running):
    uuid = running.made(label='kitchen')
    many = {'Accept-Encoding': 'gzip'}
    for path in ('/?q=kitchen', f'/entries/{uuid}.json', f'/entries/{uuid}.pyz'):
        response = running.ask('GET', path, headers=many)
        assert response.ok
        assert 'Content-Encoding' not in response.headers, path
    secret = running.send(f'/entries/{uuid}/secret', many)
    refused = running.send(f'/entries/{uuid}/save', many, label='x' * 101)
    strangers = [requests.get(running.url + path, headers=many) for path in ('/login?code=x', '/')]
    for response in (secret, refused, *strangers):
        assert {'Content-Encoding', 'ETag'}.isdisjoint(response.headers)
        assert response.headers['Cache-Control'] == 'no-store'


def test_token_of_a_form_is_another_one_in_each_answer_and_all_of_them_work(running):
    uuid = running.made(label='kitchen')
    tokens = {*TOKEN.findall(running.ask('GET').text), *TOKEN.findall(running.ask('GET').text)}
    assert len(tokens) > 2
    for running.token in tokens:
        assert running.change(uuid, 'disable').ok


NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {}
http {
  access_log off; proxy_temp_path t; client_body_temp_path b; fastcgi_temp_path f;
  uwsgi_temp_path u; scgi_temp_path s;
  server {
    listen 127.0.0.1:%(port)d ssl;
    ssl_certificate "%(crt)s"; ssl_certificate_key "%(key)s";
    location /rendezvous/ { proxy_pass %(behind)s%(path)s; %(host)s }
  }
}
"""


class Proxied(Visitor):
    """An administrator behind nginx, which terminates TLS."""

    def ask(self, method: str, path: str = '/', **more) -> requests.Response:
        trusted = str(self.folder.path / 'registrar-ca.crt')
        prefix = '' if path.startswith('/rendezvous/') else '/rendezvous'
        return super().ask(method, prefix + path, verify=trusted, **more)


@pytest.mark.parametrize('path', ['', '/'], ids=['passed on', 'taken off'])
@pytest.mark.parametrize('host', ['proxy_set_header Host $host;', ''], ids=['named', 'unnamed'])
def test_page_lives_below_a_path_behind_a_proxy_with_tls(tmp_path, path, host):
    port = free_port()
    url = f'https://127.0.0.1:{port}/rendezvous/'
    with Folder(tmp_path, page_url=url) as folder:
        folder.pair()
        program = folder.start('users_app.py', '--port', str(behind := free_port()))
        until(lambda: listens(behind), 'the page listens')
        found = program.until_it_says(r'(https://\S+/rendezvous)/login\?code=(\S+)\n')
        assert found[1] == url.rstrip('/')
        conf = {'port': port, 'path': path, 'host': host, 'behind': f'http://127.0.0.1:{behind}'}
        conf |= {name: folder.path / f'registrar.{name}' for name in ('crt', 'key')}
        (tmp_path / 'nginx.conf').write_text(NGINX % conf)
        command = 'nginx', '-p', tmp_path, '-c', 'nginx.conf', '-e', 'stderr'
        with subprocess.Popen(command) as nginx:
            try:
                until(lambda: listens(port), 'nginx listens')
                uses_the_page(folder, program, f'https://127.0.0.1:{port}', found[2])
            finally:
                nginx.kill()


def uses_the_page(folder: Folder, program, url: str, code: str) -> None:
    page = Proxied.__new__(Proxied)
    page.folder, page.program, page.url = folder, program, url
    page.cookies, page.token = requests.cookies.RequestsCookieJar(), ''
    logged_in = page.log_in(code)
    assert urlsplit(logged_in.url).path == '/rendezvous/'
    (cookie,) = page.cookies
    assert (cookie.secure, cookie.path) == (True, '/rendezvous/')
    uuid = page.made(label='kitchen')
    for shown in (page.ask('GET').text, page.ask('GET', f'/entries/{uuid}').text):
        paths = re.findall(' (?:href|action|src|data-refresh|data-base)="([^"]*)"', shown)
        ours = [each for each in paths if not each.startswith(('data:', '#', 'https:'))]
        assert ours
        assert all(each.startswith('/rendezvous/') for each in ours), ours
    assert page.ask('GET', '/static/style.css').ok
    assert json.loads(page.ask('GET', f'/entries/{uuid}.json').text)['uuid'] == [uuid]
    assert page.change(uuid, 'disable').url.endswith(f'/rendezvous/entries/{uuid}?done=disable')
    assert page.change(uuid, 'delete').url.endswith('/rendezvous/?done=delete')
    assert page.ask('GET').headers['Content-Encoding'] == 'gzip'
    assert page.ask('GET', '/nothing').status_code == 404
