"""How many may come, from where, and what they may ask for."""

import logging
import re
import resource
import socket
import sys
import time
import uuid as uuids
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from conftest import OK, Peer, code, connect_request, get, until
from programs import Folder

from rendezvous.server import limits, shares
from rendezvous.server.accepted import Connection
from rendezvous.server.limits import ConnectionLimits
from rendezvous.server.shares import Shares
from rendezvous.wire import addresses


@pytest.fixture
def come(start):
    """Makes connections to a server that speaks plain HTTP, from any loopback address."""
    peers = []

    def come(server, address: str = '127.0.0.1') -> Peer:
        sock = socket.create_connection(('127.0.0.1', server.port), source_address=(address, 0))
        peers.append(Peer(sock))
        return peers[-1]

    yield come
    for peer in peers:
        peer.close()


@pytest.fixture
def plain(start):
    return lambda **options: start(key_file=None, **options)


def is_served(peer: Peer) -> bool:
    """Whether it is asked who it is; the other way is an end without a word."""
    try:
        peer.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
        return peer.answer().status == 401
    except (OSError, AssertionError):
        return False


def registered(come, server, entries, uuid, address: str = '127.0.0.1') -> Peer:
    peer = come(server, address)
    peer.send(connect_request(uuid, code(entries, uuid)))
    assert peer.receive(len(OK)) == OK
    return peer


def refusal(come, server, octets: bytes):
    peer = come(server)
    peer.send(octets)
    return peer.answer()


def test_address_that_has_its_connections_gets_no_more_and_others_do(plain, come):
    server = plain(max_connections_per_address=3)
    peers = [come(server) for _ in range(3)]
    assert all(is_served(peer) for peer in peers)
    assert not is_served(come(server))
    assert is_served(come(server, '127.0.0.2'))
    for peer in peers[:2]:
        peer.close()
    until(lambda: len(server.connections) == 2, 'they have left')  # the one from elsewhere stays
    assert [is_served(come(server)) for _ in range(3)] == [True, True, False]


def test_zero_is_any_number_from_one_address(plain, come):
    server = plain(max_connections_per_address=0, max_connections=1000)
    assert all(is_served(peer) for peer in [come(server) for _ in range(500)])


def visited(come, server, entries, uuid, address: str, from_: str = '127.0.0.1'):
    """A pipe: the hidden server's end and a mobile client's at `address`."""
    hidden = registered(come, server, entries, uuid, from_)
    mobile = come(server, address)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    return hidden, mobile


def test_places_of_a_pipe_that_drains_are_anybodys(plain, come, entries, uuid, caplog):
    caplog.set_level('INFO')
    server = plain(max_connections_per_address=3, drain=300)
    hidden, mobile = visited(come, server, entries, uuid, '127.0.0.1')
    mobile.shut_sending()
    until(lambda: server.rendezvous.limits._leavers, 'it drains')
    others = [come(server) for _ in range(3)]
    assert all(is_served(peer) for peer in others)
    assert mobile.rest() == hidden.rest() == b''
    assert not is_served(come(server))  # these do not drain
    assert 'mobile client closed' in caplog.text


def test_place_of_who_is_read_off_is_anybodys(plain, come):
    server = plain(max_connections=8)
    uploads = [come(server) for _ in range(8)]
    for each in uploads:
        each.send(b'CONNECT x:443 HTTP/1.1\r\n\r\n')
        assert each.answer().status == 403
    others = [come(server) for _ in range(8)]
    assert all(is_served(peer) for peer in others)


def test_address_has_so_many_pipes_to_a_hidden_server(plain, come, entries, uuid):
    server = plain(max_pipes_per_address=2)
    pipes = [visited(come, server, entries, uuid, '127.0.0.1') for _ in range(2)]
    third = come(server)
    third.send(get(uuid))
    answer = third.answer()
    assert answer.status == 429
    assert int(answer.fields['Retry-After']) > 0
    visited(come, server, entries, uuid, '127.0.0.2')
    pipes[0][0].close()
    assert pipes[0][1].rest() == b''
    visited(come, server, entries, uuid, '127.0.0.1')


def test_hidden_server_does_not_pay_for_its_visitors(plain, come, entries, uuid):
    server = plain(max_connections_per_address=2)
    for number in range(5):
        visited(come, server, entries, uuid, f'127.0.0.{10 + number}', '127.0.0.2')
    registered(come, server, entries, uuid, '127.0.0.2')


def test_ipv6_addresses_of_one_household_count_as_one():
    places = ConnectionLimits(100, 2, 0, Shares(shares.create(1), 1, 1, b'seed'))
    for host in ('2001:db8::1', '2001:db8::2'):
        places.admit(Connection(None, addresses.Peer(host, 1)))
    with pytest.raises(limits.Evicted):
        places.admit(Connection(None, addresses.Peer('2001:db8::3', 1)))
    places.admit(Connection(None, addresses.Peer('2001:db8:0:1::3', 1)))


def test_those_who_have_left_leave_nothing_behind(plain, come, entries, uuid):
    server, peers = plain(), []

    def inside() -> str:
        return re.sub(' object at 0x[0-9a-f]+', '', repr(vars(server.rendezvous.limits)))

    before = inside()
    for number in range(1, 20):
        hidden, mobile = registered(come, server, entries, uuid), come(server, f'127.0.1.{number}')
        peers += hidden, mobile, come(server, f'127.0.2.{number}')
        assert is_served(peers[-1])
        mobile.send(get(uuid))
        hidden.until(b'\r\n\r\n')
    for peer in peers:
        peer.close()
    until(lambda: not server.connections, 'they have left')
    assert inside() == before
    assert not any(any(row) for row in server.shares.rows)


def test_the_oldest_stranger_makes_room_for_a_new_one(plain, come):
    server = plain(max_connections=8)
    peers = [come(server) for _ in range(8)]
    assert all(is_served(peer) for peer in peers)
    assert is_served(come(server))
    assert [is_served(peer) for peer in peers] == [False] + 7 * [True]


def test_those_who_say_nothing_shut_out_nobody(plain, come, entries, uuid):
    server = plain(max_connections=8)
    hidden = registered(come, server, entries, uuid)
    silent = [come(server) for _ in range(50)]
    mobile = come(server)
    mobile.send(get(uuid))
    assert hidden.until(b'\r\n\r\n').startswith(b'GET / ')
    more = [come(server) for _ in range(50)]
    hidden.send(b'still here')
    assert mobile.receive(10) == b'still here'
    assert silent[0].rest() == more[0].rest() == b''


def test_waiting_registrations_leave_room_for_mobile_clients(plain, come, entries, uuid):
    server = plain(max_connections=8)
    hidden = [registered(come, server, entries, uuid) for _ in range(6)]
    answer = refusal(come, server, connect_request(uuid, code(entries, uuid)))
    assert (answer.status, answer.fields['Retry-After']) == (503, '30')
    mobile = come(server)
    mobile.send(get(uuid))
    assert hidden[-1].until(b'\r\n\r\n').startswith(b'GET / ')


def test_pipes_leave_room_for_registrations(plain, come, entries, uuid):
    server = plain(max_connections=8)
    pipes = []
    for _ in range(3):
        pipes.append(registered(come, server, entries, uuid))
        pipes.append(come(server))
        pipes[-1].send(get(uuid))
        pipes[-2].until(b'\r\n\r\n')
    waits = registered(come, server, entries, uuid)
    answer = refusal(come, server, get(uuid))
    assert (answer.status, answer.fields['Retry-After']) == (503, '30')
    until(lambda: server.rendezvous.registry.count(uuid) == 1, 'the registration waits on')
    pipes[0].close()
    pipes[1].close()
    until(lambda: sum(server.rendezvous.limits._of_kind.values()) == 5, 'it ends')
    mobile = come(server)
    mobile.send(get(uuid))
    assert waits.until(b'\r\n\r\n').startswith(b'GET / ')


def test_mobile_client_that_is_evicted_takes_no_registration_along(plain, come, entries, uuid):
    """... that was handed to it in the very moment."""
    server = plain(max_connections=8, rendezvous_wait=60)
    waiting = server.rendezvous.registry
    registered(come, server, entries, uuid).close()
    mobile = come(server)
    mobile.send(get(uuid))
    until(lambda: uuid in waiting.wanted(), 'it waits')
    unclaim = waiting.unclaim
    waiting.unclaim = lambda registration: (
        unclaim(registration),
        server.rendezvous.limits.evict(),
    )
    hidden = come(server)
    until(lambda: len(server.connections) == 2, 'it is accepted')
    waiting._mobile_clients[uuid].rotate()
    hidden.send(connect_request(uuid, code(entries, uuid)))
    assert hidden.receive(len(OK)) == OK
    until(lambda: waiting.count(uuid) == 1, 'it waits for the next one')
    del waiting.unclaim
    assert mobile.answer().status == 503
    another = come(server)
    another.send(get(uuid))
    assert hidden.until(b'\r\n\r\n').startswith(b'GET / ')


def asked(come, server, uuid: str, address: str = '127.0.0.1'):
    peer = come(server, address)
    peer.send(get(uuid))
    return peer.answer()


@pytest.fixture
def pauses(monkeypatch):
    """How often an answer was slowed."""
    slowed = []
    monkeypatch.setattr(limits, 'SLOW_SECONDS', 0.01)
    absent = limits.UnknownUuids.note

    def noted(self, *args) -> float:
        slowed.append(absent(self, *args))
        return slowed[-1]

    monkeypatch.setattr(limits.UnknownUuids, 'note', noted)
    return slowed


def test_prober_is_slowed_then_refused_whatever_it_asks_for(plain, come, entries, uuid, pauses):
    server = plain(unknown_per_minute=3)
    hidden = registered(come, server, entries, uuid)
    answers = [asked(come, server, str(uuids.uuid4())) for _ in range(7)]
    assert [answer.status for answer in answers] == 6 * [503] + [429]
    assert pauses == [0, 0, 0, 0.01, 0.01, 0.01]
    assert 0 < int(answers[-1].fields['Retry-After']) <= 60
    assert asked(come, server, uuid).status == 429
    another = come(server, '127.0.0.2')
    another.send(get(uuid))
    assert hidden.until(b'\r\n\r\n').startswith(b'GET / ')


def test_asking_again_for_the_same_is_no_probing(plain, come, pauses):
    server, absent = plain(unknown_per_minute=3), str(uuids.uuid4())
    assert {asked(come, server, absent).status for _ in range(20)} == {503}
    assert not any(pauses)


def test_absent_uuid_that_is_polled_for_ever_keeps_no_other_in_the_count(
    plain, come, monkeypatch, pauses
):
    """A hidden server's own app asks on; what else its address asked for was long ago."""
    now, names = 0.0, [str(uuids.uuid4()) for _ in range(6)]
    monkeypatch.setattr(limits, 'time', SimpleNamespace(monotonic=lambda: now))
    server = plain(unknown_per_minute=2)

    def statuses(at: float, *names: str) -> set[int]:
        nonlocal now
        now = at
        return {asked(come, server, name).status for name in names}

    assert statuses(100, *names[:3]) == {503}
    for seconds in range(10, 100, 10):
        assert statuses(100 + seconds, names[0]) == {503}
    assert statuses(200, *names[3:]) == {503}


def test_prober_is_served_again_after_a_minute(plain, come, monkeypatch, pauses):
    now = 100.0
    monkeypatch.setattr(limits, 'time', SimpleNamespace(monotonic=lambda: now))
    server = plain(unknown_per_minute=1)
    statuses = [asked(come, server, str(uuids.uuid4())).status for _ in range(3)]
    assert statuses == [503, 503, 429]
    now = 160.0
    assert asked(come, server, str(uuids.uuid4())).status == 429
    now = 161.0
    assert asked(come, server, str(uuids.uuid4())).status == 503


def test_probing_may_be_let_be(plain, come, pauses):
    server = plain(unknown_per_minute=0)
    statuses = {asked(come, server, str(uuids.uuid4())).status for _ in range(250)}
    assert (statuses, set(pauses)) == ({503}, {0})


def test_many_probers_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(limits, 'MAX_ADDRESSES', 10)
    probes = limits.UnknownUuids(5)
    for number in range(1000):
        probes.note(f'10.0.{number // 256}.{number % 256}', 'x')
    assert len(probes._asked) == 10


def test_server_that_has_just_begun_lets_mobile_clients_wait(start, connect, register, uuid):
    """It does not know who was here a moment ago, before it was restarted."""
    server = start(rendezvous_wait=60)
    server.rendezvous.registry._since = time.monotonic()  # as a server in truth begins
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: server.rendezvous.registry.wanted(), 'it waits')
    hidden = register(server, uuid)
    assert hidden.until(b'\r\n\r\n').startswith(b'GET / ')


@pytest.fixture
def folder(tmp_path):
    with Folder(tmp_path) as folder:
        yield folder


def test_descriptors_used_up_are_said_once_a_second_and_it_serves_on(folder):
    folder.pair()
    folder.set(key_file=None, workers=1)
    program, port = folder.serve()
    (worker,) = folder.workers()
    limit = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (40, limit[1]))
    with ExitStack() as clients:

        def come() -> Peer:
            client = clients.enter_context(socket.create_connection(('127.0.0.1', port)))
            return Peer(client)

        silent = [come() for _ in range(200)]
        sentence = 'cannot accept a connection: Too many open files'
        until(lambda: sentence in folder.log(), 'it says so')
        assert is_served(come())
        for peer in silent:
            peer.close()
        assert is_served(come())
    times = re.findall(r'^(\S+ \S+),\d+ WARNING cannot accept', folder.log(), re.M)
    assert len(times) <= len(set(times)) + 1
    assert 'Traceback' not in folder.log() + program.said()
    assert program.end() == 0


def test_fewer_descriptors_than_connections_are_said_at_start(folder):
    folder.set(key_file=None, workers=1)
    limit = 'import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); '
    folder.start('-c', limit + f'os.execv({sys.executable!r}, [{sys.executable!r}, "server.py"])')
    until(lambda: 'listening' in folder.log(), 'it serves')
    assert folder.log().count('max_connections is 36, for 100 descriptors') == 1
    assert folder.log().count('key_file is None: wrong codes are not counted by address') == 1


def test_seldom_counts_what_it_does_not_say(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr(limits.time, 'monotonic', lambda: now)
    say = limits.ThrottledWarning()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            say('%s', 'x')
        now += 1
        say('%s', 'x')
    assert caplog.messages == ['x (once)', 'x (5 times)']
