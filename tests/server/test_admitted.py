"""A hidden server that comes back with its long code is let in without a question to Redis.

All else is as if Redis were asked: a change counts at once, and so does a wrong code, once.
"""

import json
import socket
import time

import pytest
from conftest import Peer, client_context, code, connect_request, until

from rendezvous.server import admitted
from rendezvous.server.admitted import Admitted, stamp_of
from rendezvous.wire import codes

ENTRY = {'authParams': {'base32': 'A' * 32, 'step': 30}}
NOW = 1_800_000_000.0  # a step begins
QUESTION = 'uuid', 'place', codes.long_code(ENTRY['authParams'], NOW)


@pytest.fixture(autouse=True)
def remembered_for_long(monkeypatch):
    """Nothing is forgotten meanwhile on a slow machine."""
    monkeypatch.setattr(admitted, 'REMEMBER_SECONDS', 120)


@pytest.fixture
def server(start):
    """One that is told of changes."""
    return told(start())


def told(server):
    until(lambda: changes(server), 'it has subscribed')
    return server


def changes(server) -> int:
    return server.rendezvous.admission.admitted.changes


@pytest.fixture
def knock(pair):
    """Registers from an address of this machine, or tries to, and hangs up; the status."""
    context = client_context(pair['crt_file'])

    def knock(server, uuid: str, tried: str, address: str = '127.0.0.1') -> int:
        sock = socket.create_connection(('127.0.0.1', server.port), source_address=(address, 0))
        with context.wrap_socket(sock, server_hostname='127.0.0.1') as tls:
            peer = Peer(tls)
            peer.send(connect_request(uuid, tried))
            return peer.answer().status

    return knock


@pytest.fixture
def asked(monkeypatch):
    """Counts the questions of a server: for an entry, and to count a try."""

    def asked(server) -> list[str]:
        found = []
        for name in ('get', 'count_try'):
            ask = getattr(server.entries, name)
            monkeypatch.setattr(
                server.entries, name, lambda *all, n=name, ask=ask: found.append(n) or ask(*all)
            )
        return found

    return asked


def long_code(entries, uuid: str) -> str:
    return codes.long_code(entries.get(uuid)['authParams'], time.time())


@pytest.fixture
def questions(server, entries, uuid, knock, asked):
    """What Redis is asked where these addresses come one after the other, with long codes."""
    found = asked(server)

    def questions(*addresses: str) -> list[str]:
        step = -1.0
        while time.time() // 30 != step:  # of the codes: with the next one Redis is asked again
            server.rendezvous.admission.admitted.forget()
            step = time.time() // 30
            found.clear()
            for address in addresses:
                assert knock(server, uuid, long_code(entries, uuid), address) == 200
        return found

    return questions


def test_who_comes_back_with_a_long_code_costs_redis_nothing(questions):
    assert questions(*['127.0.0.1'] * 5) == ['get', 'count_try']


def test_each_address_is_asked_for(questions):
    assert questions(*['127.0.0.1', '127.0.0.2'] * 2) == ['get', 'count_try'] * 2


def test_short_code_is_asked_for_each_time(server, entries, uuid, knock, asked):
    found = asked(server)
    assert [knock(server, uuid, code(entries, uuid)) for _ in range(2)] == [200, 200]
    assert found == ['get', 'count_try'] * 2


@pytest.mark.parametrize(
    ('how', 'status'), [('disable', 503), ('rekey', 401), ('delete', 401)], ids=lambda each: each
)
def test_change_counts_at_once_on_every_server(start, entries, uuid, knock, how, status):
    servers, long = [told(start()), told(start())], long_code(entries, uuid)
    before = [changes(server) for server in servers]
    for server in servers:
        assert [knock(server, uuid, long) for _ in range(2)] == [200, 200]
    getattr(entries, how)(uuid)
    until(lambda: all(map(int.__lt__, before, map(changes, servers))), 'both are told')
    assert [knock(server, uuid, long) for server in servers] == [status] * 2


def test_change_of_which_nobody_tells_is_seen_after_a_while(
    server, entries, uuid, knock, monkeypatch
):
    monkeypatch.setattr(admitted, 'REMEMBER_SECONDS', 0.2)
    long = long_code(entries, uuid)
    assert knock(server, uuid, long) == 200
    entries.ask(lambda redis: redis.set(uuid, json.dumps(ENTRY)))
    until(lambda: knock(server, uuid, long) == 401, 'the old code is wrong')


def test_wrong_codes_count_once_while_the_entry_is_remembered(server, entries, uuid, knock):
    long, wrong = long_code(entries, uuid), '0' * 40
    assert knock(server, uuid, long) == 200
    assert [knock(server, uuid, wrong) for _ in range(12)] == [401] * 10 + [429] * 2
    assert knock(server, uuid, long) == 200


def test_ration_of_an_address_holds_for_those_that_are_remembered(server, entries, uuid, knock):
    long = long_code(entries, uuid)
    assert knock(server, uuid, long) == 200
    for _ in range(100):
        server.rendezvous.admission._tries.note('127.0.0.1', time.monotonic())
    assert knock(server, uuid, long) == 429


def test_nobody_is_remembered_while_nobody_tells_of_changes():
    memory = Admitted()
    memory.note(QUESTION, ENTRY, NOW, memory.changes)  # not subscribed yet
    assert memory.stamp(QUESTION, NOW) is None
    memory.forget()
    before = memory.changes
    memory.note(QUESTION, ENTRY, NOW, before)
    assert memory.stamp(QUESTION, NOW) == stamp_of(ENTRY)
    memory.forget()
    memory.note(QUESTION, ENTRY, NOW, before)  # it changed while Redis was asked
    assert memory.stamp(QUESTION, NOW) is None
    memory.note(QUESTION, ENTRY, NOW, memory.changes)
    memory.forget(is_told=False)  # the subscription is lost
    memory.note(QUESTION, ENTRY, NOW, memory.changes)
    assert memory.stamp(QUESTION, NOW) is None


def test_code_is_remembered_no_longer_than_its_step():
    memory = Admitted()
    memory.forget()
    memory.note(QUESTION, ENTRY, NOW + 3, memory.changes)
    asked = [NOW + seconds for seconds in (-1, 0, 29, 30) if memory.stamp(QUESTION, NOW + seconds)]
    assert asked == [NOW, NOW + 29]


def test_no_more_are_remembered_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(admitted, 'MOST', 3)
    memory = Admitted()
    memory.forget()
    for uuid in 'abcad':
        memory.note((uuid, *QUESTION[1:]), ENTRY, NOW, memory.changes)
    assert [uuid for uuid in 'abcd' if memory.stamp((uuid, *QUESTION[1:]), NOW)] == ['a', 'c', 'd']
    monkeypatch.setattr(admitted, 'REMEMBER_SECONDS', 0)
    memory.note(QUESTION, ENTRY, NOW, memory.changes)
    assert memory.stamp(QUESTION, NOW) is None
