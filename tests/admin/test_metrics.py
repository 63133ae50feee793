"""What Prometheus is told, and what deploy/ has for it and for Grafana, with a real Prometheus."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid as uuids
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import requests
from conftest import (
    DEADLINE_SECONDS,
    OK,
    ROOT,
    Peer,
    client_context,
    code,
    connect_request,
    free_port,
    get,
    until,
)
from programs import Folder, Outside, pids_in
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from visitor import link

from rendezvous.admin.look import Look
from rendezvous.admin.metrics import Collected
from rendezvous.admin.shell import HOST, PORT
from rendezvous.store import options as local
from rendezvous.store import state
from rendezvous.store.entries import Entries
from rendezvous.wire.programs import VERSION

TOKEN = 'a-token.of_some~length+AZ/09=='
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n' + b'x' * 100_000
WRONG = 401, 'no such UUID, or not its code of this moment'
NOBODY = 503, 'the hidden server is not connected'


class Told:
    """What one answer says."""

    def __init__(self, text: str):
        self.text = text
        families = list(text_string_to_metric_families(text))
        self.families = {family.name: family for family in families}
        self._samples = [sample for family in families for sample in family.samples]

    def all(self, name: str, **labels: object) -> list[float]:
        """The values of a metric that have these labels."""
        wanted = {key: str(value) for key, value in labels.items()}.items()
        found = [each for each in self._samples if each.name == f'rendezvous_{name}']
        return [each.value for each in found if wanted <= each.labels.items()]

    def sum(self, name: str, **labels: object) -> float:
        return sum(self.all(name, **labels))


class Watched:
    """A rendezvous server with two workers, a Redis, a page, and what comes to them."""

    def __init__(self, path: Path):
        (path / 'redis').mkdir()
        self.redis = Outside(path / 'redis', free_port())
        options = {'workers': 2, 'rendezvous_wait': 0.2, 'metrics_token': TOKEN}
        self.folder = Folder(path / 'all', **options, **self.redis.options)
        self.folder.pair()
        self.entries = Entries(local.DEFAULTS | self.redis.options)
        self.server, self.port = self.folder.serve()
        self.page = self.folder.start('users_app.py', '--port', '0')
        self.url = link(self.page)[0]
        self._peers = ExitStack()
        self._context = client_context(str(self.folder.path / 'registrar.crt'))

    def connect(self) -> Peer:
        raw = socket.create_connection(('127.0.0.1', self.port), timeout=DEADLINE_SECONDS)
        sock = self._context.wrap_socket(raw, server_hostname='127.0.0.1')
        return self._peers.enter_context(closing(Peer(sock)))

    def made(self) -> str:
        """The UUID of a new entry."""
        uuid = str(uuids.uuid4())
        self.entries.add(uuid, ['kitchen'])
        return uuid

    def register(self, uuid: str) -> Peer:
        peer = self.connect()
        peer.send(connect_request(uuid, code(self.entries, uuid)))
        assert peer.receive(len(OK)) == OK
        return peer

    def visit(self, uuid: str) -> None:
        """A rendezvous from begin to end."""
        hidden, mobile = self.register(uuid), self.connect()
        mobile.send(get(uuid))
        hidden.until(b'\r\n\r\n')
        hidden.send(ANSWER)
        assert mobile.receive(len(ANSWER)) == ANSWER
        hidden.close()
        mobile.close()

    def guess(self, uuid: str) -> None:
        """A wrong code."""
        peer = self.connect()
        peer.send(connect_request(uuid, '00000000'))
        assert peer.answer().status == 401

    def miss(self) -> None:
        """A mobile client that gets a 503."""
        peer = self.connect()
        peer.send(get(str(uuids.uuid4())))
        assert peer.answer().status == 503

    def ask(self, method: str = 'GET', token: str = f'Bearer {TOKEN}', **headers: str):
        headers |= {'Authorization': token} if token else {}
        url = f'{self.url}/metrics'
        return requests.request(method, url, headers=headers, timeout=DEADLINE_SECONDS)

    def told(self) -> Told:
        answer = self.ask()
        assert (answer.status_code, answer.headers['Content-Type']) == (
            200,
            'text/plain; version=0.0.4; charset=utf-8',
        )
        return Told(answer.text)

    def until_told(self, condition, what: str) -> Told:
        """The first answer for which that is true."""

        def told() -> Told | None:
            found = self.told()
            return found if condition(found) else None

        return until(told, what)

    def close(self) -> None:
        self._peers.close()
        self.entries.close()
        with self.folder, self.redis:
            assert 'Traceback' not in self.page.said()
            assert 'Traceback' not in self.folder.log()


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
    watched = Watched(tmp_path_factory.mktemp('watched'))
    yield watched
    watched.close()


@pytest.fixture(scope='module')
def busy(watched):
    """With all that can be counted: among others, five visits, three wrong codes and a 503."""
    known, never, disabled = watched.made(), watched.made(), watched.made()
    watched.entries.disable(disabled)
    for _ in range(5):
        watched.visit(known)
    watched.register(known)
    watched.register(known)
    for _ in range(3):
        watched.guess(never)
    watched.miss()
    with socket.create_connection(('127.0.0.1', watched.port)) as sock:
        sock.sendall(b'\x16\x03\x01\x00\x05hello')  # no handshake
    return watched


def program(name: str) -> str:
    """Without it the test is skipped; with CI set, it fails."""
    why = f'it needs {name}: apt install prometheus'
    found = shutil.which(name)
    if not found:
        pytest.fail(why) if os.environ.get('CI') else pytest.skip(why)
    return found


# Who is told


@pytest.mark.parametrize(
    'token', ['', 'Bearer', f'Bearer {TOKEN}x', f'Bearer {TOKEN[:-1]}', f'Basic {TOKEN}', TOKEN]
)
def test_nobody_without_the_token_is_told_anything(watched, token):
    answer = watched.ask(token=token)
    assert answer.status_code == 401
    assert answer.headers['WWW-Authenticate'] == 'Bearer realm="metrics"'
    assert 'rendezvous_' not in answer.text
    assert TOKEN not in answer.text + watched.page.said()


def test_token_is_enough_by_whatever_name_prometheus_calls_the_page(watched):
    for host in ('vps.example.com:8000', '192.0.2.1', 'a_b'):
        assert 'rendezvous_store_up 1.0' in watched.ask(Host=host).text
    assert watched.ask(token=f'bearer {TOKEN}').status_code == 200
    assert watched.ask('HEAD').text == ''
    assert watched.ask('POST').status_code in (403, 405)


def test_token_opens_nothing_else(watched):
    answer = requests.get(
        f'{watched.url}/', headers={'Authorization': f'Bearer {TOKEN}'}, timeout=9
    )
    assert answer.status_code == 403


def test_without_the_option_it_is_a_page_like_any_unknown_one(folder):
    closed = link(folder.start('users_app.py', '--port', '0'))[0]
    page = folder.start('users_app.py', '--port', '0', '--no-login')
    opened = page.until_it_says(r'http://\S+')[0].rstrip('/')
    for url, host, status in [
        (opened, '127.0.0.1', 404),
        (closed, '127.0.0.1', 403),
        (closed, 'vps.example.com', 403),
    ]:
        for path in ('/metrics', '/nothing'):
            for token in (TOKEN, ''):
                headers = {'Host': host, 'Authorization': f'Bearer {token}'}
                assert requests.get(url + path, headers=headers, timeout=9).status_code == status


# What is told


def test_all_that_happens_is_counted(busy):
    """Each of the two workers tells what it counted within ten seconds."""
    expected = {'refused_total': 4, 'made_total': 5, 'registrations_total': 7}
    expected |= {'handshakes_total': 16, 'handshakes_failed_total': 1, 'store_errors_total': 0}
    expected |= {'registrations_waiting': 2, 'pipes': 0}

    def is_all(told: Told) -> bool:
        return {name: told.sum(name) for name in expected} == expected

    told = busy.until_told(is_all, 'all is counted')
    status, reason = NOBODY
    assert told.sum('refused_total', status=status, reason=reason) == 1
    status, reason = WRONG
    assert told.sum('refused_total', status=status, reason=reason) == 3
    assert told.sum('traffic_bytes_total', direction='down') == 5 * len(ANSWER)
    assert 0 < told.sum('traffic_bytes_total', direction='up') < 1000
    states = {'online': 1, 'refused': 1, 'disabled': 1, 'offline': 0, 'never seen': 0}
    assert {each: told.sum('entries', state=each) for each in state.STATES} == states


def test_server_and_its_workers_are_told(busy):
    told, node, now = busy.told(), socket.gethostname(), time.time()
    assert told.all('store_up') == told.all('server_up') == [1]
    assert told.all('server_info', node=node, version=VERSION) == [1]
    assert told.all('workers', node=node) == told.all('workers_wanted', node=node) == [2]
    assert now - 60 < told.sum('server_start_timestamp_seconds', node=node) < now
    assert now - 30 < told.sum('last_sign_timestamp_seconds') <= now
    for number in (1, 2):
        assert 2**20 < told.sum('memory_bytes', node=node, worker=number) < 2**28
    assert told.sum('connections_max') == local.DEFAULTS.max_connections
    assert told.sum('connections') >= 2
    ends = told.all('certificate_end_timestamp_seconds')
    assert len(ends) == 2  # the server's and its authority's
    assert all(end > now + 86_400 for end in ends)


def test_nothing_that_is_told_names_an_entry(busy):
    text = busy.told().text
    assert not re.search('[0-9a-f]{8}-[0-9a-f]{4}-', text)
    assert 'kitchen' not in text
    assert '127.0.0.1' not in text


def test_names_and_texts_are_as_prometheus_wants_them(busy):
    told = busy.told()
    for name, family in told.families.items():
        assert name.startswith('rendezvous_')
        assert family.documentation.endswith('.')
    checked = subprocess.run(
        [program('promtool'), 'check', 'metrics'],
        input=told.text,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, '', '')


def worker(number: int, began: float, *, node: str = 'vps', version: str = '1.0') -> state.Worker:
    counters = {'began': began, 'handshakes': began, 'refused 503 a "b" \\ c': 1.0}
    return state.Worker(
        name=f'{node}{began}',
        at=100 - began,  # the old one has signed last
        node=node,
        number=number,
        workers=2,
        pid=77,
        version=version,
        since=5.0,
        connections=1,
        most=2000,
        memory=30_000_000,
        counters=counters,
    )


def collected(*workers: state.Worker) -> Told:
    look = Look(state.Server(list(workers), None, []), [], {})
    options = local.DEFAULTS | {'key_file': None}
    return Told(generate_latest(Collected(look, options)).decode())


def test_while_a_server_is_upgraded_its_new_workers_are_told():
    """Prometheus takes no two samples with the same labels."""
    old, new = worker(1, 10), worker(1, 20, version='1.1')
    for both in ((old, new), (new, old)):
        told = collected(*both, worker(2, 10), worker(1, 7, node='other'))
        assert told.all('handshakes_total', node='vps', worker=1) == [20]
        assert sorted(told.all('handshakes_total')) == [7, 10, 20]
        assert told.all('workers', node='vps') == [2]
        assert told.all('server_info', node='vps', version='1.1') == [1]


def test_reason_with_quotes_is_one_label():
    told = collected(worker(1, 10))
    assert told.all('refused_total', status=503, reason='a "b" \\ c') == [1]


def test_plain_http_has_no_certificate_that_ends():
    assert collected().all('certificate_end_timestamp_seconds') == []


# What is down


@pytest.fixture
def alone(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    watched.close()


def test_killed_server_is_down_at_once(alone):
    uuid = alone.made()
    alone.register(uuid)
    told = alone.until_told(lambda told: told.sum('registrations_waiting') == 1, 'it waits')
    heard = told.sum('last_sign_timestamp_seconds')
    alone.server.end(9)
    told = alone.until_told(lambda told: told.all('server_up') == [0], 'it is down')
    assert told.all('store_up') == [1]
    assert told.sum('last_sign_timestamp_seconds') >= heard
    assert told.sum('registrations_waiting') == 0
    assert told.all('handshakes_total') == []


def test_redis_that_is_down_is_told_and_what_is_known_without_it(alone):
    alone.until_told(lambda told: told.all('server_up') == [1], 'it is up')
    alone.redis.stop()
    told = alone.until_told(lambda told: told.all('store_up') == [0], 'it is down')
    assert told.all('server_up') == []
    assert len(told.all('certificate_end_timestamp_seconds')) == 2
    alone.redis.start()
    alone.until_told(lambda told: told.all('server_up') == [1], 'it is up again')


def test_redis_that_does_not_answer_delays_prometheus_for_seconds_only(alone, tmp_path):
    alone.until_told(lambda told: told.all('server_up') == [1], 'it is up')
    (redis,) = pids_in(tmp_path / 'redis')
    os.kill(redis, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        alone.until_told(lambda told: told.all('store_up') == [0], 'it is down')
        assert time.monotonic() - begin < 10  # the scrape_timeout of Prometheus
    finally:
        os.kill(redis, signal.SIGCONT)
    alone.until_told(lambda told: told.all('server_up') == [1], 'it is up again')


# deploy/


class Prometheus:
    """A real one that scrapes a page each second, with the configuration of deploy/."""

    def __init__(self, folder: Path, watched: Watched):
        token, config, port = folder / 'token', folder / 'prometheus.yml', free_port()
        token.write_text(f'{TOKEN}\n')
        text = (ROOT / 'deploy/prometheus.yml').read_text()
        for before, after in {
            'credentials_file: /etc/prometheus/rendezvous.token': f'credentials_file: {token}',
            f"targets: ['{HOST}:{PORT}']": f'targets: [{watched.url.removeprefix("http://")!r}]',
            'scrape_interval: 15s': 'scrape_interval: 1s',
        }.items():
            assert text.count(before) == 1
            text = text.replace(before, after)
        config.write_text(text)
        done = subprocess.run(
            [program('promtool'), 'check', 'config', config], capture_output=True, timeout=9
        )
        assert done.returncode == 0, done
        where = f'127.0.0.1:{port}'
        self._url = f'http://{where}/api/v1'
        command = [program('prometheus'), f'--config.file={config}']
        command += [f'--storage.tsdb.path={folder / "data"}', f'--web.listen-address={where}']
        with (folder / 'said').open('wb') as said:
            self._process = subprocess.Popen(command, stdout=said, stderr=said)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE_SECONDS)

    def data(self, what: str, **parameters: str):
        """What its HTTP API answers; None while it starts."""
        try:
            answer = requests.get(f'{self._url}/{what}', parameters, timeout=DEADLINE_SECONDS)
        except requests.ConnectionError:
            return None
        if answer.status_code == 503:
            return None
        assert answer.json()['status'] == 'success', (parameters, answer.text)
        return answer.json()['data']

    def found(self, query: str) -> list:
        """What an instant query finds."""
        return (self.data('query', query=query) or {'result': []})['result']


@pytest.fixture(scope='module')
def prometheus(busy, tmp_path_factory):
    prometheus = Prometheus(tmp_path_factory.mktemp('prometheus'), busy)
    yield prometheus
    prometheus.close()


def dashboard() -> dict:
    return json.loads((ROOT / 'deploy/grafana.json').read_text())


def queries(instance: str) -> list[str]:
    """All of the dashboard, with its variables filled in."""
    targets = [target for panel in dashboard()['panels'] for target in panel['targets']]
    texts = [target['expr'].replace('$instance', instance) for target in targets]
    return [text.replace('$__rate_interval', '1m') for text in texts]


def test_every_query_of_the_dashboard_finds_data_in_a_real_prometheus(prometheus, busy):
    until(lambda: prometheus.found('up == 1'), 'it has scraped the page')
    until(lambda: prometheus.found('count_over_time(up[1m]) > 2'), 'it has done so three times')
    instance = busy.url.removeprefix('http://')
    for query in queries(instance):
        found = until(lambda query=query: prometheus.found(query), f'{query} finds something')
        assert all(result['value'][1] not in ('NaN', '+Inf') for result in found), query
    (series,) = prometheus.data('series', **{'match[]': 'rendezvous_store_up'})
    assert series['instance'] == instance  # a variable of the dashboard takes it from there


def test_alerts_are_silent_while_all_is_well(prometheus):
    alerts = re.findall(r'(?m)^#     (\S.*)', (ROOT / 'deploy/prometheus.yml').read_text())
    assert len(alerts) == 8
    until(lambda: prometheus.found('rendezvous_server_up == 1'), 'it has scraped the page')
    for alert in alerts:
        assert prometheus.found(alert) == []
        value = re.split(' [<>=]', alert)[0]
        assert prometheus.found(value), f'{value} finds nothing'


def test_visits_are_seen_in_the_rate(prometheus, busy):
    (made,) = until(lambda: prometheus.found('sum(rendezvous_made_total)'), 'it has scraped')
    before = float(made['value'][1])
    uuid = busy.made()
    busy.visit(uuid)
    busy.visit(uuid)
    increase = f'sum(rendezvous_made_total) == {before + 2}'
    until(lambda: prometheus.found(increase), 'it has seen two more')
    until(lambda: prometheus.found('sum(rate(rendezvous_made_total[1m])) > 0'), 'the rate has')


def test_worker_that_starts_anew_is_a_reset_for_prometheus(prometheus, busy):
    def have_handshakes() -> bool:
        busy.connect()
        return all(
            prometheus.found(f'rendezvous_handshakes_total{{worker="{n}"}} > 0') for n in '12'
        )

    until(have_handshakes, 'both workers have had some')
    resets = 'resets(rendezvous_handshakes_total[5m]) > 0'
    assert prometheus.found(resets) == []
    os.kill(busy.folder.workers()[0], signal.SIGKILL)
    (found,) = until(lambda: prometheus.found(resets), 'Prometheus has seen it')
    assert found['metric'].keys() == {'instance', 'job', 'node', 'worker'}
    assert len(prometheus.found('rendezvous_handshakes_total')) == 2


def test_dashboard_can_be_imported():
    board = dashboard()
    assert board['uid'] == 'rendezvous'
    assert board.get('id') is None  # Grafana gives it one
    variables = [each['name'] for each in board['templating']['list']]
    assert variables == ['datasource', 'instance']
    source = {'type': 'prometheus', 'uid': '${datasource}'}
    panels = board['panels']
    assert len({panel['id'] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel['title']
        assert panel['description'].endswith('.')
        assert [each['datasource'] for each in (panel, *panel['targets'])] == [source] * (
            1 + len(panel['targets'])
        )
    places = [panel['gridPos'] for panel in panels]
    cells = [
        (x, y)
        for p in places
        for x in range(p['x'], p['x'] + p['w'])
        for y in range(p['y'], p['y'] + p['h'])
    ]
    assert len(set(cells)) == len(cells)  # none is over another
    assert max(x for x, _ in cells) == 23  # of Grafana's 24 columns


def test_every_metric_is_on_the_dashboard(busy):
    shown = ' '.join(queries('x'))
    hidden = {'rendezvous_last_sign_timestamp_seconds'}
    names = busy.told().families
    assert {name for name in names if name not in shown} == hidden
