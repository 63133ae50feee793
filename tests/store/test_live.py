"""What the server tells of who is here, and what it ends when an entry is changed."""

import gc
import json
import time
import uuid as uuids
from collections import defaultdict
from contextlib import contextmanager, suppress

import gevent
import pytest
from conftest import DEADLINE_SECONDS, Peer, code, connect_request, cut_off, free_port, get, until
from gevent import socket
from gevent.server import StreamServer

from rendezvous.store import entries as entries_module
from rendezvous.store import presence, state
from rendezvous.store.entries import CHANGES, StoreDown, slices
from rendezvous.store.options import DEFAULTS
from rendezvous.store.presence import Presence
from rendezvous.store.state import Hour, Known, Rendezvous, Why
from rendezvous.wire import codes
from rendezvous.wire.sockets import TURN_SECONDS


def change(entries, uuid: str, **values) -> None:
    """Writes an entry and publishes that, as the page does."""

    def write(redis):
        redis.set(uuid, json.dumps(entries.get(uuid) | values))
        redis.publish(CHANGES, uuid)

    entries.ask(write)


def now(entries) -> dict[str, Known]:
    """What is known of all hidden servers."""
    return state.known(entries, state.server(entries), entries.uuids())


def now_of(entries, uuid: str) -> Known:
    return state.known_of(entries, state.server(entries), uuid)


ROW = {'address': '', 'seconds': 1, 'sent': 0, 'received': 0, 'how': ''}


class Cable:
    """A way to Redis that can be cut: its address is what the server under test is given."""

    def __init__(self, redis_port: int):
        self._redis_port, self._greenlets = redis_port, []
        self._connections, self._silent = [], set()
        self.open(free_port())  # nobody else takes it while the cable is cut

    def open(self, port: int) -> None:
        self._server = StreamServer(('127.0.0.1', port), self._handle)
        self._server.start()
        self.port = self._server.server_port

    def cut(self) -> None:
        self._server.stop()
        gevent.killall(self._greenlets)
        self._greenlets = []

    def silence(self) -> None:
        """What is connected by now goes on to acknowledge, and passes nothing on."""
        self._silent.update(*self._connections)

    def _handle(self, sock, _) -> None:
        with socket.create_connection(('127.0.0.1', self._redis_port)) as redis:
            self._connections.append({sock, redis})
            ways = [gevent.spawn(self._copy, *way) for way in ((sock, redis), (redis, sock))]
            self._greenlets += ways
            gevent.joinall(ways, count=1)
            gevent.killall(ways)

    def _copy(self, source, sink) -> None:
        while octets := source.recv(65536):
            if source not in self._silent:
                sink.sendall(octets)


@pytest.fixture
def cable(redis_options):
    cable = Cable(redis_options['redis_port'])
    yield cable
    cable.cut()


def follows(server) -> bool:
    """Whether the server is told of changes by now."""
    return server.rendezvous.admission.admitted.changes > 0


@pytest.fixture
def following(start):
    """Starts servers that are told of changes."""

    def following(**options):
        server = start(**options)
        until(lambda: follows(server), 'it has subscribed')
        return server

    return following


def piped(connect, register, server, uuid) -> tuple[Peer, Peer]:
    hidden, mobile = register(server, uuid), connect(server)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    return hidden, mobile


@pytest.mark.parametrize('how', ['disabled', 'new secret', 'deleted'])
def test_change_ends_what_waits_and_the_pipes_on_every_server(
    following, connect, register, entries, uuid, how, caplog
):
    caplog.set_level('INFO')
    servers = following(), following()
    waiting = [register(server, uuid) for server in servers]
    pipes = [peer for server in servers for peer in piped(connect, register, server, uuid)]
    began = time.monotonic()
    if how == 'disabled':
        change(entries, uuid, disabled=time.time())
    elif how == 'new secret':
        change(entries, uuid, authParams=entries.get(uuid)['authParams'] | {'base32': 'B' * 64})
    else:
        entries.ask(lambda redis: (redis.delete(uuid), redis.publish(CHANGES, uuid)))
    for peer in waiting + pipes:
        peer_ends(peer)
    assert time.monotonic() - began < 2
    for what in ('registration', 'pipe'):
        assert caplog.messages.count(f'the entry {uuid} was changed: a {what} is ended') == 2


def test_answer_that_a_change_cuts_off_does_not_look_whole(
    following, connect, register, entries, uuid
):
    server = following()
    hidden, mobile = piped(connect, register, server, uuid)
    hidden.send(b'HTTP/1.1 200 OK\r\n\r\nthe first half')
    mobile.until(b'half')
    mobile.sock.suppress_ragged_eofs = False
    change(entries, uuid, disabled=time.time())
    with cut_off():
        mobile.rest()


def peer_ends(peer: Peer) -> None:
    with suppress(OSError):  # no close_notify: what is cut off must not look whole
        assert peer.rest() == b''


def test_new_label_and_other_entries_end_nothing(following, connect, register, entries, uuid):
    server = following()
    hidden, mobile = piped(connect, register, server, uuid)
    waits = register(server, uuid)
    seen = server.rendezvous.admission.admitted.changes
    change(entries, uuid, labels=['cellar'])
    entries.ask(lambda redis: redis.publish(CHANGES, 'nobody'))
    until(lambda: server.rendezvous.admission.admitted.changes == seen + 2, 'it is told')
    hidden.send(b'still here')
    assert mobile.receive(10) == b'still here'
    assert server.rendezvous.registry.count(uuid) == 1
    waits.close()


def test_disabled_entry_is_refused_only_to_who_has_its_secret(server, connect, entries, uuid):
    change(entries, uuid, disabled=time.time())
    right, wrong = code(entries, uuid), '00000000'[: len(code(entries, uuid))]
    answers = []
    for tried in (right, wrong):
        peer = connect(server)
        peer.send(connect_request(uuid, tried))
        answers.append(peer.answer())
    assert [answer.status for answer in answers] == [503, 401]
    assert answers[0].fields['Retry-After'] == '30'
    assert 'disabled' in answers[0].body.decode()


@pytest.mark.parametrize('kind', ['short', 'long'])
def test_change_in_the_moment_of_registering_is_not_missed(
    following, connect, entries, uuid, monkeypatch, kind
):
    server = following()
    count_try = server.rendezvous.entries.count_try

    def change_meanwhile(*args):
        monkeypatch.undo()
        seen = server.rendezvous.admission.admitted.changes
        change(entries, uuid, disabled=time.time())
        until(lambda: server.rendezvous.admission.admitted.changes > seen, 'it is told')
        return count_try(*args)

    tried = code(entries, uuid)
    if kind == 'long':
        tried = codes.long_code(entries.get(uuid)['authParams'], time.time())
    monkeypatch.setattr(server.rendezvous.entries, 'count_try', change_meanwhile)
    peer = connect(server)
    peer.send(connect_request(uuid, tried))
    assert peer.answer().status == 503


@pytest.mark.parametrize('silent', [False, True], ids=['lost', 'silent'])
def test_change_while_redis_is_away_is_made_up_for(
    cable, following, connect, register, entries, uuid, silent, monkeypatch
):
    monkeypatch.setattr(entries_module, 'SILENT_SECONDS', 0.2)
    server = following(redis_port=cable.port)
    hidden, mobile = piped(connect, register, server, uuid)
    waits = register(server, uuid)
    cable.silence() if silent else cable.cut()
    change(entries, uuid, disabled=time.time())
    change(entries, uuid, disabled=None, enabled=time.time())
    gevent.sleep(0.05)
    assert server.rendezvous.registry.counts()[uuid] == (1, 1)
    if not silent:
        cable.open(cable.port)
    for peer in (hidden, mobile, waits):
        peer_ends(peer)


@pytest.mark.parametrize('taken', ['-subscribe', 'resetchannels'])
def test_redis_that_does_not_let_us_follow_is_told_once(
    following, entries, caplog, monkeypatch, taken
):
    monkeypatch.setattr('rendezvous.server.following.AGAIN_SECONDS', 0.02)
    caplog.set_level('INFO')
    server = following()

    def tell(*command) -> None:
        entries.ask(lambda redis: redis.execute_command(*command))

    def said(text: str) -> int:
        return sum(text in message for message in caplog.messages)

    try:
        tell('ACL SETUSER', 'default', taken)
        tell('CLIENT KILL', 'TYPE', 'pubsub')
        until(lambda: said('NOPERM'), 'it is told')
        errors = server.rendezvous.entries.errors
        until(lambda: server.rendezvous.entries.errors > errors + 5, 'it tries again')
        assert said('a change of an entry ends nothing until then') == said('NOPERM') == 1
    finally:
        tell('ACL SETUSER', 'default', '+@all', 'allchannels')
    until(lambda: said('the store tells of changes again'), 'it follows')


def test_long_code_is_refused_while_redis_is_away(cable, following, connect, entries, uuid):
    server, parameters = following(redis_port=cable.port), entries.get(uuid)['authParams']

    def status() -> int:
        peer = connect(server)
        peer.send(connect_request(uuid, codes.long_code(parameters, time.time())))
        return peer.answer().status

    assert status() == 200
    cable.cut()
    until(lambda: status() == 503, 'it is asked for')
    cable.open(cable.port)
    until(lambda: status() == 200, 'Redis is back')


@pytest.fixture
def quick(monkeypatch):
    """No waiting for the next batch."""
    monkeypatch.setattr(presence, 'WRITE_SECONDS', 0.02)


def test_page_sees_who_waits_and_pipes_on_all_servers(
    quick, following, connect, register, entries, uuid
):
    servers = following(), following()
    assert uuid not in now(entries)
    before = time.time()
    peers = [register(server, uuid) for server in servers]
    peers += piped(connect, register, servers[0], uuid)
    until(lambda: now(entries).get(uuid, Known())[2:4] == (2, 1), 'both are counted')
    known = now(entries)[uuid]
    assert (known.state, known.address) == (state.ONLINE, '127.0.0.1')
    assert before - 1 <= known.since <= known.first <= time.time() + 0.001
    for peer in peers:
        peer.close()
    until(lambda: now(entries)[uuid][2:4] == (0, 0), 'none is counted')
    until(lambda: now(entries)[uuid].state == state.OFFLINE, 'it has not come back')
    left = now(entries)[uuid]
    assert left.first == known.first
    assert left.since >= known.since


def test_rendezvous_is_kept_as_it_was(quick, server, connect, register, entries, uuid):
    hidden, mobile = piped(connect, register, server, uuid)
    hidden.send(b'x' * 1000)
    mobile.receive(1000)
    hidden.close()
    assert mobile.rest() == b''
    (kept,) = until(lambda: state.history(entries, uuid), 'it is written')
    assert abs(kept.at - time.time()) < DEADLINE_SECONDS
    assert 0 <= kept.seconds < DEADLINE_SECONDS
    sent = len(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    how = 'hidden server closed'
    assert kept[1:2] + kept[3:] == ('127.0.0.1', sent, 1000, how)


def test_last_hundred_rendezvous_are_kept_the_newest_first(server, entries, uuid):
    told = server.rendezvous.presence
    for number in range(1, 151):
        told.note_rendezvous(uuid, at=number, **ROW)
    told.write({})
    assert [kept.at for kept in state.history(entries, uuid)] == list(range(150, 50, -1))


def test_nothing_is_kept_of_an_entry_that_was_deleted(server, entries, uuid):
    told = server.rendezvous.presence
    entries.delete(uuid)
    told.note_online(uuid, '127.0.0.1')
    told.note_rendezvous(uuid, at=1, **ROW)
    told.write({})
    assert uuid not in now(entries)
    assert state.history(entries, uuid) == []


def test_one_is_told_as_all_are(server, connect, register, entries, uuid):
    told, other = server.rendezvous.presence, str(uuids.uuid4())
    until(lambda: follows(server), 'it has subscribed')
    assert entries.shown(other) is None
    assert now_of(entries, other) == Known()
    entries.ask(lambda redis: redis.set('live:{0123456789abcdef}', 'no hash', ex=60))
    entries.ask(lambda redis: redis.zadd('servers', {'0123456789abcdef': time.time()}))
    peers = [register(server, uuid), *piped(connect, register, server, uuid)]
    told.write(server.rendezvous.registry.counts())
    assert [entries.shown(uuid)] == [each for each in entries.all() if each['uuid'] == uuid]
    one, of_all = now_of(entries, uuid), now(entries)[uuid]
    assert one[2:4] == (1, 1) == of_all[2:4]
    assert one == of_all
    assert (one.address, one.first > 0) == ('127.0.0.1', True)
    entries.ask(lambda redis: redis.delete('live:{0123456789abcdef}'))
    for peer in peers:
        peer.close()


def test_refusals_of_made_up_uuids_are_bounded_while_redis_is_away(server, entries, uuid):
    told = Presence(entries)
    for number in range(presence.REFUSED + 100):
        made_up = str(uuids.uuid4())
        for host in range(state.KINDS + 1) if number < 30 else [0]:
            told.note_refusal(made_up, f'192.0.2.{host}', Why('wrong'))
            told.note_failure(made_up)
    assert len(told._refused) == presence.REFUSED
    assert max(map(len, told._refused.values())) <= state.KINDS
    assert len(told._failed) == presence.FAILED
    told.note_refusal(uuid, '192.0.2.1', Why('wrong'))
    told.write({})
    assert len(state.refusals(entries, uuid)) == 1


ODD = ['x', '[]', '{"at": "x", "address": 1}', '{}', '1', '{"at": 1e999, "address": ""}']


@pytest.mark.parametrize('value', ODD)
def test_what_somebody_else_wrote_is_nothing(entries, uuid, value):
    entries.ask(lambda redis: redis.set(f'state:{{{uuid}}}', value))
    assert now(entries)[uuid] == Known()
    entries.ask(lambda redis: redis.lpush(f'rendezvous:{{{uuid}}}', value))
    assert state.history(entries, uuid) == []


def test_keys_of_other_programs_are_left_alone(entries, uuid):
    def set_both(redis) -> None:
        redis.set('live:config', 'x')
        redis.hset('live:users', uuid, '1 1')

    entries.ask(set_both)
    Presence(entries).write({})
    assert uuid not in now(entries)
    assert entries.ask(lambda redis: redis.delete('live:config', 'live:users')) == 2


def test_key_of_another_kind_costs_nobody_else_anything(server, entries, uuid):
    other = str(uuids.uuid4())
    entries.add(other, [])
    entries.ask(lambda redis: redis.set(f'rendezvous:{{{uuid}}}', 'x'))
    told = Presence(entries)
    ended = Rendezvous(at=1.0, address='', seconds=1.0, sent=0, received=0, how='')
    for each in (other, uuid, other):
        told.note_rendezvous(each, **ended._asdict())
    told.write({})
    assert state.history(entries, other) == [ended, ended]
    entries.delete(other)


def test_server_that_was_killed_is_gone_at_once(quick, following, register, entries, uuid):
    server = following()
    peer = register(server, uuid)
    until(lambda: now(entries).get(uuid, Known()).waiting, 'it is online')
    server._greenlets.kill()
    until(lambda: not now(entries)[uuid].waiting, 'it is offline', seconds=5)
    assert state.server(entries).workers == []
    peer.close()


def test_server_that_hangs_ages_out(quick, following, register, entries, uuid, monkeypatch):
    """It is still subscribed."""
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 0.1)
    monkeypatch.setattr(state, 'AGE_SECONDS', 1)
    server = following()
    peer = register(server, uuid)
    until(lambda: now(entries).get(uuid, Known()).waiting, 'it is online')
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 1000)
    until(lambda: not now(entries)[uuid].waiting, 'it is offline')
    assert state.server(entries).workers == []
    peer.close()


def test_server_that_was_held_up_for_long_is_seen_again(
    quick, following, register, entries, uuid, monkeypatch
):
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 0.1)
    server = following()
    peer = register(server, uuid)
    until(lambda: now(entries).get(uuid, Known()).waiting, 'it is online')
    entries.ask(lambda redis: redis.delete(server.rendezvous.presence.key))
    until(lambda: now(entries)[uuid].waiting, 'it is online again')
    peer.close()


@pytest.mark.parametrize('how', ['flushed', 'aged out'])
def test_what_waits_unchanged_is_written_anew_where_redis_has_lost_it(
    quick, following, connect, register, entries, uuid, how
):
    server, other = following(), str(uuids.uuid4())
    entries.add(other, [])
    waits, changes = register(server, uuid), register(server, other)
    until(lambda: now(entries).get(other, Known()).waiting, 'it is written')
    key = server.rendezvous.presence.key
    entries.ask(lambda redis: redis.delete(key) if how == 'flushed' else redis.pexpire(key, 1))
    changes.close()  # what changes is in the next batch

    def waiting() -> list[int]:
        found = now(entries)
        return [found[each].waiting for each in (uuid, other)]

    until(lambda: waiting() == [1, 0], 'what has not changed is there again')
    waits.close()
    entries.delete(other)


def sum_of(hours: list[Hour]) -> Hour:
    return Hour(*map(sum, zip(*hours, strict=True)))


def test_batch_whose_answer_gets_lost_is_written_once(
    redis_options, server, entries, uuid, monkeypatch
):
    """Again and again, also where the server's hash has aged out meanwhile."""
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 0)
    lose = []

    def handle(sock, _) -> None:
        with socket.create_connection(('127.0.0.1', redis_options['redis_port'])) as redis:
            while question := sock.recv(65536):
                redis.sendall(question)
                answer = redis.recv(65536)
                if b'batch:' in question and lose:
                    lose.pop()
                    return
                sock.sendall(answer)

    proxy = StreamServer(('127.0.0.1', 0), handle)
    proxy.start()
    between = entries_module.Entries(DEFAULTS | redis_options | {'redis_port': proxy.server_port})
    told = Presence(between)
    for number, losses in enumerate([0, 1, 2, 4]):
        lose += [True] * losses
        told.note_rendezvous(uuid, at=2 * number + 1, **ROW)
        told.note_refusal(uuid, '192.0.2.1', Why('wrong', number))
        told.note_octets(uuid, 10**number, 0)
        with suppress(StoreDown):
            told.write({uuid: (number, 0)})
        told.note_rendezvous(uuid, at=2 * number + 2, **ROW)  # in no batch yet
        entries.ask(lambda redis: redis.delete(told.key))
        while lose:
            with suppress(StoreDown):
                told.write({uuid: (number, 0)})
    told.write({uuid: (3, 0)})
    assert [each.at for each in state.history(entries, uuid)] == list(range(8, 0, -1))
    (refused,) = state.refusals(entries, uuid)
    assert (refused.count, refused.why.seconds) == (4, 3)
    hour = sum_of(state.past(entries, [uuid], time.time() - 3600, time.time())[uuid][1])
    assert hour == Hour(1111, 0, 8, 0)
    told.write({})
    between.close()
    proxy.stop()


def test_rendezvous_that_end_while_a_batch_is_written_are_not_dropped(
    server, entries, uuid, monkeypatch
):
    """So many that the oldest fall out."""
    monkeypatch.setattr(presence, 'BACKLOG', 10)
    told = Presence(entries)
    told.write({})
    run = entries.run

    def end_some_meanwhile(*script):
        monkeypatch.undo()
        for number in range(11, 26):
            told.note_rendezvous(uuid, at=number, **ROW)
        return run(*script)

    for number in range(1, 11):
        told.note_rendezvous(uuid, at=number, **ROW)
    monkeypatch.setattr(entries, 'run', end_some_meanwhile)
    told.write({})
    told.write({})  # what ended meanwhile
    kept = [*range(25, 15, -1), *range(10, 0, -1)]
    assert [each.at for each in state.history(entries, uuid)] == kept


def test_what_happens_while_a_batch_is_written_is_for_the_next_time(entries, uuid, monkeypatch):
    """On a busy server there is always something new: it wrote batches of a few rows, endlessly."""
    told, send, sent = Presence(entries), Presence._send, []

    def send_meanwhile(presence, batch) -> None:
        sent.append(len(batch['rows']))
        presence.note_rendezvous(uuid, at=9.0, **ROW)
        send(presence, batch)

    monkeypatch.setattr(Presence, '_send', send_meanwhile)
    told.note_rendezvous(uuid, at=1.0, **ROW)
    told.write({uuid: (1, 0)})
    assert sent == [1]
    told.write({uuid: (1, 0)})
    assert sent == [1, 1]
    for _ in range(presence.BATCH):
        told.note_rendezvous(uuid, at=1.0, **ROW)
    told.write({})
    assert sent[2:] == [presence.BATCH, 2]


def test_redis_that_goes_down_is_told_each_time_once(quick, cable, start, entries, uuid, caplog):
    server = start(redis_port=cable.port)
    told = server.rendezvous.presence
    until(lambda: told._has_arrived, 'it writes')

    def errors() -> int:
        return sum(record.name == 'presence' for record in caplog.records)

    for count in (1, 2):
        cable.cut()
        for number in range(5):
            told.note_rendezvous(uuid, at=float(number), **ROW)
            gevent.sleep(0.02)
        until(lambda c=count: errors() == c, 'it is told')
        cable.open(cable.port)
        until(lambda c=count: len(state.history(entries, uuid)) == 6 * c - 1, 'it is written')
        told.note_rendezvous(uuid, at=9.0, **ROW)  # in a batch after that one has been answered
        until(lambda c=count: len(state.history(entries, uuid)) == 6 * c, 'it goes on')
        assert errors() == count


MANY, TIMES = 10_000, 3


@contextmanager
def turns():
    """The longest that others had to wait for their turn, in seconds of this thread's time."""
    longest, over = [0.0], []

    def look() -> None:
        while not over:
            began = time.thread_time()
            gevent.sleep(0)
            longest[0] = max(longest[0], time.thread_time() - began)

    looking = gevent.spawn(look)
    gevent.sleep(0)
    try:
        yield longest
    finally:
        over.append(True)
        looking.join()


def seconds_for(made: list[str], text: str) -> float:
    """Of this thread's time, to read as many entries at once."""
    began = time.thread_time()
    for _ in made:
        json.loads(text)
    return time.thread_time() - began


@pytest.mark.deadline(90)
def test_many_entries_keep_nobody_waiting(server, entries):
    entry = {'labels': ['kitchen'], 'created': 1.0, 'authParams': {'base32': 'A' * 64}}
    made = [str(uuids.uuid4()) for _ in range(MANY)]
    for some in slices(made, 500):
        entries.ask(lambda redis, some=some: redis.mset(dict.fromkeys(some, json.dumps(entry))))
    told = Presence(entries)
    text, took = json.dumps(entry), defaultdict(list)
    all_at_once = seconds_for(made, text)  # 10 to 50 ms
    for number in range(1, TIMES + 1):
        for uuid in made:
            told.note_online(uuid, '192.0.2.1')
            told.note_rendezvous(uuid, at=1.0, **ROW)
        for name, do in {
            'writes': lambda pipes=number: told.write(dict.fromkeys(made, (1, pipes))),
            'entries': entries.all,
            'now': lambda: state.known(entries, state.server(entries), made),
            'changes': lambda pipes=number: told.write(dict.fromkeys(made, (2, pipes))),
        }.items():
            gc.collect()
            gc.freeze()
            with turns() as longest:
                do()
            took[name].append(longest[0])
    with entries.ask(lambda redis: redis.pubsub()) as subscription:
        subscription.subscribe(told.channel)  # as long as it lives
        subscription.get_message(timeout=5)
        known = now(entries)
    assert {known[uuid][2:4] for uuid in made} == {(2, TIMES)}
    assert len(state.history(entries, made[-1])) == TIMES
    told.write({})
    entries.ask(lambda redis: redis.flushall())
    gc.unfreeze()
    # The processor may have become slower meanwhile: the others of this machine decide. What is not
    # done in slices takes longer than to read all at once, each time. A turn is 4 ms and a slice.
    all_at_once = max(all_at_once, seconds_for(made, text))
    assert max(map(min, took.values())) < max(all_at_once, 3 * TURN_SECONDS), took


def test_what_happens_while_redis_is_away_is_written_later(
    quick, cable, start, connect, register, entries, uuid
):
    server = start(redis_port=cable.port)
    hidden, mobile = piped(connect, register, server, uuid)
    cable.cut()
    hidden.close()
    assert mobile.rest() == b''
    gevent.sleep(0.05)
    cable.open(cable.port)
    assert len(until(lambda: state.history(entries, uuid), 'it is written')) == 1


def test_stop_says_that_nobody_is_here(quick, following, connect, register, entries, uuid):
    server = following()
    peer = register(server, uuid)
    until(lambda: now(entries).get(uuid, Known()).waiting, 'it is online')
    stopping = gevent.spawn(server.stop)
    peer_ends(peer)
    peer.close()
    stopping.join()
    assert not now(entries)[uuid].waiting
