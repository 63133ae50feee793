"""The parent and its workers: what dies is started again; a new version takes over or does not.

Most tests share one server with two workers. Each of them waits until it is as it was.
"""

import fcntl
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import gevent
import pytest
from conftest import Peer, client_context, free_port, get, until
from gevent.event import Event
from hiding import HEAD_ENDS, HELLO, Listener
from programs import Folder, Outside, listens

from rendezvous.admin import authority
from rendezvous.hidden.hidden_server import HiddenServer
from rendezvous.hidden.target import Target

RUN_SH = '-c', 'import os; os.execv("/bin/sh", ["sh", "bin/run.sh"])'
PER_ADDRESS = 80  # connections
GOES_ON = 'the new version cannot start: .*{}.*; the old one continues'


class Server:
    """A server.py, its workers, and what it has logged since the test began."""

    def __init__(self, folder: Folder, *arguments: str):
        self.folder = folder
        self.program, self.port = folder.serve(*arguments)
        self.pid = self.program.pid
        self.begin()

    def begin(self) -> None:
        self._logged = len(self.folder.log())
        self.workers = self.folder.workers()

    def log(self) -> str:
        return self.folder.log()[self._logged :]

    def until_logged(self, pattern: str, times: int = 1) -> list:
        def found() -> list | None:
            there = re.findall(pattern, self.log())
            return there if len(there) >= times else None

        return until(found, f'{times} times in the log: {pattern}')

    def tries(self) -> int:
        """How many times it or a new version of it has said whether that serves."""
        return int((self.folder.path / 'server.pid').read_text().partition('-')[2])

    def renew(self, signals: int = 1) -> str:
        """Has it take a new version; whether that is 'good', or it has 'failed'."""
        before = self.tries()
        for _ in range(signals):
            os.kill(self.pid, signal.SIGUSR2)
        until(lambda: self.tries() > before, 'it has tried the new version')
        return (self.folder.path / 'server.pid').read_text().split()[1].partition('-')[0]

    def until_workers_are(self, count: int) -> list[int]:
        until(lambda: len(self.folder.workers()) == count, f'there are {count} workers')
        return self.folder.workers()

    def connect(self) -> Peer:
        context = client_context(str(self.folder.path / 'registrar.crt'))
        sock = socket.create_connection(('127.0.0.1', self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))

    def status(self) -> int:
        """Of the answer to a request that names nobody: 401."""
        peer = self.connect()
        try:
            peer.send(b'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
            return peer.answer().status
        finally:
            peer.close()

    def sockets(self) -> dict[int, int]:
        """How many each worker has."""
        return {pid: len(list(sockets_of(pid))) for pid in self.folder.workers()}

    @contextmanager
    def edited(self, name: str, *change: str):
        """Has another text in a file: the first of `change` replaced, or it as all there is."""
        path = self.folder.path / name
        before = path.read_text()
        path.write_text(before.replace(*change) if len(change) == 2 else change[0])
        assert path.read_text() != before
        yield
        path.write_text(before)


def sockets_of(pid: int):
    for file in Path(f'/proc/{pid}/fd').iterdir():
        with suppress(FileNotFoundError):
            if (target := os.readlink(file)).startswith('socket:'):
                yield target


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    with Folder(tmp_path_factory.mktemp('shared'), workers=2) as folder:
        folder.pair()
        folder.set(max_connections_per_address=PER_ADDRESS)
        yield Server(folder)


@pytest.fixture
def server(shared):
    """The server that tests share."""
    shared.begin()
    yield shared
    shared.until_workers_are(2)
    assert shared.status() == 401
    assert shared.program.said() == ''


@pytest.fixture
def serve(tmp_path):
    """Starts a server of the test's own."""
    with Folder(tmp_path, workers=1) as folder:
        folder.pair()

        def serve(*arguments: str, **options) -> Server:
            folder.set(**options)
            return Server(folder, *arguments)

        yield serve


class Held:
    """A local server; it answers a request for /held by half, and by the rest when it is let go."""

    def __init__(self):
        self.go_on = Event()
        self._listener = Listener(self._answer)
        self.address = '127.0.0.1', self._listener.port

    def _answer(self, peer: Peer) -> None:
        if b' /held ' in peer.until(HEAD_ENDS):
            peer.send(HELLO[:-2])
            self.go_on.wait()
            peer.send(HELLO[-2:])
        else:
            peer.send(HELLO)

    def stop(self) -> None:
        self._listener.stop()


@pytest.fixture
def hide():
    """Starts a hidden server in this process, for a server; its UUID, and its local server."""
    to_stop = []

    def hide(server: Server) -> tuple[str, Held]:
        local, entry = Held(), server.folder.add('kitchen')
        entry['server']['port'] = server.port
        hidden = HiddenServer(entry, Target(*local.address), 4)
        hidden.start()
        to_stop.append((hidden, local))
        (uuid,) = entry['uuid']
        until(lambda: f'registered {uuid}' in server.log(), 'it is there')
        return uuid, local

    yield hide
    for hidden, local in to_stop:
        hidden.stop(0)
        local.stop()


@contextmanager
def asked(server: Server, uuid: str, target: str = '/'):
    """A mobile client that has asked."""
    peer = server.connect()
    peer.send(get(uuid, target))
    yield peer
    peer.close()


@contextmanager
def held(server: Server, uuid: str):
    """A mobile client that has half of its answer."""
    with asked(server, uuid, '/held') as peer:
        peer.until(HELLO[:-2])
        yield peer


@contextmanager
def load(server: Server, uuid: str):
    """A few mobile clients, one request after the other; each is answered."""
    over = Event()
    answers: list[bytes] = []

    def ask() -> None:
        while not over.is_set():
            with asked(server, uuid) as peer:
                answers.append(peer.rest())

    clients = [gevent.spawn(ask) for _ in range(3)]
    yield answers
    over.set()
    gevent.joinall(clients, raise_error=True)
    assert set(answers) == {HELLO}


# What dies


def test_killed_worker_is_started_again_and_meanwhile_the_other_answers(server):
    os.kill(server.workers[0], signal.SIGKILL)
    while 'started again' not in server.log() or len(server.folder.workers()) < 2:
        assert server.status() == 401
    server.until_logged(r'ERROR worker [12] was ended by signal 9; it is started again in 0\.\d s')
    (new,) = set(server.folder.workers()) - set(server.workers)
    os.kill(server.workers[1], signal.SIGSTOP)
    assert server.status() == 401  # by the new one
    os.kill(server.workers[1], signal.SIGCONT)
    os.kill(new, 0)


def test_pauses_grow_for_a_worker_that_dies_at_once(server):
    assert server.renew() == 'good'  # it forgets who died before
    other, victim = server.until_workers_are(2)
    for times in range(1, 5):
        os.kill(victim, signal.SIGKILL)
        server.until_logged('started again', times)
        known = {other, victim}
        (victim,) = until(lambda known=known: set(server.folder.workers()) - known, 'it is back')
    assert server.until_logged(r'signal 9; it is started again in (.*) s') == [
        '0.0',
        '0.1',
        '0.3',
        '0.7',
    ]


def test_process_that_cannot_be_started_now_is_started_later(server):
    """Descriptors, memory or processes may be used up for a while."""
    limit = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
    os.kill(server.workers[0], signal.SIGKILL)
    os.kill(server.folder.stores()[0], signal.SIGKILL)
    server.until_logged('worker . cannot be started: .*; it is started again')
    server.until_logged('the embedded store cannot be started: .*; it is started again')
    assert server.status() == 401
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limit)
    server.until_workers_are(2)
    until(server.folder.stores, 'the store is back')


def test_worker_that_never_serves_is_complained_of(tmp_path):
    with Folder(tmp_path, workers=1, key_file=None) as folder:
        for name, *change in (
            ('parent.py', 'START_SECONDS = 60', 'START_SECONDS = 1'),
            ('worker.py', '    worker.start()\n', '    gevent.sleep(3600)\n'),
        ):
            path = folder.path / 'rendezvous' / 'server' / name
            path.write_text(path.read_text().replace(*change))
        folder.start('server.py')
        complaint = 'the server is not ready: its workers do not serve after 1 s'
        until(lambda: complaint in folder.log(), complaint)


def test_one_worker_alone_loses_nobody_who_comes_while_it_is_started_again(serve):
    server = serve()
    (worker,) = server.workers
    os.kill(worker, signal.SIGKILL)
    assert server.status() == 401
    server.until_logged('worker 1 was ended by signal 9')
    assert server.program.end() == 0


def test_all_ends_with_a_parent_that_is_killed_and_the_next_one_starts_at_once(serve):
    """Also after a new version, whose children must hold neither the port nor the lock."""
    server = serve(workers=2, rendezvous_port=free_port())
    assert server.renew() == 'good'
    server.until_workers_are(2)
    before = server.folder.stores()
    os.kill(before[0], signal.SIGKILL)
    until(lambda: set(server.folder.stores()) - set(before), 'the store is started again')
    left = {*server.folder.pids()} - {server.pid}
    (store,) = server.folder.stores()
    os.kill(store, signal.SIGSTOP)  # it takes its time to end
    server.program.end(signal.SIGKILL)
    until(lambda: not listens(server.port), 'the port is free')
    with (server.folder.path / 'server.pid').open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(store, signal.SIGCONT)
    again = Server(server.folder, *RUN_SH)
    assert again.port == server.port
    assert again.status() == 401
    until(lambda: not left & {*server.folder.pids()}, 'nothing of the first one is left')
    assert again.program.end() == 0
    server.folder.until_nothing_runs()


# A new version


def test_new_version_fails_no_request_and_old_workers_finish_their_pipes(server, hide):
    uuid, local = hide(server)
    with held(server, uuid) as pipe:
        with load(server, uuid) as answers:
            assert server.renew() == 'good'
            before = len(answers)
            until(lambda: len(answers) > before + 10, 'new workers answer')
        assert set(server.until_workers_are(3)) & set(server.workers)
        local.go_on.set()
        assert pipe.rest() == HELLO[-2:]
    assert not set(server.until_workers_are(2)) & set(server.workers)
    os.kill(server.pid, 0)


def test_new_versions_in_a_row_and_while_one_starts_fail_no_request(server, hide):
    uuid, _ = hide(server)
    with load(server, uuid):
        before = server.tries()
        for _ in range(5):
            os.kill(server.pid, signal.SIGUSR2)
            gevent.sleep(0.01)
        until(lambda: len(server.folder.workers()) > 2, 'new workers start')
        assert server.renew(3) == 'good'
    assert server.tries() == before + 1  # the last one counts
    assert len(server.until_logged('listening on port')) == 2
    assert not set(server.until_workers_are(2)) & set(server.workers)


@pytest.mark.parametrize(
    ('name', 'change', 'why'),
    [
        ('rendezvous/server/worker.py', ['def main()', 'def main('], 'SyntaxError'),
        ('rendezvous/server/parent.py', ['def main()', 'def main('], 'SyntaxError'),
        ('rendezvous/server/pid_file.py', ['import fcntl', 'import fcntI'], 'ModuleNotFoundError'),
        ('local.py', ["options = {'rendezvous_prot': 1}"], "there is no option 'rendezvous_prot'"),
        ('local.py', ["options = {'key_file': 'gone/key'}"], 'gone/key'),
        ('local.py', ["options = {'redis_host': '127.0.0.1', 'redis_port': 1}"], 'does not answer'),
        ('local.py', ['import os\nos.kill(os.getpid(), 9)'], 'Killed'),
    ],
    ids=['worker', 'parent', 'pid file', 'option', 'key', 'redis', 'killed'],
)
def test_version_that_cannot_start_leaves_the_old_one_as_it_is(server, name, change, why):
    with server.edited(name, *change):
        assert server.renew() == 'failed'
        server.until_logged(f'(?s){GOES_ON.format(why)}')
        assert server.status() == 401
        assert server.folder.workers() == server.workers


@pytest.mark.parametrize('dies', ['at once', 'after the trial'])
def test_version_whose_workers_die_leaves_the_old_ones_and_the_next_good_one_serves(server, dies):
    """... and bin/run.sh, which has brought it, says so."""
    line, port = '        worker.start()\n', free_port()
    change = {'at once': '        1 / 0\n', 'after the trial': f'{line}        os._exit(3)\n'}[dies]
    server.folder.set(rendezvous_port=port)
    with server.edited('rendezvous/server/worker.py', line, change):
        ran = server.folder.run(*RUN_SH)
        assert ran.status == 1
        assert 'it continues with the old version; see server.log' in ran.stdout
        server.until_logged(GOES_ON.format('worker . ended with [13]'))
    if dies == 'at once':
        server.until_logged('(?s)CRITICAL the worker dies\n.*ZeroDivisionError')
        server._logged = len(server.folder.log())
    assert server.until_workers_are(2) == server.workers
    assert server.status() == 401
    assert not listens(port)
    server.folder.set(rendezvous_port=0)
    os.kill(server.workers[0], signal.SIGKILL)  # the old ones are still looked after
    server.until_logged('is started again')
    assert server.renew() == 'good'


def test_port_in_use_leaves_the_old_version_and_what_it_waits_to_start(server):
    for _ in range(3):  # now it pauses before it starts the next one
        (worker,) = until(lambda: server.folder.workers()[1:], 'two workers')
        os.kill(worker, signal.SIGKILL)
        until(lambda worker=worker: worker not in server.folder.workers(), 'it has ended')
    with socket.create_server(('127.0.0.1', 0)) as other:
        server.folder.set(rendezvous_port=other.getsockname()[1])
        assert server.renew() == 'failed'
    server.until_logged(GOES_ON.format('Address already in use'))
    assert server.status() == 401
    server.until_workers_are(2)
    server.folder.set(rendezvous_port=0)
    assert server.renew() == 'good'


def test_log_that_cannot_be_written_leaves_the_old_version(server):
    log = server.folder.path / 'server.log'
    log.rename(log.with_name('kept'))
    log.mkdir()
    try:
        assert server.renew() == 'failed'
        assert server.status() == 401
    finally:
        log.rmdir()
        log.with_name('kept').rename(log)
    assert server.folder.workers() == server.workers


def test_trial_that_hangs_delays_neither_the_next_one_nor_the_end(serve):
    server = serve()
    with server.edited('local.py', 'import time\ntime.sleep(3600)\n'):
        os.kill(server.pid, signal.SIGUSR2)
        until(lambda: len(server.folder.pids()) > 4, 'the trial runs')
    assert server.renew() == 'good'
    with server.edited('local.py', 'import time\ntime.sleep(3600)\n'):
        os.kill(server.pid, signal.SIGUSR2)
        until(lambda: len(server.folder.pids()) > 4, 'the trial runs')
        assert server.program.end() == 0
    server.folder.until_nothing_runs()


def test_run_sh_once_more_brings_the_new_version(server):
    ran = server.folder.run(*RUN_SH)
    assert (ran.status, ran.stderr) == (0, '')
    assert f'process {server.pid} serves here: it is to take this version' in ran.stdout
    assert 'it runs this version now' in ran.stdout
    assert not set(server.until_workers_are(2)) & set(server.workers)
    with server.edited('local.py', 'options = {"drain": -1}'):
        ran = server.folder.run(*RUN_SH)
        assert 'drain must be from 0' in ran.sentence()
    assert len(server.until_logged('trying the new version')) == 1


def test_pid_file_is_closed_to_others_and_kill_of_its_words_reaches_nobody_else(serve):
    server = serve()
    file = server.folder.path / 'server.pid'
    assert file.stat().st_mode & 0o077 == 0
    pid, *words = file.read_text().split()
    assert int(pid) == server.pid
    assert not [word for word in words if word.isdigit()]
    assert server.program.end() == 0
    assert file.read_text() == ''


def test_run_sh_that_waits_for_a_server_that_hangs_can_be_ended(serve):
    server = serve()
    os.kill(server.pid, signal.SIGSTOP)
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        again = server.folder.start(*RUN_SH)
        again.until_it_says('serves here')
        assert again.end(number) == status
        assert 'Traceback' not in again.said()
    os.kill(server.pid, signal.SIGCONT)
    assert server.program.end() == 0


def test_folder_that_was_moved_while_the_server_runs_is_told_what_to_do(serve):
    server = serve()
    path = server.folder.path
    server.folder.path = path.rename(path.with_name('moved'))
    ran = server.folder.run(*RUN_SH)
    assert ran.status == 1
    assert 'this folder was moved: end that process, then start again' in ran.stdout
    assert server.status() == 401
    assert server.program.end() == 0


def test_worker_of_the_version_before_that_hangs_is_ended(server):
    change = 'OLD_SECONDS = 120', 'OLD_SECONDS = 0.5'
    with server.edited('rendezvous/server/parent.py', *change):
        os.kill(server.workers[0], signal.SIGSTOP)
        assert server.renew() == 'good'
    assert not set(server.until_workers_are(2)) & set(server.workers)
    assert server.renew() == 'good'  # it has the right number again
    server.until_workers_are(2)


def test_run_sh_while_the_server_that_runs_ends_starts_one(serve, hide):
    server = serve(workers=1)
    uuid, local = hide(server)
    with held(server, uuid) as pipe:
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: not listens(server.port), 'it accepts nobody')
        begun = server.folder.log().count('listening on port')
        next_one = server.folder.start(*RUN_SH)
        until(lambda: 'serves here' in next_one.said(), 'it has found the one that ends')
        local.go_on.set()
        assert pipe.rest() == HELLO[-2:]
    until(lambda: server.folder.log().count('listening on port') > begun, 'the next one serves')
    assert next_one.end() == 0


def test_new_version_may_have_another_port_and_number_of_workers(server):
    before, port = server.port, free_port()
    os.kill(server.folder.stores()[0], signal.SIGKILL)  # the next one must not hold the socket
    server.until_logged('the embedded store was ended by signal 9')
    server.folder.set(rendezvous_port=port, workers=1)
    assert server.renew() == 'good'
    server.port = port
    server.until_workers_are(1)
    assert server.status() == 401
    assert not listens(before)
    server.folder.set(rendezvous_port=0, workers=2)
    assert server.renew() == 'good'
    server.until_workers_are(2)


def test_new_version_may_have_another_redis(server, tmp_path):
    with Outside(tmp_path, free_port()) as redis:
        server.folder.set(**redis.options)
        assert server.renew() == 'good'
        server.until_logged(f'the entries are in Redis at 127.0.0.1:{redis.options["redis_port"]}')
        until(lambda: not server.folder.stores(), 'the embedded store has ended')
        server.folder.options = {
            name: value for name, value in server.folder.options.items() if 'redis' not in name
        }
        server.folder.set()
        assert server.renew() == 'good'
        until(lambda: len(server.folder.stores()) == 1, 'the embedded store is back')
    assert 'started again' not in server.log()


# Key and certificate


def certificates(server: Server) -> set[str]:
    """Those that the workers show to a few connections that stay."""
    with ExitStack() as stay:
        peers = [server.connect() for _ in range(10)]
        for peer in peers:
            stay.callback(peer.close)
        return {ssl.DER_cert_to_PEM_cert(peer.sock.getpeercert(True)) for peer in peers}


def shown(server: Server) -> set[str]:
    """The same, or nothing while some show one that is not to be trusted any more."""
    try:
        return certificates(server)
    except ssl.SSLError:
        return set()


def first(server: Server) -> str:
    """That of the server, and not its authority."""
    pem = (server.folder.path / 'registrar.crt').read_text()
    return pem[: pem.index('-----BEGIN', 1)]


def test_sighup_has_all_workers_show_the_new_certificate(server):
    before = certificates(server)
    server.folder.pair()
    os.kill(server.pid, signal.SIGHUP)
    server.until_logged('read key and certificate again', 2)
    assert certificates(server) == {first(server)} != before
    assert server.folder.workers() == server.workers


def test_pair_that_does_not_go_together_leaves_the_old_one(server):
    path = server.folder.path / 'registrar.key'
    before = first(server)
    assert certificates(server) == {before}
    key = path.read_bytes()
    certificate_file = path.with_suffix('.crt').read_text()
    server.folder.pair()
    path.write_bytes(key)
    os.kill(server.pid, signal.SIGHUP)
    server.until_logged('ERROR the old key and certificate stay: .* do not go together')
    path.with_suffix('.crt').write_text(certificate_file)
    assert certificates(server) == {before}


def test_certificate_is_renewed_and_no_connection_dropped(tmp_path, monkeypatch):
    with Folder(tmp_path, workers=2) as folder:
        folder.pair()
        parent = folder.path / 'rendezvous' / 'server' / 'parent.py'
        today = 'time.time() // DAY_SECONDS', "os.path.exists('it is tomorrow')"
        for change in (today, ('ROTATE_SECONDS = 60', 'ROTATE_SECONDS = 0.2')):
            assert change[0] in parent.read_text()
            parent.write_text(parent.read_text().replace(*change))
        server = Server(folder)
        peer = server.connect()
        monkeypatch.setattr(authority, 'BACKDATED', timedelta(days=300))
        folder.pair()
        due = first(server)
        (folder.path / 'it is tomorrow').touch()
        server.until_logged('INFO made the next certificate in registrar.crt, valid until ')
        assert first(server) != due
        until(lambda: shown(server) == {first(server)}, 'all workers show it')
        peer.send(b'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
        assert peer.answer().status == 401
        peer.close()
        folder.pair()
        (folder.path / 'registrar-ca.key').unlink()
        (folder.path / 'it is tomorrow').unlink()
        server.until_logged(
            r'ERROR make_cert.py: cannot renew the certificate with .*/registrar-ca\.key \(No such'
        )
        until(lambda: shown(server) == {first(server)}, 'they show what there is')
        hangs = folder.path / 'hangs'
        text = f'import pathlib, time\npathlib.Path({str(hangs)!r}).touch()\ntime.sleep(3600)\n'
        (folder.path / 'local.py').write_text(text)
        (folder.path / 'it is tomorrow').touch()
        until(hangs.exists, 'it hangs')
        folder.set()
        (folder.path / 'it is tomorrow').unlink()
        server.until_logged('ERROR make_cert.py --renew ended with -9')
        assert server.folder.workers() == server.workers


def test_names_that_are_switched_on_get_a_certificate_with_the_new_version(serve):
    server = serve()
    before = first(server)
    server.folder.set(names_domain='rendezvous.localhost')
    assert server.renew() == 'good'
    assert first(server) != before
    context = client_context(str(server.folder.path / 'registrar-ca.crt'))
    with socket.create_connection(('127.0.0.1', server.port)) as sock:
        context.wrap_socket(sock, server_hostname='any.rendezvous.localhost').close()
    assert 'EVERY CLIENT WILL REFUSE' not in server.log()


@pytest.mark.skipif(not shutil.which('openssl'), reason='openssl is not installed')
def test_key_exchange_is_that_of_mozilla_s_intermediate(server):
    def agreed(group: str) -> bool:
        ran = subprocess.run(
            ['openssl', 's_client', '-connect', f'127.0.0.1:{server.port}', '-groups', group],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
        )
        return 'Temp Key: ' in ran.stdout  # the server's, or, for OpenSSL 3.5, the peer's

    groups = 'X25519', 'P-256', 'P-384', 'P-521', 'X448'
    assert [group for group in groups if agreed(group)] == ['X25519', 'P-256', 'P-384']


@pytest.mark.skipif(not shutil.which('openssl'), reason='openssl is not installed')
@pytest.mark.parametrize('kind', ['dsa', 'secp256k1'])
def test_key_that_no_client_can_use_is_one_sentence(tmp_path, kind):
    with Folder(tmp_path) as folder:
        parameters, key, certificate = (
            folder.path / name for name in ('parameters', 'registrar.key', 'registrar.crt')
        )
        make = {
            'dsa': ['-algorithm', 'DSA', '-pkeyopt', 'dsa_paramgen_bits:2048'],
            'secp256k1': ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:secp256k1'],
        }[kind]
        openssl('genpkey', '-genparam', *make, '-out', parameters)
        openssl('genpkey', '-paramfile', parameters, '-out', key)
        openssl('req', '-x509', '-key', key, '-subj', '/CN=127.0.0.1', '-out', certificate)
        key.chmod(0o600)
        sentence = folder.run('server.py').sentence()
        assert sentence.startswith(f'no client can use the key in {key}')
        assert 'make_cert.py --force makes a new pair' in sentence


def openssl(*arguments) -> None:
    subprocess.run(['openssl', *arguments], check=True, capture_output=True, timeout=30)


# The end


def test_sigterm_lets_pipes_finish(serve, hide):
    server = serve(workers=2)
    uuid, local = hide(server)
    with held(server, uuid) as pipe:
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: not listens(server.port), 'it accepts nobody')
        local.go_on.set()
        assert pipe.rest() == HELLO[-2:]
    assert server.program.end() == 0
    server.folder.until_nothing_runs()


def test_second_ctrl_c_does_not_wait_for_pipes(serve, hide):
    server = serve()
    uuid, _ = hide(server)
    with held(server, uuid) as pipe:
        os.kill(server.pid, signal.SIGINT)
        server.until_logged('stopping: pipes may take 30 seconds')
        assert server.program.end(signal.SIGINT) == 0
        pipe.sock.suppress_ragged_eofs = False
        with pytest.raises(OSError, match=r'(?i)eof|reset'):
            pipe.rest()
    server.folder.until_nothing_runs()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_that_ends_it_while_it_starts_leaves_nothing(tmp_path, number):
    with Folder(tmp_path, workers=2) as folder:
        folder.pair()
        program = folder.start('server.py')
        until(folder.workers, 'a worker starts')
        assert program.end(number) == 0
        folder.until_nothing_runs()
        assert program.said() == ''


def test_other_signals_that_come_while_it_starts_end_nothing(tmp_path):
    with Folder(tmp_path, workers=2) as folder:
        folder.pair()
        program = folder.start('server.py')
        until(lambda: (folder.path / 'server.log').exists(), 'it has begun')
        while 'listening' not in folder.log():
            os.kill(program.pid, signal.SIGHUP)
            os.kill(program.pid, signal.SIGUSR2)
            gevent.sleep(0.02)
        until(lambda: folder.log().count('listening') == 2, 'the new version serves')
        assert program.end() == 0
        assert 'started again' not in folder.log()


# Limits


def test_too_few_descriptors_are_one_sentence(tmp_path):
    with Folder(tmp_path, workers=2) as folder:
        folder.pair()
        ran = folder.run('server.py', under=('sh', '-c', 'ulimit -n 64; exec "$@"', 'sh'))
        assert ran.sentence().startswith('64 descriptors are too few to serve anybody: ')


def test_idle_connections_are_spread_over_the_workers(server):
    before = server.sockets()
    with ExitStack() as stay:
        for number in range(50):
            stay.enter_context(socket.create_connection(('127.0.0.1', server.port)))
            until(
                lambda number=number: (
                    sum(server.sockets().values()) == sum(before.values()) + number + 1
                ),
                'it is accepted',
            )
        counts = [count - before[pid] for pid, count in server.sockets().items()]
        assert all(20 <= count <= 30 for count in counts), counts


def test_limit_for_an_address_is_for_all_workers_together(server):
    with ExitStack() as stay:

        def come() -> socket.socket:
            return stay.enter_context(socket.create_connection(('127.0.0.1', server.port)))

        before = sum(server.sockets().values())
        for number in range(PER_ADDRESS):
            come()
            until(
                lambda number=number: sum(server.sockets().values()) == before + number + 1,
                'it is accepted',
            )
        for _ in range(5):
            refused = come()
            refused.settimeout(10)
            with suppress(ConnectionResetError):
                assert refused.recv(1) == b''
        assert sum(server.sockets().values()) == before + PER_ADDRESS
    server.until_logged('127.0.0.1 has max_connections_per_address and gets no more')


@pytest.mark.skipif(not shutil.which('openssl'), reason='openssl is not installed')
def test_the_cheapest_cipher_is_preferred_and_the_others_of_tls_1_3_are_there(server):
    """A client's own order does not matter: nearly all put AES-256 first."""

    def agreed(suites: str) -> str:
        where = f'127.0.0.1:{server.port}'
        ran = subprocess.run(
            ['openssl', 's_client', '-connect', where, '-ciphersuites', suites],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
        )
        return re.search(r'Cipher is (\S+)', ran.stdout)[1]

    suites = 'TLS_AES_256_GCM_SHA384', 'TLS_CHACHA20_POLY1305_SHA256', 'TLS_AES_128_GCM_SHA256'
    assert agreed(':'.join(suites)) == 'TLS_AES_128_GCM_SHA256'
    assert [agreed(suite) for suite in suites] == [*suites]
