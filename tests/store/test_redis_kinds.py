"""Redis of each kind: what redis_url names, and what happens when it moves."""

import gc
import os
import re
import signal
import time
import uuid as uuids
from contextlib import ExitStack, closing, contextmanager, suppress
from types import SimpleNamespace
from urllib.parse import quote

import gevent
import pytest
from conftest import OK, code, connect_request, descriptors, free_port, get, until
from faults import Relay
from gevent.server import StreamServer
from redises import PASSWORD, Node, Sentinel, Watched, cluster, cluster_options, tls_front, watched
from shells import Shell

from rendezvous.admin import entry_files
from rendezvous.store import options as local
from rendezvous.store import questions, state
from rendezvous.store.client import mget
from rendezvous.store.entries import CHANGES, Entries, StoreDown, _error_text, fields_of, scan
from rendezvous.store.options import DEFAULTS


def test_cluster_answers_as_one_redis(redis_cluster):
    with closing(Entries(DEFAULTS | redis_cluster)) as entries:
        assert entries.is_cluster
        entries.open()
        names = [f'key{{{number}}}' for number in range(30)]

        def fill(redis):
            with redis.pipeline(transaction=False) as questions:
                for number, name in enumerate(names):
                    questions.set(name, str(number))
                return questions.execute()

        assert all(entries.ask(fill))
        assert entries.ask(lambda redis: mget(redis, [*names, 'none'])) == [
            *map(str, range(30)),
            None,
        ]
        assert entries.ask(lambda redis: scan(redis, 'key*')) == set(names)
        script = "return redis.call('GET', KEYS[1]) .. ARGV[1]"
        assert entries.run(script, [names[3]], ['!']) == '3!'
        calls = [((name,), ('?',)) for name in names]
        for _ in range(2):
            assert entries.run_all(script, calls) == [f'{number}?' for number in range(30)]
        entries.ask(lambda redis: redis.hset('hash', mapping={'a': '1', 'b': '2'}))
        assert entries.ask(lambda redis: fields_of(redis, 'hash')) == {'a': '1', 'b': '2'}
        assert entries.ask(lambda redis: redis.time())[0] > 1.7e9
        assert entries.ask(lambda redis: redis.delete(*names, 'hash')) == 31


def test_first_questions_at_once_make_one_client(redis_cluster):
    before = descriptors()
    for _ in range(5):
        entries = Entries(DEFAULTS | redis_cluster)
        asking = [gevent.spawn(entries.get, str(uuids.uuid4())) for _ in range(30)]
        gevent.joinall(asking, raise_error=True)
        entries.close()
        assert descriptors() <= before


def test_connection_that_is_given_up_is_closed_after_its_answer(redis_options):
    """Even where something still refers to it, as the traceback of an error does."""
    before, kept = descriptors(), []

    def question(redis) -> None:
        kept.append(redis.connection_pool.get_connection())
        entries._line.renew()
        redis.connection_pool.release(kept[0])

    with closing(Entries(DEFAULTS | redis_options)) as entries:
        entries.ask(question)
        assert descriptors() <= before


def test_after_a_fail_over_the_primary_that_sentinels_name_is_asked(sentinels):
    with closing(Entries(DEFAULTS | sentinels.options)) as entries:
        entries.open()
        before = sentinels.primary()
        assert entries.ask(lambda redis: redis.set('a', '1'))
        sentinels.fail_over()
        assert sentinels.primary() != before
        began = time.monotonic()
        assert entries.ask(lambda redis: redis.set('a', '2'))
        assert time.monotonic() - began < 5
        assert entries.ask(lambda redis: redis.get('a')) == '2'


class Listener:
    """Who follows the changes for as long as Redis answers, and then begins anew, as a worker."""

    def __init__(self, entries: Entries):
        self.heard, self._entries = set(), entries
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            with suppress(StoreDown):
                for _, uuid in self._entries.changes():
                    self.heard.add(uuid)
            gevent.sleep(0.1)

    def hears(self) -> None:
        """Returns when a change is told that is made now."""
        self.heard.clear()
        until(lambda: self._made(str(uuids.uuid4())), 'a change is told', 15)

    def _made(self, uuid: str) -> bool:
        with suppress(StoreDown):
            self._entries.add(uuid, [])
            gevent.sleep(0.1)
        return uuid in self.heard

    def stop(self) -> None:
        self._greenlet.kill()


FAULTS = {
    'killed': lambda watched, primary: primary.kill(),
    'frozen': lambda watched, primary: os.kill(primary.pid, signal.SIGSTOP),
    'demoted': lambda watched, primary: watched.sentinels[0].ask(
        'SENTINEL', 'FAILOVER', watched.service
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_after_a_fault_the_primary_that_sentinels_name_answers_and_tells(sentinels, fault):
    before, counted = sentinels.primary(), descriptors()
    with closing(Entries(DEFAULTS | sentinels.options)) as entries:
        listener = Listener(entries)
        listener.hears()
        FAULTS[fault](sentinels, sentinels.nodes[0])
        sentinels.until_moved(before)
        listener.hears()
        count = 'PUBSUB', 'NUMSUB', CHANGES
        until(lambda: sentinels.nodes[1].ask(*count) == [CHANGES, 1], 'it listens there', 15)
        listener.stop()
    until(lambda: descriptors() <= counted, 'no descriptor is left')


USER, ODD = 'rendezvous', 'p@ss/w#rd:%?'  # a password that has to be encoded
URL = f'{USER}:{quote(ODD, safe="")}@'


@contextmanager
def one_redis(folder, *more: str):
    """One Redis with a user of its own."""
    node = Node(folder, *more)
    with closing(node):
        rules = (
            'on',
            f'>{ODD}',
            '~*',
            'resetchannels',
            '&entries',
            '&tries',
            '&live:*',
            '&answers:*',
        )
        node.ask('ACL', 'SETUSER', USER, *rules, '+@all', '-@dangerous')
        node.ask('CONFIG', 'SET', 'requirepass', 'nobody knows it')
        yield node


@contextmanager
def plain(folder, _):
    with one_redis(folder) as node:
        yield f'redis://{URL}localhost:{node.port}/3'


@contextmanager
def by_tls(folder, pair):
    with one_redis(folder) as node, tls_front(node.port, pair) as port:
        yield f'rediss://{URL}127.0.0.1:{port}/?ssl_ca_certs={quote(pair["crt_file"])}'


@contextmanager
def by_path(folder, _):
    with one_redis(folder, '--unixsocket', str(folder / 'a redis.sock')):
        yield f'unix://{URL}{quote(str(folder))}/a%20redis.sock?db=7'


@contextmanager
def of_sentinels(folder, _):
    with watched(folder) as found:
        yield found.options['redis_url']


@contextmanager
def of_a_cluster(folder, _):
    with cluster(folder) as nodes:
        yield cluster_options(nodes[:1])['redis_url']


@contextmanager
def of_a_cluster_by_tls(folder, pair):
    with cluster(folder) as nodes, ExitStack() as stack:
        for node in nodes:
            port = stack.enter_context(tls_front(node.port, pair))
            node.ask('CONFIG', 'SET', 'cluster-announce-port', port)
            until(lambda p=port: all(f':{p}@' in each.nodes() for each in nodes), 'all know it')
        more = f'?ssl_ca_certs={quote(pair["crt_file"])}'
        yield cluster_options([SimpleNamespace(port=port)])['redis_url'].replace('s+', 'ss+') + more


@contextmanager
def of_sentinels_by_tls(folder, pair):
    """A Sentinel itself asks for its primary without TLS."""
    with ExitStack() as stack:
        node = stack.enter_context(closing(Node(folder, '--requirepass', PASSWORD)))
        port = stack.enter_context(tls_front(node.port, pair))
        of = SimpleNamespace(service=Watched.service, nodes=[SimpleNamespace(port=port)])
        sentinel = stack.enter_context(closing(Sentinel(folder, of)))
        listed = 'CLIENT', 'LIST'
        until(lambda: node.ask(*listed).count('name=sentinel-') == 2, 'it has both connections')
        port = stack.enter_context(tls_front(sentinel.port, pair))
        more = f'?ssl_ca_certs={quote(pair["crt_file"])}'
        yield f'rediss+sentinel://:{PASSWORD}@127.0.0.1:{port}/{of.service}/1{more}'


KINDS = plain, by_tls, by_path, of_sentinels, of_sentinels_by_tls, of_a_cluster, of_a_cluster_by_tls


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def redis_url(request, tmp_path, pair):
    with request.param(tmp_path, pair) as url:
        yield url


def test_question_that_is_given_up_leaves_its_answer_to_no_other_one(redis_url):
    """A time limit ends one, another one ends with its greenlet."""
    slow = "for n = 1, 1e7 do end; return redis.call('GET', KEYS[1])"
    with closing(Entries(DEFAULTS | {'redis_url': redis_url})) as entries:
        entries.ask(lambda redis: redis.set('key', 'value'))
        for _ in range(2):
            with gevent.Timeout(0.02, False):
                pytest.fail(entries.run(slow, ['key']))
            asking = gevent.spawn(entries.run, slow, ['key'])
            asking.join(timeout=0.02)
            asking.kill()
        assert entries.ask(lambda redis: redis.get('nothing')) is None
        assert entries.ask(lambda redis: redis.delete('key')) == 1


def test_all_that_a_server_does_goes_with_each_kind(
    redis_url, pair, tmp_path, monkeypatch, start, connect, caplog
):
    file = tmp_path / 'local.py'
    file.write_text(f'options = {pair | {"redis_url": redis_url}!r}')
    file.chmod(0o600)
    options = local.load(file)
    monkeypatch.setattr(local, 'load', lambda: options)
    monkeypatch.setattr(entry_files, 'FILES', tmp_path / 'entries')
    shell = Shell(SimpleNamespace(path=tmp_path))
    caplog.set_level('INFO')
    server = start(redis_url=redis_url, redis_host=None, redis_port=6379, redis_auth='')
    shell.says('add', 'kitchen')
    (entry,) = shell.listed()
    uuid, entries = entry['uuid'], server.entries
    wrong = connect(server)
    wrong.send(connect_request(uuid, '0' * 40))
    assert wrong.answer().status == 401
    hidden, mobile = connect(server), connect(server)
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.receive(len(OK)) == OK
    until(lambda: shell.listed('--online'), 'it is online', 15)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    (pipe,) = questions.open_pipes(entries, state.server(entries), uuid)
    assert pipe.sent > 0
    hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
    hidden.close()
    assert mobile.answer().status == 200
    mobile.close()
    until(lambda: state.history(entries, uuid), 'the rendezvous is kept', 15)
    assert state.refusals(entries, uuid)
    hidden = connect(server)
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.receive(len(OK)) == OK
    shell.says('rekey', '--yes', 'kitchen')
    assert hidden.rest() == b''  # it was told
    assert 'kitchen' in shell.says('show', 'kitchen')
    assert 'Redis' in shell.says('status')
    shell.says('delete', '--yes', 'kitchen')
    assert shell.listed() == []
    assert entries.errors == 0
    for secret in ODD, quote(ODD, safe=''), PASSWORD:
        assert secret not in caplog.text + shell.says('status') + entries.where()


def test_each_kind_is_told_where_it_is_and_not_the_password(redis_url):
    with closing(Entries(DEFAULTS | {'redis_url': redis_url})) as entries:
        assert re.search(r'Redis .*(127\.0\.0\.1:\d|localhost:\d|redis\.sock)', entries.where())
        for secret in ODD, quote(ODD, safe=''), PASSWORD:
            assert secret not in entries.where()


@pytest.mark.parametrize('fault', ['killed', 'frozen'])
def test_after_a_fault_in_a_cluster_all_is_told_and_answered(tmp_path, fault):
    """The node that has the subscription is hit, and its replica takes its place."""
    count = 'PUBSUB', 'NUMSUB', CHANGES
    with (
        cluster(tmp_path, 3, 3) as nodes,
        closing(Entries(DEFAULTS | cluster_options(nodes[:2]))) as entries,
    ):
        counted, listener = descriptors(), Listener(entries)
        listener.hears()
        (hit,) = [node for node in nodes if node.ask(*count)[1]]
        FAULTS[fault](None, hit)
        left = [node for node in nodes if node is not hit]
        until(lambda: sum(node.ask(*count)[1] for node in left) == 1, 'it listens to another', 20)
        until(lambda: writes_everywhere(entries), 'each slot is served again', 20)
        listener.hears()
        listener.stop()
        entries.close()
        # redis-py leaves connections to a node that has gone to the collection of garbage.
        until(lambda: gc.collect() is None or descriptors() <= counted, 'no descriptor is left')


def writes_everywhere(entries: Entries) -> bool:
    """Whether the keys of many slots can be written."""
    with suppress(StoreDown):
        return all(entries.insert(str(uuids.uuid4()), {}) for _ in range(30))
    return False


@pytest.mark.parametrize('fault', ['demoted', 'frozen', 'still a primary'])
def test_subscription_goes_where_the_questions_go_when_redis_has_moved(tmp_path, fault):
    """By hand: another one is the primary, and from now on the same address leads to it."""
    with closing(Node(tmp_path)) as old, closing(Node(tmp_path)) as new:
        new.ask('REPLICAOF', '127.0.0.1', old.port, password='')
        until(lambda: new.follows(''), 'it has the data of the old one')
        relay = Relay(('127.0.0.1', old.port))
        with closing(
            Entries(DEFAULTS | {'redis_url': f'redis://127.0.0.1:{relay.port}'})
        ) as entries:
            listener = Listener(entries)
            listener.hears()
            new.ask('REPLICAOF', 'NO', 'ONE', password='')
            relay._address = '127.0.0.1', new.port
            if fault == 'demoted':
                old.ask('REPLICAOF', '127.0.0.1', new.port, password='')
            elif fault == 'frozen':
                os.kill(old.pid, signal.SIGSTOP)
            else:  # who is sent to the new one by chance is enough
                entries._reconnect()
            until(lambda: new.ask('PUBSUB', 'NUMSUB', CHANGES, password='')[1] == 1, 'it moves', 15)
            listener.hears()
            listener.stop()
        relay.stop()


# server.py with an /etc/hosts of its own, the file in its first argument
WITH_HOSTS = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
new, private, bind = 0x20000, 0x44000, 4096
hosts = sys.argv[1].encode()
if libc.unshare(new) or libc.mount(b'', b'/', b'', private, b''):
    sys.exit(77)
if libc.mount(hosts, b'/etc/hosts', b'', bind, b''):
    sys.exit(77)
os.execv(sys.executable, [sys.executable, 'server.py'])
"""


class At(Node):
    """A Redis at another address of this machine, on a port that the other one has, too."""

    def __init__(self, folder, host: str, port: int):
        self.host, self.port, self.folder, self._more = host, port, folder / host, ()
        self.folder.mkdir()
        self.start()


def test_server_goes_where_the_name_of_its_redis_leads(folder, tmp_path):
    """The old one is well, and a primary still: nothing but the name tells."""
    hosts, port = tmp_path / 'hosts', free_port()
    hosts.write_text('127.0.0.2 redis.example\n')
    with (
        closing(At(tmp_path, '127.0.0.2', port)) as old,
        closing(At(tmp_path, '127.0.0.3', port)) as new,
    ):
        folder.set(redis_url=f'redis://redis.example:{port}/', workers=2)
        program = folder.start('-c', WITH_HOSTS, str(hosts))
        count = 'PUBSUB', 'NUMSUB', CHANGES
        until(lambda: program.process.poll() or old.ask(*count, password='')[1] == 2, 'it serves')
        if program.process.poll() == 77:
            pytest.skip('only root may give a program another /etc/hosts')
        hosts.write_text('127.0.0.3 redis.example\n')
        until(lambda: new.ask(*count, password='')[1] == 2, 'it has moved', 20)
        until(lambda: new.ask('ZCARD', 'servers', password='') == 2, 'it writes there')
        assert old.ask(*count, password='')[1] == 0
        assert f'the entries are in Redis at redis.example:{port}' in folder.log()


def test_programs_go_with_a_redis_url(folder, tmp_path, pair):
    """Sentinels by a local.py, a fail-over, and a password that is wrong."""
    with watched(tmp_path / 'watched') as found:
        folder.set(**found.options, workers=2)
        entry = folder.add('kitchen')
        folder.serve()
        found.fail_over()
        new = next(node for node in found.nodes if node.port == found.primary())
        until(lambda: new.ask('PUBSUB', 'NUMSUB', CHANGES)[1] == 2, 'both workers follow', 15)
        assert folder.listed() == {entry['uuid'][0]: 'kitchen'}
        url = folder.options['redis_url'].replace(PASSWORD, 'swordfish')
        folder.set(redis_url=url)
        sentence = folder.run('server.py', '--check').sentence()
        assert re.match(r'Redis refuses us \(.*\): set user and password of redis_url', sentence)
        assert 'swordfish' not in sentence + folder.log()


def test_hosts_that_do_not_answer_are_one_sentence(folder):
    ports = free_port(), free_port()
    refused = r'Error 111 connecting to 127\.0\.0\.1:\d+\. Connection refused\.'
    unnamed = 'no Sentinel names a primary: ConnectionError'
    for kind, end, why in ('sentinel', '/rendezvous', unnamed), ('cluster', '', refused):
        hosts = ','.join(f'127.0.0.1:{port}' for port in ports)
        folder.set(redis_url=f'redis+{kind}://:{PASSWORD}@{hosts}{end}')
        sentence = folder.run('server.py', '--check').sentence()
        assert re.match(
            rf'Redis does not answer \({why}\): start it, or set redis_url in', sentence
        )
        assert PASSWORD not in sentence


def test_tls_on_one_side_alone_is_said(folder, tmp_path, pair):
    with one_redis(tmp_path) as node:
        files = {'keyfile': pair['key_file'], 'certfile': pair['crt_file']}
        tls = StreamServer(('127.0.0.1', 0), lambda sock, _: sock.recv(100), **files)
        with closing(tls):
            tls.start()
            folder.set(redis_url=f'redis://127.0.0.1:{tls.server_port}')
            sentence = folder.run('server.py', '--check').sentence()
        assert sentence.endswith('; or it has TLS: rediss:// in redis_url')
        folder.set(redis_url=f'rediss://127.0.0.1:{node.port}')
        sentence = folder.run('server.py', '--check').sentence()
        assert sentence.endswith('; or it has no TLS: redis://')


def test_sentinel_that_wants_a_password_is_said(folder, tmp_path):
    with watched(tmp_path / 'watched') as found:
        for each in found.sentinels:
            each.ask('ACL', 'SETUSER', 'default', 'resetpass', '>swordfish')
        folder.set(**found.options)
        sentence = folder.run('server.py', '--check').sentence()
        assert 'a Sentinel wants a password, see ?sentinel_password= in local.example' in sentence
        folder.set(redis_url=f'{folder.options["redis_url"]}?sentinel_password=swordfish')
        assert folder.run('server.py', '--check').status == 0


def test_error_of_a_script_is_told_without_its_hash():
    said = f'NOPERM no permissions script: {"5f" * 20}, on @user_script:1.'
    assert _error_text(said) == 'NOPERM no permissions'
