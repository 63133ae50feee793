"""Wrong codes are rationed: the end of section 1."""

import socket
import ssl
import time
import uuid as uuids
from collections import Counter

import gevent
import pytest
import redis
from conftest import OK, Peer, code, connect_request, free_port, until
from programs import Outside
from redis.backoff import NoBackoff
from redis.retry import Retry

from rendezvous.store import keys, rations, state
from rendezvous.store.entries import ANY_UUID, Entries, StoreDown, scan
from rendezvous.store.options import DEFAULTS
from rendezvous.wire import codes
from rendezvous.wire.addresses import network

MONTH = 30 * rations.DAY


@pytest.fixture
def guess(start, pair):
    """Tries a code from an address of this machine; the answer."""
    context = ssl.create_default_context(cafile=pair['crt_file'])

    def guess(server, uuid: str, tried: str, address: str = '127.0.0.1'):
        sock = socket.create_connection(('127.0.0.1', server.port), source_address=(address, 0))
        if server.options.key_file:
            sock = context.wrap_socket(sock, server_hostname='127.0.0.1')
        peer = Peer(sock)
        peer.send(connect_request(uuid, tried))
        answer = peer.answer()
        answer.fields.pop('Date', None)  # the seconds go on
        peer.close()
        return answer

    return guess


@pytest.fixture
def redis_options(request, redis_options):
    """Of one Redis, or of a cluster, as `of_both` says."""
    is_cluster = getattr(request, 'param', '') == 'cluster'
    return request.getfixturevalue('redis_cluster') if is_cluster else redis_options


of_both = pytest.mark.parametrize('redis_options', ['one', 'cluster'], indirect=True)
of_cluster = pytest.mark.parametrize('redis_options', ['cluster'], indirect=True)
SCRIPTS = {
    rations.BY_ADDRESS: 'address',
    rations.BY_RECORD: 'record',
    rations.BY_BOTH: 'both',
}


@pytest.fixture
def tries(redis_options):
    """Counts tries in Redis, without a server; the verdict on each."""
    opened = {}

    def tries(uuid: str, place: str, code: str, at: float, known: bool = True, **options):
        key = tuple(options.items())
        if key not in opened:
            opened[key] = Entries(DEFAULTS | redis_options | options)
        return opened[key].count_try(uuid, place, code, known, at)

    yield tries
    for entries in opened.values():
        entries.close()


@pytest.fixture(autouse=True)
def no_tries(entries):
    """Those of the tests before were of the same addresses."""
    forgotten = keys.ADDRESSES, keys.LATEST, keys.CLEARED, rations.NOBODY
    entries.ask(lambda redis: redis.delete(*forgotten))


def long_code(entries, uuid: str) -> str:
    return codes.long_code(entries.get(uuid)['authParams'], time.time())


def wrong(entries, uuid: str) -> str:
    """A code that is wrong now and in the next minutes."""
    totp, now = codes.totp(entries.get(uuid)['authParams']), time.time()
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


def test_strangers_have_fifty_wrong_codes_a_day_together(server, guess, entries, uuid, caplog):
    """And then 401 for whatever short code; a long one, and a friend's, is right as ever."""
    assert guess(server, uuid, code(entries, uuid), '127.0.0.9').status == 200
    tries = [(f'127.0.1.{number}', wrong(entries, uuid)) for number in range(1, 53)]
    answers = [guess(server, uuid, tried, address) for address, tried in tries]
    assert [answer.status for answer in answers] == [401] * 52
    assert guess(server, uuid, code(entries, uuid), '127.0.2.1') == answers[0]
    assert guess(server, uuid, long_code(entries, uuid), '127.0.2.2').status == 200
    assert guess(server, uuid, code(entries, uuid), '127.0.2.2').status == 200  # a friend now
    assert guess(server, uuid, code(entries, uuid), '127.0.0.9').status == 200
    said = [text for text in caplog.messages if 'strangers cannot register' in text]
    assert len(said) == 1
    assert f'users_app.py enable {uuid}' in said[0]
    assert time.time() - entries.used_up(uuid) < 60


@of_both
def test_right_code_above_the_ration_of_strangers_counts_as_a_wrong_one(tries, uuid):
    """Or who tries it for the eleventh time sees that it was right."""
    now = time.time()
    for number in range(50):
        assert tries(uuid, f'198.18.0.{number}', 'wrong', now).ration == 0
    found = [tries(uuid, '192.0.2.1', 'right', now) for _ in range(11)]
    assert [verdict.ration for verdict in found] == [3] * 10 + [2]


@of_both
def test_friend_has_fifty_wrong_codes_a_day_of_its_own(tries, uuid):
    now, friend = time.time(), '192.0.2.1'
    assert tries(uuid, friend, 'right', now).ration == 0
    for number in range(60):
        tries(uuid, f'198.18.0.{number}', 'wrong', now)
    found = []
    for quarter in range(6):
        at = now + quarter * 901
        found += [tries(uuid, friend, 'wrong', at).ration for _ in range(11)]
    assert found == ([0] * 10 + [2]) * 5 + [4] * 10 + [2]
    assert tries(uuid, friend, 'right', now + 7000).ration == 4
    assert tries(uuid, friend, 'long', now + 7000).ration == 0
    assert tries(uuid, friend, 'right', now + rations.DAY + 5000).ration == 0


def test_uuid_that_does_not_exist_is_rationed_alike(start, guess, uuid, entries):
    """Nobody learns from the answers of two servers whether there is such an entry."""
    servers, answers = [start(), start()], []
    for each in (uuid, str(uuids.uuid4())):
        addresses = ['127.0.3.1'] * 12 + [f'127.0.3.{number}' for number in range(2, 54)]
        found = [
            guess(servers[number % 2], each, wrong(entries, uuid), address)
            for number, address in enumerate(addresses)
        ]
        answers.append([(answer.status, answer.body) for answer in found])
    assert answers[0] == answers[1]
    assert [status for status, _ in answers[0]] == [401] * 10 + [429] * 2 + [401] * 52


def test_uuid_that_does_not_exist_costs_redis_the_same(entries, uuid):
    """As many writes, above the rations, too: how long they take would tell."""
    written = []
    for each, known in ((uuid, True), (str(uuids.uuid4()), False)):
        for number in range(60):
            before = offset(entries)
            entries.count_try(each, f'198.18.0.{number}', 'wrong', known, time.time())
            written.append(offset(entries) > before)
    assert written == [True] * 120


class Asked:
    """Runs the scripts, and remembers which; what `before_address` does comes before those that
    look at the address of who tries.
    """

    def __init__(self, entries, before_address=lambda: None):
        self._entries, self._before_address = entries, before_address
        self.scripts: list[str] = []

    def __call__(self, script: str, *more):
        self.scripts.append(SCRIPTS[script])
        if self.scripts[-1] == 'address' and self.scripts.count('address') == 1:
            self._before_address()
        return self._entries.run(script, *more)

    def judge(self, uuid: str, place: str, code: str, known: bool = True) -> rations.Verdict:
        tried = rations.Try(uuid, place, code, known, time.time(), 10, 50)
        return rations.judge(self, tried, is_cluster=self._entries.is_cluster)


@of_both
def test_right_code_that_is_not_let_in_costs_redis_what_a_wrong_one_does(entries, uuid):
    """The same scripts in the same order, as many writes, and so for a UUID without an entry."""
    for number in range(50):
        entries.count_try(uuid, f'198.18.0.{number}', 'wrong', True, time.time())
    found = []
    for known, kind in ((True, 'right'), (True, 'wrong'), (False, 'wrong')):
        asked, each = Asked(entries), uuid if known else str(uuids.uuid4())
        for _ in range(12):
            before = offset(entries)
            verdict = asked.judge(each, f'192.0.2.{len(found)}', kind, known)
            asked.scripts += [f'{offset(entries) - before} writes', str(verdict.seconds > 0)]
        found.append(asked.scripts)
    assert found[0] == found[1]
    without = [[each for each in scripts if 'writes' not in each] for scripts in found]
    assert without[1] == without[2]
    assert found[0].count('True') == 2


@of_cluster
@pytest.mark.parametrize('code', ['right', 'wrong'])
def test_ration_that_is_used_up_in_this_moment_tells_nothing_either(entries, uuid, code):
    """Between two looks at it: a right code counts as often as a wrong one, after the same work."""

    def use_up() -> None:
        for number in range(50):
            entries.count_try(uuid, f'198.18.0.{number}', 'wrong', True, time.time())

    asked = Asked(entries, use_up)
    assert asked.judge(uuid, '192.0.2.1', code)[:2] == (3, 0)
    assert asked.scripts == ['record', 'address', 'record', 'address']
    left = [entries.count_try(uuid, '192.0.2.1', code, True, time.time()) for _ in range(10)]
    assert [each.ration for each in left] == [3] * 9 + [2]


@of_cluster
def test_address_that_is_used_up_in_this_moment_refuses_a_right_code_too(entries, uuid):
    """Or more codes than its ration allows would be looked at."""

    def use_up() -> None:
        for _ in range(10):
            assert entries.count_try(uuid, '192.0.2.1', 'wrong', True, time.time()).ration == 0

    assert Asked(entries, use_up).judge(uuid, '192.0.2.1', 'right').ration == 2
    assert '192.0.2.1' not in entries.ask(lambda redis: redis.hkeys(rations.record(uuid)))


@pytest.mark.parametrize('kind', ['right', 'wrong'])
def test_short_code_is_one_question(entries, uuid, kind):
    asked = Asked(entries)
    for _ in range(11):
        asked.judge(uuid, '192.0.2.1', kind)
    assert asked.scripts == ['both'] * 11


@of_both
def test_long_code_is_one_question_about_the_entry_alone(entries, uuid):
    asked = Asked(entries)
    for place in ('192.0.2.1', ''):
        assert asked.judge(uuid, place, 'long').ration == 0
    assert asked.scripts == ['record'] * 2
    assert not entries.ask(lambda redis: redis.exists(keys.ADDRESSES))


def test_right_codes_at_the_same_moment_that_are_not_let_in_are_counted_as_wrong_ones_are(
    start, guess, entries, uuid
):
    """On two servers at once: the 429 that follow would tell that the code is right."""
    servers, right = [start(), start()], code(entries, uuid)
    for number in range(50):
        entries.count_try(uuid, f'198.18.0.{number}', 'wrong', True, time.time())
    for tried, address in ((right, '127.0.0.2'), (wrong(entries, uuid), '127.0.0.3')):
        tries = [
            gevent.spawn(guess, servers[number % 2], uuid, tried, address) for number in range(60)
        ]
        assert Counter(each.get().status for each in tries) == {401: 10, 429: 50}


def offset(entries) -> int:
    """Changes with each write."""
    to = {'target_nodes': 'all'} if entries.is_cluster else {}
    found = entries.ask(lambda redis: redis.info('persistence', **to))
    of_each = found.values() if to else [found]
    return sum(each['rdb_changes_since_last_save'] for each in of_each)


def test_code_of_the_stand_in_registers_nobody(server, guess, entries, uuid):
    """Where there is no entry, codes are held against a secret that stands here."""
    parameters, unknown = {'base32': 'A' * 64}, str(uuids.uuid4())
    refused = guess(server, unknown, wrong(entries, uuid))
    for tried in (codes.totp(parameters).now(), codes.long_code(parameters, time.time())):
        assert guess(server, unknown, tried) == refused
    assert refused.status == 401


def test_hundred_wrong_codes_of_an_address_and_then_429_without_redis(
    server, guess, entries, uuid, monkeypatch
):
    statuses = [guess(server, str(uuids.uuid4()), '0' * 8).status for _ in range(60)]
    statuses += [guess(server, str(uuids.uuid4()), '0' * 40).status for _ in range(42)]
    assert statuses == [401] * 100 + [429] * 2
    monkeypatch.setattr(server.entries, '_ask', None)
    for tried in ('0' * 8, '0' * 40):
        refused = guess(server, str(uuids.uuid4()), tried)
        assert refused.status == 429
        assert 800 <= int(refused.fields['Retry-After']) <= 900
    monkeypatch.undo()
    assert guess(server, uuid, code(entries, uuid), '127.0.0.2').status == 200


def test_right_codes_are_none_of_the_hundred(server, guess, entries, uuid):
    for _ in range(99):
        assert guess(server, str(uuids.uuid4()), '0' * 8).status == 401
    for _ in range(3):
        assert guess(server, uuid, code(entries, uuid)).status == 200
    assert guess(server, str(uuids.uuid4()), '0' * 8).status == 401
    assert guess(server, uuid, code(entries, uuid)).status == 429


def test_flood_of_an_address_asks_redis_a_hundred_times(server, guess, entries, uuid, monkeypatch):
    """All at the same moment; the address of another has its turn beside it."""
    asked, get = Counter(), server.entries.get
    monkeypatch.setattr(
        server.entries, 'get', lambda each: asked.update([each == uuid]) or get(each)
    )
    flood = [gevent.spawn(guess, server, str(uuids.uuid4()), '0' * 8) for _ in range(300)]
    assert guess(server, uuid, code(entries, uuid), '127.0.0.2').status == 200
    statuses = Counter(each.get().status for each in flood)
    assert statuses == {401: 100, 429: 200}
    assert asked[True] in (1, 2)  # once more if it is told meanwhile that the entry was made
    assert asked[False] < 100 + rations.AT_ONCE


def test_flooded_uuid_costs_redis_no_more(server, guess, entries, uuid, monkeypatch):
    """Refused by ration 2, its tries still are some of the hundred."""
    statuses = [guess(server, uuid, wrong(entries, uuid)).status for _ in range(100)]
    assert statuses == [401] * 10 + [429] * 90
    monkeypatch.setattr(server.entries, '_ask', None)
    assert guess(server, uuid, wrong(entries, uuid)).status == 429


def test_ration_of_an_address_slides_in_memory():
    tries = rations.Tries()
    for second in range(100):
        assert tries.to_wait('192.0.2.1', second) == 0
        tries.note('192.0.2.1', second)
    assert tries.to_wait('192.0.2.1', 100) == 800
    assert tries.to_wait('192.0.2.1', 899.5) == 1
    assert tries.to_wait('192.0.2.1', 900) == 0
    assert tries.to_wait('192.0.2.2', 100) == 0
    tries.note('192.0.2.1', 900)
    assert tries.to_wait('192.0.2.1', 900) == 1


def test_botnet_does_not_fill_the_memory():
    tries = rations.Tries()
    for number in range(3 * rations.MAX_ADDRESSES):
        for address in ('192.0.2.1', f'2001:db8:{number:x}::/64'):  # the first one is heard always
            tries.to_wait(address, number / 1000)
        tries.note(address, number / 1000)
        if number < 100:
            tries.note('192.0.2.1', number / 1000)
    assert len(tries._refused) == rations.MAX_ADDRESSES
    assert tries.to_wait('192.0.2.1', 100) > 0
    assert not tries._turns


def test_botnet_does_not_fill_redis(entries, uuid, monkeypatch):
    monkeypatch.setattr(rations, 'MAX_SHARED', 20)
    now, before = time.time(), entries.ask(lambda redis: redis.dbsize())
    for number in range(60):
        place = f'198.18.0.{number}'
        entries.count_try(str(uuids.uuid4()), place, 'wrong', False, now + number)
    known = entries.ask(lambda redis: redis.hkeys(keys.ADDRESSES))
    assert set(known) == {f'198.18.0.{number}' for number in range(40, 60)}
    assert entries.ask(lambda redis: redis.zcard(keys.LATEST)) == 20
    assert entries.ask(lambda redis: redis.dbsize()) - before <= 3
    entries.count_try(uuid, '192.0.2.1', 'wrong', True, now + 2000)  # and they age
    entries.count_try(uuid, '192.0.2.1', 'wrong', True, now + 2000)
    assert entries.ask(lambda redis: redis.hkeys(keys.ADDRESSES)) == ['192.0.2.1']


@of_both
def test_no_key_is_found_by_who_looks_for_entries(entries, uuid, tries):
    for place in ('192.0.2.1', '2001:db8::/64'):
        tries(uuid, place, 'right', time.time())
        tries(uuid, place, 'wrong', time.time())
    assert entries.ask(lambda redis: redis.exists(rations.record(uuid)))
    found = entries.ask(lambda redis: scan(redis, ANY_UUID))
    assert not [key for key in found if 'guesses' in key]
    assert uuid in found


@of_both
@pytest.mark.parametrize('change', ['clear', 'delete'])
def test_cleared_tries_no_longer_count(entries, uuid, tries, change):
    """And no key of another one is looked at: there may be many."""
    now, friend = time.time() - 60, '192.0.2.1'
    assert tries(uuid, friend, 'right', now).ration == 0
    for number in range(60):
        tries(uuid, f'198.18.0.{number % 7}', 'wrong', now)
        tries(uuid, friend, 'wrong', now)
    assert tries(uuid, friend, 'right', now).ration == 2
    assert entries.used_up(uuid)
    before = scans(entries)
    if change == 'delete':
        entries.delete(uuid)
    entries.clear_wrong_codes(uuid)
    assert scans(entries) == before
    assert entries.used_up(uuid) is None
    kept = entries.ask(lambda redis: redis.hkeys(rations.record(uuid)))
    assert (friend in kept) == (change == 'clear')
    for number in range(5):
        assert tries(uuid, friend, 'wrong', time.time()).ration == 0
        assert tries(uuid, f'198.18.0.{number}', 'wrong', time.time()).ration == 0


def scans(entries) -> list:
    to = {'target_nodes': 'all'} if entries.is_cluster else {}
    found = entries.ask(lambda redis: redis.info('commandstats', **to))
    return [each.get('cmdstat_scan') for each in (found.values() if to else [found])]


@of_both
def test_cleared_entry_is_remembered_for_as_long_as_its_tries_count(entries, uuid, tries):
    """Nobody looks for its tries at each address; and no other UUID is cleared with it."""
    now, others = time.time(), [str(uuids.uuid4()) for _ in range(3)]
    for each in (uuid, others[0]):
        for _ in range(10):
            assert tries(each, '192.0.2.1', 'wrong', now - 1).ration == 0
        assert tries(each, '192.0.2.1', 'wrong', now - 1).ration == 2
    entries.ask(
        lambda redis: redis.zadd(keys.CLEARED, {others[1]: now - 901, others[2]: now - 800})
    )
    entries.clear_wrong_codes(uuid)
    found = entries.ask(lambda redis: redis.zrange(keys.CLEARED, 0, -1))
    assert sorted(found) == sorted([uuid, others[2]])
    assert 890 < entries.ask(lambda redis: redis.ttl(keys.CLEARED)) <= 900
    assert tries(uuid, '192.0.2.1', 'wrong', now + 1).ration == 0
    assert tries(others[0], '192.0.2.1', 'wrong', now + 1).ration == 2  # as before


def test_enable_lets_strangers_in_again(server, guess, entries, uuid):
    for number in range(1, 51):
        guess(server, uuid, wrong(entries, uuid), f'127.0.1.{number}')
    assert guess(server, uuid, code(entries, uuid)).status == 401
    entries.clear_wrong_codes(uuid)
    assert guess(server, uuid, code(entries, uuid)).status == 200


@pytest.mark.parametrize('ration', ['wrong_codes_per_address', 'wrong_codes_per_day'])
def test_ration_of_one(start, guess, entries, uuid, ration):
    server = start(**{ration: 1})
    statuses = [guess(server, uuid, wrong(entries, uuid)).status for _ in range(2)]
    assert statuses == [401, 429 if ration == 'wrong_codes_per_address' else 401]
    right = guess(server, uuid, code(entries, uuid), '127.0.0.2')
    assert right.status == (200 if ration == 'wrong_codes_per_address' else 401)
    assert guess(server, uuid, long_code(entries, uuid)).status == 200


def test_behind_something_that_terminates_tls_addresses_are_nobodys(start, guess, entries, uuid):
    """All have the same one: only the strangers' ration of a UUID holds, and nobody is a friend."""
    server = start(key_file=None)
    assert guess(server, uuid, code(entries, uuid)).status == 200
    statuses = {guess(server, str(uuids.uuid4()), '0' * 8).status for _ in range(110)}
    statuses |= {guess(server, uuid, wrong(entries, uuid)).status for _ in range(50)}
    assert statuses == {401}
    assert guess(server, uuid, code(entries, uuid)).status == 401
    assert guess(server, uuid, long_code(entries, uuid)).status == 200
    assert guess(server, uuid, code(entries, uuid)).status == 401


def test_count_is_kept_over_a_restart_and_shared(start, guess, entries, uuid):
    servers = [start() for _ in range(2)]
    for number in range(10):
        assert guess(servers[number % 2], uuid, wrong(entries, uuid)).status == 401
    assert guess(start(), uuid, wrong(entries, uuid)).status == 429


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
    server = start(wrong_codes_per_address=0, wrong_codes_per_day=0)
    statuses = {guess(server, uuid, wrong(entries, uuid)).status for _ in range(110)}
    assert statuses == {401}
    assert guess(server, uuid, code(entries, uuid)).status == 200


@of_both
def test_window_slides(tries, uuid):
    """At most ten in any 15 minutes, not in those of a clock's face."""
    now = time.time()

    def pass_(seconds: float, count: int) -> int:
        found = [tries(uuid, '192.0.2.1', 'wrong', now + seconds) for _ in range(count)]
        return sum(verdict.ration == 0 for verdict in found)

    assert pass_(0, 5) == 5
    assert pass_(890, 20) == 5
    assert pass_(901, 20) == 5
    assert pass_(1780, 20) == 0
    assert pass_(1791, 20) == 5


@of_both
def test_address_is_a_friend_for_thirty_days_after_its_last_right_code(tries, uuid):
    now, friend = time.time(), '192.0.2.1'

    def stays(days: float) -> bool:
        """Whether it may still register though strangers used up their tries."""
        for number in range(60):
            tries(uuid, f'198.18.0.{number}', 'wrong', now + days * rations.DAY)
        return not tries(uuid, friend, 'right', now + days * rations.DAY).ration

    assert not tries(uuid, friend, 'right', now).ration
    assert stays(0.5)
    assert stays(30)  # and is one from then on
    assert stays(59)
    assert not stays(90)
    assert not tries(uuid, friend, 'long', now + 90 * rations.DAY).ration
    assert stays(90)  # a long code makes a friend, too


@of_both
def test_friends_of_an_entry_are_bounded(tries, entries, uuid):
    """Who has the secret has a million networks, too, and a friend costs Redis some octets."""
    now = time.time()
    for number in range(210):
        tries(uuid, f'2001:db8:{number:x}::/64', 'long', now + number)
    fields = entries.ask(lambda redis: redis.hkeys(rations.record(uuid)))
    assert len(fields) == 200
    assert '2001:db8:9::/64' not in fields
    tries(uuid, '192.0.2.1', 'long', now + MONTH + 204.5)
    fields = entries.ask(lambda redis: redis.hkeys(rations.record(uuid)))
    assert len(fields) == 6  # those of over a month ago are forgotten


@of_both
def test_clock_that_is_set_back_locks_nobody_out_for_long(tries, uuid):
    now = time.time()
    for _ in range(10):
        tries(uuid, '192.0.2.1', 'wrong', now + 3600)
    assert tries(uuid, '192.0.2.1', 'right', now).seconds <= 3600 + 900


def test_network_is_an_ipv4_address_or_a_64():
    assert network('192.0.2.1') == '192.0.2.1'
    first, same, other = (
        network(address) for address in ('2001:db8::1', '2001:db8::ffff:1:2:3', '2001:db8:0:1::1')
    )
    assert first == same != other
    assert network('fe80::1%eth0') == network('fe80::2')


A_DAY = (
    f"""
local function by_address(KEYS, ARGV)
{rations.BY_ADDRESS}
end

local function by_record(KEYS, ARGV)
{rations.BY_RECORD}
end
"""
    + """
local uuid, friend, day, start = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local per_address, per_day, most, max_addresses = unpack(ARGV, 5)

local function is_looked_at(place, code, at) -- as rations.judge asks
  local function address(how)
    return by_address(KEYS, {uuid, place, how, per_address, at, most, max_addresses})[1]
  end

  local function record(code)
    return by_record({KEYS[4]}, {place, code, per_day, at})[1]
  end

  if code == 'long' then
    return record(code) == 0
  end
  record('look')
  return address('count') == 0 and record(code) == 0
end

local count = 0
is_looked_at(friend, 'long', start) -- its hidden server
for second = 1, 51 do
  local number = (day * 51 + second) % 10000
  local stranger = '198.18.' .. math.floor(number / 250) .. '.' .. number % 250
  count = count + (is_looked_at(stranger, 'wrong', start + second) and 1 or 0)
  local later = start + second + math.floor(second / 10) * 901
  count = count + (is_looked_at(friend, 'wrong', later) and 1 or 0)
end
return count
"""
)


def test_ten_thousand_addresses_guess_for_a_year(entries, uuid, redis_options):
    """Each ration used up, one try a second; one of the addresses is a friend's."""
    limits = DEFAULTS.wrong_codes_per_address, DEFAULTS.wrong_codes_per_day
    more = *limits, rations.MOST, rations.MAX_SHARED
    of_address = keys.ADDRESSES, keys.LATEST, keys.CLEARED
    host, port, password = redis_options.values()
    now, looked_at = int(time.time()), []
    # One that never asks again where an answer is late: each try is counted once.
    with redis.Redis(host, port, password=password, retry=Retry(NoBackoff(), 0)) as patient:
        a_day = patient.register_script(A_DAY)
        for day in range(365):
            start = now + day * rations.DAY
            a_year = uuid, '198.18.99.1', day, start, *more
            looked_at.append(a_day([*of_address, rations.record(uuid)], a_year))
    assert set(looked_at) == {50 + 50}
    assert sum(looked_at) * 3 / 10**8 < 1 / 900
    assert 0.10 < 1 - (1 - 3 / 10**6) ** sum(looked_at) < 0.11  # what the README says of six digits


def test_reason_of_each_refusal_is_for_the_log_and_the_page_alone(
    start, guess, entries, uuid, caplog
):
    caplog.set_level('INFO')
    server, unknown = start(wrong_codes_per_address=3, wrong_codes_per_day=3), str(uuids.uuid4())
    for address in ('127.0.0.1', '127.0.0.1', '127.0.0.1', '127.0.0.1', '127.0.0.2'):
        for each in (uuid, unknown):
            guess(server, each, wrong(entries, uuid), address)
    guess(server, uuid, code(entries, uuid), '127.0.0.3')
    entries.disable(uuid)
    guess(server, uuid, long_code(entries, uuid), '127.0.0.3')

    def refusals() -> set[tuple[str, str, int, bool]]:
        server.rendezvous.presence.write({})
        found = state.refusals(entries, uuid)
        return {(each.address, each.why.kind, each.count, each.until > 0) for each in found}

    second = 'limit 2: 3 wrong codes of 127.0.0.1 within 15 minutes'
    third = 'limit 3: 3 wrong codes within a day; the code is right'
    expected = {('127.0.0.1', 'wrong', 3, False), ('127.0.0.1', 'address', 1, True)}
    expected |= {('127.0.0.2', 'wrong', 1, False), ('127.0.0.3', 'strangers', 1, False)}
    expected |= {('127.0.0.3', 'disabled', 1, False)}
    until(lambda: refusals() == expected, 'they are written')
    assert state.refusals(entries, unknown) == []
    for status, each, why in [
        *((401, uuid, 'wrong code'), (429, uuid, second), (401, uuid, third)),
        *((503, uuid, 'disabled'), (401, unknown, 'no such entry'), (429, unknown, second)),
    ]:
        assert f' refused: {status} {each}: {why}\n' in caplog.text


def test_ration_of_an_address_is_a_reason_where_there_is_an_entry(server, guess, entries, uuid):
    guess(server, uuid, code(entries, uuid))
    for _ in range(100):
        guess(server, str(uuids.uuid4()), '0' * 8)
    assert guess(server, uuid, long_code(entries, uuid)).status == 429
    (refusal,) = until(lambda: state.refusals(entries, uuid), 'it is told')
    assert (refusal.why.kind, refusal.address) == ('address', '127.0.0.1')
    assert 0 < refusal.until - time.time() <= 900


@pytest.mark.parametrize('kind', ['short', 'long'])
@pytest.mark.parametrize('seconds', [-3600, -90, 60, 39_600])
def test_clock_that_is_off_is_told(server, guess, entries, uuid, caplog, kind, seconds):
    caplog.set_level('INFO')
    parameters, now = entries.get(uuid)['authParams'], time.time()
    tried = codes.totp(parameters).at(now + seconds)
    tried = codes.long_code(parameters, now + seconds) if kind == 'long' else tried
    for _ in range(2):  # the second time it is not looked for
        assert guess(server, uuid, tried).status == 401
    way, maybe = 'ahead' if seconds > 0 else 'behind', '' if kind == 'long' else 'probably '
    why = [f'its clock is {maybe}{abs(seconds) + more:,} s {way}' for more in (0, 30, -30)]

    def told() -> int:
        return sum(any(each in text for each in why) for text in caplog.messages)

    until(lambda: told() == 2, 'it is told twice')
    assert f'the code for {uuid} from 127.0.0.1 was wrong: ' in caplog.text
    assert tried not in caplog.text


def test_clock_is_looked_for_once_a_minute_for_each_pair(server, guess, entries, uuid, monkeypatch):
    """And for UUIDs without an entry alike: who watches the load of the server learns nothing."""
    searched = []
    monkeypatch.setattr('rendezvous.server.reasons._search', lambda *_: searched.append(1))
    for _ in range(3):
        guess(server, uuid, wrong(entries, uuid))
    until(lambda: len(searched) == 1, 'it is looked for')
    for _ in range(60):
        guess(server, str(uuids.uuid4()), '0' * 8)
    until(lambda: len(searched) == 30, 'as often as a minute allows')
    gevent.sleep(0)
    assert len(searched) == 30


def test_search_lets_others_have_their_turn(server, guess, entries, uuid, monkeypatch):
    longest, steps_off = [], codes.steps_off

    def measured(*arguments):
        began = time.thread_time()
        try:
            return steps_off(*arguments)
        finally:
            longest.append(time.thread_time() - began)

    monkeypatch.setattr(codes, 'steps_off', measured)
    assert guess(server, uuid, '0' * 40).status == 401
    until(lambda: len(longest) > 110, 'all steps are looked at')
    assert sorted(longest)[len(longest) // 2] < 0.01


def test_secret_from_before_the_rekey_registers_nobody_and_is_told(
    server, guess, entries, uuid, caplog
):
    caplog.set_level('INFO')
    old = entries.get(uuid)['authParams']
    entries.rekey(uuid)
    for tried in (codes.totp(old).now(), codes.long_code(old, time.time())):
        assert guess(server, uuid, tried).status == 401
    told = f'the code for {uuid} from 127.0.0.1 was wrong: the secret from before the last rekey'
    until(lambda: caplog.messages.count(told) == 2, 'it is told')
    assert guess(server, uuid, long_code(entries, uuid)).status == 200
    entries.rekey(uuid)
    assert old['base32'] not in str(entries.get(uuid))  # only the last one is remembered


def test_store_that_is_down_is_logged_once_and_once_that_it_is_back(
    start, guess, entries, uuid, caplog, monkeypatch
):
    caplog.set_level('INFO')
    server = start()
    for _ in range(2):
        caplog.clear()
        with monkeypatch.context() as patched:
            patched.setattr(server.entries, 'get', down)
            statuses = [guess(server, uuid, code(entries, uuid)).status for _ in range(5)]
        assert statuses == [503] * 5
        assert [each.levelname for each in caplog.records].count('ERROR') == 1
        for _ in range(3):
            assert guess(server, uuid, code(entries, uuid)).status == 200
        assert caplog.messages.count('the store answers again') == 1


def down(_):
    raise StoreDown('Redis does not answer (x): start it')


REFUSALS = {
    'READONLY': 'REPLICAOF 127.0.0.1 1',
    'OOM': 'CONFIG SET maxmemory 1',
    'NOREPLICAS': 'CONFIG SET min-replicas-to-write 1',
    'NOPERM': 'ACL SETUSER default -@scripting',
}


@pytest.fixture
def outside(tmp_path):
    """The options of a Redis that is not ours; it ends after the servers."""
    with Outside(tmp_path, free_port(), 'secret') as outside:
        yield outside.options


@pytest.mark.parametrize('why', REFUSALS)
def test_redis_that_refuses_to_write_lets_right_codes_in(outside, start, guess, caplog, why):
    """And wrong ones are counted no less: a server does so in memory then."""
    server, entries, uuid = start(**outside), Entries(DEFAULTS | outside), str(uuids.uuid4())
    entries.add(uuid, [])
    right, tried = code(entries, uuid), wrong(entries, uuid)
    assert guess(server, uuid, right, '127.0.0.9').status == 200
    entries.ask(lambda redis: redis.execute_command(*REFUSALS[why].split()))
    assert guess(server, uuid, right).status == 200
    statuses = {guess(server, uuid, tried, f'127.0.1.{number}').status for number in range(50)}
    assert statuses == {401}
    assert guess(server, uuid, right).status == 401
    assert guess(server, uuid, long_code(entries, uuid)).status == 200
    assert guess(server, str(uuids.uuid4()), tried).status == 401
    errors = [each for each in caplog.records if each.name == 'admission']
    assert [each.levelname for each in errors] == ['ERROR']
    assert why in errors[0].getMessage()
    entries.close()
