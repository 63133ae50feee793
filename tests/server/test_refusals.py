"""Why a registration was refused, as the page is told: kinds and numbers, no sentences."""

import math
import socket
import ssl
import time
import uuid as uuids

import pytest
from asking import follows
from conftest import Peer, code, connect_request, get, until

from rendezvous.server import connection
from rendezvous.store import presence, saving, state
from rendezvous.store.state import Why
from rendezvous.wire import codes


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(presence, 'WRITE_SECONDS', 0.02)


@pytest.fixture
def call(start, pair):
    """Sends a CONNECT from an address of this machine; the connection."""
    context, peers = ssl.create_default_context(cafile=pair['crt_file']), []

    def call(server, uuid: str, tried: str, address: str = '127.0.0.1', fields: str = '') -> Peer:
        sock = socket.create_connection(('127.0.0.1', server.port), source_address=(address, 0))
        peers.append(Peer(context.wrap_socket(sock, server_hostname='127.0.0.1')))
        request = connect_request(uuid, tried).removesuffix(b'\r\n')
        peers[-1].send(request + fields.encode() + b'\r\n')
        return peers[-1]

    yield call
    for peer in peers:
        peer.close()


@pytest.fixture
def tell(call):
    """The status of the answer; the connection is closed."""

    def tell(*what) -> int:
        peer = call(*what)
        status = int(peer.until(b'\r\n\r\n').split()[1])
        peer.close()
        return status

    return tell


def wrong(entries, uuid: str) -> str:
    """A short code that is wrong now and was never right within days."""
    parameters, now = entries.get(uuid)['authParams'], time.time()
    near = {codes.totp(parameters).at(now + 30 * step) for step in range(-3000, 3000)}
    return next(each for each in (f'{number:08}' for number in range(10**5)) if each not in near)


def long_code(entries, uuid: str, seconds: float = 0) -> str:
    return codes.long_code(entries.get(uuid)['authParams'], time.time() + seconds)


def told(entries, uuid: str, kind: str) -> state.Refusals:
    """What the page knows of the refusals of this kind, of one address."""

    def found() -> list[state.Refusals]:
        return [each for each in state.refusals(entries, uuid) if each.why.kind == kind]

    (refusals,) = until(found, f'{kind} is told')
    return refusals


@pytest.mark.parametrize('seconds', [-7200, 3660])
def test_clock_that_is_off_is_told_with_its_error(server, tell, entries, uuid, seconds):
    began = time.time()
    assert tell(server, uuid, long_code(entries, uuid, seconds)) == 401
    refusals = told(entries, uuid, 'clock')
    assert refusals.why.sure
    assert abs(refusals.why.seconds - seconds) <= 30
    assert (refusals.address, refusals.count, refusals.until) == ('127.0.0.1', 1, 0)
    assert began <= refusals.first == refusals.last <= time.time()


def test_wrong_codes_of_a_stranger_do_not_hide_a_clock_that_is_off(server, tell, entries, uuid):
    assert tell(server, uuid, wrong(entries, uuid), '127.0.0.9') == 401
    assert told(entries, uuid, 'wrong').address == '127.0.0.9'
    assert tell(server, uuid, long_code(entries, uuid, 3660)) == 401
    assert abs(told(entries, uuid, 'clock').why.seconds - 3660) <= 30


def test_clock_of_a_short_code_is_a_guess(server, tell, entries, uuid):
    short = codes.totp(entries.get(uuid)['authParams']).at(time.time() + 3600)
    assert tell(server, uuid, short) == 401
    assert not told(entries, uuid, 'clock').why.sure


def test_kinds_that_need_no_number(server, tell, entries, uuid):
    former = long_code(entries, uuid)
    entries.rekey(uuid)
    assert tell(server, uuid, former) == 401
    assert told(entries, uuid, 'former').why == Why('former')
    assert tell(server, uuid, wrong(entries, uuid)) == 401
    assert told(entries, uuid, 'wrong').why == Why('wrong')
    entries.disable(uuid)
    assert tell(server, uuid, long_code(entries, uuid)) == 503
    assert told(entries, uuid, 'disabled').why == Why('disabled')


def test_entry_without_a_secret_that_can_be_used(server, tell, entries):
    made = str(uuids.uuid4())
    entries.insert(made, {'uuid': made, 'labels': [], 'authParams': {'base32': 1}})
    assert tell(server, made, '0' * 40) == 401
    assert told(entries, made, 'unusable').why == Why('unusable')
    entries.delete(made)


def test_ration_is_told_with_the_time_at_which_it_allows_a_try(start, tell, entries, uuid):
    server = start(wrong_codes_per_address=3, wrong_codes_per_day=3)
    began = time.time()
    assert [tell(server, uuid, wrong(entries, uuid)) for _ in range(4)] == [401] * 3 + [429]
    address = told(entries, uuid, 'address')
    assert 899 <= address.until - began <= time.time() - began + 901
    assert told(entries, uuid, 'wrong').count == 3
    assert tell(server, uuid, code(entries, uuid), '127.0.0.3') == 401
    strangers = told(entries, uuid, 'strangers')
    assert (strangers.address, strangers.until) == ('127.0.0.3', 0)


def test_ration_of_a_friend_is_told_as_such(start, tell, entries, uuid):
    server = start(wrong_codes_per_address=9, wrong_codes_per_day=3)
    assert tell(server, uuid, long_code(entries, uuid)) == 200
    assert [tell(server, uuid, wrong(entries, uuid)) for _ in range(3)] == [401] * 3
    assert tell(server, uuid, code(entries, uuid)) == 401
    assert told(entries, uuid, 'friend').why == Why('friend')


def test_first_ration_is_told_of_entries_that_the_worker_knows(server, tell, entries, uuid):
    assert tell(server, uuid, code(entries, uuid)) == 200
    for _ in range(100):
        tell(server, str(uuids.uuid4()), '0' * 8)
    assert tell(server, uuid, long_code(entries, uuid)) == 429
    assert told(entries, uuid, 'address').until > time.time()


def test_address_that_is_let_try_again_is_let_in_at_once(server, tell, entries, uuid):
    """The page's button: the tries are forgotten in Redis and in the memory of each worker."""
    follows(entries, server)
    assert tell(server, uuid, code(entries, uuid)) == 200
    for _ in range(100):
        tell(server, str(uuids.uuid4()), '0' * 8)
    assert tell(server, uuid, long_code(entries, uuid)) == 429
    told(entries, uuid, 'address')
    entries.clear_wrong_codes(uuid)
    until(lambda: tell(server, uuid, code(entries, uuid)) == 200, 'it is let in', seconds=5)


def test_server_that_is_full_is_a_reason(start, register, tell, entries, uuid):
    server = start(max_connections=8)
    for _ in range(6):  # three quarters are for hidden servers
        register(server, uuid)
    assert tell(server, uuid, long_code(entries, uuid)) == 503
    assert told(entries, uuid, 'full').why == Why('full')


def test_two_machines_with_one_file_are_told_with_both_addresses(server, call, entries, uuid):
    """It is no refusal: both are online."""
    for instance, address in (('a', '127.0.0.1'), ('b', '127.0.0.2')):
        right = code(entries, uuid)
        call(server, uuid, right, address, f'Instance: {instance}\r\n').until(b'\r\n\r\n')
    twins = told(entries, uuid, 'twins')
    assert (twins.address, twins.why.other) == ('127.0.0.2', '127.0.0.1')

    def is_online() -> bool:
        now = state.known_of(entries, state.server(entries), uuid)
        return (now.state, now.waiting) == (state.ONLINE, 2)

    until(is_online, 'the next batch has both')


def test_two_machines_that_go_on_to_wait_are_told_again(server, call, entries, uuid, monkeypatch):
    """Until one of them is gone; the page believes none that is old."""
    monkeypatch.setattr(connection, 'TWINS_SECONDS', 0.02)
    here, there = (
        call(server, uuid, code(entries, uuid), address, f'Instance: {address}\r\n')
        for address in ('127.0.0.1', '127.0.0.2')
    )
    for each in here, there:
        each.until(b'\r\n\r\n')

    def last() -> float:
        found = state.refusals(entries, uuid)
        return max((each.last for each in found if each.why.kind == 'twins'), default=0)

    now = time.time()
    assert list(server.rendezvous.registry.twins()) == [(uuid, '127.0.0.1', '127.0.0.2')]
    until(lambda: last() > now + 0.2, 'they are told again')
    there.close()
    registry = server.rendezvous.registry
    until(lambda: registry.count(uuid) == 1, 'one is gone')
    assert list(registry.twins()) == []


def test_nothing_is_told_of_a_uuid_without_an_entry(server, tell, entries, uuid):
    unknown = str(uuids.uuid4())
    tell(server, unknown, '0' * 8)
    tell(server, uuid, wrong(entries, uuid))
    told(entries, uuid, 'wrong')
    assert state.refusals(entries, unknown) == []


def test_mobile_clients_that_get_nobody_are_counted(server, connect, register, entries, uuid):
    unknown = str(uuids.uuid4())
    for each in (uuid, unknown, uuid):
        mobile = connect(server)
        mobile.send(get(each))
        assert mobile.answer().status == 503

    def failures(each: str) -> int:
        now = time.time()
        _, hours = state.past(entries, [each], now - 3600, now)[each]
        return sum(hour.failures for hour in hours)

    until(lambda: failures(uuid) == 2, 'they are counted')
    assert failures(unknown) == 0


def test_made_up_uuids_push_no_failure_out(server, connect, register, entries, uuid, monkeypatch):
    monkeypatch.setattr(presence, 'FAILED', 1)
    register(server, uuid).close()
    until(lambda: not server.rendezvous.registry.counts(), 'it has left')
    for each in (uuid, str(uuids.uuid4()), str(uuids.uuid4())):
        mobile = connect(server)
        mobile.send(get(each))
        assert mobile.answer().status == 503
    server.rendezvous.presence._hours_at = -math.inf

    def failures() -> int:
        now = time.time()
        _, hours = state.past(entries, [uuid], now - 3600, now)[uuid]
        return sum(hour.failures for hour in hours)

    until(lambda: failures() == 1, 'it is counted')


def test_note_on_an_entry_ends_nothing(server, join, register, entries, uuid):
    """Nor does another label; what an administrator writes is no reason to be cut off."""
    hidden, mobile = join(server)
    follows(entries, server)
    changes = server.rendezvous.admission.admitted.changes
    saving.save(entries, uuid, note='in the cellar')
    saving.save(entries, uuid, labels=['cellar'])
    until(lambda: server.rendezvous.admission.admitted.changes >= changes + 2, 'it is told')
    hidden.send(b'answer')
    assert mobile.receive(6) == b'answer'
