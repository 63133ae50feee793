"""The page of one entry: each state is brought about by real programs, and said in words."""

import csv
import datetime
import io
import json
import re
import shutil
import signal
import socket
import sys
import time
from html import unescape
from zoneinfo import ZoneInfo

import pytest
import requests
from browser import Browser
from conftest import (
    DEADLINE_SECONDS,
    Peer,
    client_context,
    connect_request,
    cut_off,
    free_port,
    get,
    until,
)
from gevent.pool import Pool
from gevent.server import StreamServer
from programs import Folder, Program
from visitor import Visitor, link

from rendezvous.admin import certificate, entry_view, page, page_server, visits
from rendezvous.admin.words import DAY, HOUR, Clock
from rendezvous.store import options as local
from rendezvous.store.questions import MOST, OpenPipe
from rendezvous.store.state import Change, Hour, Known, Rendezvous, Server
from rendezvous.wire import codes
from rendezvous.wire.pipe import How

BERLIN = ZoneInfo('Europe/Berlin')
WRONG_CODES = 3
HOSTILE = '</title><script>alert(1)</script>"\'&'
needs_faketime = pytest.mark.skipif(
    not shutil.which('faketime'), reason='there is no faketime here'
)
pytestmark = pytest.mark.deadline(120)


class Site:
    """A rendezvous server, the page beside it, and hidden servers."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.server, self.port = folder.serve()
        self.page = Visitor(folder)

    def hide(self, uuid: str, near: int, *under: str) -> Program:
        """A hidden.py, with the file that it got; `under` is a command that runs it."""
        command = [*under, sys.executable, 'hidden.py', f'entries/{uuid}.json']
        command += [f'127.0.0.1:{near}', '--registrations', '1']
        return self.folder.start('-c', f'import os; os.execvp({command[0]!r}, {command!r})')

    def connect(self) -> Peer:
        context = client_context(self.folder.path / 'registrar.crt')
        sock = socket.create_connection(('127.0.0.1', self.port))
        strict = {'server_hostname': '127.0.0.1', 'suppress_ragged_eofs': False}
        return Peer(context.wrap_socket(sock, **strict))

    def knock(self, uuid: str, code: str) -> int:
        """The status of a registration with that code."""
        peer = self.connect()
        peer.send(connect_request(uuid, code))
        try:
            return int(peer.until(b'\r\n').split()[1])
        finally:
            peer.close()

    def code(self, uuid: str) -> str:
        parameters = json.loads(self.folder.redis('GET', uuid))['authParams']
        return codes.totp(parameters).now()

    def html(self, uuid: str, more: str = '') -> str:
        response = self.page.ask('GET', f'/entries/{uuid}{more}')
        assert response.status_code == 200
        return response.text

    def until_it_says(self, uuid: str, *parts: str) -> str:
        """The text of its page, once it has all these parts."""
        said = ['']

        def has_all() -> bool:
            said[0] = text_of(self.html(uuid))
            return all(part in said[0] for part in parts)

        try:
            until(has_all, f'the page says {parts}')
        except AssertionError as error:
            raise AssertionError(f'{error}; it says {said[0]}') from None
        return said[0]


def text_of(html: str) -> str:
    """What a reader sees of it, in one line."""
    within_words = re.sub('</?(?:wbr|bdi|time|span|strong)[^>]*>', '', html.partition('<main')[2])
    return ' '.join(unescape(re.sub('<[^>]*>', ' ', within_words)).split())


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    options = {'rendezvous_port': free_port(), 'wrong_codes_per_address': WRONG_CODES}
    with Folder(tmp_path_factory.mktemp('entry'), workers=1, **options) as folder:
        folder.pair()
        site = Site(folder)
        yield site
        assert 'Traceback' not in site.page.program.said()
        assert 'Traceback' not in folder.log()


@pytest.fixture
def uuid(site):
    return site.page.made(label='kitchen')


@pytest.fixture
def near():
    """The port of a local HTTP server whose answer does not end."""

    def handle(sock, _) -> None:
        peer = Peer(sock)
        peer.until(b'\r\n\r\n')
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n' + 4000 * b'x')
        peer.rest()

    server = StreamServer(('127.0.0.1', 0), handle, spawn=Pool(None))
    server.start()
    yield server.server_port
    server.stop(timeout=0)


def test_one_never_seen_says_what_to_run_and_then_that_it_is_online(site, uuid, near):
    before = site.until_it_says(uuid, 'Never seen: it has not registered yet.')
    assert before.index('Set it up') < before.index('Mobile clients')
    assert 'python3 kitchen.pyz 127.0.0.1:8000' in before
    assert 'Waiting for it…' in before
    hidden = site.hide(uuid, near)
    after = site.until_it_says(uuid, 'Online since', '1 waiting, none open.')
    assert 'Online ✓' in after
    assert after.index('Mobile clients') < after.index('Set it up again')
    hidden.end()
    text = site.until_it_says(uuid, 'Offline since', 'It has not tried to register since')
    assert '✓' not in text
    assert 'python3 kitchen.pyz 127.0.0.1:8000' in text.partition('Mobile clients')[0]
    assert site.knock(uuid, '00000000') == 401
    assert '✓' not in site.until_it_says(uuid, 'Refused', 'Its code is wrong')


def test_one_that_is_refused_before_it_was_ever_online_is_not_waited_for(site, uuid):
    assert site.knock(uuid, '00000000') == 401
    text = site.until_it_says(uuid, 'Its code is wrong', 'It is refused: see above')
    assert 'Waiting for it' not in text
    assert 'This page says so' not in text


def test_each_part_of_a_page_has_an_id_of_its_own_whatever_the_state(site, uuid, near):
    for _ in range(2):
        html = site.html(uuid)
        ids = re.findall(r' id="([^"]+)"', html)
        assert len(ids) == len(set(ids))
        live = re.findall(r'<[^>]* id="([^"]+)"[^>]*data-live', html)
        assert {'wait', 'state', 'why', 'route', 'open', 'past', 'facts', 'acts'} <= set(live)
        hidden = site.hide(uuid, near)
        site.until_it_says(uuid, 'Online ✓')
    hidden.end()


def test_a_shown_page_learns_what_has_happened_without_being_loaded_again(
    site, uuid, near, tmp_path
):
    browser = Browser(tmp_path)
    try:
        url, code = link(site.page.program)
        browser.visit(f'{url}/login?code={code}')
        browser.click('Log in')
        browser.until_it_says('New')
        browser.visit(f'{url}/entries/{uuid}')
        browser.until_it_says('Waiting for it…')
        browser.run('window.isTheSame = true')
        hidden = site.hide(uuid, near)
        browser.until_it_says('Online ✓')
        browser.until_it_says('This week')
        assert browser.run('return document.title').startswith('kitchen: online')
        hidden.end()
        browser.until_it_says('Offline since')
        site.knock(uuid, '00000000')
        browser.until_it_says('Its code is wrong')
        browser.run('document.querySelector("[name=note]").value = "third shelf"')
        site.folder.run('users_app.py', 'rename', uuid, 'cellar')
        heading = 'return document.querySelector("h1").innerText'
        until(lambda: browser.run(heading) == 'cellar', 'the heading changes')
        assert browser.run('return document.querySelector("[name=label]").value') == 'kitchen'
        assert browser.run('return window.isTheSame')
        browser.click('Save')
        browser.until_it_says('It is saved.')
        assert browser.run('return document.title').startswith('cellar: ')
        assert site.page.listed()[uuid] == 'cellar'
        assert json.loads(site.folder.redis('GET', uuid))['note'] == 'third shelf'
        assert browser.complaints() == []
    finally:
        browser.close()


@needs_faketime
@pytest.mark.parametrize(('wrong', 'said'), [('+61m', 'ahead'), ('-61m', 'behind')])
def test_a_wrong_clock_is_named_with_what_sets_it(site, uuid, near, wrong, said):
    hidden = site.hide(uuid, near, 'faketime', '--exclude-monotonic', '-f', wrong)
    text = site.until_it_says(
        uuid, 'ago: the clock of the hidden machine is 6', 'Tries from 127.0.0.1'
    )
    assert re.search(f'The clock of the hidden machine is 6[01] minutes {said}\\.', text)
    assert 'sudo timedatectl set-ntp true' in text
    assert 'Why it is not online, and what to do' in text
    hidden.end()
    hidden = site.hide(uuid, near)
    assert 'what to do' not in site.until_it_says(uuid, 'Online since')
    assert 'Refused in the last 24 hours' in text
    hidden.end()


def test_the_secret_from_before_a_new_one_is_named(site, uuid, near):
    old = (site.folder.path / f'entries/{uuid}.json').read_text()
    site.page.change(uuid, 'rekey')
    new = (site.folder.path / f'entries/{uuid}.json').read_text()
    (site.folder.path / f'entries/{uuid}.json').write_text(old)
    hidden = site.hide(uuid, near)
    text = site.until_it_says(uuid, 'It uses the secret from before the new one.')
    assert 'Bring the new file' in text
    assert 'Download kitchen.pyz' in text.partition('Mobile clients')[0]
    assert re.search(r'Refused \d+ s ago: it uses the secret from before the new one\.', text)
    hidden.end()
    (site.folder.path / f'entries/{uuid}.json').write_text(new)
    hidden = site.hide(uuid, near)
    assert 'before the new one' not in site.until_it_says(uuid, 'Online since')
    hidden.end()


def test_two_processes_with_one_file_are_named(site, uuid, near):
    first = site.hide(uuid, near)
    site.until_it_says(uuid, 'Online since')
    second = site.hide(uuid, near)
    text = site.until_it_says(uuid, 'Two machines or processes use this file: both at 127.0.0.1.')
    assert 'Online since' in text
    assert 'Why it is not online' not in text
    assert 'Refused in the last 24 hours' not in text  # nobody was
    assert 'Two machines' not in text_of(site.html(uuid, '/history'))
    first.end()
    second.end()


def test_one_that_has_to_wait_is_let_in_by_a_button(site, uuid):
    for _ in range(WRONG_CODES):
        assert site.knock(uuid, '00000000') == 401
    assert site.knock(uuid, site.code(uuid)) == 429
    text = site.until_it_says(uuid, 'It has to wait until', 'Let it try now')
    assert re.search(r'Refused \d+ s ago: it has to wait until \d\d:\d\d\.', text)
    assert re.search(r'It has to wait until \d\d:\d\d\. Too many wrong codes came from 127', text)
    assert 'name="token"' in site.html(uuid).partition(f'{uuid}/clear"')[2][:200]
    response = site.page.change(uuid, 'clear')
    assert 'It has to wait' not in text_of(response.text)
    until(lambda: site.knock(uuid, site.code(uuid)) == 200, 'it is let in')


def test_a_disabled_one_has_its_button_on_top(site, uuid, near):
    hidden = site.hide(uuid, near)
    site.until_it_says(uuid, 'Online since')
    assert site.page.change(uuid, 'disable').status_code == 200
    text = site.until_it_says(uuid, 'This hidden server is disabled since')
    assert 'Disable…' not in text
    assert 'more' not in text.partition('Mobile clients')[2].partition('Set it up again')[0]
    hidden.until_it_says('disabled')
    assert site.page.change(uuid, 'enable').status_code == 200
    hidden.end()
    hidden = site.hide(uuid, near)
    site.until_it_says(uuid, 'Online since', 'Disable…')
    hidden.end()


def test_one_that_was_refused_while_it_was_disabled_tries_again(site, uuid, near):
    hidden = site.hide(uuid, near)
    site.until_it_says(uuid, 'Online since')
    hidden.end()
    site.until_it_says(uuid, 'It has not tried to register since')
    site.page.change(uuid, 'disable')
    assert site.knock(uuid, site.code(uuid)) != 200
    site.page.change(uuid, 'enable')
    text = site.until_it_says(uuid, 'refused while it was disabled, and tries again within')
    assert 'has no network' not in text


def test_an_open_pipe_is_shown_and_ended_by_its_button(site, uuid, near):
    hidden = site.hide(uuid, near)
    site.until_it_says(uuid, 'Online since')
    mobile = site.connect()
    mobile.send(get(uuid))
    mobile.until(4000 * b'x')
    text = site.until_it_says(uuid, 'Open connections 1', '4 kB')
    assert '1 open, 1 waiting' in text
    form = site.html(uuid).partition(f'{uuid}/end"')[2]
    worker, pipe = (
        re.search(f'name="{name}" value="(.+?)"', form)[1] for name in ('worker', 'pipe')
    )
    assert site.page.change(uuid, 'end', worker=worker, pipe=pipe).status_code == 200
    with cut_off():
        mobile.rest()
    text = site.until_it_says(uuid, 'none open', 'ended on the page', 'All 1 that are kept')
    assert 'Open connections' not in text
    assert '1 today' in text
    hidden.end()


def test_pipes_are_missing_only_where_too_many_are_open_or_a_worker_was_silent():
    """How many there are was counted up to a second ago: some may be over."""
    pipes = [OpenPipe('a', str(number), '192.0.2.1', 0, 0, 0) for number in range(MOST)]

    def now(told: list[OpenPipe], silent: int) -> entry_view.Now:
        return entry_view.Now(Known(pipes=MOST + 7), Clock(), [], [], told, silent)

    assert (now(pipes, 0).missing, now(pipes, 0).is_cut) == (7, True)
    assert (now(pipes[7:], 0).missing, now(pipes[7:], 0).is_cut) == (0, False)
    assert now(pipes[7:], 1).missing == 14


def test_a_week_without_traffic_has_no_plot(site, uuid, near):
    hidden = site.hide(uuid, near)
    text = site.until_it_says(uuid, 'Online since', 'no traffic')
    assert 'lines at' not in text
    assert 'class="scale"' not in site.html(uuid)
    site.folder.redis('HSET', f'hours:{{{uuid}}}', str(int(time.time()) // DAY), '0 1 2200 1 0')
    assert 'lines at' in site.until_it_says(uuid, 'hidden.py keeps four')
    hidden.end()


@pytest.mark.parametrize('how', How)
def test_each_end_of_a_rendezvous_is_said_in_short_words(how):
    assert len(visits.ended(how.value)) < 30
    assert visits.ended('tea time') == 'tea time'


def test_labels_and_notes_are_texts(site):
    uuid = site.page.made(label=HOSTILE)
    site.page.change(uuid, 'save', label=HOSTILE, note=f'</textarea>{HOSTILE}\nline 2')
    for more in '', '/history':
        html = site.html(uuid, more)
        assert '<script>alert' not in html
        assert html.count('</title>') == 1
        assert HOSTILE in unescape(html)
    html = site.html(uuid)
    assert html.count('</textarea>') == 1
    assert 'line 2' in html


def test_what_was_typed_is_there_again_after_a_mistake(site, uuid):
    response = site.page.change(uuid, 'save', label='x' * 101, note='Third shelf')
    assert response.status_code == 400
    assert 'at most 100 characters' in response.text
    assert f'value="{"x" * 101}"' in response.text
    assert 'Third shelf' in response.text


def test_the_secret_is_shown_by_a_post_alone_and_noted(site, uuid):
    secret = json.loads(site.folder.redis('GET', uuid))['authParams']['base32']
    assert secret not in site.html(uuid)
    assert secret not in site.page.ask('GET', f'/entries/{uuid}/secret').text
    response = site.page.change(uuid, 'secret')
    assert secret in response.text
    assert 'no-store' in response.headers['Cache-Control']
    assert 'Secret shown' in site.page.ask('GET', f'/log?uuid={uuid}').text


def test_an_entry_without_a_secret_gets_one_by_a_button(site, uuid):
    entry = json.loads(site.folder.redis('GET', uuid)) | {'authParams': {'base32': '!'}}
    site.folder.redis('SET', uuid, json.dumps(entry))
    assert site.knock(uuid, '12345678') == 401
    site.until_it_says(uuid, 'The entry has no secret that can be used.', 'Give it a new secret')
    assert site.page.ask('GET', f'/entries/{uuid}.pyz').status_code == 500
    assert site.page.change(uuid, 'rekey').status_code == 200
    hidden = site.connect()
    hidden.send(connect_request(uuid, site.code(uuid)))
    text = site.until_it_says(uuid, 'Online since')
    assert 'no secret' not in text.partition('Set it up')[0]
    hidden.close()


@pytest.mark.parametrize('value', ['nonsense', '[]', '{"labels": 3, "note": [], "disabled": "x"}'])
def test_an_entry_that_makes_no_sense_has_a_page(site, uuid, value):
    site.folder.redis('SET', uuid, value)
    for key, what in ('refusals', 'x'), ('changes', 'x'), ('hours', 'x'), ('rendezvous', 'x'):
        site.folder.redis('SET', f'{key}:{uuid}', what)
    assert uuid in text_of(site.html(uuid))
    assert 'No mobile client has used' in text_of(site.html(uuid, '/history'))


@pytest.fixture(scope='module')
def site_with_names(tmp_path_factory):
    """Codes are rationed by the day alone."""
    options = {'rendezvous_port': free_port(), 'names_domain': 'rendezvous.localhost'}
    options |= {'wrong_codes_per_address': 0, 'wrong_codes_per_day': 2}
    with Folder(tmp_path_factory.mktemp('names'), **options) as folder:
        folder.pair()
        yield Site(folder)


def test_wrong_codes_that_strangers_used_up_are_given_back_by_a_button(site_with_names):
    site, uuid = site_with_names, site_with_names.page.made(label='kitchen')
    assert [site.knock(uuid, '00000000') for _ in range(2)] == [401] * 2
    assert site.knock(uuid, site.code(uuid)) == 401
    site.until_it_says(uuid, 'Short codes from new addresses are refused.', 'Accept short codes')
    assert site.page.change(uuid, 'clear').status_code == 200
    assert 'Short codes from new' not in text_of(site.html(uuid))
    assert site.knock(uuid, site.code(uuid)) == 200


def test_a_label_is_made_a_host_name_by_the_form(site_with_names):
    site = site_with_names
    uuid = site.page.made(label='Garden')
    assert 'garden.rendezvous.localhost: a label can be guessed' in text_of(site.html(uuid))
    site.page.change(uuid, 'save', label='Garden', note='', named=['0', '1'])
    html = site.html(uuid)
    assert 'name="named" value="1" checked' in html
    assert f'https://garden.rendezvous.localhost:{site.port}/' in html
    assert f'https://{uuid}.rendezvous.localhost:{site.port}/' in html
    unable = site.page.change(uuid, 'save', label='Two words', note='', named=['0', '1'])
    assert unable.status_code == 400
    assert 'name="named" value="1" checked' in unable.text
    site.page.change(uuid, 'save', label='Two words', note='', named='0')
    assert 'Not with this label' in text_of(site.html(uuid))


def test_a_killed_server_is_said_here_too(site_with_names, near):
    site = site_with_names
    uuid = site.page.made(label='kitchen')
    hidden = site.hide(uuid, near)
    site.until_it_says(uuid, 'Online since')
    site.server.end(signal.SIGKILL)
    text = site.until_it_says(uuid, 'The rendezvous server is down since')
    assert 'Offline since' in text
    assert '<span>down</span>' in site.html(uuid)
    assert 'a gap is unknown: the server was down' in text
    assert re.search(r'This week online \d+ % of it; the server was down once, \d', text)
    assert re.search('From To State .* now server down', text)
    hidden.end()


def test_an_outage_within_a_minute_is_told_with_seconds(site, uuid):
    noon = Clock().midnight(time.time(), -1) + 12 * HOUR
    known = {'state': 'offline', 'since': noon, 'first': noon - HOUR}
    site.folder.redis('SET', f'state:{{{uuid}}}', json.dumps(known))
    changes = f'{noon - HOUR} online', f'{noon - 48} offline', f'{noon - 7} online'
    site.folder.redis('RPUSH', f'changes:{{{uuid}}}', *changes)
    text = site.until_it_says(uuid, 'From To State')
    assert re.search('11:59:12 .*11:59:53 offline', text)
    assert 'the server was down' not in text
    site.folder.redis('LPUSH', 'outages:{servers}', f'{noon - 48.2} {noon - 8}')
    text = site.until_it_says(uuid, '% of it; offline once,', '; the server was down once, 41 s')
    site.folder.redis('DEL', 'outages:{servers}')
    assert re.search('11:59:11 .*11:59:52 server down', text)


def test_an_entry_that_there_is_not(site):
    assert site.page.ask('GET', f'/entries/{"0" * 8}-0000-4000-8000-{"0" * 12}').status_code == 404


def test_hours_are_downloaded_as_csv(site, uuid):
    now = int(time.time())
    day, hour = now // DAY, now % DAY // HOUR
    site.folder.redis('HSET', f'hours:{{{uuid}}}', str(day), f'{hour} 11 2200 3 1')
    site.folder.redis('HSET', f'hours:{{{uuid}}}', str(day - 30), '0 1 2 3 4')
    response = site.page.ask('GET', f'/entries/{uuid}/hours.csv')
    assert response.headers['Content-Type'].startswith('text/csv')
    assert 'kitchen-hours.csv' in response.headers['Content-Disposition']
    header, row = csv.reader(io.StringIO(response.text))
    assert header == ['hour', 'octets_up', 'octets_down', 'visits', 'failures']
    assert row[1:] == ['11', '2200', '3', '1']
    assert row[0].endswith(f'T{hour:02}:00:00Z')
    for days, rows in (('400', 3), ('9999999', 3), ('-5', 2), ('x', 2)):
        text = site.page.ask('GET', f'/entries/{uuid}/hours.csv?days={days}').text
        assert len(text.splitlines()) == rows
    assert '2.2 kB' in text_of(site.html(uuid, '/history'))


def test_times_are_those_of_the_readers_zone(site, uuid):
    created = time.time() - 3 * DAY
    entry = json.loads(site.folder.redis('GET', uuid)) | {'created': created}
    site.folder.redis('SET', uuid, json.dumps(entry))
    for zone, known in ('Asia/Kolkata', True), ('Foo/Bar', False), ('../../etc/passwd', False):
        cookies = {**site.page.cookies.get_dict(), 'zone': zone}
        headers = {'Cookie': '; '.join(f'{name}={value}' for name, value in cookies.items())}
        html = site.page.ask('GET', f'/entries/{uuid}', headers=headers).text
        clock = Clock(ZoneInfo(zone) if known else datetime.UTC)
        assert f'title="{clock.exact(created)}">{clock.at(created)}</time>' in html
        assert ('Times are UTC' in html) != known


# What it costs


@pytest.fixture
def ask(entries, pair, redis_options):
    """Fetches the page of an entry from a page in this process."""
    server = page_server.Server(('127.0.0.1', 0), log=None, error_log=None)
    server.application = page.create_app(entries, local.DEFAULTS | redis_options | pair)
    server.start()
    url = f'http://127.0.0.1:{server.server_port}/entries'
    with requests.Session() as session:
        session.trust_env = False
        yield lambda uuid: session.get(f'{url}/{uuid}', timeout=DEADLINE_SECONDS)
    server.stop()


def test_a_page_reads_one_entry_however_many_there_are(entries, ask, uuid_of):
    uuid = uuid_of(entries)
    alone = questions(entries, lambda: ask(uuid))
    others = [uuid_of(entries) for _ in range(500)]
    assert questions(entries, lambda: ask(uuid)) == alone <= 30
    for other in others:
        entries.delete(other)


def test_a_page_takes_little_time_among_ten_thousand_entries(entries, ask, uuid_of):
    uuid, text = uuid_of(entries), json.dumps({'labels': ['other']})
    others = [f'{number:08x}-0000-4000-8000-000000000000' for number in range(10_000)]
    entries.ask(lambda redis: redis.mset(dict.fromkeys(others, text)))
    ask(uuid)
    began = time.process_time()
    for _ in range(10):
        assert ask(uuid).status_code == 200
    assert (time.process_time() - began) / 10 < 0.1
    entries.ask(lambda redis: redis.delete(*others))


def questions(entries, do) -> int:
    """How many questions Redis gets meanwhile, without those with which we count."""

    def count() -> int:
        return entries.ask(lambda redis: redis.info('stats')['total_commands_processed'])

    do()
    before = count()
    do()
    return count() - before - 1


@pytest.fixture
def uuid_of():
    made = []

    def make(entries) -> str:
        number = len(made) + 1
        made.append((entries, f'{number:08x}-1111-4000-8000-000000000000'))
        entries.add(made[-1][1], [f'kitchen {number}'])
        return made[-1][1]

    yield make
    for entries, uuid in made:
        entries.delete(uuid)


def test_the_certificate_is_read_again_only_when_it_has_changed(pair, tmp_path):
    files = {name: str(tmp_path / name) for name in pair}
    for name, file in pair.items():
        shutil.copy(file, files[name])
    options = local.DEFAULTS | files
    found = certificate.read(options)
    assert certificate.read(options) is found
    certificate.write_pair('localhost', **{name: tmp_path / name for name in pair})
    assert certificate.read(options).leaf != found.leaf


# Its week


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


@pytest.mark.parametrize(
    ('now', 'hours'),
    [('2026-11-26T13:00', 168), ('2026-03-31T13:00', 167), ('2026-10-28T13:00', 169)],
)
def test_a_week_is_seven_days_of_the_reader_also_when_the_clocks_change(now, hours):
    clock = Clock(BERLIN, at(now))
    start = clock.midnight(clock.now, -6)
    past = entry_view.Past(start, [Change(start - 5, 'online')], [Hour(1, 2, 3, 4)] * (hours - 11))
    week = entry_view.week(past, Server([], None, []), clock)
    assert len(week.hours) == hours
    assert [clock.day(day.at) for day in week.days][-1] == 'today'
    assert len(week.days) == 7
    assert sum(day.of_all.visits for day in week.days) == 3 * (hours - 11)
    assert week.states == ['online']
    assert week.gaps == []


def test_visits_in_a_row_that_are_alike_are_one_line():
    rows = [
        Rendezvous(1000, 'a', 2, 10, 100, 'closed'),
        Rendezvous(960, 'a', 5, 20, 200, 'closed'),
        Rendezvous(905, 'a', 1, 30, 300, 'closed'),
        Rendezvous(800, 'a', 1, 1, 1, 'closed'),  # over a minute before
        Rendezvous(790, 'b', 1, 1, 1, 'closed'),
        Rendezvous(789, 'b', 1, 1, 1, 'reset'),
        Rendezvous(788, 'a', 1, 1, 1, 'closed'),
    ]
    found = visits.grouped(visits.by_beginning(rows))
    assert [each.times for each in found] == [3, 1, 1, 1, 1]
    assert found[0] == visits.Visits(1000, 'a', 5, 60, 600, 'closed', 3)
    assert visits.grouped([]) == []


def test_visits_are_listed_by_their_beginning_whichever_ended_first(site, uuid):
    now = int(time.time())
    ended = (60, 'b'), (3000, 'a'), (90, 'b')  # the newest end first: one took long
    for before, address in ended:
        row = {'at': now - before, 'address': address, 'seconds': 1, 'sent': 1, 'received': 1}
        site.folder.redis('RPUSH', f'rendezvous:{{{uuid}}}', json.dumps(row | {'how': 'closed'}))
    found = visits.by_beginning([Rendezvous(now - at, who, 1, 1, 1, '') for at, who in ended])
    assert [now - each.at for each in found] == [60, 90, 3000]
    said = text_of(site.html(uuid, '/history'))
    times = re.findall(r'(\d\d:\d\d:\d\d) (?:a|b) ', said)
    clock = Clock(datetime.UTC)
    assert times == [clock.second(now - before)[-8:] for before in (60, 90, 3000)]


def test_hours_of_a_zone_that_is_half_an_hour_off_count_once():
    clock = Clock(ZoneInfo('Asia/Kolkata'), at('2026-11-26T13:00'))
    start = clock.midnight(clock.now, -6)
    days = visits.days([Hour(visits=1)] * 169, start, clock, 7)
    assert [day.of_all.visits for day in days] == [24] * 7
