"""hidden.py, the hidden server's end: in this process, where it can be looked at, and as its own.

The rendezvous server is real; where it is to misbehave, a stranger answers in its place.
"""

import base64
import gc
import hashlib
import hmac
import json
import os
import re
import signal
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import gevent
import pytest
from conftest import OK, Peer, free_port, get, until
from gevent.event import AsyncResult, Event
from gevent.pool import Pool
from gevent.server import StreamServer
from programs import Folder
from test_dial import answers_no_syn

import hidden as program
from rendezvous.admin import certificate as make_cert
from rendezvous.hidden import dial
from rendezvous.hidden import hidden_server as hidden
from rendezvous.wire import codes, programs
from rendezvous.wire.http_head import Refusal

HELLO = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello'
MEGABYTE = os.urandom(1024 * 1024)


class Listener:
    """A server of the test's own on loopback: `handle(peer)` is one connection's life."""

    def __init__(self, handle, port: int = 0, context: ssl.SSLContext | None = None):
        self._handle, self._context = handle, context
        self.tries: list[float] = []  # time.monotonic() of each connection
        self._server = StreamServer(('127.0.0.1', port), self._serve, spawn=Pool(None))
        self._server.start()
        self.port = self._server.server_port
        self.address = f'127.0.0.1:{self.port}'

    def _serve(self, sock, _) -> None:
        self.tries.append(time.monotonic())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # sent is on loopback: is there
        with suppress(OSError, AssertionError):  # the other side may leave when it likes
            if self._context:
                sock = self._context.wrap_socket(sock, True, suppress_ragged_eofs=False)
            with sock:
                self._handle(Peer(sock))

    def stop(self) -> None:
        self._server.stop(timeout=0)


@pytest.fixture
def listen(start):
    """Starts local servers."""
    listeners = []

    def listen(handle, port: int = 0, context: ssl.SSLContext | None = None) -> Listener:
        listeners.append(Listener(handle, port, context))
        return listeners[-1]

    yield listen
    for listener in listeners:
        listener.stop()


@pytest.fixture
def stranger(listen, pair):
    """Starts servers that have our certificate and speak for themselves."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair['crt_file'], pair['key_file'])

    def stranger(handle, port: int = 0, tls: bool = True) -> Listener:
        return listen(handle, port, context if tls else None)

    return stranger


@pytest.fixture
def entry(entries, uuid, pair):
    """What the entry's ID.json holds, but for the port."""
    return {
        'authParams': entries.get(uuid)['authParams'],
        'uuid': [uuid],
        'labels': ['kitchen'],
        'server': {'hostname': '127.0.0.1', 'port': 1, 'ca': Path(pair['crt_file']).read_text()},
    }


@pytest.fixture
def hide(start, entry):
    """Starts hidden servers in this process, for a server and a local server."""
    hidden_servers = []

    def hide(server, near: Listener | None = None, count: int = 2) -> hidden.HiddenServer:
        entry['server']['port'] = server.port
        address = '127.0.0.1', near.port if near else free_port()
        hidden_servers.append(hidden.HiddenServer(entry, address, count))
        hidden_servers[-1].start()
        return hidden_servers[-1]

    yield hide
    for hidden_server in hidden_servers:
        hidden_server.stop(0)
        assert not hidden_server._slot_greenlets
        assert not hidden_server._connections


@pytest.fixture
def run_hidden(tmp_path, start, entry):
    """Starts hidden.py as a process of its own."""
    with Folder(tmp_path) as folder:

        def run_hidden(server, near: Listener | None = None, *arguments: str, program=()):
            entry['server']['port'] = server.port
            (folder.path / 'ID.json').write_text(json.dumps(entry))
            address = near.address if near else f'127.0.0.1:{free_port()}'
            return folder.start(*(program or ['hidden.py']), 'ID.json', address, *arguments)

        yield run_hidden


@pytest.fixture
def shown(monkeypatch):
    """The codes that the rendezvous servers in this process are shown."""
    found, check = [], codes.code_is_right

    def code_is_right(parameters, code, now):
        found.append(code)
        return check(parameters, code, now)

    monkeypatch.setattr(codes, 'code_is_right', code_is_right)
    return found


def waiting(server, uuid: str) -> int:
    return server.rendezvous.registry.count(uuid)


def until_waiting(server, uuid: str, count: int, seconds: float = 5) -> None:
    until(lambda: waiting(server, uuid) == count, f'{count} registrations wait', seconds)


def said(caplog) -> list[str]:
    """What hidden.py in this process has logged."""
    return [record.getMessage() for record in caplog.records if record.name == 'hidden']


def hello(peer: Peer) -> None:
    peer.until(b'\r\n\r\n')
    peer.send(HELLO)


def silent(peer: Peer) -> None:
    """Reads and says nothing until the other side ends."""
    peer.rest()


def deaf(peer: Peer) -> None:
    """Neither reads nor says anything."""
    gevent.sleep(60)


def asked(connect, server, uuid: str) -> Peer:
    mobile = connect(server)
    mobile.send(get(uuid))
    return mobile


# It registers


def test_four_registrations_wait_unless_told_otherwise(server, uuid, run_hidden):
    program = run_hidden(server)
    until_waiting(server, uuid, 4)
    program.until_it_says(rf'INFO registered at 127\.0\.0\.1:{server.port} as {uuid}\n')
    assert program.end() == 0
    program = run_hidden(server, None, '--registrations', '7')
    until_waiting(server, uuid, 7)
    assert program.end() == 0
    assert program.said().count('\n') == 1  # all of them are one change of state


def test_each_registration_shows_the_code_of_its_moment(
    server, uuid, entry, entries, hide, listen, connect, shown
):
    """Steps of a second: a code of two seconds ago would be refused."""
    entry['authParams'] |= {'step': 1, 'digits': 8}
    entries._redis.set(uuid, json.dumps({'authParams': entry['authParams']}))
    hide(server, listen(hello), count=1)
    until_waiting(server, uuid, 1)

    def third_code():
        assert asked(connect, server, uuid).answer().status == 200
        return len(set(shown)) == 3

    until(third_code, 'the code changes')


@pytest.mark.parametrize('algorithm', ['sha1', 'sha256', 'sha512'])
def test_long_code_is_sent(stranger, hide, entry, algorithm):
    heads = []
    entry['authParams'] |= {'algorithm': algorithm, 'step': 60}
    strange = stranger(lambda peer: heads.append(peer.until(b'\r\n\r\n')))
    hide(strange, count=1)
    until(lambda: heads, 'it registers')
    secret = base64.b32decode(entry['authParams']['base32'])
    minute = int(time.time() // 60)
    codes = [
        hmac.digest(secret, counter.to_bytes(8, 'big'), algorithm).hex()
        for counter in (minute - 1, minute)
    ]
    assert re.search(b'[?]response=([^ ]+) ', heads[0])[1].decode() in codes


def test_short_code_is_sent_to_a_server_that_takes_no_long_one(stranger, hide, entry):
    lengths = []

    def register(peer):
        code = re.search(b'response=([^ ]+) ', peer.until(b'\r\n\r\n'))[1]
        lengths.append(len(code))
        if len(code) > 8:
            peer.send(Refusal(400, 'TKN must be 6 to 8 digits').octets())
        elif len(lengths) < 5:
            peer.send(OK)

    hide(stranger(register), count=1)
    until(lambda: len(lengths) > 5, 'it registers again and again')
    assert lengths[0] == 40
    digits = entry['authParams']['digits']
    assert lengths[1:5] == [digits] * 4
    until(lambda: 40 in lengths[5:], 'the server was lost, and may be a newer one')


def test_malformed_request_is_no_endless_loop(stranger, hide, caplog):
    refusing = stranger(refuses(b'400 Bad Request'))
    hide(refusing, count=1)
    until(lambda: said(caplog), 'it says so')
    assert len(refusing.tries) == 2


def test_local_server_hears_nothing_before_the_first_octet(server, uuid, hide, listen, connect):
    near = listen(hello)
    hide(server, near)
    until_waiting(server, uuid, 2)
    mobile = connect(server)
    gevent.sleep(0.05)
    assert not near.tries
    mobile.send(get(uuid))
    assert mobile.answer().body == b'hello'
    assert len(near.tries) == 1


def test_registers_again_the_moment_one_is_taken(server, uuid, hide, listen, connect):
    hide(server, listen(silent), count=3)
    until_waiting(server, uuid, 3)
    counts = server.rendezvous.registry.counts
    for open_pipes in range(1, 9):
        asked(connect, server, uuid)
        until(lambda n=open_pipes: counts()[uuid] == (3, n), 'a pipe, and three wait', seconds=1)


def test_registration_is_replaced_after_its_lifetime_the_new_one_first(
    server, uuid, hide, monkeypatch
):
    monkeypatch.setattr(hidden, 'LIFETIME_SECONDS', 0.3)
    hide(server, count=3)
    until_waiting(server, uuid, 3)
    first = list(server.rendezvous.registry._registrations[uuid])
    counts, discard = [], server.rendezvous.registry.remove

    def count_what_is_left(registration):
        discard(registration)
        counts.append(waiting(server, uuid))

    monkeypatch.setattr(server.rendezvous.registry, 'remove', count_what_is_left)
    until(lambda: all(registration.over for registration in first), 'they are replaced')
    assert min(counts) >= 3


def test_lifetimes_are_jittered():
    """Else all registrations of all hidden servers would come at one moment, again and again."""
    made = [hidden.Registration(None) for _ in range(500)]
    lifetimes = [(each.ends - each.began) / hidden.LIFETIME_SECONDS for each in made]
    assert 0.9 <= min(lifetimes) < 0.93
    assert 0.97 < max(lifetimes) <= 1


def test_request_that_comes_while_its_registration_is_being_replaced_is_answered(
    server, uuid, hide, listen, connect, monkeypatch
):
    gets, successor_asks, store_answers = [], Event(), Event()
    get_entry = server.entries.get

    def slow(uuid):
        gets.append(uuid)
        if len(gets) > 1:
            successor_asks.set()
            store_answers.wait()
        return get_entry(uuid)

    monkeypatch.setattr(server.entries, 'get', slow)
    monkeypatch.setattr(hidden, 'LIFETIME_SECONDS', 0.1)
    hide(server, listen(hello), count=1)
    successor_asks.wait()
    monkeypatch.undo()
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert waiting(server, uuid) == 0
    store_answers.set()
    until_waiting(server, uuid, 1)
    assert asked(connect, server, uuid).answer().body == b'hello'


def test_replacing_adds_no_registration(server, uuid, hide, listen, connect, monkeypatch):
    """... though the new one is taken, and through, before the old one goes."""
    monkeypatch.setattr(hidden, 'LIFETIME_SECONDS', 0.5)
    hidden_server = hide(server, listen(hello), count=1)
    until(lambda: hidden_server._logged_state, 'it is registered, and knows it')
    (old,) = server.rendezvous.registry._registrations[uuid]
    monkeypatch.undo()
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).answer().body == b'hello'
    until(lambda: old.over, 'the old one goes')
    gevent.sleep(0.1)
    assert waiting(server, uuid) == 1


def test_sockets_notice_a_dead_peer(server, uuid, hide, listen, connect):
    """Both of a pipe, and soonest the one that waits, for all that do."""
    near = listen(silent)
    hide(server, near, count=1)
    until_waiting(server, uuid, 1)
    mobile = asked(connect, server, uuid)
    until(lambda: near.tries and waiting(server, uuid), 'one pipes and one waits')

    def peers() -> Counter:
        found = Counter()
        for sock in [each for each in gc.get_objects() if issubclass(type(each), socket.socket)]:
            with suppress(OSError):
                port = sock.getpeername()[1]
                if sock is not mobile.sock and port in (near.port, server.port):
                    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    idle, milliseconds = (
                        sock.getsockopt(socket.IPPROTO_TCP, name)
                        for name in (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
                    )
                    found[port, idle, milliseconds] += 1
        return found

    pipe, scout = (30, 60_000), (4, 12_000)
    expected = {(near.port, *pipe): 1, (server.port, *pipe): 1, (server.port, *scout): 1}
    until(lambda: peers() == expected, 'both of a pipe, and the one that waits')


def garbage_below_tls(peer: Peer) -> None:
    os.write(peer.sock.fileno(), b'garbage')


@pytest.mark.parametrize('breaks', [Peer.reset, garbage_below_tls])
def test_registration_that_breaks_is_made_anew_and_those_beside_it(stranger, hide, breaks):
    """What broke one may have broken the others without a word."""
    waiting, ended = [], []

    def register(peer):
        peer.until(b'\r\n\r\n')
        peer.send(OK)
        waiting.append(peer)
        peer.rest()
        ended.append(peer)

    hide(stranger(register), count=2)
    until(lambda: len(waiting) == 2, 'two wait')
    breaks(waiting[0])
    until(lambda: len(waiting) == 4, 'two new ones wait')
    until(lambda: waiting[1] in ended, 'the other one has been replaced')


NIGHT_SECONDS = 8 * 3600


@pytest.mark.parametrize(
    ('clock', 'says'),
    [('clock_gettime', 'this machine was suspended'), ('time', "this machine's clock was set")],
)
def test_suspension_has_all_registrations_made_anew(
    server, uuid, hide, monkeypatch, caplog, clock, says
):
    caplog.set_level('INFO', 'hidden')
    hide(server, count=3)
    until_waiting(server, uuid, 3)
    first, tell = list(server.rendezvous.registry._registrations[uuid]), getattr(time, clock)
    monkeypatch.setattr(time, clock, lambda *which: tell(*which) + 20)
    until(lambda: all(registration.over for registration in first), 'they are replaced')
    monkeypatch.undo()
    assert any(sentence.startswith(says) for sentence in said(caplog))


def test_pause_ends_with_a_suspension(stranger, hide, monkeypatch):
    """The clock may have been set then, or the hotel's login page be behind us."""
    monkeypatch.setattr(hidden, 'REFUSED_PAUSES_SECONDS', (60, 60))
    refusing = stranger(refuses(b'401 Unauthorized'))
    hide(refusing)
    until(lambda: refusing.tries, 'it is refused')
    tell = time.clock_gettime
    monkeypatch.setattr(time, 'clock_gettime', lambda which: tell(which) + NIGHT_SECONDS)
    until(lambda: len(refusing.tries) == 2, 'it tries again')


def test_another_address_has_all_registrations_made_anew(server, uuid, hide, monkeypatch, caplog):
    caplog.set_level('INFO', 'hidden')
    hidden_server = hide(server, count=3)
    until_waiting(server, uuid, 3)
    until(lambda: hidden_server._surroundings._own == '127.0.0.1', 'it has looked')
    first = list(server.rendezvous.registry._registrations[uuid])
    for own in ('', '192.0.2.7'):  # the network is gone, and another one is there
        assert not any(registration.over for registration in first)
        monkeypatch.setattr(dial.Addresses, 'own', lambda _, own=own: own)
        gevent.sleep(0.05)
    until(lambda: all(registration.over for registration in first), 'they are replaced')
    assert said(caplog)[-1] == (
        'this machine has another address, 192.0.2.7: all registrations are replaced'
    )


# Mistakes of ours


@pytest.mark.parametrize(
    'where',
    [
        'rendezvous.hidden.dial.RendezvousServer.register',
        'rendezvous.hidden.hidden_server.jittered',
        'rendezvous.hidden.local_server.LocalServer.pipe',
    ],
)
def test_mistake_in_a_registration_is_logged_and_the_next_one_made(
    start, uuid, hide, listen, connect, monkeypatch, caplog, where
):
    server, near = start(max_waiting=2), listen(hello)
    hide(server, near, count=3)  # so one is ended again and again, and pauses
    until_waiting(server, uuid, 2)
    monkeypatch.setattr(where, lambda *_, **__: 1 / 0)
    asked(connect, server, uuid)
    until(lambda: 'ZeroDivisionError' in caplog.text, 'it is logged')
    monkeypatch.undo()
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).answer().body == b'hello'


def test_mistake_in_what_watches_is_logged_and_it_goes_on(server, hide, monkeypatch, caplog):
    for where in (
        'rendezvous.wire.sockets.keep_watch',
        'rendezvous.hidden.surroundings.Surroundings.change',
    ):
        monkeypatch.setattr(where, lambda *_: 1 / 0)
    monkeypatch.setattr(hidden, 'BUG_SECONDS', 0.01)
    hide(server)
    until(lambda: caplog.text.count('in watch_or') > 2 or caplog.text.count('1 / 0') > 6, 'again')


# The rendezvous server makes trouble


def refuses(status: bytes, *fields: bytes):
    """A server that answers so to each CONNECT."""

    def refuse(peer):
        peer.until(b'\r\n\r\n')
        peer.send(b'\r\n'.join([b'HTTP/1.1 ' + status, *fields, b'Connection: close', b'', b'']))

    return refuse


def test_four_wait_soon_where_one_of_two_addresses_answers_no_syn(
    server, uuid, hide, monkeypatch, caplog
):
    resolves = socket.getaddrinfo

    def resolve(host, port, *how, **more):
        if port != server.port:
            return resolves(host, port, *how, **more)
        return [(socket.AF_INET, 1, 6, '', (host, port)) for host in ('127.0.0.2', '127.0.0.1')]

    with answers_no_syn('127.0.0.2', server.port):
        monkeypatch.setattr(socket, 'getaddrinfo', resolve)
        hide(server, count=4)
        until_waiting(server, uuid, 4, seconds=6)  # it takes 0.3 s; one after the other, 60
    assert '127.0.0.2 did not answer: 127.0.0.1 of 127.0.0.1 did' in said(caplog)


def test_comes_back_within_two_seconds_of_a_server_that_was_killed(tmp_path, listen, connect):
    with Folder(tmp_path, rendezvous_port=free_port()) as folder:
        folder.pair()
        (uuid,) = folder.add('kitchen')['uuid']
        program, _ = folder.serve()
        hiding = folder.start('hidden.py', f'entries/{uuid}.json', listen(hello).address)
        hiding.until_it_says('registered')
        for seconds in (0, 1):  # the second time the pauses have grown
            program.end(signal.SIGKILL)
            hiding.until_it_says(
                r'WARNING not registered at 127\.0\.0\.1:\d+: Connection refused\n\Z'
            )
            gevent.sleep(seconds)
            program, _ = folder.serve()
            began = time.monotonic()
            hiding.until_it_says(r'INFO registered at .*\n\Z')
            assert time.monotonic() - began < 2
        assert hiding.end() == 0


def test_many_restarts_of_the_server(start, uuid, hide, caplog):
    caplog.set_level('INFO')
    port = free_port()
    for turn in range(10):
        server = start(rendezvous_port=port)
        if turn == 0:
            hide(server)
        until_waiting(server, uuid, 2, seconds=2)
        server.stop()
        until(lambda: said(caplog)[-1].startswith('not registered'), 'it notices')
    assert set(said(caplog)) == {
        f'registered at 127.0.0.1:{port} as {uuid}',
        f'not registered at 127.0.0.1:{port}: Connection refused',
    }


@pytest.mark.parametrize(
    ('error', 'gone_seconds', 'least', 'most'),
    [
        (ConnectionRefusedError(), 0, 0.05, 0.1),
        (ConnectionRefusedError(), 50, 0.5, 1),
        (dial.NotRegistered(503, '', 0, None), 3600, 0.75, 1.5),
        (dial.NotRegistered(503, '', 30, None), 0, 30.05, 30.1),
        (dial.NotRegistered(503, '', 3600, None), 0, 60, 60),
        (ssl.SSLCertVerificationError(), 3600, 2, 4),
        (dial.NotRegistered(401, '', 0, None), 0, 7.5, 15),
        (dial.NotRegistered(401, '', 0, None), 3600, 30, 60),
        (dial.NotRegistered(429, '', 3600, None), 3600, 60, 60),
        (dial.NotRegistered(407, '', 0, None), 3600, 30, 60),
    ],
)
def test_pauses_grow_up_to_a_bound_and_are_jittered(error, gone_seconds, least, most):
    """A server that can be reached is found within 5 seconds, and `enable` works in a minute."""
    pauses = [hidden.pause_after(error, gone_seconds) for _ in range(500)]
    assert least <= min(pauses) <= least + 0.1 * (most - least)
    assert most - 0.1 * (most - least) <= max(pauses) <= most


def test_one_tries_for_all_and_pauses_between_tries(stranger, hide, monkeypatch):
    monkeypatch.setattr(hidden, 'LOST_PAUSES_SECONDS', (0.04, 0.16))
    monkeypatch.setattr(hidden, 'LOST_SHARE', 1)
    strange = stranger(lambda peer: None, tls=False)
    hide(strange)
    until(lambda: len(strange.tries) >= 6, 'it tries again and again')
    pauses = [after - before for before, after in pairwise(strange.tries)]
    assert min(pauses) >= 0.02


def test_retry_after_is_honoured(stranger, hide, monkeypatch, caplog):
    monkeypatch.setattr(hidden, 'REFUSED_PAUSES_SECONDS', (0.02, 0.02))
    body = b'{"error": {"permanent": false, "diagnostic": "so many"}}'

    def refuse(peer):
        peer.until(b'\r\n\r\n')
        peer.send(b'HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n' + body)

    refusing = stranger(refuse)
    hide(refusing, count=1)
    until(lambda: len(refusing.tries) == 2, 'it tries again')
    assert 1 < refusing.tries[1] - refusing.tries[0] < 3
    assert said(caplog) == [f'not registered at 127.0.0.1:{refusing.port}: 429 so many']


@pytest.mark.parametrize(
    ('body', 'why', 'stays'),
    [
        (b'', 'and says no more', False),
        (b'<html>', 'and says no more', True),
        (b'[]', 'and says no more', False),
        (b'[' * 10_000, 'and says no more', False),
        (b'{"error": "no"}', 'and says no more', False),
        (b'{"error": {"diagnostic": "a\\nb"}}', 'a?b', False),
    ],
)
def test_refusal_of_a_stranger_is_one_sentence(stranger, hide, caplog, body, why, stays):
    def refuse(peer):
        peer.until(b'\r\n\r\n')
        peer.send(b'HTTP/1.1 405 Method Not Allowed\r\nX: y\r\n\r\n' + body)
        if stays:
            peer.rest()

    refusing = stranger(refuse)
    hide(refusing, count=1)
    until(lambda: said(caplog), 'it says so')
    (sentence,) = said(caplog)
    begin = f'not registered at 127.0.0.1:{refusing.port}: 405 {why}; the next try is in '
    assert re.fullmatch(re.escape(begin) + r'\d+ s', sentence)


def test_wrong_secret_is_said_in_one_sentence_and_tried_slowly(server, entry, run_hidden, shown):
    entry['authParams']['base32'] = 'A' * 64
    program = run_hidden(server)
    sentence = program.until_it_says('WARNING (not registered.*)\n')[1]
    why = '401 no such UUID, or not its code of this moment'
    assert sentence.startswith(f'not registered at 127.0.0.1:{server.port}: {why}')
    assert 'is its ID.json the newest?' in sentence
    until(lambda: len(shown) == 1, 'one has tried')
    gevent.sleep(0.5)
    assert len(shown) == 1
    assert program.end() == 0
    assert program.said().count('\n') == 1


def test_refused_ones_are_back_when_the_entry_is(server, uuid, hide, entries, monkeypatch, caplog):
    monkeypatch.setattr(hidden, 'REFUSED_PAUSES_SECONDS', (0.1, 0.2))
    value = entries._redis.getdel(uuid)
    hide(server)
    until(lambda: said(caplog), 'they are refused')
    entries._redis.set(uuid, value)
    until_waiting(server, uuid, 2)


def test_more_registrations_than_may_wait_are_no_hot_loop(start, uuid, hide, caplog, shown):
    server = start(max_waiting=2)
    hide(server, count=4)
    until(lambda: said(caplog), 'it says so')
    assert 'max_waiting' in said(caplog)[0]
    before = len(shown)
    gevent.sleep(1)
    assert len(shown) - before < 8
    assert waiting(server, uuid) == 2


def test_another_certificate_is_refused_and_said_and_tried_slowly(server, entry, hide, caplog):
    _, certificate = make_cert.certificate_for('127.0.0.1')
    entry['server']['ca'] = certificate.public_bytes(make_cert.Encoding.PEM).decode()
    caplog.set_level('INFO', 'rendezvous')
    hide(server)
    until(lambda: caplog.text.count('alert') == 1, 'one tries')
    gevent.sleep(0.5)
    assert caplog.text.count('alert') == 1
    assert said(caplog) == [
        f'not registered at 127.0.0.1:{server.port}: its certificate is not the one it should be '
        '(self-signed certificate)'
    ]


def date(ahead: float) -> bytes:
    """The Date of a server, where our clock is so many seconds ahead."""
    return b'Date: ' + formatdate(time.time() - ahead, usegmt=True).encode()


@pytest.mark.parametrize(
    ('field', 'says'),
    [
        (b'X: y', 'is the entry still there, and is the clock of this machine right?'),
        (b'Date: once', 'is the entry still there, and is the clock of this machine right?'),
        (b'date: 99 99', 'is the entry still there, and is the clock of this machine right?'),
        (5, 'is the entry still there, and is its ID.json the newest?'),
        (61 * 60 + 5, "this machine's clock is 61 minutes ahead"),
        (-70, "this machine's clock is (69|70) seconds behind"),
        (-2.9 * 3600, "this machine's clock is 3 hours behind"),
        (-3 * 24 * 3600, "this machine's clock is 3 days behind"),
    ],
)
def test_wrong_clock_is_told_from_the_server_s_date(stranger, hide, caplog, field, says):
    field = field if isinstance(field, bytes) else date(field)
    hide(stranger(refuses(b'401 Unauthorized', field)), count=1)
    until(lambda: said(caplog), 'it says so')
    why = f': 401 and says no more: {says}; the next try is in '
    assert re.search(why.replace('?', '[?]'), said(caplog)[0])


@pytest.fixture
def served(listen, entry, tmp_path, monkeypatch):
    """Starts servers whose certificate begins and ends so many days from now."""

    def served(begins: float, ends: float) -> Listener:
        monkeypatch.setattr(make_cert, 'BACKDATED', timedelta(days=-begins))
        monkeypatch.setattr(make_cert, 'VALID', timedelta(days=ends))
        key, certificate = make_cert.certificate_for('127.0.0.1')
        pem = certificate.public_bytes(make_cert.Encoding.PEM)
        (tmp_path / 'key').write_bytes(key)
        (tmp_path / 'crt').write_bytes(pem)
        entry['server']['ca'] = pem.decode()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / 'crt', tmp_path / 'key')

        def register(peer):
            peer.until(b'\r\n\r\n')
            peer.send(OK)
            peer.rest()

        return listen(register, context=context)

    return served


@pytest.mark.parametrize(
    ('begins', 'ends', 'says'),
    [(1, 2, 'its certificate is not valid yet'), (-2, -1, 'its certificate has expired')],
)
def test_certificate_of_another_time_asks_for_the_clock(served, hide, caplog, begins, ends, says):
    server = served(begins, ends)
    hide(server)
    until(lambda: said(caplog), 'it says so')
    sentence = f'not registered at 127.0.0.1:{server.port}: {says}'
    today = datetime.now(UTC).strftime('%Y-%m-%d')
    assert said(caplog)[0].startswith(f"{sentence}: this machine's clock says {today} ")


@pytest.mark.parametrize(
    ('begins', 'ends', 'warns'),
    [(-76, 13, True), (-70, 15, False), (-3, 3, False), (-5, 1, True)],
)
def test_certificate_that_is_about_to_end_is_told_once(served, hide, caplog, begins, ends, warns):
    caplog.set_level('INFO', 'hidden')
    server = served(begins, ends)
    hide(server, count=3)
    until(lambda: len(server.tries) == 3, 'all register')
    until(lambda: any('registered' in each for each in said(caplog)), 'it says so')
    at = datetime.now(UTC) + timedelta(days=ends)
    sentence = f'the certificate of 127.0.0.1:{server.port} ends soon, on {at:%Y-%m-%d}'
    assert sum(each.startswith(sentence) for each in said(caplog)) == warns


@pytest.mark.parametrize('seconds', [-1, 60])
def test_other_machine_with_the_same_file_is_told_once(
    stranger, hide, caplog, monkeypatch, seconds
):
    """... but not what this one left behind when it was killed."""
    monkeypatch.setattr(dial, 'LEFT_OVER_SECONDS', seconds)
    heads = []

    def register(peer):
        heads.append(peer.until(b'\r\n\r\n'))
        peer.send(b'HTTP/1.1 200 OK\r\nOther-Instance: 192.0.2.7\r\n\r\n')
        peer.rest()

    hide(stranger(register), count=3)
    until(lambda: len(heads) == 3, 'three register')
    until(lambda: len(said(caplog)) == 1 or seconds > 0, 'it is told')
    assert len({re.search(rb'\r\nInstance: ([0-9a-f]{16})\r\n', head)[1] for head in heads}) == 1
    sentence = 'a machine at 192.0.2.7 has the same ID.json, and gets some of the visits'
    assert said(caplog) == ([sentence] if seconds < 0 else [])


def test_certificate_for_another_host_is_refused(start, entry, hide, caplog):
    server = start(listen_host='127.0.0.2')
    entry['server']['hostname'] = '127.0.0.2'
    hide(server)
    until(lambda: said(caplog), 'it says so')
    assert 'not the one it should be (IP address mismatch' in said(caplog)[0]


@pytest.mark.parametrize('trusted', [True, False])
def test_without_ca_the_system_s_trust_counts(
    server, uuid, entry, pair, hide, caplog, monkeypatch, trusted
):
    if trusted:
        monkeypatch.setenv('SSL_CERT_FILE', pair['crt_file'])
    del entry['server']['ca']
    hide(server)
    if trusted:
        until_waiting(server, uuid, 2)
    else:
        until(lambda: said(caplog), 'it says so')
        assert 'its certificate is not the one it should be' in said(caplog)[0]


def page(peer: Peer) -> None:
    peer.until(b'\r\n\r\n')
    peer.send(HELLO)
    peer.rest()


def says(octets: bytes):
    return lambda peer: peer.send(octets)


STRANGERS = {
    'says nothing': (False, deaf),
    'hangs up': (False, says(b'')),
    'resets': (False, Peer.reset),
    'SSH': (False, says(b'SSH-2.0-OpenSSH_9.2\r\n')),
    'HTTP without TLS': (False, says(b'HTTP/1.1 400 Bad Request\r\n\r\n')),
    'says nothing behind TLS': (True, deaf),
    'hangs up behind TLS': (True, says(b'')),
    'resets behind TLS': (True, Peer.reset),
    'garbage behind TLS': (True, says(os.urandom(40_000))),
    'half a 200': (True, says(b'HTTP/1.1 200 OK\r\n')),
    'a web server that knows every method': (True, page),
    'a 200 and the end': (True, says(OK)),
}


@pytest.mark.parametrize(('tls', 'handle'), STRANGERS.values(), ids=STRANGERS)
def test_server_that_is_none_does_not_stop_it(
    stranger, start, uuid, hide, listen, monkeypatch, capfd, tls, handle
):
    monkeypatch.setattr('rendezvous.hidden.dial.CONNECT_SECONDS', 0.1)
    for name in ('LOST_PAUSES_SECONDS', 'HANG_UP_PAUSES_SECONDS'):
        monkeypatch.setattr(hidden, name, (0.04, 0.08))
    near, strange = listen(hello), stranger(handle, tls=tls)
    hide(strange, near, count=1)
    until(lambda: len(strange.tries) >= 3, 'it goes on trying')
    assert strange.tries[2] - strange.tries[0] > 0.04  # each pause is 0.02 s or more
    strange.stop()
    server = start(rendezvous_port=strange.port)
    until_waiting(server, uuid, 1)
    assert not near.tries
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize(
    'name',
    ['hangs up', 'resets', 'hangs up behind TLS', 'resets behind TLS', 'half a 200'],
)
def test_server_that_restarts_is_not_called_something_else(stranger, hide, caplog, name):
    tls, handle = STRANGERS[name]
    strange = stranger(handle, tls=tls)
    hide(strange, count=1)
    until(lambda: said(caplog), 'it says so')
    where = f'127.0.0.1:{strange.port}'
    assert said(caplog)[0] == f'not registered at {where}: it hangs up: it may be restarting'


# The local server makes trouble


WANT_TLS = {
    'nginx': b'HTTP/1.1 400 Bad Request\r\nServer: nginx/1.22.1\r\n\r\n<html>\r\n<head><title>400 '
    b'The plain HTTP request was sent to HTTPS port</title></head>\r\n',
    'Apache': b"HTTP/1.1 400 Bad Request\r\nServer: Apache\r\n\r\n<p>Reason: You're speaking plain "
    b'HTTP to an SSL-enabled server port.<br />\n',
    'Go': b'HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n',
    'an alert': b'\x15\x03\x01\x00\x02\x02\x46',
}


@pytest.mark.parametrize('octets', WANT_TLS.values(), ids=WANT_TLS)
def test_local_server_that_wants_tls_is_told_once(
    server, uuid, hide, listen, connect, caplog, octets
):
    near = listen(says(octets))
    hide(server, near)
    until_waiting(server, uuid, 2)
    for _ in range(2):
        assert asked(connect, server, uuid).rest() == octets
    sentence = f'the local server {near.address} wants TLS, and gets plain HTTP'
    assert said(caplog).count(sentence) == 1


def test_local_server_that_speaks_of_tls_is_no_such_one(
    server, uuid, hide, listen, connect, caplog
):
    hide(
        server,
        listen(says(b'HTTP/1.1 200 OK\r\n\r\nThe plain HTTP request was sent to HTTPS port')),
    )
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).rest()
    assert not said(caplog)


def test_local_server_that_is_down_is_a_502_until_it_is_back(
    server, uuid, hide, listen, connect, caplog
):
    near = listen(hello)
    near.stop()
    hide(server, near)
    until_waiting(server, uuid, 2)
    for _ in range(3):
        answer = asked(connect, server, uuid).answer()
        assert answer.status == 502
        assert json.loads(answer.body)['error'] == {
            'permanent': False,
            'diagnostic': 'the server behind the rendezvous is down',
        }
    assert f'the local server {near.address}: Connection refused' in said(caplog)
    listen(hello, near.port)
    assert asked(connect, server, uuid).answer().body == b'hello'


def test_connection_that_breaks_before_the_502_costs_nothing(stranger, hide, capfd):
    def register(peer):
        peer.until(b'\r\n\r\n')
        peer.send(OK + b'request')
        peer.reset()

    strange = stranger(register)
    hide(strange, count=1)
    until(lambda: len(strange.tries) > 20, 'it registers again and again')
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('unread', [True, False])
@pytest.mark.parametrize('end', ['close', 'reset'])
def test_local_server_that_ends_without_an_answer(server, uuid, hide, listen, connect, end, unread):
    def handle(peer):
        if len(near.tries) > 8:
            hello(peer)
        elif not unread:
            peer.until(b'\r\n\r\n')
        getattr(peer, end)()

    near = listen(handle)
    hide(server, near)
    until_waiting(server, uuid, 2)
    for _ in range(8):
        assert asked(connect, server, uuid).rest() == b''
    until_waiting(server, uuid, 2)
    if end == 'close':
        assert asked(connect, server, uuid).answer().body == b'hello'


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 100))
import hidden
hidden.programs.main(hidden.main)
"""


def test_more_pipes_than_descriptors_get_a_503_and_it_goes_on_registering(
    server, uuid, run_hidden, listen, connect
):
    program = run_hidden(server, listen(silent), program=('-c', FEW_DESCRIPTORS))
    until_waiting(server, uuid, 4)
    limit = Path(f'/proc/{program.pid}/limits').read_text()
    assert re.search(r'Max open files +100 +100 ', limit)
    refused, asking = [], []

    def ask():
        mobile = asked(connect, server, uuid)
        with suppress(AssertionError):  # the others get no answer
            refused.append(mobile.answer())

    for _ in range(40):
        asking.append(gevent.spawn(ask))
        until(lambda: waiting(server, uuid), 'one waits')
    until(lambda: len(refused) >= 20, 'they are refused')
    assert {answer.status for answer in refused} == {503}
    assert refused[0].fields['Retry-After'] == '5'
    until_waiting(server, uuid, 4)
    gevent.killall(asking)
    assert 'Too many open files' not in program.said()


# Endings


@pytest.fixture
def joined(server, uuid, hide, listen, connect):
    """The local server's end of a pipe and the mobile client's; the head has come."""
    joining, over = AsyncResult(), Event()

    def handle(peer):
        peer.until(b'\r\n\r\n')
        joining.set(peer)
        over.wait()

    hide(server, listen(handle))
    until_waiting(server, uuid, 2)
    mobile = asked(connect, server, uuid)
    mobile.sock.suppress_ragged_eofs = False  # an end without a close_notify is an error
    yield joining.get(timeout=5), mobile
    over.set()


def test_body_framed_by_close_arrives_whole(joined):
    near, mobile = joined
    near.send(OK + MEGABYTE)
    near.close()
    assert mobile.rest() == OK + MEGABYTE


def test_mobile_client_that_closes_ends_the_local_connection(joined):
    near, mobile = joined
    mobile.send(b'words')
    mobile.close()
    assert near.rest() == b'words'


def test_mobile_client_shuts_its_sending_side_and_gets_its_answer_whole(joined):
    near, mobile = joined
    mobile.send(b'body')
    mobile.shut_sending()
    assert near.receive(4) == b'body'
    near.send(OK + MEGABYTE)
    near.close()
    assert mobile.rest() == OK + MEGABYTE


def test_reset_of_the_mobile_client_ends_the_local_connection(joined):
    near, mobile = joined
    mobile.send(b'words')
    assert near.receive(5) == b'words'
    mobile.reset()
    assert near.rest() == b''


def test_answer_that_the_local_server_cuts_off_never_looks_whole(joined):
    """It was reset, or has died: the octets arrive, and no close_notify."""
    near, mobile = joined
    near.send(OK + MEGABYTE)
    assert mobile.receive(len(OK) + len(MEGABYTE)) == OK + MEGABYTE
    near.reset()
    with pytest.raises(ssl.SSLError):
        mobile.rest()


@pytest.mark.parametrize('which', ['near', 'mobile'])
def test_last_words_larger_than_all_buffers_arrive_whole(joined, which):
    near, mobile = joined
    leaving, staying = (near, mobile) if which == 'near' else (mobile, near)

    def speak():
        leaving.send(MEGABYTE * 16)
        leaving.close()

    speaking = gevent.spawn(speak)
    gevent.sleep(0.05)  # the buffers are full
    assert hashlib.sha256(staying.rest()).digest() == hashlib.sha256(MEGABYTE * 16).digest()
    speaking.get()


def test_both_directions_at_once_arrive_whole(joined):
    speaking = [gevent.spawn(peer.send, MEGABYTE * 16) for peer in joined]
    hearing = [gevent.spawn(peer.receive, len(MEGABYTE) * 16) for peer in joined]
    for heard in hearing:
        assert hashlib.sha256(heard.get()).digest() == hashlib.sha256(MEGABYTE * 16).digest()
    gevent.joinall(speaking, raise_error=True)


def test_rendezvous_server_that_stops_ends_the_local_connection(server, joined):
    near, mobile = joined
    near.send(b'words')
    assert mobile.receive(5) == b'words'
    stopping = gevent.spawn(server.stop, 0)
    assert near.rest() == b''
    mobile.close()
    stopping.get()


def test_request_and_end_in_one_go_end_the_local_connection(stranger, hide, listen):
    """Both are there before the local connection is."""
    hanging_up, heard = [b'request'], AsyncResult()

    def register(peer):
        peer.until(b'\r\n\r\n')
        peer.send(OK)
        if hanging_up:
            peer.send(hanging_up.pop())
        else:
            peer.rest()

    hide(stranger(register), listen(lambda peer: heard.set(peer.rest())), count=1)
    assert heard.get(timeout=5) == b'request'


# The program


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_what_waits_and_lets_a_pipe_finish(stranger, listen, run_hidden, number):
    """Two that wait, and one in a pipe."""
    registered, goodbyes, passed = [], [], Event()

    def register(peer):
        peer.until(b'\r\n\r\n')
        peer.send(OK)
        registered.append(peer)
        if peer is registered[0]:
            peer.send(b'ping')
            until(lambda: len(registered) == 3, 'two wait')
            peer.send(b'ping')  # what went to the others before has been read when it is back
            assert peer.receive(8) == b'pingping'
            passed.set()
            until(lambda: len(goodbyes) == 2, 'those that wait are ended')
            peer.send(b'last')
            assert peer.receive(4) == b'last'
        goodbyes.append(peer.rest())  # which raises where there is no close_notify

    def echo(peer):
        for _ in range(3):
            peer.send(peer.receive(4))

    program = run_hidden(stranger(register), listen(echo), '--registrations', '2')
    assert passed.wait(10)
    assert program.end(number) == 0
    until(lambda: goodbyes == [b''] * 3, 'each says goodbye')
    assert len(registered) == 3
    assert program.said().count('\n') == 2
    assert 'stopping: pipes may take 30 seconds to finish\n' in program.said()


def full_pipe(server, uuid: str, run_hidden, listen, connect, **how):
    """A hidden.py whose mobile client does not read, and that client."""
    full = Event()

    def answer(peer):
        peer.sock.settimeout(0.2)
        with suppress(TimeoutError):
            peer.send(MEGABYTE * 32)
        full.set()
        deaf(peer)

    program = run_hidden(server, listen(answer), **how)
    until_waiting(server, uuid, 4)
    mobile = asked(connect, server, uuid)
    full.wait()
    return program, mobile


def test_second_ctrl_c_ends_it_at_once(server, uuid, run_hidden, listen, connect):
    program, mobile = full_pipe(server, uuid, run_hidden, listen, connect)
    os.killpg(program.pid, signal.SIGINT)
    program.until_it_says('stopping')
    assert program.end(signal.SIGINT) == 1
    mobile.close()


IN_A_HURRY = 'import hidden; hidden.FINISH_SECONDS = 0.5; hidden.programs.main(hidden.main)'


def test_pipe_that_does_not_finish_is_ended(server, uuid, run_hidden, listen, connect):
    """... though its mobile client does not read; and what it got does not look whole."""
    how = {'program': ('-c', IN_A_HURRY)}
    program, mobile = full_pipe(server, uuid, run_hidden, listen, connect, **how)
    mobile.sock.suppress_ragged_eofs = False  # an end without a close_notify is an error
    assert program.end() == 0
    with pytest.raises(ssl.SSLError):
        mobile.rest()


def test_server_forgets_it_as_soon_as_it_ends(server, uuid, run_hidden):
    program = run_hidden(server)
    until_waiting(server, uuid, 4)
    assert program.end() == 0
    until_waiting(server, uuid, 0, seconds=1)


def test_log_holds_neither_code_nor_secret(
    server, uuid, entry, entries, run_hidden, listen, connect, shown
):
    program = run_hidden(server)
    until_waiting(server, uuid, 4)
    assert asked(connect, server, uuid).answer().status == 502
    until_waiting(server, uuid, 4)
    entries.delete(uuid)  # ends the four, and they try again
    log = program.until_it_says(r'registered(?s:.*)local server(?s:.*)not registered.*\n').string
    assert len(shown) > 5
    for secret in {*shown, entry['authParams']['base32']}:
        assert secret not in log


ONLY_GEVENT_AND_PYOTP = """
import runpy, sys
from importlib.machinery import PathFinder

NEEDED = 'gevent', 'greenlet', 'zope', 'pyotp'  # the second and the third are gevent's

class Only:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        installed = spec and 'site-packages' in str(spec.origin)
        if installed and name.partition('.')[0] not in NEEDED:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Only)
try:
    import flask
except ModuleNotFoundError:
    runpy.run_path('hidden.py', run_name='__main__')
"""


def test_needs_only_gevent_and_pyotp(server, uuid, run_hidden, listen, connect):
    program = run_hidden(server, listen(hello), program=('-c', ONLY_GEVENT_AND_PYOTP))
    until_waiting(server, uuid, 4)
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert program.end() == 0


WITHOUT_LINUX = """
import os, runpy, select, signal, socket, sys, time, _socket, _signal

TCP = 'INFO', 'USER_TIMEOUT', 'KEEPIDLE', 'KEEPINTVL', 'KEEPCNT', 'QUICKACK', 'NOTSENT_LOWAT'
POLL = 'poll', 'epoll', *(name for name in dir(select) if name.startswith(('POLL', 'EPOLL')))
MISSING = {
    **dict.fromkeys((socket, _socket), [f'TCP_{name}' for name in TCP]),
    **dict.fromkeys((signal, _signal), ['SIGHUP']),
    select: POLL,
    os: [name for name in dir(os) if name.startswith('EX_')],
    time: ['CLOCK_BOOTTIME'],
}
for module, names in MISSING.items():
    for name in names:
        vars(module).pop(name, None)
socket.__all__ = [name for name in socket.__all__ if hasattr(socket, name)]
sys.modules['resource'] = None  # an import of it fails
os.environ['PATH'] = ''
sys.argv[0] = 'hidden.py'
runpy.run_path('hidden.py', run_name='__main__')
"""


def test_runs_where_the_system_is_not_linux(server, uuid, run_hidden, listen, connect):
    program = run_hidden(server, listen(hello), program=('-c', WITHOUT_LINUX))
    until_waiting(server, uuid, 4)
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert program.end() == 0
    assert program.said().count('\n') == 1
    program = run_hidden(server, None, '--registrations', '0', program=('-c', WITHOUT_LINUX))
    assert program.process.wait(timeout=10) == 78
    assert program.said() == 'hidden.py: --registrations must be 1 or more\n'


# Mistakes


def ran(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """hidden.py's exit status and its last words."""
    monkeypatch.setattr('sys.argv', ['hidden.py', *map(str, arguments)])
    with gevent.Timeout(5, AssertionError('it runs')), pytest.raises(SystemExit) as ended:
        programs.main(program.main)
    stdout, stderr = capsys.readouterr()
    assert stdout == ''
    assert 'Traceback' not in stderr
    return ended.value.code, stderr


def sentence(monkeypatch, capsys, *arguments) -> str:
    status, stderr = ran(monkeypatch, capsys, *arguments)
    assert (status, stderr.count('\n')) == (os.EX_CONFIG, 1), stderr
    assert stderr.startswith('hidden.py: ')
    return stderr


@pytest.mark.parametrize(
    'octets',
    [b'', b'null', b'[]', b'"x"', b'{}', b'exports.params = {};', b'\xff', b'[' * 100_000],
    ids=lambda octets: repr(octets[:20]),
)
def test_file_that_is_no_entry_is_a_mistake(monkeypatch, capsys, tmp_path, octets):
    file = tmp_path / 'ID.json'
    file.write_bytes(octets)
    said = sentence(monkeypatch, capsys, file, '127.0.0.1:8000')
    assert f'{file} is no ID.json of users_app.py: ' in said


@pytest.mark.parametrize('name', ['missing.json', '.'])
def test_file_that_can_not_be_read_is_a_mistake(monkeypatch, capsys, tmp_path, name):
    assert 'Error' in sentence(monkeypatch, capsys, tmp_path / name, '127.0.0.1:8000')


GONE = object()
WRONG = {
    ('uuid',): [GONE, None, [], [5], ['kitchen'], '7d4e1a52-3c0b-4f6e-9a81-52c60b8f1d27'],
    ('server',): [GONE, None, [], 'x'],
    ('server', 'hostname'): [GONE, None, 5, '', 'a..b', 'a b', '.x', 'http://x'],
    ('server', 'port'): [GONE, None, 0, 65536, -1, 88.5, True, 'https', [8899]],
    ('server', 'ca'): [5, 'no PEM', '-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----'],
    ('authParams',): [GONE, None, [], 'x'],
    ('authParams', 'base32'): [GONE, None, 5, '', 'A1', 'not base32', 'AAAAAAAA='],
    ('authParams', 'algorithm'): [None, 5, 'md5', ''],
    ('authParams', 'step'): [None, 0, '30', []],
    ('authParams', 'digits'): [None, 5, 9, '6'],
}


@pytest.mark.parametrize(
    ('path', 'value'), [(path, value) for path, values in WRONG.items() for value in values]
)
def test_entry_with_a_wrong_field_is_a_mistake(monkeypatch, capsys, tmp_path, entry, path, value):
    *parents, name = path
    holder = entry[parents[0]] if parents else entry
    holder[name] = value
    if value is GONE:
        del holder[name]
    file = tmp_path / 'ID.json'
    file.write_text(json.dumps(entry))
    said = sentence(monkeypatch, capsys, file, '127.0.0.1:8000')
    assert f'{file} is no ID.json of users_app.py: ' in said


@pytest.mark.parametrize(
    'text', ['localhost', ':8000', '127.0.0.1:', '127.0.0.1:0', 'x:65536', 'http://x:80', 'x:http']
)
def test_local_server_that_is_not_host_port_is_a_mistake(monkeypatch, capsys, text):
    said = sentence(monkeypatch, capsys, 'ID.json', text)
    assert said == f'hidden.py: {text!r} is not HOST:PORT, like 127.0.0.1:8000\n'


@pytest.mark.parametrize('count', ['0', '-1'])
def test_too_few_registrations_are_a_mistake(monkeypatch, capsys, count):
    said = sentence(monkeypatch, capsys, 'ID.json', 'x:1', '--registrations', count)
    assert said == 'hidden.py: --registrations must be 1 or more\n'


@pytest.mark.parametrize(
    'arguments', [(), ('x',), ('x', 'y:1', 'z'), ('x', 'y:1', '--registrations', 'x'), ('--no',)]
)
def test_usage_error_is_argparse_s(monkeypatch, capsys, arguments):
    status, stderr = ran(monkeypatch, capsys, *arguments)
    assert status == 2
    assert stderr.startswith('usage: hidden.py')


def test_process_ends_with_the_sentence_and_status_78(tmp_path):
    with Folder(tmp_path) as folder:
        said = folder.run('hidden.py', 'missing.json', '127.0.0.1:8000').sentence()
        assert 'missing.json' in said
