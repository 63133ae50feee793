"""Wrong codes are rationed: the end of section 1."""

import socket
import time
import uuid as uuids

import gevent
import pytest
from conftest import OK, Peer, code, connect_request

import auth
import guesses
from options import DEFAULTS


@pytest.fixture
def guess(connect):
    """Tries a code from an address of this machine; the answer."""

    def guess(server, uuid: str, tried: str, address: str = '127.0.0.1'):
        sock = socket.create_connection(('127.0.0.1', server.port), source_address=(address, 0))
        peer = Peer(sock)
        peer.send(connect_request(uuid, tried))
        answer = peer.answer()
        peer.close()
        return answer

    return guess


@pytest.fixture
def server(start):
    return start(key_file=None)


def wrong(entries, uuid: str) -> str:
    """A code that is wrong now and in the next minutes."""
    totp, now = auth.totp(entries.get(uuid)['authParams']), time.time()
    right = {totp.at(now + 30 * step) for step in range(-1, 5)}
    return next(tried for tried in map('{:08}'.format, range(10)) if tried not in right)


def test_ten_wrong_codes_of_an_address_and_then_429(server, guess, entries, uuid):
    statuses = [guess(server, uuid, wrong(entries, uuid)).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    refused = guess(server, uuid, code(entries, uuid))  # the right one would tell what is right
    assert refused.status == 429
    assert 880 <= int(refused.fields['Retry-After']) <= 900
    assert code(entries, uuid) not in str(refused)


def test_others_are_not_shut_out_by_them(server, guess, entries, uuid):
    for _ in range(11):
        guess(server, uuid, wrong(entries, uuid), '127.0.0.2')
    assert guess(server, uuid, code(entries, uuid)).status == 200
    other = str(uuids.uuid4())
    entries.add(other, [])
    assert guess(server, other, code(entries, other), '127.0.0.2').status == 200
    entries.delete(other)


def test_strangers_have_fifty_wrong_codes_a_day_together(server, guess, entries, uuid):
    """And an address that knew a right code of late is never shut out by them."""
    assert guess(server, uuid, code(entries, uuid), '127.0.0.9').status == 200
    tries = [(f'127.0.1.{number}', wrong(entries, uuid)) for number in range(1, 53)]
    statuses = [guess(server, uuid, tried, address).status for address, tried in tries]
    assert statuses == [401] * 50 + [429] * 2
    stranger = guess(server, uuid, code(entries, uuid), '127.0.2.1')
    assert stranger.status == 429
    assert 86_000 <= int(stranger.fields['Retry-After']) <= 86_400
    assert guess(server, uuid, code(entries, uuid), '127.0.0.9').status == 200


def test_uuid_that_does_not_exist_is_rationed_alike(server, guess, uuid, entries):
    """Nobody learns from the answers whether there is such an entry."""
    answers = []
    for each in (uuid, str(uuids.uuid4())):
        addresses = ['127.0.3.1'] * 12 + [f'127.0.3.{number}' for number in range(2, 44)]
        found = [guess(server, each, wrong(entries, uuid), address) for address in addresses]
        answers.append([(answer.status, answer.body) for answer in found])
    assert answers[0] == answers[1]
    assert [status for status, _ in answers[0]] == [401] * 10 + [429] * 2 + [401] * 40 + [429] * 2


def test_made_up_uuids_do_not_fill_the_memory(entries):
    assert len({guesses.lot(str(uuids.uuid4()), '') for _ in range(20_000)}) <= 4096


def test_nobody_can_know_which_made_up_uuids_are_counted_together(entries):
    """Or he could use up the tries for one that has no entry, and see that another one has."""
    now, made_up = time.time(), [f'{number:032x}' for number in range(40_000)]
    together = [uuid for uuid in made_up if guesses.lot(uuid, '') == guesses.lot(made_up[0], '')]
    for number in range(50):
        assert not entries.count_try(together[0], f'198.18.0.{number}', False, False, now)
    waits = [entries.count_try(uuid, '192.0.2.1', False, False, now) for uuid in together]
    assert waits[0] > 0
    assert waits.count(0) > len(waits) / 2


def test_count_is_kept_over_a_restart_and_shared(start, guess, entries, uuid):
    servers = [start(key_file=None) for _ in range(2)]
    for number in range(10):
        assert guess(servers[number % 2], uuid, wrong(entries, uuid)).status == 401
    assert guess(start(key_file=None), uuid, wrong(entries, uuid)).status == 429


def test_tries_at_the_same_moment_are_counted_one_by_one(server, guess, entries, uuid):
    tried = wrong(entries, uuid)
    tries = [gevent.spawn(guess, server, uuid, tried) for _ in range(60)]
    statuses = sorted(answer.status for answer in (each.get() for each in tries))
    assert statuses == [401] * 10 + [429] * 50


def test_many_registrations_at_the_same_moment_are_no_guesses(start, connect, entries, uuid):
    server = start()
    right = connect_request(uuid, code(entries, uuid))

    def register():
        peer = connect(server)
        peer.send(right)
        return peer.receive(len(OK))

    registering = [gevent.spawn(register) for _ in range(30)]
    assert {each.get() for each in registering} == {OK}


def test_zero_means_no_limit(start, guess, entries, uuid):
    server = start(key_file=None, wrong_codes_per_address=0, wrong_codes_per_day=0)
    statuses = {guess(server, uuid, wrong(entries, uuid)).status for _ in range(60)}
    assert statuses == {401}


def test_window_slides(entries, uuid):
    """At most ten in any 15 minutes, not in those of a clock's face."""
    now = time.time()

    def tries(seconds: float, count: int) -> int:
        found = [
            entries.count_try(uuid, '192.0.2.1', True, False, now + seconds) for _ in range(count)
        ]
        return found.count(0)

    assert tries(0, 5) == 5
    assert tries(890, 20) == 5
    assert tries(901, 20) == 5
    assert tries(1780, 20) == 0
    assert tries(1791, 20) == 5


def test_address_stays_known_for_thirty_days_after_its_last_right_code(entries, uuid):
    now, day = time.time(), 86_400

    def stays_known(days: float) -> bool:
        """Whether the address may still register though strangers used up their tries."""
        for number in range(60):
            entries.count_try(uuid, f'198.18.0.{number}', True, False, now + days * day)
        return not entries.count_try(uuid, '192.0.2.1', True, True, now + days * day)

    assert not entries.count_try(uuid, '192.0.2.1', True, True, now)
    assert stays_known(0.5)
    assert stays_known(30)  # and is known from then on
    assert stays_known(59)
    assert not stays_known(90)


def test_clock_that_is_set_back_locks_nobody_out_for_long(entries, uuid):
    now = time.time()
    for _ in range(10):
        entries.count_try(uuid, '192.0.2.1', True, False, now + 3600)
    assert entries.count_try(uuid, '192.0.2.1', True, True, now) <= 3600 + 900


def test_network_is_an_ipv4_address_or_a_64():
    assert guesses.network('192.0.2.1') == '192.0.2.1'
    first, same, other = (
        guesses.network(address)
        for address in ('2001:db8::1', '2001:db8::ffff:1:2:3', '2001:db8:0:1::1')
    )
    assert first == same != other
    assert guesses.network('fe80::1%eth0') == guesses.network('fe80::2')


def test_ten_thousand_addresses_guess_for_a_year(entries, uuid):
    """Seventy tries a day, one a second, each from the next address."""
    limits = DEFAULTS['wrong_codes_per_address'], DEFAULTS['wrong_codes_per_day']
    tried, number, now = 0, 0, int(time.time())  # whole seconds: exact in floats, too
    for day in range(365):
        pipeline = entries._redis.pipeline(transaction=False)
        for second in range(70):
            number = (number + 1) % 10_000
            address = f'198.18.{number // 250}.{number % 250}'
            arguments = [*limits, 0, now + day * 86_400 + second]
            entries._count_try(guesses.keys(uuid, address, uuid), arguments, client=pipeline)
        tried += pipeline.execute().count(0)
    assert tried == 365 * 50
    assert tried * 3 / 10**8 < 1 / 1000
    assert 0.05 < tried * 3 / 10**6 < 0.06  # what the README says of six digits
