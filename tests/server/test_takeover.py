"""A new server takes over from the one that runs: nothing that its clients could notice."""

import os
import re
import signal
import socket
import ssl
import stat
from contextlib import ExitStack, contextmanager

import gevent
import pytest
from conftest import DEADLINE_SECONDS, OK, Peer, connect_request, free_port, get, until
from programs import Folder, listens

from rendezvous.server import takeover
from rendezvous.wire import codes


@pytest.fixture
def folder(tmp_path):
    with Folder(tmp_path, rendezvous_port=free_port()) as folder:
        folder.pair()
        yield folder


@pytest.fixture
def client(folder):
    """Makes connections to whichever server has the port."""
    with ExitStack() as stack:
        context = ssl.create_default_context(cafile=folder.path / 'registrar.crt')

        def client() -> Peer:
            address = '127.0.0.1', folder.options['rendezvous_port']
            sock = stack.enter_context(socket.create_connection(address))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = stack.enter_context(
                context.wrap_socket(
                    sock, server_hostname='127.0.0.1', do_handshake_on_connect=False
                )
            )
            tls.do_handshake()
            return Peer(tls)

        yield client


def register(peer: Peer, entry: dict) -> Peer:
    peer.send(connect_request(entry['uuid'][0], codes.totp(entry['authParams']).now()))
    assert peer.receive(len(OK)) == OK
    return peer


def registered(client, entry: dict) -> Peer:
    return register(client(), entry)


def serves_hello(client, entry: dict) -> None:
    """One rendezvous of a hidden server that answers as it should."""
    hidden = client()
    try:
        register(hidden, entry)
        hidden.until(b'\r\n\r\n')
        hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello')
    finally:
        hidden.close()


@contextmanager
def hello(client, entry: dict, count: int = 4):
    """A hidden server that keeps `count` registrations waiting, wherever it is let in."""

    def live() -> None:
        while True:
            try:
                serves_hello(client, entry)
            except (OSError, AssertionError):
                gevent.sleep(0.01)  # refused, or ended: once more

    greenlets = [gevent.spawn(live) for _ in range(count)]
    try:
        yield
    finally:
        gevent.killall(greenlets)


def asks(client, uuid: str) -> bytes:
    """What a mobile client gets that is asked who it is first, as curl --digest is."""
    mobile = client()
    mobile.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert mobile.answer().status == 401
    mobile.send(get(uuid))
    body = mobile.answer().body
    mobile.close()
    return body


@pytest.mark.deadline(90)
def test_no_request_fails_while_new_servers_take_over(folder, client):
    first, _ = folder.serve()
    entry = folder.add()
    asked, stopping = [], []

    def ask() -> None:
        while not stopping:
            asked.append(asks(client, entry['uuid'][0]))

    with hello(client, entry):
        load = [gevent.spawn(ask) for _ in range(8)]
        servers = [first]
        for _ in range(3):
            count = len(asked)
            until(lambda c=count: len(asked) > c + 20, 'there is load')
            servers.append(folder.serve()[0])
            assert servers[-2].process.wait(timeout=20) == 0
        stopping.append(True)
        gevent.joinall(load, timeout=20, raise_error=True)
    assert set(asked) == {b'hello'}
    assert 'Traceback' not in folder.log()


def test_pipes_are_finished_by_the_old_server(folder, client):
    old, _ = folder.serve()
    entry = folder.add()
    hidden, mobile = registered(client, entry), client()
    mobile.send(get(entry['uuid'][0]))
    hidden.until(b'\r\n\r\n')
    folder.serve()
    until(lambda: 'stopping' in folder.log(), 'the new one has taken over')
    hidden.send(b'x' * 100_000)
    assert mobile.receive(100_000) == b'x' * 100_000
    mobile.send(b'more')
    assert hidden.receive(4) == b'more'
    assert old.process.poll() is None
    hidden.close()
    assert mobile.rest() == b''
    mobile.close()
    assert old.process.wait(timeout=20) == 0


def test_mobile_clients_of_the_old_server_reach_the_new_one(folder, client):
    """One that was asked who it is, one that has said nothing yet, one that waits already."""
    old, _ = folder.serve()
    entry = folder.add()
    uuid = entry['uuid'][0]
    waits, was_asked, silent = client(), client(), client()
    waits.send(get(uuid, '/waits'))
    was_asked.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert was_asked.answer().status == 401
    folder.serve()
    until(lambda: 'stopping' in folder.log(), 'the new one has taken over')
    was_asked.send(get(uuid, '/was_asked'))
    silent.send(get(uuid, '/silent'))
    targets = set()
    for _ in range(3):
        hidden = registered(client, entry)
        targets.add(hidden.until(b'\r\n\r\n').split()[1])
        hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello')
        hidden.close()
    assert targets == {b'/waits', b'/was_asked', b'/silent'}
    assert [peer.answer().body for peer in (waits, was_asked, silent)] == [b'hello'] * 3
    for peer in (waits, was_asked, silent):
        assert peer.rest() == b''
        peer.close()
    assert old.process.wait(timeout=20) == 0


def test_mobile_client_that_waits_is_passed_on_by_each_server(folder, client):
    folder.serve()
    entry, waits = folder.add(), client()
    waits.send(get(entry['uuid'][0]))
    for count in (1, 2):
        folder.serve()
        until(lambda c=count: folder.log().count('is passed on') == c, 'it is passed on')
    serves_hello(client, entry)
    assert waits.answer().body == b'hello'


def test_registrations_come_back_to_the_new_server(folder, client):
    folder.serve()
    entry = folder.add()
    waits, late = registered(client, entry), client()
    folder.serve()
    assert waits.rest() == b''
    late.send(connect_request(entry['uuid'][0], codes.totp(entry['authParams']).now()))
    answer = late.answer()
    assert (answer.status, answer.fields['Retry-After']) == (503, '0')
    mobile, hidden = client(), registered(client, entry)
    mobile.send(get(entry['uuid'][0]))
    assert hidden.until(b'\r\n\r\n').startswith(b'GET / ')


def test_registrations_are_ended_a_few_at_a_time_and_first_those_that_are_wanted(folder, client):
    code = folder.path / 'rendezvous/server/connection.py'
    slow = re.sub('AWAY = 16', 'AWAY = 1', code.read_text())
    code.write_text(re.sub('BACK_SECONDS = 1 ', 'BACK_SECONDS = 1000 ', slow))
    folder.serve()
    made = [folder.add() for _ in range(5)]
    waits = [registered(client, entry) for entry in made]
    folder.serve()
    assert waits[0].rest() == b''  # the next one is ended when that is back
    for number in (4, 3):
        mobile = client()
        mobile.send(get(made[number]['uuid'][0]))
        assert waits[number].rest() == b''
        serves_hello(client, made[number])
        assert mobile.answer().body == b'hello'
        mobile.close()
    waits[1].sock.settimeout(0)
    with pytest.raises(ssl.SSLWantReadError):
        waits[1].sock.recv(1)
    waits[1].sock.settimeout(None)
    registered(client, made[0]).close()
    assert waits[1].rest() == b''
    waits[2].sock.settimeout(0)
    with pytest.raises(ssl.SSLWantReadError):
        waits[2].sock.recv(1)
    waits[2].sock.settimeout(None)
    folder.serve()
    assert waits[2].rest() == b''  # who could ask for it has ended


def test_server_that_can_not_start_leaves_the_old_one_be(folder, client):
    folder.serve()
    folder.set(crt_file='none.crt')
    assert 'none.crt' in folder.run('server.py').sentence()
    entry_answer = client()
    entry_answer.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert entry_answer.answer().status == 401


def test_server_that_ends_before_it_takes_over_is_no_hindrance_for_the_next_one(folder):
    old, _ = folder.serve()
    (folder.path / 'server.pid').unlink()
    (folder.path / 'server.pid').mkdir()
    assert folder.run('server.py').status == 1
    (folder.path / 'server.pid').rmdir()
    folder.serve()
    assert old.process.wait(timeout=20) == 0


def test_new_port_is_listened_on_and_the_old_server_ends(folder):
    old, old_port = folder.serve()
    folder.set(rendezvous_port=free_port())
    _, port = folder.serve()
    assert (old.process.wait(timeout=20), listens(old_port), listens(port)) == (0, False, True)


def test_server_that_was_killed_is_nobody_to_take_over_from(folder):
    old, _ = folder.serve()
    old.end(signal.SIGKILL)
    assert (folder.path / takeover.PATH).exists()
    new, port = folder.serve()
    assert listens(port)
    assert new.end() == 0
    assert not (folder.path / takeover.PATH).exists()


def test_nobody_else_can_ask_for_the_listening_socket(folder):
    folder.serve()
    mode = (folder.path / takeover.PATH).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert not mode & 0o077


@pytest.mark.parametrize(
    'octets', [b'', b'listener\n', b'x\n', b'{}\n', b'[["x"],0]\n', b'x' * 9999]
)
def test_successor_that_dies_changes_nothing(folder, client, octets, monkeypatch):
    program, _ = folder.serve()
    monkeypatch.chdir(folder.path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(takeover.PATH)
        sock.sendall(octets)
        sock.shutdown(socket.SHUT_WR)
        gevent.socket.wait_read(sock.fileno(), timeout=DEADLINE_SECONDS)
    mobile = client()
    mobile.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert mobile.answer().status == 401
    assert 'stopping' not in folder.log()
    assert 'Traceback' not in folder.log() + program.said()


@pytest.mark.deadline(90)
def test_of_several_that_start_at_once_one_is_left(folder):
    old, port = folder.serve()
    new = [folder.start('server.py') for _ in range(3)]
    until(lambda: sum(each.process.poll() is None for each in (old, *new)) == 1, 'one is left', 40)
    assert [each.process.poll() for each in (old, *new)].count(0) == 3
    assert listens(port)


def test_server_without_a_store_does_not_take_over(folder, client):
    folder.serve()
    folder.set(redis_host='0.0.0.0', redis_port=free_port())  # nobody answers there
    assert 'Redis does not answer' in folder.run('server.py').sentence()
    mobile = client()
    mobile.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert mobile.answer().status == 401


def test_folder_that_can_not_hold_the_socket_is_said_and_it_serves(folder):
    (folder.path / takeover.PATH).mkdir()
    _, port = folder.serve()
    assert listens(port)
    assert 'no new server can take over: server.sock' in folder.log()
    os.rmdir(folder.path / takeover.PATH)


def test_mobile_client_that_can_not_be_passed_on_ends_without_a_traceback(folder, client):
    """The new server has taken over, and died since."""
    old, _ = folder.serve()
    entry, late = folder.add(), client()
    new, _ = folder.serve()
    until(lambda: 'stopping' in folder.log(), 'the new one has taken over')
    new.end(signal.SIGKILL)
    late.send(get(entry['uuid'][0]))
    assert late.rest().split()[1:2] in ([], [b'503'])
    late.close()
    assert old.process.wait(timeout=20) == 0
    assert re.search(
        r' INFO 127\.0\.0\.1:\d+ (lost: .*Connection refused|refused: 503)', folder.log()
    )
    assert 'Traceback' not in folder.log() + old.said()


@pytest.mark.deadline(90)
def test_server_that_hangs_keeps_no_new_one_from_serving(folder):
    hanging, _ = folder.serve()
    os.kill(hanging.pid, signal.SIGSTOP)
    folder.set(rendezvous_port=free_port())  # the other one is the hanging one's still
    impatient = (
        'from gevent import monkey; monkey.patch_all(); from rendezvous.wire import programs; '
        'from rendezvous.server import worker as server, takeover; takeover.ANSWER_SECONDS = 0.2; '
    )
    folder.start('-c', impatient + 'programs.main(server.main)')
    until(lambda: folder.log().count('listening on port') == 2, 'the new one serves')
    assert listens(folder.options['rendezvous_port'])
    assert folder.log().count('what runs here does not hand over: no answer') == takeover.TRIES
