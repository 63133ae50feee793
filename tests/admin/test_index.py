"""The first page: the server, and the table of all hidden servers, in every state."""

import json
import re
import signal
import socket
import time
import uuid as uuids_
from contextlib import closing

import gevent
import pytest
from conftest import OK, Peer, client_context, connect_request, free_port, until
from pages import Page, served, text
from programs import Folder, Outside
from visitor import Visitor, files

from rendezvous.store import keys, presence, saving, state
from rendezvous.store import options as local
from rendezvous.store.state import Why
from rendezvous.wire import codes

UUID = '10000000-0000-4000-8000-00000000000{}'


@pytest.fixture
def page(redis_options, start):  # its connections end before those of servers are counted
    with served(local.DEFAULTS | redis_options | {'key_file': None}) as page:
        yield page


@pytest.fixture
def soon(monkeypatch):
    """A worker writes at once what has changed."""
    monkeypatch.setattr(presence, 'WRITE_SECONDS', 0.02)
    monkeypatch.setattr(presence, 'PATIENCE_SECONDS', 0.05)


def add(page: Page, *labels: str) -> list[str]:
    """Makes entries. Returns their UUIDs."""
    uuids = [UUID.format(f'{number:x}') for number in range(len(labels))]
    for uuid, name in zip(uuids, labels, strict=True):
        page.entries.add(uuid, [name] if name else [])
    return uuids


def until_row(page: Page, label: str, pattern: str) -> str:
    """The row of that label, when it says so."""

    def found() -> str | None:
        row = page.rows().get(label, '')
        return row if re.search(pattern, row) else None

    return until(found, f'{label}: {pattern}')


def test_each_row_says_its_state_and_since_when(page, soon, start, register, connect):
    kitchen, camera, attic, pihole, printer = add(
        page, 'kitchen', 'camera', 'attic', 'Pi-hole', '3D printer'
    )
    server = start()
    hidden, leaves = register(server, kitchen), register(server, attic)
    until_row(page, 'attic', 'Online')
    leaves.close()
    connect(server).send(connect_request(camera, '00000000'))
    page.entries.disable(pihole)
    clock = r'[012]\d:[0-5]\d'
    row = until_row(page, 'kitchen', 'Online.* 1 - none')
    assert re.fullmatch(f'kitchen {kitchen} Online since {clock} from 127.0.0.1 - 1 - none', row)
    row = until_row(page, 'camera', 'Refused')
    assert re.fullmatch(rf'camera {camera} Refused \d s ago Wrong code - - - none', row)
    row = until_row(page, 'attic', 'Offline')
    assert re.fullmatch(f'attic {attic} Offline since {clock} was at 127.0.0.1 - - - none', row)
    row = until_row(page, 'Pi-hole', 'Disabled')
    assert re.fullmatch(f'Pi-hole {pihole} Disabled since {clock} - - - none', row)
    row = until_row(page, '3D printer', 'Never seen')
    assert re.fullmatch(rf'3D printer {printer} Never seen created \d+ s ago - - - none', row)
    shown = page.ask()
    assert '<title>(2 offline) 1 of 5 online · rendezvous</title>' in shown
    assert 'All 5 Online 1 Refused 1 Offline 1 Disabled 1 Never seen 1' in text(shown)
    hidden.close()
    until_row(page, 'kitchen', 'Offline')


def test_row_of_one_that_is_online_says_that_two_machines_use_its_file(page, soon, start, register):
    kitchen, attic = add(page, 'kitchen', 'attic')
    server = start()
    for uuid in kitchen, attic:
        register(server, uuid)
    until_row(page, 'kitchen', 'Online')
    server.rendezvous.presence.note_refusal(kitchen, '127.0.0.1', Why('twins', other='192.0.2.1'))
    row = until_row(page, 'kitchen', 'Two machines use its file - 1 - none$')
    assert 'Online since' in row
    assert 'class="why">Two machines use its file</small>' in page.ask()
    assert 'from 127.0.0.1' in until_row(page, 'attic', 'Online')


def test_hidden_server_that_was_deleted_or_renamed_is_so_at_the_next_look(page):
    kitchen, attic = add(page, 'kitchen', 'attic')
    assert [*page.rows()] == ['attic', 'kitchen']
    saving.save(page.entries, kitchen, labels=['Küche'])
    page.entries.delete(attic)
    until(lambda: [*page.rows()] == ['Küche'], 'the page shows both changes', 5)


def test_names_are_sorted_as_people_do_and_headings_sort(page, monkeypatch):
    add(page, 'Till 10', 'till 9', '', 'Äpfel', 'zebra')
    by_name = ['Äpfel', 'Till 9', 'Till 10', 'zebra', '']

    def names(path: str) -> list[str]:
        return [each.replace('till', 'Till') for each in page.rows(path)]

    assert names('/') == by_name
    shown = page.ask()
    assert 'aria-sort="ascending"><a href="/?sort=-name">Hidden server' in shown
    assert 'aria-sort="none"><a href="/?sort=-open">Open' in shown
    assert names('/?sort=-name') == by_name[::-1]
    shown = page.ask('/?sort=-name')
    assert 'aria-sort="descending"><a href="/">Hidden server' in shown
    for column in ('state', 'open', 'waiting', 'today'):
        for order in ('', '-'):
            assert names(f'/?sort={order}{column}') == by_name  # they are equal in all of these


def test_what_is_most_or_worst_comes_first(page, soon, start, register, connect):
    idle, busy, wrong, _ = add(page, 'a idle', 'b busy', 'c wrong', 'd printer')
    server = start()
    for uuid in (idle, busy, busy):
        register(server, uuid)
    connect(server).send(connect_request(wrong, '00000000'))
    until_row(page, 'b busy', '- 2 -')
    until_row(page, 'a idle', '- 1 -')
    until_row(page, 'c wrong', 'Refused')
    hours = {uuid: f'hours:{{{uuid}}}' for uuid in (idle, busy)}
    day, hour = divmod(int(time.time() // 3600), 24)
    page.entries.ask(lambda redis: redis.hset(hours[idle], day, f'{hour} 1000 2000000 3 0'))
    for sort, names in {
        'state': 'cdab',
        '-state': 'abdc',
        '-waiting': 'bacd',
        'waiting': 'cdab',
        '-today': 'abcd',
        'today': 'bcda',
    }.items():
        assert ''.join(name[0] for name in page.rows(f'/?sort={sort}')) == names, sort
    assert 'a idle' in page.rows()
    until_row(page, 'a idle', '↓ down 2 MB ↑ up 1 kB')


def test_chips_filter_with_one_click(page):
    uuids = add(page, 'a', 'b', 'c')
    page.entries.disable(uuids[1])
    until(lambda: 'Disabled' in page.rows()['b'], 'b is disabled')
    shown = page.ask()
    assert '<a href="/" aria-current="true">All <b>3</b>' in shown
    assert re.search('<a href="/[?]state=never-seen">.*Never seen <b>2</b>', shown)
    assert [*page.rows('/?state=never-seen')] == ['a', 'c']
    assert [*page.rows('/?state=disabled')] == ['b']
    shown = page.ask('/?state=disabled&sort=-name&q=b')
    assert re.search(
        '<a href="/[?]state=disabled&amp;q=b&amp;sort=-name" aria-current="true">', shown
    )
    assert '<input type="hidden" name="state" value="disabled">' in shown
    assert 'No hidden server is online. Show all 3' in text(page.ask('/?state=online'))


def test_search_finds_labels_first(page):
    first, second, third, fourth = add(page, 'printer', 'camera 3', 'attic', 'barn')
    saving.save(page.entries, third, note='beside the Printer')
    record = {'state': 'offline', 'since': 1, 'first': 1, 'address': '2001:db8::7'}
    page.entries.ask(lambda redis: redis.set(f'state:{{{fourth}}}', json.dumps(record)))
    until(lambda: len(page.rows('/?q=printer')) == 2, 'the note is there')
    assert [*page.rows('/?q=printer')] == ['printer', 'attic']
    assert [*page.rows('/?q=10000000')] == ['attic', 'barn', 'camera 3', 'printer']
    assert [*page.rows('/?q=3')] == ['camera 3', 'barn']  # a label, and then the UUID of the fourth
    assert [*page.rows(f'/?q={second.upper()}')] == ['camera 3']
    assert [*page.rows('/?q=2001:DB8')] == ['barn']
    nothing = text(page.ask('/?q=<b>&state=never-seen'))
    said = 'Nothing is found: no label, UUID, address or note of what is never seen contains'
    assert said in nothing
    assert '<b>&' not in page.ask('/?q=<b>&state=never-seen')
    assert 'All 2 ' in text(page.ask('/?q=printer'))
    assert page.get('/?q=').text.count('<tr id="e-') == 4
    assert first in page.rows('/?q=printer')['printer']


@pytest.mark.parametrize(
    'query',
    [
        'page=0',
        'page=-1',
        'page=x',
        'page=99999999999999999999',
        'page=1&page=2',
        'state=',
        'state=down',
        'state=%00',
        'sort=',
        'sort=-',
        'sort=--name',
        'sort=uuid',
        'sort=-name%27',
        'q=%20%20',
        'done=nothing',
        'q=&state=&sort=&page=&x=y',
        '%ff=%fe&&&=',
    ],
)
def test_nonsense_in_the_url_means_nothing(page, query):
    add(page, 'a', 'b', 'c')
    until(lambda: len(page.rows(f'/?{query}')) == 3, 'all are shown')


def test_search_takes_no_more_than_a_line(page):
    add(page, 'a')
    until(lambda: page.rows(), 'it is shown')
    assert 'x' * 201 not in page.ask(f'/?q={"x" * 5000}')


def test_fifty_are_on_a_page_and_all_that_is_wanted_stays(page):
    uuids = [str(uuids_.uuid4()) for _ in range(120)]
    values = {uuid: json.dumps({'labels': [f'Machine {n}']}) for n, uuid in enumerate(uuids)}
    page.entries.ask(lambda redis: redis.mset(values))
    until(lambda: len(page.rows()) == 50, 'the scan finds them')
    assert [*page.rows('/?page=3')] == [f'Machine {number}' for number in range(100, 120)]
    assert [*page.rows('/?page=4')] == [*page.rows('/?page=3')]
    shown = page.ask('/?q=machine&state=never-seen&sort=-name&page=2')
    assert '51 to 100 of 120 First Previous 2 of 3 Next Last' in text(shown)
    wanted = '/?state=never-seen&amp;q=machine&amp;sort=-name'
    for number, rel in ((1, 'first'), (1, 'prev'), (3, 'next'), (3, 'last')):
        where = f'{wanted}&amp;page={number}' if number > 1 else wanted
        assert f'<a href="{where}" rel="{rel}">' in shown
    assert f'data-refresh="{wanted}&amp;page=2"' in shown
    assert f'aria-sort="descending"><a href="{wanted.removesuffix("&amp;sort=-name")}">' in shown


def test_hostile_labels_and_notes_are_inert(page):
    (uuid,) = add(page, '"><script>alert(1)</script>{{ 7 * 7 }}')
    saving.save(page.entries, uuid, note='</p><img src=x>')
    until(lambda: page.rows(), 'it is shown')
    for shown in (page.ask(), page.ask('/?q=%22%3E%3Cscript')):
        assert '<script>alert' not in shown
        assert '<img' not in shown
        assert '{{ 7 * 7 }}' in shown
        assert 'aria-label="Choose &#34;&gt;&lt;script&gt;' in shown


def test_times_and_the_day_are_those_of_the_reader(page):
    add(page, 'kitchen')
    noon = time.time() // 86400 * 86400 - 12 * 3600  # of yesterday, in UTC
    record = {'state': 'offline', 'since': noon, 'first': noon, 'address': '192.0.2.1'}
    page.entries.ask(lambda redis: redis.set(f'state:{{{UUID.format(0)}}}', json.dumps(record)))
    until(lambda: 'Offline' in page.rows().get('kitchen', ''), 'it is offline')
    assert 'times are in UTC' in text(page.ask())
    assert ' 12:00 ' in page.rows()['kitchen']
    shown = page.get('/', Cookie='zone=Asia/Kathmandu').text
    assert 'times are in UTC' not in shown
    assert '17:45</time>' in shown
    for nonsense in ('Nowhere/Land', '../../etc/passwd', 'Europe', '', 'x' * 5000):
        assert 'times are in UTC' in text(page.get('/', Cookie=f'zone={nonsense}').text)


def test_never_started_server_says_what_to_run(page):
    shown = text(page.ask())
    assert 'The rendezvous server has not run yet' in shown
    assert 'bin/run.sh Copy' in shown
    assert 'Server Not started yet Workers 0' in shown
    assert 'Add your first hidden server' in shown


def registered(folder: Folder, port: int, uuid: str) -> Peer:
    """A registration at a server of this folder, over TLS."""
    entry = json.loads(files(folder, uuid)[f'{uuid}.json'])
    context = client_context(str(folder.path / 'registrar.crt'))
    sock = socket.create_connection(('127.0.0.1', port))
    peer = Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))
    peer.send(connect_request(uuid, codes.totp(entry['authParams']).now()))
    assert peer.receive(len(OK)) == OK
    return peer


def test_killed_server_is_told_from_an_idle_one_and_from_a_stopped_one(folder):
    page = Visitor(folder)
    uuid = page.made(label='kitchen')

    def said() -> str:
        return text(page.ask('GET').text)

    assert 'The rendezvous server has not run yet' in said()
    server, port = folder.serve()
    until(lambda: 'Up for' in said(), 'it is up, and idle')
    workers = r'Workers \d+ on 1 machine \d+ MB of memory; store: embedded'
    until(lambda: re.search(workers, said()), 'all workers are up')
    assert '<div class="banner bad"' not in page.ask('GET').text
    with closing(registered(folder, port, uuid)):
        until(lambda: 'Online since' in said(), 'it is online')
        assert 'Online 1 Refused 0 Offline 0' in said()
        server.end(signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: 'The rendezvous server is down' in said(), 'the page says so', 5)
        assert time.monotonic() - killed < 5
    shown = said()
    assert 'Online 0 Refused 0 Offline 1' in shown
    assert re.search('kitchen .* Offline since [0-9:]+ the server went down', shown)
    assert f'{socket.gethostname()} (process {server.pid})' in shown
    assert 'it was killed, hangs, or cannot reach the embedded store' in shown
    for command in (
        'journalctl -u rendezvous -n 50',
        'sudo systemctl restart rendezvous',
        'tail -n 20 server.log',
        'bin/run.sh',
    ):
        assert f'{command} Copy' in shown
    assert '<title>Server down' in page.ask('GET').text
    server, port = folder.serve()
    until(lambda: 'Up for' in said() and 'is down' not in said(), 'it is up again')
    server.end()
    until(lambda: 'The rendezvous server was stopped' in said(), 'the page tells the difference', 5)
    assert 'journalctl' not in said()
    assert 'bin/run.sh Copy' in said()


def test_killed_store_is_an_error_and_the_page_is_there_again_with_it(folder, tmp_path):
    with Outside(tmp_path, free_port(), '', '--appendonly', 'yes') as store:
        folder.set(**store.options)
        page = Visitor(folder)
        page.made(label='kitchen')
        assert page.ask('GET').ok
        store.stop()
        until(lambda: page.ask('GET').status_code == 503, 'the page says so', 5)
        tabs = [gevent.spawn(page.ask, 'GET') for _ in range(6)]
        gevent.joinall(tabs, timeout=15, raise_error=True)
        for response in (each.value for each in tabs):
            assert page.refusal(response, 503).startswith('Redis does not answer')
        store.start()
        until(lambda: page.ask('GET').ok, 'the page is there again')
        until(lambda: 'kitchen' in page.ask('GET').text, 'with the entry')
        assert 'Traceback' not in page.program.said()


def worker(node: str, number: int, workers: int) -> state.Worker:
    now = time.time()
    name = f'{node.encode().hex()}0000{number}'[:8].ljust(16, str(number))
    made = state.Worker(
        name, now, node, number, workers, 7, '1.0', now - 7200, 5, 1000, 40_000_000, {}
    )
    return made._replace(address=f'{node}:{8899 + number}', links=1)


def test_top_says_how_many_machines_and_which_workers_are_missing(page):
    living = [worker('attic', 1, 2), worker('cellar', 1, 2), worker('cellar', 2, 2)]
    heard = state.Heard(time.time(), 'attic', 7, '1.0', time.time() - 7200, False)
    channels = [state.channel(each.name) for each in living]

    def write(redis) -> None:
        redis.set(keys.HEARD, json.dumps(heard._asdict()))
        for each in living:
            redis.hset(keys.live(each.name), state.ABOUT, json.dumps(each._asdict()))
            redis.zadd(keys.SERVERS, {each.name: each.at})

    page.entries.ask(write)
    lives = gevent.spawn(lambda: [None for _ in page.entries.changes(*channels)])
    until(lambda: 'Up for' in page.ask(), 'they live')
    shown = text(page.ask())
    assert 'Server Up for 2 h since ' in shown
    said = 'Workers 3 of 4 on 2 nodes 120 MB of memory Connections'
    assert said in shown
    assert 'Connections 15 of 3,000' in shown
    assert 'aria-label="0 % of the connections that are allowed"' in page.ask()
    lives.kill()
    until(lambda: 'The rendezvous server is down' in text(page.ask()), 'all have gone')
