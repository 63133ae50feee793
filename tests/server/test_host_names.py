"""The host of a request names the hidden server: names switched on and off while servers run."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import uuid as uuids
from base64 import b64encode
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from browser import Browser
from conftest import OK, Answer, Peer, client_context, code, connect_request, free_port, get, until
from gevent.pool import Pool
from programs import Outside

from rendezvous.admin import certificate
from rendezvous.server import limits, pages
from rendezvous.store import options as local
from rendezvous.store import saving
from rendezvous.store.entries import Entries
from rendezvous.store.keys import NAMES
from rendezvous.wire.http_head import HeadReader

DOMAIN = 'names.example'
BROWSER = 'Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8'


def ask(name: str, *fields: str, method: str = 'GET', domain: str = DOMAIN) -> bytes:
    """A request for the host of that name."""
    return '\r\n'.join([f'{method} / HTTP/1.1', f'Host: {name}.{domain}', *fields, '', '']).encode()


@pytest.fixture
def named(start, entries):
    """Starts servers with names; none is switched on at the end."""

    def named(**options):
        return start(**{'names_domain': 'Names.EXAMPLE', **options})

    yield named
    entries.ask(lambda redis: redis.delete(NAMES))


def switch_on(entries: Entries, uuid: str, name: str) -> None:
    saved = saving.save(entries, uuid, [name], named=True)
    assert (saved.name, saved.why) == (name, '')


def switch_off(entries: Entries, uuid: str) -> None:
    saving.save(entries, uuid, named=False)


def means(server, name: str, domain: str = DOMAIN) -> str:
    """The UUID that a server takes a name for."""
    head, _ = HeadReader().feed(ask(name, domain=domain))
    return server.rendezvous.names.wanted(head)


def hears(server, name: str, uuid: str) -> None:
    until(lambda: means(server, name) == uuid, f'{name} means {uuid}')


def forgets(server, name: str, uuid: str) -> None:
    until(lambda: means(server, name) != uuid, f'{name} does not mean {uuid}')


def asked(connect, server, request: bytes) -> Answer:
    """The answer to a request that reaches no hidden server."""
    peer = connect(server)
    peer.send(request)
    answer = peer.answer()
    peer.close()
    return answer


def reaches(hidden: Peer, mobile: Peer, request: bytes) -> bool:
    """Whether a request arrives as it was sent, and the answer comes back."""
    mobile.send(request)
    arrived = hidden.receive(len(request))
    hidden.send(b'answer')
    return (arrived, mobile.receive(6)) == (request, b'answer')


def test_label_is_switched_on_and_off_while_the_server_runs(
    named, register, connect, entries, uuid
):
    server = named()
    hidden, mobile = register(server, uuid), connect(server)
    assert asked(connect, server, ask('kitchen')).status == 503
    switch_on(entries, uuid, 'kitchen')
    hears(server, 'kitchen', uuid)
    request = ask('KITCHEN', 'authorization:  Digest username="x"', 'Cookie: a')
    assert reaches(hidden, mobile, request)
    switch_on(entries, uuid, 'attic')
    hears(server, 'attic', uuid)
    assert asked(connect, server, ask('kitchen')).status == 503
    switch_off(entries, uuid)
    forgets(server, 'attic', uuid)
    assert asked(connect, server, ask('attic')).status == 503
    assert reaches(hidden, mobile, request)  # the pipe that was open stays


def test_name_of_a_deleted_entry_means_the_next_one_that_gets_it(named, entries, uuid):
    server, first = named(), str(uuids.uuid4())
    entries.add(first, ['kitchen'])
    switch_on(entries, first, 'kitchen')
    hears(server, 'kitchen', first)
    entries.delete(first)
    forgets(server, 'kitchen', first)
    switch_on(entries, uuid, 'kitchen')
    hears(server, 'kitchen', uuid)


def test_names_change_hands(named, entries, uuid):
    server, other = named(), str(uuids.uuid4())
    entries.add(other, ['attic'])
    for mine, theirs in [('kitchen', 'attic'), ('attic', 'kitchen')]:
        switch_off(entries, other)
        switch_on(entries, uuid, mine)
        switch_on(entries, other, theirs)
        hears(server, mine, uuid)
        hears(server, theirs, other)
    entries.delete(other)


def test_change_that_has_to_do_with_no_name_leaves_it(named, entries, uuid):
    switch_on(entries, uuid, 'kitchen')
    server = named()
    entries.disable(uuid)
    entries.enable(uuid)
    switch_on(entries, uuid, 'kitchen')
    other = str(uuids.uuid4())
    entries.add(other, ['attic'])
    switch_on(entries, other, 'attic')
    hears(server, 'attic', other)  # changes are heard in order
    assert means(server, 'kitchen') == uuid
    entries.delete(other)


def test_server_knows_all_names_when_it_begins_to_serve(named, entries, uuid):
    switch_on(entries, uuid, 'kitchen')
    assert means(named(), 'kitchen') == uuid


def test_each_worker_hears_and_they_meet(named, tmp_path, register, connect, entries, uuid):
    one, two = [
        named(meeting_place=tmp_path / each, which=f'{each}/2', rendezvous_wait=30) for each in '12'
    ]
    switch_on(entries, uuid, 'kitchen')
    for server in (one, two):
        hears(server, 'kitchen', uuid)
    hidden, mobile = register(one, uuid), connect(two)
    assert reaches(hidden, mobile, ask('kitchen'))
    assert asked(connect, two, ask('attic')).status == 503


def test_first_host_of_a_connection_decides(named, register, connect, entries, uuid):
    server, other = named(), str(uuids.uuid4())
    entries.add(other, ['attic'])
    switch_on(entries, uuid, 'kitchen')
    switch_on(entries, other, 'attic')
    hears(server, 'attic', other)
    kitchen, attic, mobile = register(server, uuid), register(server, other), connect(server)
    mobile.send(b'GET / HTTP/1.1\r\nHost: %s\r\n\r\n' % DOMAIN.encode())
    assert mobile.answer().status == 401  # which leaves it open
    assert reaches(kitchen, mobile, ask('kitchen'))
    assert reaches(kitchen, mobile, ask('attic'))
    assert reaches(attic, connect(server), ask('attic'))
    entries.delete(other)


def test_without_the_option_a_host_means_nobody(start, connect, uuid):
    assert asked(connect, start(), ask(uuid)).status == 401


# Nobody learns whether there is such a name


def test_unknown_and_offline_get_the_same_answer(named, connect, entries, uuid):
    server, absent = named(), str(uuids.uuid4())
    switch_on(entries, uuid, 'kitchen')
    hears(server, 'kitchen', uuid)
    requests = [ask(name) for name in ('kitchen', 'attic', 'x' * 64, '-', uuid, absent)]
    answers = [asked(connect, server, each) for each in (*requests, get(uuid), get(absent))]
    assert {answer.status for answer in answers} == {503}
    without_date = [(answer.fields | {'Date': ''}, answer.body) for answer in answers]
    assert all(each == without_date[0] for each in without_date)


def test_who_tries_names_is_slowed_and_refused_as_who_tries_uuids(
    named, connect, entries, uuid, monkeypatch
):
    monkeypatch.setattr(limits, 'SLOW_SECONDS', 0)
    server = named(unknown_per_minute=3)
    switch_on(entries, uuid, 'kitchen')
    hears(server, 'kitchen', uuid)
    tries = ['kitchen', *3 * ['attic'], uuid, str(uuids.uuid4()), 'a', 'b', 'c', 'd']
    statuses = [asked(connect, server, ask(name)).status for name in tries]
    assert statuses == 9 * [503] + [429]  # six are unknown: two are the kitchen, three the attic


def test_name_that_nobody_has_waits_as_a_uuid_does(named, connect):
    """A server that has just begun does not know who was here."""
    server = named(rendezvous_wait=60, is_new=True)
    peers = connect(server), connect(server)
    for peer, name in zip(peers, ('attic', str(uuids.uuid4())), strict=True):
        peer.send(ask(name))
    until(lambda: len(server.rendezvous.registry.wanted()) == 2, 'both wait')


# Redis is down


@pytest.fixture
def outside(tmp_path):
    """A Redis that can be killed, and remembers everything."""
    (tmp_path / 'redis').mkdir()
    lasting = '--appendonly', 'yes', '--appendfsync', 'always'
    with Outside(tmp_path / 'redis', free_port(), 'secret', *lasting) as outside:
        yield outside


@pytest.fixture
def theirs(outside):
    """The entries in it."""
    with closing(Entries(local.DEFAULTS | outside.options)) as theirs:
        theirs.open()
        yield theirs


def test_names_stay_known_while_redis_is_down_and_change_right_afterwards(
    outside, theirs, start, connect, uuid
):
    theirs.add(uuid, ['kitchen'])
    switch_on(theirs, uuid, 'kitchen')
    server = start(names_domain=DOMAIN, **outside.options)
    hidden = connect(server)
    hidden.send(connect_request(uuid, code(theirs, uuid)))
    assert hidden.receive(len(OK)) == OK
    outside.stop()
    late = start(names_domain=DOMAIN, **outside.options)  # it waits a moment, and serves
    assert means(late, 'kitchen') != uuid
    assert means(late, uuid) == uuid
    assert reaches(hidden, connect(server), ask('kitchen'))
    outside.start()
    hears(late, 'kitchen', uuid)
    switch_on(theirs, uuid, 'attic')
    for each in (server, late):
        hears(each, 'attic', uuid)
        forgets(each, 'kitchen', uuid)


def test_key_of_another_program_is_no_harm(named, entries, uuid):
    entries.ask(lambda redis: redis.set(NAMES, 'Ada'))
    server = named()
    assert means(server, uuid) == uuid
    entries.ask(lambda redis: redis.delete(NAMES))
    switch_on(entries, uuid, 'kitchen')
    hears(server, 'kitchen', uuid)


# Pages for a browser


@pytest.mark.parametrize('accept', [BROWSER, 'accept: TEXT/HTML', 'Accept: a\r\nAccept: text/html'])
def test_browser_gets_pages(named, connect, accept):
    server = named()
    for request, status, title in [
        (ask('attic', accept), 503, 'Nobody answers here at the moment'),
        (get(str(uuids.uuid4()), '/', 'GET', accept), 503, 'Nobody answers here at the moment'),
        (f'GET / HTTP/1.1\r\nHost: x\r\n{accept}\r\n\r\n'.encode(), 401, 'Which machine '),
    ]:
        answer = asked(connect, server, request)
        assert (answer.status, answer.fields['Content-Type']) == (
            status,
            'text/html; charset=utf-8',
        )
        assert f'<h1>{title}' in answer.body.decode()
        assert ('Retry-After' in answer.fields) == (status == 503)


@pytest.mark.parametrize(
    ('method', 'fields'),
    [('GET', []), ('GET', ['Accept: */*']), ('POST', [BROWSER]), ('get', [BROWSER])],
)
def test_everybody_else_gets_json(named, connect, method, fields):
    server = named()
    answer = asked(connect, server, ask('attic', *fields, method=method))
    assert answer.fields['Content-Type'] == 'application/json'
    diagnostic = 'the hidden server is not connected'
    assert json.loads(answer.body) == {'error': {'permanent': False, 'diagnostic': diagnostic}}
    asked_who = asked(connect, server, ask('a.b', *fields, method=method))
    assert asked_who.fields['Content-Type'] == 'application/json'
    assert 'the user name is the UUID' in json.loads(asked_who.body)['error']['diagnostic']


@pytest.mark.parametrize('name', ['attic', 'a.b'])
def test_head_of_a_page_has_its_length_and_no_body(named, connect, name):
    server = named()
    page = asked(connect, server, ask(name, BROWSER))
    mobile = connect(server)
    mobile.send(ask(name, BROWSER, method='HEAD'))
    head = mobile.answer(to='HEAD')
    assert head.status == page.status
    assert head.fields['Content-Length'] == str(len(page.body))
    if head.status == 401:
        mobile.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
        assert mobile.answer().status == 401  # in step
    else:
        assert mobile.rest() == b''


@pytest.mark.parametrize('name', ['attic', 'a.b'])
def test_page_may_run_and_load_nothing_but_what_is_in_it(named, connect, name):
    body = asked(connect, named(), ask(name, BROWSER)).body.decode()
    (policy,) = re.findall('Content-Security-Policy" content="(.*?)">', body)
    inside = {'style-src': 'style', 'script-src': 'script'}
    for part in policy.split('; '):
        kind, allowed = part.split(' ')
        texts = re.findall(f'<{inside[kind]}>(.*?)</', body, re.S) if kind in inside else []
        hashes = [b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert allowed == (f"'sha256-{hashes[0]}'" if hashes else "'none'")
    assert not re.search('src=|http:|https:|url\\(', body.replace(policy, ''))


# Real clients

LOCALHOST = 'rendezvous.localhost'  # Chromium and curl know where that is
SITE = """HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n{}\r\n
<title>{}</title><pre>{}</pre>"""


class Site:
    """Hidden servers with a name; the page shows the head that came."""

    def __init__(self, worker, entries: Entries, crt_file: str, name: str):
        self.entries, self.name, self.uuid = entries, name, str(uuids.uuid4())
        self.url = f'https://{name}.{LOCALHOST}:{worker.port}/'
        self._worker, self._context = worker, client_context(crt_file)
        self._greenlets = Pool()
        entries.add(self.uuid, [name])
        switch_on(entries, self.uuid, name)
        until(lambda: means(worker, name, LOCALHOST) == self.uuid, 'it is known')

    def start(self) -> None:
        for _ in range(4):
            self._greenlets.spawn(self._serve)
        until(lambda: self._worker.rendezvous.registry.count(self.uuid) == 4, 'four wait')

    def _serve(self) -> None:
        while True:
            with (
                socket.create_connection(('127.0.0.1', self._worker.port)) as raw,
                self._context.wrap_socket(raw, server_hostname=f'x.{LOCALHOST}') as sock,
            ):
                peer = Peer(sock)
                peer.send(connect_request(self.uuid, code(self.entries, self.uuid)))
                head = peer.until(b'\r\n\r\n') and peer.until(b'\r\n\r\n').decode()
                cookie = f'Set-Cookie: name={self.name}\r\n'
                peer.send(SITE.format(cookie, self.name, head).encode())

    def stop(self) -> None:
        self._greenlets.kill()

    def close(self) -> None:
        self.stop()
        self.entries.delete(self.uuid)


@pytest.fixture
def sites(named, entries, tmp_path):
    """Makes hidden servers with names; and the file of the certificate for all names."""
    files = {name: tmp_path / name for name in ('key_file', 'crt_file')}
    certificate.write_pair(f'*.{LOCALHOST}', **files)
    worker, made = named(names_domain=LOCALHOST, **{k: str(v) for k, v in files.items()}), []

    def site(name: str) -> Site:
        made.append(Site(worker, entries, files['crt_file'], name))
        return made[-1]

    yield site, str(files['crt_file'])
    for each in made:
        each.close()


@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not installed')
def test_curl_brings_the_sites_own_credentials(sites):
    make, crt_file = sites
    site = make('kitchen')
    site.start()
    resolve = f'{site.name}.{LOCALHOST}:{urlsplit(site.url).port}:127.0.0.1'
    command = ['curl', '-sS', '--noproxy', '*', '--cacert', crt_file, '--resolve', resolve]
    done = subprocess.run(
        [*command, '-u', 'ada:secret', site.url], capture_output=True, text=True, timeout=20
    )
    assert done.stderr == ''
    assert f'Authorization: Basic {b64encode(b"ada:secret").decode()}\n' in done.stdout


@pytest.fixture
def browser(sites, tmp_path):
    """It ends before the server looks whether all connections have ended."""
    browser = Browser(tmp_path)
    browser.cdp('Security.setIgnoreCertificateErrors', ignore=True)
    yield browser
    complaints = browser.complaints()
    browser.close()
    assert not [each for each in complaints if 'Failed to load resource' not in each]


FETCH = """return fetch('/', {headers: {Authorization: 'Bearer abc'}}).then(got => got.text())"""
# Ten seconds are over in a tenth of one.
QUICK = 'const slow = setInterval; window.setInterval = (run, ms) => slow(run, ms / 100);'


@pytest.mark.deadline(120)
def test_two_hidden_servers_in_one_browser_know_nothing_of_each_other(sites, browser):
    make, _ = sites
    both = make('kitchen'), make('attic')
    for site in both:
        site.start()
        browser.visit(site.url)
        browser.run('localStorage.setItem("of", document.title)')
    for site in both:
        browser.visit(site.url)
        assert browser.run('return [localStorage.getItem("of"), document.title]') == [site.name] * 2
        head = browser.run(FETCH)
        assert 'Authorization: Bearer abc\r\n' in head
        assert f'Cookie: name={site.name}\r\n' in head


@pytest.mark.deadline(120)
def test_pages_can_be_read_and_try_again_until_somebody_says_stop(sites, browser, tmp_path):
    make, _ = sites
    site, who = make('kitchen'), tmp_path / 'who.html'
    who.write_bytes(pages.WHO)  # that of a 401: a browser shows it when somebody clicks Cancel
    for url in (who.as_uri(), site.url):
        browser.visit(url)
        for width, scheme in [(320, 'dark'), (1000, 'light')]:
            browser.look(width, 800, scheme)
            assert browser.barriers() == []
    browser.click('Stop trying')
    browser.until_it_says('Tries no more by itself.')
    assert 'Stop trying' not in browser.text
    site.start()
    browser.click('Try again now')
    until(lambda: browser.run('return document.title') == 'kitchen', 'it has tried again')
    site.stop()
    browser.cdp('Page.addScriptToEvaluateOnNewDocument', source=QUICK)
    browser.visit(f'{site.url}?again#place')
    assert browser.run('return document.title') == 'Nobody answers here at the moment'
    site.start()
    until(lambda: browser.run('return document.title') == 'kitchen', 'it has tried again')
    assert browser.url == f'{site.url}?again#place'


@pytest.mark.deadline(120)
def test_without_scripts_the_page_tries_again_too(sites, browser):
    make, _ = sites
    site = make('kitchen')
    browser.cdp('Emulation.setScriptExecutionDisabled', value=True)
    browser.visit(site.url)
    assert browser.driver.title == 'Nobody answers here at the moment'
    assert not browser.driver.find_element('id', 'stop').is_displayed()
    site.start()
    until(lambda: browser.driver.title == 'kitchen', 'it has tried again')
