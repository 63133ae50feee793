"""The page in a real Chromium: what an administrator does there, and what other pages try."""

import json
import re
import shutil
import socket
import ssl
from contextlib import suppress
from urllib.parse import urlsplit

import gevent
import pytest
from browser import Browser
from conftest import Peer, free_port, get, until
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer
from programs import Folder
from visitor import LINK, link

CLIPBOARD = ['clipboardReadWrite', 'clipboardSanitizedWrite']

pytestmark = pytest.mark.deadline(120)


class Story:
    """A page, a rendezvous server and a browser that has logged in."""

    def __init__(self, folder: Folder, browser: Browser):
        self.folder, self.browser = folder, browser
        self.server, self.port = folder.serve()
        self.program = folder.start('users_app.py', '--port', '0')
        self.url, _ = link(self.program)
        self.log_in()

    def log_in(self) -> None:
        url, code = link(self.program)
        self.browser.visit(f'{url}/login?code={code}')
        self.browser.click('Log in')
        self.browser.until_it_says('New entry')

    def create(self, label: str) -> str:
        """The UUID of an entry; its own page is shown."""
        browser = self.browser
        browser.visit(self.url)
        if not browser.run('return document.querySelector("details.new").open'):
            browser.click('New entry')
        browser.type('Label', label)
        browser.click('Create')
        browser.until_it_says('The entry is made.')
        return urlsplit(browser.url).path.rpartition('/')[2]

    def state(self, label: str) -> str:
        """What the table, which is shown, says of the entry."""
        script = """return [...document.querySelectorAll('tbody tr')].find(
            row => row.querySelector('bdi').textContent == arguments[0]
        )?.querySelector('.state').textContent"""
        return self.browser.run(script, label)

    def until_it_is(self, label: str, state: str) -> None:
        until(lambda: self.state(label) == state, f'{label} is {state}, not {self.state(label)}')

    def hidden(self, uuid: str, port: int):
        """A hidden.py that has registered, with the file that it got."""
        program = self.folder.start('hidden.py', f'entries/{uuid}.json', f'127.0.0.1:{port}')
        program.until_it_says('registered at')
        return program

    def mobile_client(self) -> Peer:
        context = ssl.create_default_context(cafile=self.folder.path / 'registrar.crt')
        sock = socket.create_connection(('127.0.0.1', self.port))
        return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))

    def labels(self) -> list[str]:
        keys = self.folder.redis('KEYS', '*-*-*-*-*')
        keys = [key for key in keys if re.fullmatch('[0-9a-f-]{36}', key)]
        return [json.loads(self.folder.redis('GET', key))['labels'][0] for key in keys]


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    path = tmp_path_factory.mktemp('browser')
    browser = Browser(path, 'MAP *.example 127.0.0.1')
    try:
        options = {'rendezvous_port': free_port(), 'names_domain': 'rendezvous.localhost'}
        with Folder(path, **options) as folder:
            folder.pair()
            script = folder.path / 'rendezvous/admin/static/page.js'
            faster = script.read_text().replace('= 2000;', '= 300;')  # so that tests wait less
            script.write_text(faster)
            story = Story(folder, browser)
            yield story
            assert 'Traceback' not in story.program.said()
    finally:
        browser.close()


@pytest.fixture
def story(running):
    """One for all tests, on the table, without entries at the start of each."""
    running.folder.redis('FLUSHALL')
    running.browser.look(1000, 800)
    running.browser.visit(running.url)
    running.browser.complaints()
    yield running
    assert running.browser.complaints() == []  # what the policy forbids, too


@pytest.fixture
def browser(story):
    return story.browser


@pytest.fixture
def download():
    """The port of a local HTTP server whose only answer never ends."""

    def answer(sock, _) -> None:
        with suppress(OSError):
            sock.recv(65536)
            sock.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
            while True:
                sock.sendall(b'x' * 1000)
                gevent.sleep(0.01)

    local_server = StreamServer(('127.0.0.1', 0), answer)
    local_server.start()
    yield local_server.server_port
    local_server.stop()


def test_create_copy_and_download(story, browser):
    assert 'There are no entries yet' in browser.text
    uuid = story.create('kitchen')
    browser.cdp('Browser.grantPermissions', permissions=CLIPBOARD)
    copies = {
        'the UUID': uuid,
        'the curl command': 'curl --cacert registrar.crt '
        f'https://{uuid}.rendezvous.localhost:{story.port}/',
    }
    for what, text in copies.items():
        browser.press(f'//button[@aria-label="Copy {what}"]')
        browser.until_it_says(f'Copied {text}')
        assert browser.run('return navigator.clipboard.readText()') == text
    browser.click('Download kitchen.pyz')
    file = browser.downloads / 'kitchen.pyz'
    until(file.exists, 'the file is there')
    hidden = story.folder.start(str(file), '127.0.0.1:8000')
    hidden.until_it_says('registered at')
    hidden.end()
    browser.click('As a service, with hidden.py, or in Node.js')
    for suffix in ('json', 'js'):
        browser.click(f'Download ID.{suffix}')
        file = browser.downloads / f'{uuid}.{suffix}'
        until(file.exists, 'the file is there')
        assert file.read_text() == (story.folder.path / 'entries' / file.name).read_text()
    browser.visit(story.url)
    browser.press('//code')  # in the table, a click on the UUID itself
    browser.until_it_says(f'Copied {uuid}')


def test_link_to_the_hidden_server_opens_a_tab_and_copies_nothing(story, browser):
    uuid = story.create('kitchen')
    ours = browser.driver.current_window_handle
    browser.click(f'https://{uuid}.rendezvous.localhost:{story.port}/')
    (other,) = until(lambda: set(browser.driver.window_handles) - {ours}, 'there is another tab')
    browser.driver.switch_to.window(other)
    assert browser.run('return window.opener') is None
    browser.driver.close()
    browser.driver.switch_to.window(ours)
    assert browser.run('return document.getElementById("copied").textContent') == ''


def test_it_comes_online_and_goes_offline_by_itself(story, browser, download):
    uuid = story.create('kitchen')
    browser.visit(story.url)
    assert story.state('kitchen') == 'never seen'
    browser.run('window.link = document.querySelector("a.label"); link.focus()')
    hidden = story.hidden(uuid, download)
    story.until_it_is('kitchen', 'online')
    browser.until_it_says('1 entry, 1 online')
    hidden.end(9)
    story.until_it_is('kitchen', 'offline')
    assert browser.run('return document.activeElement === window.link')  # nothing else changed
    story.create('garage')
    browser.visit(story.url)
    browser.run('document.querySelector("#entries a").focus()')
    story.folder.redis('SET', uuid, '{"labels": ["attic"], "disabled": 1}')
    story.until_it_is('attic', 'disabled')
    assert browser.run('return document.activeElement.textContent') == 'attic'
    browser.run('document.querySelector("[aria-label$=garage]").focus()')
    story.folder.add('barn')
    browser.until_it_says('barn')
    assert browser.run('return document.activeElement.ariaLabel') == 'Copy the UUID of garage'


def test_page_of_an_entry_updates_its_buttons_and_says_once_what_was_done(story, browser):
    uuid = story.create('kitchen')
    assert 'The entry is made.' in browser.text
    story.folder.run('users_app.py', 'disable', '--yes', uuid)
    browser.find('//button[text() = "Enable"]')
    story.folder.run('users_app.py', 'name', uuid)
    browser.until_it_says('https://kitchen.rendezvous.localhost')
    browser.visit(browser.url)
    assert 'The entry is made.' not in browser.text


def test_what_is_typed_stays_while_the_page_changes(story, browser):
    uuid = story.create('kitchen')
    browser.visit(f'{story.url}/entries/{uuid}')
    browser.run('document.querySelector("[name=label]").removeAttribute("maxlength")')
    browser.type('Label', 'x' * 101)
    browser.click('Rename')
    browser.until_it_says('a label has at most 100 characters, not 101')
    browser.click('Disable…')
    browser.run('document.querySelector("button.danger").focus()')
    story.folder.run('users_app.py', 'disable', '--yes', uuid)
    browser.find('//button[text() = "Enable"]')
    assert browser.run('return document.querySelector("[name=label]").value') == 'x' * 101
    assert browser.run('return document.activeElement.textContent') != 'Enable'
    browser.complaints()


def test_new_secret_shuts_out_the_hidden_server_that_has_the_old_one(story, browser, download):
    uuid = story.create('kitchen')
    hidden = story.hidden(uuid, download)
    browser.until_it_says('State\nonline')
    browser.click('New secret…')
    browser.until_it_says('The old secret and its files stop working at once')
    browser.click('Give it a new secret')
    browser.until_it_says('The entry has a new secret')
    hidden.until_it_says('not registered at .* 401')
    hidden.end()
    story.hidden(uuid, download).end()


def test_disable_ends_an_open_download_and_enable_lets_it_begin_again(story, browser, download):
    uuid = story.create('kitchen')
    hidden = story.hidden(uuid, download)
    mobile_client = story.mobile_client()
    mobile_client.send(get(uuid))
    mobile_client.receive(10_000)
    browser.until_it_says('Pipes\n1')
    browser.click('Disable…')
    browser.click('Disable it')
    with gevent.Timeout(5, AssertionError('the download goes on')):
        mobile_client.rest()
    mobile_client.close()
    browser.until_it_says('State\ndisabled')
    browser.until_it_says('entry changed')  # how the rendezvous ended
    hidden.end()
    browser.click('Enable')
    browser.until_it_says('The entry is enabled')
    story.hidden(uuid, download).end()


def test_delete(story, browser):
    uuid = story.create('kitchen')
    browser.click('Delete…')
    browser.click('Delete it')
    browser.until_it_says('The entry is deleted.')
    browser.until_it_says('There are no entries yet')
    assert not list((story.folder.path / 'entries').glob(f'{uuid}*'))
    for complaint in browser.complaints():  # the page may look after it once more, till it is left
        assert f'/entries/{uuid} ' in complaint
        assert '404' in complaint


def test_qr_code_is_drawn_and_the_secret_is_hidden_again(story, browser):
    uuid = story.create('kitchen')
    secret = json.loads(story.folder.redis('GET', uuid))['authParams']['base32']
    assert secret not in browser.run('return document.documentElement.outerHTML')
    browser.click('Show secret')
    browser.until_it_says(secret)
    box = browser.run('return document.querySelector("svg").getBoundingClientRect()')
    assert box['width'] == box['height'] > 200
    browser.click('Hide it')
    browser.until_it_says('On the hidden server')
    assert secret not in browser.run('return document.documentElement.outerHTML')


def test_everything_works_without_javascript(story, browser):
    browser.cdp('Emulation.setScriptExecutionDisabled', value=True)
    try:
        uuid = story.create('kitchen')
        browser.type('Label', 'garage')
        browser.click('Rename')
        browser.until_it_says('The entry has its new label.')
        browser.click('Show secret')
        browser.click('Hide it')
        browser.until_it_says('On the hidden server')
        for what, sure, done in [
            ('Host name…', 'Make it a host name', 'https://garage.rendezvous.localhost'),
            ('Host name…', 'Switch it off', f'https://{uuid}.rendezvous.localhost'),
            ('Disable…', 'Disable it', 'The entry is disabled'),
            ('New secret…', 'Give it a new secret', 'The entry has a new secret'),
            ('Delete…', 'Delete it', 'The entry is deleted.'),
        ]:
            browser.click(what)
            browser.click(sure)
            browser.until_it_says(done)
        assert not story.folder.redis('EXISTS', uuid)
    finally:
        browser.cdp('Emulation.setScriptExecutionDisabled', value=False)


HOSTILE = """<!doctype html><title>hostile</title>
<iframe src="{url}/"></iframe>
<form action="{url}/entries" method="post" target="{target}">
<input name="label" value="attack"><input name="token" value="x"><button>Attack</button></form>
<script>
window.tried = Promise.allSettled([
  fetch('{url}/entries', {{method: 'POST', mode: 'no-cors', credentials: 'include',
    headers: {{'Content-Type': 'application/x-www-form-urlencoded'}}, body: 'label=attack'}}),
  fetch('{url}/', {{credentials: 'include'}}).then(response => response.text()),
  fetch('{url}/', {{mode: 'no-cors', credentials: 'include'}}),
  new Promise((good, bad) => {{
    const script = document.createElement('script');
    Object.assign(script, {{src: '{url}/static/page.js', onload: good, onerror: bad}});
    document.head.append(script);
  }}),
]).then(all => all.map(each => each.status));
</script>"""


@pytest.mark.parametrize('host', ['evil.example', '127.0.0.1'])
def test_page_of_another_origin_neither_posts_nor_reads_nor_frames(story, browser, host):
    """One of another site, and one at another port of this host, whose requests have the cookie."""
    story.create('kitchen')
    asked = []

    def hostile(environ, start_response):
        asked.append(environ['PATH_INFO'])
        start_response('200 OK', [('Content-Type', 'text/html')])
        return [HOSTILE.format(url=story.url, target='_self').encode()]

    with_page = WSGIServer(('127.0.0.1', 0), hostile, log=None)
    with_page.start()
    try:
        browser.visit(f'http://{host}:{with_page.server_port}/')
        assert browser.run('return window.tried') == ['rejected'] * 4
        browser.driver.switch_to.frame(0)
        assert 'kitchen' not in browser.text
        assert 'Log in' not in browser.text
        browser.driver.switch_to.default_content()
        browser.click('Attack')
        browser.until_it_says('This came from another web page: nothing was done.')
        assert story.labels() == ['kitchen']
        browser.complaints()  # Chromium tells what it did not let through
    finally:
        with_page.stop()


def test_foreign_host_name_that_leads_here_shows_nothing(story, browser):
    story.create('kitchen')
    url = story.url.replace('127.0.0.1', 'rebound.example')
    for path in ('/', '/login'):
        browser.visit(url + path)
        browser.until_it_says("This page is not called 'rebound.example'")
        assert 'kitchen' not in browser.text
    browser.complaints()


def test_html_in_a_label_does_nothing(story, browser):
    label = '<script>document.title="run"</script><img src=x onerror="document.title=\'run\'">'
    story.create(label)
    for text in (browser.text, browser.visit(story.url) or browser.text):
        assert label in text
    assert browser.run('return document.title') == 'Hidden servers · rendezvous'


# WCAG 2.2, 1.4.3: the contrast of each text with what is behind it
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = colour => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = colour => {
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const [r, g, b] = rgb(colour).map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b + .05;
};
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (rgb(colour)[3] === 255) return colour;
  }
  return 'white';
};
return [...document.querySelectorAll('body *')].filter(each => each.checkVisibility() &&
  [...each.childNodes].some(child => child.nodeType === 3 && child.data.trim())).map(each => {
  const both = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => b - a);
  return [each.outerHTML.slice(0, 80), both[0] / both[1]];
}).filter(([, ratio]) => ratio < 4.5)"""
WIDE = """return [...document.querySelectorAll('body *')].filter(each =>
  each.getBoundingClientRect().right > innerWidth && each.checkVisibility())
  .map(each => each.outerHTML.slice(0, 80))"""
NAMELESS = """return [...document.querySelectorAll('input:not([type=hidden]), select, button, a')]
  .filter(each => !(each.labels?.length || each.ariaLabel || each.textContent.trim()))
  .map(each => each.outerHTML)"""


@pytest.mark.parametrize('width', [320, 720, 833, 1000])
def test_page_can_be_read_on_any_screen(story, browser, width):
    def check() -> None:
        for scheme in ('light', 'dark'):
            browser.look(width, 800, scheme)
            assert [browser.run(each) for each in (WIDE, CONTRAST, NAMELESS)] == [[], [], []]

    story.create('W' * 100)
    uuid = story.create('kitchen')
    at = {'at': 0.1, 'address': ':'.join(['2001'] * 8)}
    ended = {'seconds': 1.0, 'sent': 1, 'received': 10**12, 'how': 'mobile client closed'}
    story.folder.redis('LPUSH', f'rendezvous:{uuid}', json.dumps(at | ended))
    story.folder.redis('SET', f'seen:{uuid}', json.dumps(at))
    browser.visit(story.url)
    browser.click('New entry')
    check()
    browser.visit(f'{story.url}/?q={"nothing" * 20}')
    check()
    browser.visit(f'{story.url}/entries/{uuid}')
    other_ways = 'As a service, with hidden.py, or in Node.js'
    for summary in (other_ways, 'Host name…', 'Disable…', 'New secret…', 'Delete…'):
        browser.click(summary)
    check()
    browser.click('Make it a host name')
    check()
    browser.click('Show secret')
    browser.until_it_says('Hide it')
    check()


def test_page_says_when_it_is_out_of_date(story, browser, tmp_path):
    story.create('kitchen')
    browser.visit(story.url)
    story.program.end()
    browser.until_it_says('The page does not answer: does users_app.py still run?')
    assert 'kitchen' in browser.text
    browser.complaints()
    port = str(urlsplit(story.url).port)
    story.program = story.folder.start('users_app.py', '--port', port)
    story.program.until_it_says(LINK.pattern)
    browser.until_it_says('You are logged out: reload')  # it is another one, that knows no session
    story.log_in()
    browser.complaints()


def test_missing_browser_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    for value, outcome in {'true': pytest.fail.Exception, '': pytest.skip.Exception}.items():
        monkeypatch.setenv('CI', value)
        with pytest.raises(outcome, match='apt install chromium chromium-driver'):
            Browser(tmp_path)
