"""Several nodes, as the page, the shell and the metrics tell of them."""

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import gevent
import pytest
from browser import Browser
from conftest import free_port, until
from pages import WORKER, Page, make, served, text
from programs import Folder, Outside
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rendezvous.admin.metrics import Collected
from rendezvous.store import keys
from rendezvous.store import options as local
from rendezvous.store import presence as presence_module
from rendezvous.store.entries import Entries
from rendezvous.store.presence import Presence

START = time.time() - 7200
CLOCK = r'[0-9:]+'


@pytest.fixture
def page(redis_options, start):  # its connections end before those of servers are counted
    with served(local.DEFAULTS | redis_options | {'key_file': None}) as page:
        yield page


class Told:
    """A worker as the page sees it: it signs, and listens until it is killed."""

    def __init__(self, entries: Entries, **about):
        counters = {'began': START, 'rendezvous': 7, 'crossed': 3}
        known = {'node': '192.0.2.1', 'host': 'vps1', 'number': 1, 'workers': 2, 'pid': 77}
        known |= {'version': '1.0', 'since': START, 'connections': 5, 'most': 1000}
        known |= {'memory': 40_000_000, 'counters': counters, 'address': '192.0.2.1:8900'}
        known |= {'links': 1}
        self._entries, self._presence = entries, Presence(entries, lambda: known | about)
        self._listens = gevent.spawn(lambda: [*entries.changes(self._presence.channel)])
        self._presence.write({})
        until(self.is_heard, 'it listens')

    @property
    def name(self) -> str:
        return self._presence.name

    def write(self, counts: dict[str, tuple[int, int]]) -> None:
        self._presence.write(counts)

    def is_heard(self) -> bool:
        channel = self._presence.channel
        ((_, count),) = self._entries.ask(lambda redis: redis.pubsub_numsub(channel))
        return bool(count)

    def kill(self) -> None:
        self._listens.kill()
        until(lambda: not self.is_heard(), 'nobody listens')


@pytest.fixture
def tell(page):
    """Starts workers."""
    workers = []

    def tell(**about) -> Told:
        workers.append(Told(page.entries, **about))
        return workers[-1]

    yield tell
    for worker in workers:
        worker.kill()


def second(tell: Callable[..., Told], number: int = 1, **about) -> Told:
    """A worker of another node."""
    address = f'192.0.2.2:{8899 + number}'
    more = {'node': '192.0.2.2', 'host': 'vps2', 'address': address, 'number': number}
    return tell(**more | about)


def rows(page: Page) -> list[str]:
    """Of the table of nodes; an empty cell is a -."""
    until(lambda: 'up for' in page.ask().lower(), 'the page knows that they live')
    (table,) = re.findall('<table class="plain-table nodes">.*?</table>', page.ask(), re.S)
    return [text(row) for row in re.findall('<tr><th scope="row".*?(?=<tr|</table>)', table, re.S)]


def test_one_node_alone_has_no_table(page, tell):
    tell()
    until(lambda: 'Up for' in page.ask(), 'it lives')
    shown = page.ask()
    assert 'nodes' not in shown
    assert 'Workers 1 of 2 on 1 machine 40 MB of memory Connections' in text(shown)
    assert 'Store Redis at ' in text(shown)


def test_each_node_is_a_row_with_what_its_workers_have_together(page, tell):
    tell(waiting=3, pipes=1, links=2)
    tell(number=2, address='192.0.2.1:8901', waiting=1200, links=1)
    second(tell)
    first, other = until(lambda: len(found := rows(page)) == 2 and found, 'both are there')
    said = rf'192.0.2.1 vps1 Up since {CLOCK} version 1.0 2 of 2 10 of 2,000 1,203 1 3 80 MB'
    assert re.fullmatch(said, first)
    said = rf'192.0.2.2 vps2 Up since {CLOCK} version 1.0 1 of 2 .* - - 1 40 MB'
    assert re.fullmatch(said, other)
    assert 'Workers 3 of 4 on 2 nodes 120 MB of memory Connections' in text(page.ask())
    assert 'Connections 15 of 3,000' in text(page.ask())
    assert '<small class="why">' not in page.ask()  # nothing is wrong


def test_version_that_is_older_than_that_of_others_stands_out(page, tell):
    tell(version='1.9')
    second(tell, version='1.10')
    until(lambda: len(rows(page)) == 2, 'both are there')
    assert '<small class="why">version 1.9, others have 1.10</small>' in page.ask()
    assert '<small>version 1.10</small>' in page.ask()


def test_page_of_one_and_show_say_on_which_nodes_it_is(page, tell, redis_options, tmp_path):
    (uuid,) = make(page, 1)
    page.entries.ask(lambda redis: redis.zrem(keys.SERVERS, WORKER))
    workers = [tell(), tell(number=2, address='192.0.2.1:8901')]
    workers[0].write({uuid: (2, 1)})
    workers[1].write({uuid: (1, 0)})
    until(lambda: '3 waiting' in page.ask(f'/entries/{uuid}'), 'it is known')
    assert 'On nodes' not in page.ask(f'/entries/{uuid}')  # there is one
    second(tell).write({uuid: (4, 0)})
    said = '192.0.2.1 (3 waiting, 1 open), 192.0.2.2 (4 waiting)'
    until(lambda: f'On nodes {said}' in text(page.ask(f'/entries/{uuid}')), 'the page says so')
    with Folder(tmp_path, key_file=None, **redis_options) as folder:
        shown = folder.run('users_app.py', 'show', uuid).stdout
        assert re.search(rf'\nnodes: +{re.escape(said)}\n', shown)


def test_many_nodes_are_folded(page, tell):
    for number in range(1, 11):
        tell(node=f'192.0.2.{number}', address=f'192.0.2.{number}:8900')
    until(lambda: len(rows(page)) == 10, 'all are there')
    assert '<details class="more">' not in page.ask().partition('</section>')[0]
    second(tell, node='192.0.2.11', address='192.0.2.11:8900').kill()
    until(lambda: len(rows(page)) == 11, 'that one has gone', 5)
    assert '<details class="more"><summary>10 nodes, 1 gone</summary>' in page.ask()


def test_node_that_drains_misses_no_worker(page, tell):
    tell(workers=1)
    second(tell, draining=time.time() - 90)
    (_, other) = until(lambda: len(found := rows(page)) == 2 and found, 'both are there')
    assert re.match(rf'192.0.2.2 vps2 Draining since {CLOCK} ', other)
    assert 'Workers 2 on 2 nodes' in text(page.ask())


def test_node_that_was_killed_is_said_and_then_that_it_is_back(page, tell, monkeypatch):
    tell(workers=1)
    second(tell, workers=1).kill()
    gone = rf'192.0.2.2 Gone gave its last sign at {CLOCK} : it was killed, hangs, or cannot .*'
    until(lambda: re.fullmatch(gone, rows(page)[-1]), 'it is gone', 5)
    assert 'Server 1 of 2 nodes up for' in text(page.ask())
    second(tell, workers=1)
    until(lambda: 'Up since' in rows(page)[-1], 'it is back')
    assert 'Server Up for' in text(page.ask())


@pytest.mark.parametrize(
    ('address', 'why'),
    [
        ('', 'it has no node_host: mobile clients elsewhere do not find'),
        ('192.0.2.2:8900', 'it has no link to other nodes: another node_secret, or'),
    ],
)
def test_node_without_links_is_said(page, tell, redis_options, tmp_path, address, why):
    tell()
    second(tell, address=address, links=0)
    tell(node='192.0.2.3', address='192.0.2.3:8900', links=0, since=time.time())  # not yet
    tell(node='192.0.2.4', address='192.0.2.4:8900', links=0, draining=START)
    found = until(lambda: len(found := rows(page)) == 4 and found, 'all are there')
    said = rf'192.0.2.2 (vps2 )?Up since {CLOCK} version 1.0 {why}'
    assert [bool(re.match(said, row)) for row in found] == [False, True, False, False]
    assert 'Server 3 of 4 nodes up for 2 h' in text(page.ask())
    with Folder(tmp_path, key_file=None, **redis_options) as folder:
        status = ' '.join(folder.run('users_app.py', 'status').stdout.split())
        assert ', version 1.0, 3 of 4 nodes ' in status
        assert why in status
        ran = folder.run('users_app.py', 'check')
        assert ran.status == 1
        assert re.fullmatch(f'node 192.0.2.2: {why}.*\n', ran.stdout)


def test_two_nodes_that_cannot_talk_to_each_other_are_both_without_links(page, tell):
    tell(links=0)
    second(tell, links=0)
    until(lambda: len(rows(page)) == 2, 'both are there')
    assert all('it has no link to other nodes' in row for row in rows(page))
    assert 'Server 0 of 2 nodes' in text(page.ask())


def test_node_is_not_blamed_for_another_one_that_has_no_node_host(page, tell):
    tell(links=0)
    second(tell, links=0, address='')
    until(lambda: len(rows(page)) == 2, 'both are there')
    assert ['it has no ' in row for row in rows(page)] == [False, True]


def test_node_that_does_not_reach_another_one_says_so(page, tell, redis_options, tmp_path):
    """Though it has links: the other one calls."""
    other = second(tell, workers=1)
    leaves = tell(node='192.0.2.3', address='192.0.2.3:8900', draining=START, workers=1)
    tell(not_reached=[other.name, leaves.name, '0' * 16, 7], workers=1)
    found = until(lambda: len(found := rows(page)) == 3 and found, 'all are there')
    said = 'it does not reach 192.0.2.2: its mobile clients do not find the hidden servers there;'
    assert [said in row for row in found] == [True, False, False]
    with Folder(tmp_path, key_file=None, **redis_options) as folder:
        assert said in ' '.join(folder.run('users_app.py', 'status').stdout.split())
        ran = folder.run('users_app.py', 'check')
        assert ran.status == 1
        assert re.fullmatch(f'node 192.0.2.1: {said}.*\n', ran.stdout)


@pytest.mark.parametrize(('seconds', 'way'), [(-40, 'behind'), (40, 'ahead of')])
def test_clock_of_a_node_that_differs_is_said(page, tell, monkeypatch, seconds, way):
    tell()
    ours = time.time
    with monkeypatch.context() as patch:
        patch.setattr(presence_module.time, 'time', lambda: ours() + seconds)
        second(tell)
    said = f'its clock is 40 seconds {way} that of Redis: set it, with NTP'
    until(lambda: said in rows(page)[1], 'the page says so')
    assert 'clock' not in rows(page)[0]


def test_two_servers_that_have_one_name_are_two_nodes(page, tell):
    names = {'vps1 (process 7)', 'vps1 (process 8)'}
    for pid in (7, 8):
        tell(node='vps1', address='', pid=pid, workers=1)
    found = until(lambda: len(found := rows(page)) == 2 and found, 'both are there')
    assert {re.split(' Up since', row)[0] for row in found} == names
    samples = [each for family in told(page) for each in family.samples]
    for name in 'rendezvous_workers', 'rendezvous_connections', 'rendezvous_made_total':
        assert {each.labels['node'] for each in samples if each.name == name} == names


def test_two_nodes_at_two_ports_of_one_host_are_two(page, tell):
    tell(number=2, address='192.0.2.1:8901')
    tell(number=2, address='192.0.2.1:8951')
    found = until(lambda: len(found := rows(page)) == 2 and found, 'both are there')
    assert [row.split()[0] for row in found] == ['192.0.2.1:8900', '192.0.2.1:8950']


def test_everybody_can_read_the_nodes_on_each_screen(page, tell, tmp_path):
    tell(workers=1)
    second(tell, node='2001:db8:1234:5678:9abc:def0:1234:5678', version='1.1')
    second(tell, draining=time.time(), host='averylonghostname' * 3)
    tell(node='192.0.2.3', address='192.0.2.3:8900').kill()
    until(lambda: len(rows(page)) == 4, 'all are there', 5)
    browser = Browser(tmp_path)
    try:
        browser.visit(page.url)
        browser.until_it_says('Draining since')
        for width in 320, 390, 720, 768, 1030, 1280:
            for scheme in 'light', 'dark':
                browser.look(width, 800, scheme)
                assert browser.barriers() == []
    finally:
        browser.close()


def told(page: Page) -> list:
    """What Prometheus is told."""
    options = local.DEFAULTS | {'key_file': None}
    answer = generate_latest(Collected(page.looks.current(), options)).decode()
    return list(text_string_to_metric_families(answer))


def test_prometheus_is_told_of_each_node(page, tell):
    tell()
    tell(number=2, address='192.0.2.1:8901', draining=5, links=4)
    second(tell)
    second(tell, number=2).kill()
    tell(node='192.0.2.3', address='192.0.2.3:8900').kill()

    def value(name: str, **labels: str) -> float:
        samples = [each for family in told(page) for each in family.samples]
        named = [each for each in samples if each.name.removesuffix('_total') == name]
        return sum(each.value for each in named if labels.items() <= each.labels.items())

    until(lambda: value('rendezvous_workers') == 3, 'three live', 5)
    assert value('rendezvous_workers_wanted', node='192.0.2.2') == 2
    assert value('rendezvous_draining', node='192.0.2.1') == 1
    assert value('rendezvous_draining', node='192.0.2.2') == 0
    assert value('rendezvous_links', node='192.0.2.1', worker='2') == 4
    assert value('rendezvous_crossed', node='192.0.2.2', worker='1') == 3
    assert value('rendezvous_nodes_gone') == 1
    assert abs(value('rendezvous_clock_ahead_seconds', node='192.0.2.1')) < 5


def test_shell_tells_of_each_node_and_of_what_is_not_well(page, tell, redis_options, tmp_path):
    tell(waiting=3, pipes=1)
    tell(node='192.0.2.3', address='192.0.2.3:8900').kill()
    with Folder(tmp_path, key_file=None, **redis_options) as folder:
        said = folder.run('users_app.py', 'status').stdout
        assert re.search(r'\nworkers: +1 of 2 on 1 node, 40 MB of memory\n', said)
        state = rf'up since {CLOCK} \(2 h.*\), version 1.0.*'
        counts = '5 of 1,000 connections, 3 waiting, 1 pipe, 1 link'
        lines = ['node 192.0.2.1:', state, counts, '1 of 2 workers, 40 MB', 'node 192.0.2.3:']
        assert re.search('\n +'.join(lines).replace(' +node', 'node'), said)
        gone = rf'gave its last sign at {CLOCK}: it was killed, hangs, or cannot reach Redis\n'
        assert re.search(f'\nnode 192.0.2.3:\n    {gone}', said)
        known = json.loads(folder.run('users_app.py', 'status', '--json').stdout)
        assert [each['name'] for each in known['nodes']] == ['192.0.2.1']
        assert known['nodes'][0]['pipes'] == 1
        assert [each['node'] for each in known['gone_nodes']] == ['192.0.2.3']
        ran = folder.run('users_app.py', 'check')
        assert ran.status == 1
        assert re.fullmatch(f'node 192.0.2.3 {gone}', ran.stdout)


def known_nodes(folder: Folder) -> list[dict]:
    return json.loads(folder.run('users_app.py', 'status', '--json').stdout)['nodes']


def test_two_servers_with_one_redis_are_two_nodes(tmp_path):
    """Real ones. Without `node_host` both have the host name of this machine."""
    with Outside(tmp_path, free_port()) as redis:
        options = redis.options | {'workers': 1}
        with Folder(tmp_path / '1', **options) as one, Folder(tmp_path / '2', **options) as other:
            for folder in (one, other):
                folder.pair()
                folder.serve()
            nodes = until(lambda: len(found := known_nodes(one)) == 2 and found, 'both are known')
            assert all(re.fullmatch(r'.* \(process \d+\)', each['name']) for each in nodes)
            assert [each['workers'] for each in nodes] == [1, 1]


def test_nodes_that_are_linked_say_so(tmp_path):
    """Real ones, and one of them is killed."""
    with Outside(tmp_path, free_port()) as redis, ExitStack() as stack:
        servers = []
        for number in (2, 3):
            host = f'127.0.0.{number}'
            options = redis.options | {'workers': 1, 'node_host': host, 'node_port': free_port()}
            options |= {'listen_host': host}
            folder = stack.enter_context(Folder(tmp_path / host, **options))
            folder.pair()
            servers.append(folder.serve()[0])

        def are_linked() -> list[dict] | None:
            found = known_nodes(folder)
            return found if [bool(each['links']) for each in found] == [True, True] else None

        assert re.search(f'listening on port .*, at {host}\n', folder.log())
        nodes = until(are_linked, 'they have links', 20)
        assert [each['name'] for each in nodes] == ['127.0.0.2', '127.0.0.3']
        assert {each['host'] for each in nodes} == {socket.gethostname()}
        assert nodes[0]['address'].startswith('127.0.0.2:')
        servers[0].end(signal.SIGKILL)
        said = 'node 127.0.0.2 gave its last sign at '
        until(lambda: said in folder.run('users_app.py', 'check').stdout, 'it is gone')
