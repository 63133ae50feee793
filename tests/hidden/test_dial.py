"""How hidden.py finds an address that answers (RFC 8305)."""

import socket
import time
from contextlib import ExitStack

import gevent
import pytest
from conftest import descriptors, until
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pool import Pool
from gevent.server import StreamServer

from rendezvous.hidden import dial

GOOD, OTHER, THIRD = '127.0.0.1', '127.0.0.2', '127.0.0.3'


def answers_no_syn(host: str, port: int) -> ExitStack:
    """An address that answers no SYN: what may wait to be accepted there is full."""
    stack = ExitStack()
    listening = stack.enter_context(socket.socket())
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(0)
    connecting = []
    for _ in range(3):
        connecting.append(stack.enter_context(socket.socket()))
        connecting[-1].setblocking(False)
        connecting[-1].connect_ex((host, port))
    return stack


@pytest.fixture
def port():
    """One on which GOOD accepts connections."""
    server = StreamServer((GOOD, 0), lambda sock, _: sock.close(), spawn=Pool(None))
    server.start()
    yield server.server_port
    server.stop(timeout=0)


@pytest.fixture
def resolves(monkeypatch):
    """Makes a name have these addresses."""

    def resolves(*hosts: str) -> None:
        monkeypatch.setattr(
            socket,
            'getaddrinfo',
            lambda _, port, **__: [
                (socket.AF_INET6 if ':' in host else socket.AF_INET, 1, 6, '', (host, port))
                for host in hosts
            ],
        )

    return resolves


def reached(addresses: dial.Addresses) -> str:
    sock, _ = addresses.connect()
    with sock:
        return sock.getpeername()[0]


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_address_that_does_not_answer_is_passed_over_and_named(port, resolves, caplog):
    resolves(OTHER, THIRD, GOOD)
    addresses = dial.Addresses('example.com', port)
    with answers_no_syn(OTHER, port), answers_no_syn(THIRD, port):
        for _ in range(3):
            assert reached(addresses) == GOOD
    assert said(caplog) == [f'{OTHER}, {THIRD} did not answer: {GOOD} of example.com did']


def test_address_that_worked_comes_first_the_next_time(port, resolves):
    resolves(OTHER, GOOD)
    addresses = dial.Addresses('example.com', port)
    with answers_no_syn(OTHER, port):
        assert reached(addresses) == GOOD
    with socket.create_server((OTHER, port)):
        assert reached(addresses) == GOOD


def test_after_a_refusal_the_next_one_need_not_wait(port, resolves, monkeypatch, caplog):
    monkeypatch.setattr(dial, 'NEXT_SECONDS', 60)
    resolves(OTHER, THIRD, GOOD)
    assert reached(dial.Addresses('example.com', port)) == GOOD
    assert said(caplog) == []


def test_slow_address_is_taken_where_it_is_the_only_one(resolves, port, monkeypatch):
    """The next tries are made beside it, and it may win."""
    monkeypatch.setattr(dial, 'ROUND_SECONDS', 0.05)
    resolves(OTHER)
    with answers_no_syn(OTHER, port) as stack:
        connecting = gevent.spawn(reached, dial.Addresses('example.com', port))
        gevent.sleep(0.01)
        assert not connecting.ready()
        stack.close()
        server = StreamServer((OTHER, port), lambda sock, _: sock.close(), spawn=Pool(None))
        server.start()
        assert connecting.get(timeout=5) == OTHER
        server.stop(timeout=0)


def test_network_that_is_back_is_noticed_by_a_new_try(port, resolves, monkeypatch):
    """The system's own tries come after 1, 3, 7 and 15 seconds."""
    made = []
    monkeypatch.setattr(dial, 'ROUND_SECONDS', 0.05)

    class Counted(socket.socket):
        def connect(self, address):
            made.append(address)
            super().connect(address)

    resolves(OTHER)
    with answers_no_syn(OTHER, port):
        monkeypatch.setattr(socket, 'socket', Counted)
        with pytest.raises(TimeoutError, match='timed out'):
            dial.Addresses('example.com', port).connect()
    assert len(made) == dial.ROUNDS


def test_none_that_answers_is_an_error_of_the_last_one(port, resolves):
    resolves(OTHER, THIRD)
    with pytest.raises(ConnectionRefusedError):
        dial.Addresses('example.com', port).connect()


def test_nothing_is_left_of_the_tries_that_lost(port, resolves):
    resolves(OTHER, GOOD)
    with answers_no_syn(OTHER, port):
        before = descriptors()
        assert reached(dial.Addresses('example.com', port)) == GOOD
        until(lambda: descriptors() == before, 'they are closed')  # gevent closes in the next turn


def test_one_that_was_tried_later_is_not_blamed(port, resolves, monkeypatch, caplog):
    monkeypatch.setattr(dial, 'NEXT_SECONDS', 0)
    resolves(GOOD, OTHER)
    with answers_no_syn(OTHER, port):
        assert reached(dial.Addresses('example.com', port)) == GOOD
    assert said(caplog) == []


def test_families_come_by_turns():
    v4, v6 = ([(family, (str(n), 1)) for n in range(3)] for family in (2, 10))
    assert dial.by_turns([*v6, *v4[:2]]) == [v6[0], v4[0], v6[1], v4[1], v6[2]]


def test_what_was_right_before_does_while_the_name_does_not_resolve(port, resolves, monkeypatch):
    monkeypatch.setattr(dial, 'FRESH_SECONDS', 0)
    resolves(GOOD)
    addresses = dial.Addresses('example.com', port)
    assert reached(addresses) == GOOD

    def fail(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    assert reached(addresses) == GOOD
    monkeypatch.setattr(dial, 'KNOWN_SECONDS', 0.01)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: Event().wait())
    assert reached(addresses) == GOOD
    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    with pytest.raises(socket.gaierror):
        dial.Addresses('example.com', port).connect()


def test_name_server_is_asked_once_at_a_time_and_may_be_late(port, resolves, monkeypatch):
    """Each question needs a thread; and where the server has moved, only a late answer tells."""
    resolves(THIRD)
    addresses, asked, answers = dial.Addresses('example.com', port), [], Event()
    with pytest.raises(ConnectionRefusedError):
        addresses.connect()

    def late(_, port, **__):
        asked.append(port)
        answers.wait()
        return [(socket.AF_INET, 1, 6, '', (GOOD, port))]

    monkeypatch.setattr(dial, 'KNOWN_SECONDS', 0.01)
    monkeypatch.setattr(socket, 'getaddrinfo', late)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            addresses.connect()
    assert len(asked) == 1
    answers.set()
    gevent.sleep(0)
    assert reached(addresses) == GOOD


def test_name_is_asked_again_when_its_address_answers_no_more(port, resolves, monkeypatch):
    """Until then one answer does for many visits."""
    resolves(OTHER)
    addresses = dial.Addresses('example.com', port)
    with socket.create_server((OTHER, port)):
        assert reached(addresses) == OTHER
        resolves(GOOD)
        assert reached(addresses) == OTHER
    with pytest.raises(ConnectionRefusedError):
        addresses.connect()
    assert reached(addresses) == GOOD


def test_ip_address_is_looked_up_once(port, monkeypatch):
    addresses = dial.Addresses(GOOD, port)
    assert reached(addresses) == GOOD
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: 1 / 0)
    assert reached(addresses) == GOOD


def test_name_server_that_does_not_answer_holds_up_nobody(monkeypatch):
    """The system's resolver blocks its thread, which is not ours."""
    sleep, ticks = get_original('time', 'sleep'), []

    def slow(*_):
        sleep(0.5)
        raise socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')

    monkeypatch.setattr('_socket.getaddrinfo', slow)
    connecting = gevent.spawn(dial.Addresses('rendezvous.invalid', 1).connect)

    def tick():
        ticks.append(time.monotonic())
        return connecting.ready()

    until(tick, 'it gives up')
    assert isinstance(connecting.exception, socket.gaierror)
    assert len(ticks) > 10
