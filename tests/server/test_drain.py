"""A node is drained: balancers and hidden servers go to other nodes, and nobody loses anything."""

import os
import re
import signal
import socket

import gevent
import pytest
from conftest import Peer, code, connect_request, free_port, get, until
from gevent.event import Event
from hiding import HEAD_ENDS, HELLO, Listener
from programs import Folder, listens
from test_parent import RUN_SH, Server, asked

from rendezvous.admin import shell_drain
from rendezvous.admin.actions import Unable
from rendezvous.hidden.hidden_server import HiddenServer
from rendezvous.hidden.target import Target
from rendezvous.server import connection, listening
from rendezvous.store import state

LOOK = b'OPTIONS * HTTP/1.1\r\nHost: balancer\r\n\r\n'


@pytest.fixture
def drain(monkeypatch):
    """Begins to drain workers in this process, which go on to listen."""
    draining = []

    def drain(worker) -> None:
        draining.append(gevent.spawn(worker.drain))
        until(lambda: worker.rendezvous.draining, 'it begins')

    yield drain
    gevent.killall(draining)


def looked(connect, server, octets: bytes = LOOK) -> tuple[int, bytes]:
    """Status and rest of the answer to a balancer."""
    peer = connect(server)
    peer.send(octets)
    answer = peer.rest()
    peer.close()
    return int(answer.split()[1]), answer


@pytest.mark.parametrize('octets', [LOOK, b'OPTIONS * HTTP/1.0\r\n\r\n'])
def test_balancer_is_told_whether_new_connections_may_come(start, connect, drain, octets):
    server = start()
    status, answer = looked(connect, server, octets)
    assert status == 204
    assert b'\r\nConnection: close\r\n' in answer
    assert b'Content-Length' not in answer
    drain(server)
    status, answer = looked(connect, server, octets)
    assert status == 503
    assert b'\r\nRetry-After: 0\r\n' in answer
    assert b'is being drained' in answer


def test_hidden_server_keeps_a_registration_until_the_one_before_is_back(
    start, register, connect, entries, uuid, drain, monkeypatch
):
    monkeypatch.setattr(connection, 'ROUND_SECONDS', 3600)
    server = start()
    first, second = register(server, uuid), register(server, uuid)
    drain(server)
    assert first.rest() == b''
    late = connect(server)
    late.send(connect_request(uuid, code(entries, uuid)))
    answer = late.answer()
    assert (answer.status, answer.fields['Retry-After']) == (503, '0')
    mobile = connect(server)
    mobile.send(get(uuid))
    second.until(HEAD_ENDS)
    second.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_mobile_client_of_a_drained_worker_is_served_by_another(
    start, register, connect, uuid, drain, monkeypatch, tmp_path_factory
):
    monkeypatch.setattr(connection, 'ROUND_SECONDS', 0.01)
    place = tmp_path_factory.mktemp('meet')
    server, other = (start(meeting_place=place / name, rendezvous_wait=30) for name in '12')
    registrations = [register(server, uuid) for _ in range(4)]
    drain(server)
    assert {each.rest() for each in registrations} == {b''}
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: server.rendezvous.registry.wanted(), 'it waits')
    hidden = register(other, uuid)
    hidden.until(HEAD_ENDS)
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_pipe_is_not_taken_for_a_registration_that_waits(start, join, drain, monkeypatch):
    monkeypatch.setattr(connection, 'ROUND_SECONDS', 0.01)
    server = start()
    hidden, mobile = join(server)
    drain(server)
    gevent.sleep(0.1)  # some rounds
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


@pytest.mark.parametrize('host', ['127.0.0.1', '::1'])
def test_connections_that_have_begun_are_accepted_and_no_more_begin(host):
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    sock = socket.create_server((host, 0), family=family)
    begun = [socket.create_connection(sock.getsockname()[:2]) for _ in range(3)]
    listening.begin_no_more(sock)
    with socket.socket(family) as late:
        late.setblocking(False)
        late.connect_ex(sock.getsockname()[:2])
        for each in begun:
            with each, sock.accept()[0] as accepted:
                each.sendall(b'octets')
                assert accepted.recv(6) == b'octets'
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.accept()
        sock.close()
        error = until(lambda: late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 'it is told')
        assert os.strerror(error) == 'Connection refused'


# Real programs


class Slow:
    """A local server: of its answer to /held the end comes when it is let go."""

    def __init__(self):
        self.go_on = Event()
        self._listener = Listener(self._answer)
        self.target = Target('127.0.0.1', self._listener.port)

    def _answer(self, peer: Peer) -> None:
        is_held = b' /held ' in peer.until(HEAD_ENDS)
        peer.send(HELLO[:-2])
        if is_held:
            self.go_on.wait()
        peer.send(HELLO[-2:])

    def stop(self) -> None:
        self._listener.stop()


@pytest.fixture
def serve(tmp_path):
    """Starts a server of two workers that goes on to listen for a second when it is drained."""
    with Folder(tmp_path, workers=2, rendezvous_port=free_port()) as folder:
        folder.pair()
        path = folder.path / 'rendezvous' / 'server' / 'listening.py'
        path.write_text(path.read_text().replace('LISTEN_SECONDS = 10', 'LISTEN_SECONDS = 1'))
        yield lambda: Server(folder)


@pytest.fixture
def slow():
    slow = Slow()
    yield slow
    slow.stop()


@pytest.fixture
def hide(slow):
    """Starts a hidden server in this process; its UUID."""
    hidden = []

    def hide(server: Server) -> str:
        entry = server.folder.add('kitchen')
        entry['server']['port'] = server.port
        hidden.append(HiddenServer(entry, slow.target, 4))
        hidden[0].start()
        (uuid,) = entry['uuid']
        until(lambda: server.log().count(f'registered {uuid}') >= 4, 'it is there')
        return uuid

    yield hide
    for each in hidden:
        each.stop(0)


def until_refused(server: Server) -> list[int]:
    """Asks one time after the other, until nobody listens; the statuses of the answers."""
    statuses = []
    while True:
        try:
            statuses.append(server.status())
        except ConnectionRefusedError:
            return statuses


def test_no_connection_is_lost_and_all_ends_with_the_last_pipe(serve, hide, slow):
    server = serve()
    uuid = hide(server)
    with asked(server, uuid, '/held') as pipe:
        pipe.until(HELLO[:-2])
        clients = [gevent.spawn(until_refused, server) for _ in range(4)]
        os.kill(server.pid, signal.SIGUSR1)
        for statuses in [client.get() for client in clients]:
            assert set(statuses) == {401}
        assert server.folder.workers()  # one of them may have nothing left, and end
        os.kill(server.pid, signal.SIGUSR1)  # again: it is told already
        slow.go_on.set()
        assert pipe.rest() == HELLO[-2:]
    assert server.program.process.wait(timeout=30) == 0
    server.folder.until_nothing_runs()
    assert 'INFO drained: no connection is left' in server.log()
    assert not re.search('ERROR|Traceback', server.log())
    assert server.log().count('WARNING no other node lives: nobody can register or visit') == 1


def test_pipe_outlives_what_a_stop_gives_it(serve, hide, slow):
    """... and SIGTERM is the usual stop, also then."""
    server = serve()
    for name, *change in (('worker.py', 'FINISH_SECONDS = 30', 'FINISH_SECONDS = 0.5'),):
        path = server.folder.path / 'rendezvous' / 'server' / name
        path.write_text(path.read_text().replace(*change))
    assert server.renew() == 'good'
    server.until_workers_are(2)
    uuid = hide(server)
    with asked(server, uuid, '/held') as pipe:
        pipe.until(HELLO[:-2])
        os.kill(server.pid, signal.SIGUSR1)
        until(lambda: not listens(server.port), 'nobody listens')
        gevent.sleep(1)
        assert server.program.process.poll() is None
        assert server.program.end() == 0
    server.folder.until_nothing_runs()


def test_new_version_is_refused_meanwhile(serve, hide, slow):
    server = serve()
    uuid = hide(server)
    with asked(server, uuid, '/held') as pipe:
        pipe.until(HELLO[:-2])
        os.kill(server.pid, signal.SIGUSR1)
        server.until_logged('draining: new connections are for other nodes')
        ran = server.folder.run(*RUN_SH)
        assert ran.status == 1
        assert 'it cannot, since it is drained: start again when it has ended' in ran.stdout
        server.until_logged('ERROR no new version is taken: this node is drained')
        slow.go_on.set()
        assert pipe.rest() == HELLO[-2:]
    assert server.program.process.wait(timeout=30) == 0


def test_trial_of_a_new_version_ends_with_it(serve):
    server = serve()
    server.folder.set(redis_auth='x')
    os.kill(server.pid, signal.SIGUSR2)
    server.until_logged('trying the new version')
    os.kill(server.pid, signal.SIGUSR1)
    assert server.program.process.wait(timeout=30) == 0
    assert 'listening on port' not in server.log()


def test_worker_that_dies_meanwhile_is_not_started_again(serve, hide, slow):
    server = serve()
    uuid = hide(server)
    with asked(server, uuid, '/held') as pipe:
        pipe.until(HELLO[:-2])
        os.kill(server.pid, signal.SIGUSR1)
        server.until_logged('draining')
        for pid in server.workers:
            os.kill(pid, signal.SIGKILL)
        assert server.program.process.wait(timeout=30) == 0
    assert server.log().count('was ended by signal 9') == 2
    assert 'started again' not in server.log()


def test_drain_that_comes_while_it_starts_waits_until_it_serves(serve):
    server = serve()
    assert server.program.end() == 0
    program = server.folder.start('server.py')
    until(lambda: server.folder.workers(), 'workers start')
    os.kill(program.pid, signal.SIGUSR1)
    assert program.process.wait(timeout=30) == 0
    server.until_logged('drained: no connection is left')


# From the shell


def test_command_drains_a_node_and_shows_what_is_left(serve, hide, slow):
    server = serve()
    uuid = hide(server)
    (node,) = {each['node'] for each in server.folder.status()['workers']}
    with asked(server, uuid, '/held') as pipe:
        pipe.until(HELLO[:-2])
        command = server.folder.start('users_app.py', 'drain', node, '--yes')
        left = '0 registrations, 2 mobile clients and other connections left'
        command.until_it_says(f'(?m)^{node}: {left}$')
        slow.go_on.set()
        assert pipe.rest() == HELLO[-2:]
    assert command.process.wait(timeout=30) == 0
    assert command.said().splitlines()[-1] == f'{node}: it has ended'
    assert server.program.process.wait(timeout=30) == 0
    (line,) = server.folder.run('users_app.py', 'log', '-n', '1').stdout.splitlines()[1:]
    assert re.search(f'shell, .*  node drained .* {node}$', line)


def test_command_names_the_nodes_and_asks_before_it_drains_the_last_one(serve):
    server = serve()
    (node,) = {each['node'] for each in server.folder.status()['workers']}
    ran = server.folder.run('users_app.py', 'drain', 'elsewhere')
    assert (ran.status, ran.stderr) == (
        1,
        f'Error: there is no node elsewhere; these live: {node}\n',
    )
    ran = server.folder.run('users_app.py', 'drain', node)
    assert ran.status == 2
    assert 'no other node lives: nobody can register or visit' in ran.stderr
    assert 'draining' not in server.log()


def test_command_takes_one_of_two_nodes_with_the_same_name(start, entries):
    first = free_port()
    one, other = (
        start(node_host='127.0.0.1', node_port=port, node_secret='x' * 32)
        for port in (first, free_port())
    )
    names = {each.rendezvous.presence.name for each in (one, other)}
    until(lambda: names <= {each.name for each in state.server(entries).workers}, 'both sign')
    server = state.server(entries)
    (found,) = shell_drain._workers(server, f'127.0.0.1:{first}')
    assert found.name == one.rendezvous.presence.name
    with pytest.raises(Unable, match=f'127.0.0.1:{first}'):
        shell_drain._workers(server, '127.0.0.1')


def test_drain_goes_on_without_the_command(serve, hide, slow):
    server = serve()
    uuid = hide(server)
    (node,) = {each['node'] for each in server.folder.status()['workers']}
    with asked(server, uuid, '/held') as pipe:
        pipe.until(HELLO[:-2])
        command = server.folder.start('users_app.py', 'drain', node, '--yes')
        command.until_it_says('left')
        assert command.end(signal.SIGINT) == -signal.SIGINT
        assert 'Ctrl-C ends this command, and not the drain' in command.said()
        slow.go_on.set()
        assert pipe.rest() == HELLO[-2:]
    assert server.program.process.wait(timeout=30) == 0
