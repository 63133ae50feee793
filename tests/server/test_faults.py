"""Faults: whom they hit is told, everybody else is served. bench/chaos has more, and the slow ones.

The times after which a dead peer is found are shortened here; that they are the right ones is
tested where sockets are made.
"""

import json
import os
import resource
import signal
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import gevent
import pytest
import redis
from conftest import OK, Peer, code, connect_request, get, until
from faults import Netspace, Relay, why_not
from gevent.pool import Pool
from gevent.server import StreamServer
from programs import Folder

from rendezvous.hidden import hidden_server as hidden
from rendezvous.hidden.target import Target
from rendezvous.wire import sockets

FAKETIME = next(Path('/usr/lib').glob('*/faketime/libfaketime.so.1'), None)


@pytest.fixture
def origin(start):
    """Starts HTTP servers to hide; each answers with its name."""
    servers = []

    def origin(name: str) -> tuple[str, int]:
        def handle(sock, _) -> None:
            peer = Peer(sock)
            peer.until(b'\r\n\r\n')
            fields = f'Content-Length: {len(name)}\r\nConnection: close'
            peer.send(f'HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{name}'.encode())

        servers.append(StreamServer(('127.0.0.1', 0), handle, spawn=Pool(None)))
        servers[-1].start()
        return '127.0.0.1', servers[-1].server_port

    yield origin
    for server in servers:
        server.stop(timeout=0)


@pytest.fixture
def relay(start):
    """Starts relays to a server."""
    relays = []

    def relay(server) -> Relay:
        relays.append(Relay(('127.0.0.1', server.port)))
        return relays[-1]

    yield relay
    for each in relays:
        each.stop()


@pytest.fixture
def entry(entries, uuid, pair):
    """What the entry's ID.json holds, but for the port."""
    return {
        'authParams': entries.get(uuid)['authParams'],
        'uuid': [uuid],
        'server': {'hostname': '127.0.0.1', 'port': 1, 'ca': Path(pair['crt_file']).read_text()},
    }


@pytest.fixture
def hide(relay, entry):
    """Starts hidden servers in this process, by way of a port."""
    hidden_servers = []

    def hide(port: int, local_address: tuple[str, int], count: int = 2) -> None:
        entry['server']['port'] = port
        hidden_servers.append(hidden.HiddenServer(entry, Target(*local_address), count))
        hidden_servers[-1].start()

    yield hide
    for hidden_server in hidden_servers:
        hidden_server.stop(0)


def until_waiting(server, uuid: str, count: int) -> None:
    waiting = server.rendezvous.registry
    until(lambda: waiting.count(uuid) == count, f'{count} registrations wait')


# Networks


@pytest.fixture
def dead_soon(monkeypatch):
    """Dead peers are found within 3 seconds instead of a minute."""
    monkeypatch.setattr(sockets, 'KEEPALIVE_SECONDS', 1)
    monkeypatch.setattr(sockets, 'PROBE_SECONDS', 1)
    monkeypatch.setattr(sockets, 'PROBES', 2)
    monkeypatch.setattr(sockets, 'USER_TIMEOUT_SECONDS', 2)


@pytest.fixture
def away(start):
    """A place whose packets can be dropped; a server there has to listen on `away.near`."""
    if reason := why_not():
        pytest.skip(reason)
    with Netspace() as away:
        yield away


def connect_there(away, server, pair) -> Peer:
    with away.inside():
        sock = gevent.socket.socket()
    sock.connect((away.near, server.port))
    context = ssl.create_default_context(cafile=pair['crt_file'])
    return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))


def connect_here(away, server, pair) -> Peer:
    sock = gevent.socket.create_connection((away.near, server.port))
    context = ssl.create_default_context(cafile=pair['crt_file'])
    return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))


def test_hidden_server_that_vanishes_is_forgotten_and_ends_its_mobile_clients(
    away, dead_soon, start, pair, entries, uuid
):
    """One is in a pipe, one asks a moment too late, one registration waits."""
    server = start(listen_host=away.near)
    peers = [connect_there(away, server, pair) for _ in range(3)]
    for peer in peers:
        peer.send(connect_request(uuid, code(entries, uuid)))
        assert peer.receive(len(OK)) == OK
    mobile_clients = [connect_here(away, server, pair) for _ in range(2)]
    mobile_clients[0].send(get(uuid))
    peers[-1].until(b'\r\n\r\n')
    away.drop()
    mobile_clients[1].send(get(uuid))
    until_waiting(server, uuid, 1)
    until_waiting(server, uuid, 0)
    assert mobile_clients[0].rest() == b''
    assert mobile_clients[1].answer().status == 503  # it had been tried on each of them
    away.mend()
    for peer in peers + mobile_clients:
        peer.close()


def test_mobile_client_that_vanishes_ends_its_hidden_server(
    away, dead_soon, start, pair, entries, uuid
):
    """... though that only waits for what comes next."""
    server = start(listen_host=away.near)
    peer, mobile = connect_here(away, server, pair), connect_there(away, server, pair)
    peer.send(connect_request(uuid, code(entries, uuid)))
    assert peer.receive(len(OK)) == OK
    mobile.send(get(uuid))
    peer.until(b'\r\n\r\n')
    away.drop()
    assert peer.rest() == b''
    away.mend()
    peer.close()
    mobile.close()


def test_half_open_middlebox_keeps_nobody_away_for_longer_than_a_lifetime(
    start, uuid, hide, relay, origin, connect, monkeypatch, caplog
):
    """It acknowledges and forwards nothing; the old registrations fill max_waiting still."""
    monkeypatch.setattr(hidden, 'LIFETIME_SECONDS', 0.5)
    server = start(max_waiting=2)
    middlebox = relay(server)
    hide(middlebox.port, origin('kitchen'))
    until_waiting(server, uuid, 2)
    held = middlebox.hold()
    stuck = connect(server)
    stuck.send(get(uuid))
    until(lambda: len(middlebox.links) > len(held), 'one is replaced')
    until_waiting(server, uuid, 2)
    mobile = connect(server)
    mobile.send(get(uuid))
    assert mobile.answer().body == b'kitchen'
    assert not [each for each in caplog.records if each.name == 'hidden' and each.levelno > 20]


def test_hidden_server_that_has_moved_gets_the_very_next_request(
    server, uuid, hide, relay, origin, connect
):
    """The connections from where it was are never closed."""
    before = relay(server)
    hide(before.port, origin('before'))
    until_waiting(server, uuid, 2)
    before.hold()
    hide(server.port, origin('after'))
    until_waiting(server, uuid, 4)
    mobile = connect(server)
    mobile.send(get(uuid))
    assert mobile.answer().body == b'after'


# The machine


@pytest.fixture
def served(tmp_path, origin):
    """A server.py, an entry and a hidden.py for it, all of them processes."""
    with Folder(tmp_path) as folder:
        folder.pair()
        (uuid,) = folder.add('kitchen')['uuid']
        server, port = folder.serve()
        yield Served(folder, uuid, server, port, origin('kitchen'))


class Served:
    def __init__(self, folder, uuid: str, server, port: int, local_address):
        self.folder, self.uuid, self.server, self.port = folder, uuid, server, port
        self._entry = folder.path / 'entries' / f'{uuid}.json'
        entry = json.loads(self._entry.read_text())
        entry['server']['port'] = port
        self._entry.write_text(json.dumps(entry))
        self._local = '{}:{}'.format(*local_address)
        self.context = ssl.create_default_context(cafile=folder.path / 'registrar.crt')
        self.hidden = self.hide()
        self.hidden.until_it_says('registered')

    def hide(self):
        return self.folder.start('hidden.py', str(self._entry), self._local)

    def answer_to(self, octets: bytes) -> bytes:
        with (
            socket.create_connection(('127.0.0.1', self.port)) as sock,
            self.context.wrap_socket(sock, server_hostname='127.0.0.1') as tls,
        ):
            peer = Peer(tls)
            peer.send(octets)
            return peer.rest()

    def asked(self) -> bytes:
        """The end of what a mobile client gets."""
        return self.answer_to(get(self.uuid)).rpartition(b'\r\n\r\n')[2]


def test_kill_9_of_the_store_costs_no_request(served):
    for _ in range(5):
        # Who comes back does not need the store: it may not have been started again yet.
        until(served.folder.stores, 'the store runs')
        os.kill(served.folder.stores()[0], signal.SIGKILL)
        assert [served.asked() for _ in range(6)] == [b'kitchen'] * 6


def test_log_that_can_grow_no_more_costs_no_request(served):
    writers = [served.server.pid, *served.folder.workers()]
    for pid in writers:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, -1))
    before = served.folder.log()
    assert [served.asked() for _ in range(6)] == [b'kitchen'] * 6
    assert served.folder.log() == before
    for pid in writers:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (-1, -1))
    assert served.asked() == b'kitchen'
    until(lambda: len(served.folder.log()) > len(before), 'the log goes on')
    assert served.server.said() == ''


@pytest.fixture
def full_disk(tmp_path):
    """Fills the disk that `tmp_path` is on then: a small one."""
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'none', tmp_path]
    ran = subprocess.run(mount, capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f'a small disk cannot be mounted, which needs root: {ran.stderr.strip()}')

    def fill() -> Path:
        with suppress(OSError), (tmp_path / 'filler').open('wb', 0) as filler:
            while True:
                filler.write(bytes(4096))
        return tmp_path / 'filler'

    yield fill
    subprocess.run(['umount', '--lazy', tmp_path], check=True)


def writes(folder) -> bool:
    """Whether the store writes down what it is told; it ends where it cannot, and is restarted."""
    with suppress(redis.ConnectionError):
        return folder.redis('set', 'large', 'x' * 10_000)
    return False


def test_full_disk_under_log_and_store_costs_no_request(full_disk, served):
    filler = full_disk()
    for _ in range(3):
        assert not writes(served.folder)
        assert [served.asked() for _ in range(6)] == [b'kitchen'] * 6
    served.hidden.end(signal.SIGKILL)
    served.hide()
    assert [served.asked() for _ in range(6)] == [b'kitchen'] * 6
    filler.unlink()
    until(lambda: writes(served.folder), 'the store writes again')
    assert served.asked() == b'kitchen'
    assert served.server.said() == ''


@pytest.mark.skipif(not FAKETIME, reason='the clock of one program cannot be set: no libfaketime')
@pytest.mark.parametrize('seconds', [3600, -3600])
def test_hidden_server_whose_clock_was_an_hour_wrong_comes_back(
    start, tmp_path, entry, uuid, connect, origin, monkeypatch, seconds
):
    server = start(wrong_codes_per_address=0, wrong_codes_per_day=0)
    entry['server']['port'] = server.port
    clock, file = tmp_path / 'clock', tmp_path / 'ID.json'
    clock.write_text(f'{seconds:+}')
    file.write_text(json.dumps(entry))
    monkeypatch.setenv('LD_PRELOAD', str(FAKETIME))
    monkeypatch.setenv('FAKETIME_TIMESTAMP_FILE', str(clock))
    monkeypatch.setenv('FAKETIME_NO_CACHE', '1')
    monkeypatch.setenv('FAKETIME_DONT_FAKE_MONOTONIC', '1')
    impatient = (
        'import hidden; from rendezvous.hidden import hidden_server; '
        'hidden_server.REFUSED_PAUSES_SECONDS = 0.2, 0.2; hidden.programs.main(hidden.command.main)'
    )
    with Folder(tmp_path) as folder:
        address = '{}:{}'.format(*origin('kitchen'))
        program = folder.start('-c', impatient, str(file), address, '--registrations', '1')
        program.until_it_says("not registered .*this machine's clock is 60 minutes (ahead|behind)")
        clock.write_text('+0')
        program.until_it_says('INFO registered')
        mobile = connect(server)
        mobile.send(get(uuid))
        assert mobile.answer().body == b'kitchen'
        assert program.end() == 0
        assert 'Traceback' not in program.said()
