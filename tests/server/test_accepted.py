"""A connection as the others see it: a registration that waits has no greenlet."""

import gc
import os
import socket

import gevent
import pytest
from conftest import connect_request, until
from gevent.event import AsyncResult

from rendezvous.server.accepted import Connection
from rendezvous.server.hop import YES, OtherWorker, Visitor
from rendezvous.wire import sockets
from rendezvous.wire.addresses import Peer
from rendezvous.wire.sockets import Ended, Socket


def greenlets() -> int:
    return sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_refused_connection_leaves_no_garbage(server, connect, uuid, no_collector):
    """Or a flood of wrong codes would be kept until the next look for garbage."""
    peer = connect(server)
    peer.send(connect_request(uuid, '000000'))
    assert peer.answer().status == 401
    peer.close()
    until(lambda: not any(isinstance(each, Connection) for each in gc.get_objects()), 'it has gone')


def the_one_that_waits(server):
    (registration,) = server.rendezvous.registry.waiting()
    return registration.connection


def test_registration_that_waits_has_no_greenlet(server, register, uuid):
    before = greenlets()
    for _ in range(10):
        register(server, uuid)
    until(lambda: greenlets() <= before, 'those that served them end')
    assert len(server.connections) == 10


def test_greenlet_that_serves_it_goes_on_where_the_first_one_ended(server, join):
    hidden, mobile = join(server)
    for _ in range(2):
        hidden.send(b'answer')
        assert mobile.receive(6) == b'answer'
        mobile.send(b'more')
        hidden.receive(4)


@pytest.mark.parametrize('times', [1, 2])
def test_registration_that_is_ended_before_its_greenlet_runs_is_closed(
    times, server, register, uuid
):
    """Something has come, a greenlet is to start, and in this moment it is ended, or even twice."""
    hidden = register(server, uuid)
    waits = the_one_that_waits(server)
    waits._wake()
    for _ in range(times):
        waits.interrupt()
    assert hidden.rest() == b''
    until(lambda: not server.connections, 'its place is free')


def test_hidden_server_that_has_not_answered_is_ended_with_its_mobile_client(server, join):
    hidden, mobile = join(server)
    mobile.close()
    assert hidden.rest() == b''
    hidden.close()
    until(lambda: not server.connections, 'both have ended')


def test_registrations_that_wait_are_ended_where_the_server_stops(server, register, join, uuid):
    hidden, _ = join(server)  # in a pipe, without an answer yet
    waits = register(server, uuid)
    server.stop(seconds=0)
    assert (hidden.rest(), waits.rest()) == (b'', b'')


def test_registration_that_is_ended_while_its_greenlet_finishes_is_closed():
    """The greenlet is dead before Ended is raised in it: where thousands are ended at once."""
    near, far = socket.socketpair()
    went_on = AsyncResult()

    def serve() -> None:
        connection = Connection(Socket(near), Peer('192.0.2.1', 1))
        connection.interrupt()
        connection.wait(lambda: went_on.set(connection))

    with near, far:
        gevent.spawn(serve)
        with pytest.raises(Ended):
            went_on.get().own()


def test_registration_that_is_ended_in_the_moment_of_its_visit_ends_the_visit(
    server, register, uuid
):
    """Ended, but not out of the registry yet: the next to come from another worker may claim it."""
    register(server, uuid)
    rendezvous = server.rendezvous
    near, far = socket.socketpair()
    visitor = Visitor(near)

    def visit() -> None:
        held = rendezvous.registry.claim(uuid, 0, visitor)
        held.connection.interrupt()
        rendezvous.visit(visitor, Peer('192.0.2.1', 1), uuid, held, b'request')

    with far:
        visiting = gevent.spawn(visit)
        assert visiting.join(timeout=10) is None
        assert visiting.dead
        assert far.recv(100) == b''


def test_hidden_server_that_is_ended_alone_does_not_keep_its_visit(server, register, uuid):
    """A worker that stops ends its registrations, and a visit from another worker after that."""
    hidden, rendezvous = register(server, uuid), server.rendezvous
    near, far = socket.socketpair()
    visitor = Visitor(near)
    held = rendezvous.registry.claim(uuid, 0, visitor)
    peer = Peer('192.0.2.1', 1)
    with far:
        visiting = gevent.spawn(rendezvous.visit, visitor, peer, uuid, held, b'request')
        hidden.receive(len(b'request'))
        hidden.send(b'answer')
        assert far.recv(100) == b'Aanswer'
        held.connection.interrupt()
        assert hidden.rest() == b''
        hidden.close()
        until(lambda: not server.connections, 'it has ended')
        far.send(b'more')
        visiting.get(timeout=10)


def test_whole_answer_is_no_cut_one_for_a_slow_mobile_client_of_another_worker(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sockets, 'LINGER_SECONDS', 0.02)
    path, much = str(tmp_path / 'worker'), os.urandom(600_000)  # two reads

    def answer(visitor: Visitor) -> None:
        visitor.say(YES)
        visitor.receive()
        visitor.send(much)
        sockets.close_gracefully(visitor)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        link = OtherWorker(path)
        answering = gevent.spawn(answer, Visitor(listener.accept()[0]))
        assert link.answer() == YES
        link.send(b'GET / HTTP/1.1\r\n\r\n')
        came = link.receive()
        answering.join(timeout=0.2)  # meanwhile the mobile client takes nothing
        while octets := link.receive():
            came += octets
        assert came == much
        link.close()
        answering.get()
