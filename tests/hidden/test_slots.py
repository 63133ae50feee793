"""How hidden.py keeps registrations waiting."""

import base64
import gc
import hmac
import json
import os
import re
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress
from functools import partial

import gevent
import pytest
from conftest import OK, Peer, get, until
from gevent.event import Event
from hiding import (
    HEAD_ENDS,
    HELLO,
    asked,
    hello,
    refuses,
    said,
    silent,
    until_waiting,
    waiting,
)

from rendezvous.hidden import dial, hidden_server
from rendezvous.store.entries import Entries
from rendezvous.wire import sockets
from rendezvous.wire.http_head import Refusal


def test_each_registration_shows_the_code_of_its_moment(
    server, uuid, entry, entries, hide, listen, connect, shown
):
    """Steps of a second: a code of two seconds ago would be refused."""
    entry['authParams'] |= {'step': 1, 'digits': 8}
    entries.ask(lambda redis: redis.set(uuid, json.dumps({'authParams': entry['authParams']})))
    hide(server, listen(hello), count=1)
    until_waiting(server, uuid, 1)

    def third_code():
        assert asked(connect, server, uuid).answer().status == 200
        return len(set(shown)) == 3

    until(third_code, 'the code changes')


@pytest.mark.parametrize('algorithm', ['sha1', 'sha256', 'sha512'])
def test_long_code_is_sent(registrar, hide, entry, algorithm):
    entry['authParams'] |= {'algorithm': algorithm, 'step': 60}
    hide(registrar, count=1)
    registrar.until_made(1)
    secret = base64.b32decode(entry['authParams']['base32'])
    minute = int(time.time() // 60)
    codes = [
        hmac.digest(secret, counter.to_bytes(8, 'big'), algorithm).hex()
        for counter in (minute - 1, minute)
    ]
    assert re.search(b'[?]response=([^ ]+) ', registrar.heads[0])[1].decode() in codes


def test_short_code_is_sent_to_a_server_that_takes_no_long_one(stranger, hide, entry):
    lengths = []

    def register(peer):
        code = re.search(b'response=([^ ]+) ', peer.until(HEAD_ENDS))[1]
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


def test_connect_comes_with_the_last_flight_of_the_handshake(stranger, hide, pair):
    """Both ends have one packet less to handle."""
    context, heads = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(pair['crt_file'], pair['key_file'])

    def register(peer):
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(came, goes, server_side=True)
        for _ in range(2):
            came.write(peer.sock.recv(65536))
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            peer.send(goes.read())
        heads.append(tls.read(65536))

    hide(stranger(register, tls=False), count=1)
    until(lambda: heads, 'it registers')
    assert heads[0].startswith(b'CONNECT uuid:')


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


def test_old_registration_is_replaced_the_new_one_first(registrar, hide, monkeypatch):
    monkeypatch.setattr(hidden_server, 'LIFETIME_SECONDS', 0.3)
    hide(registrar, count=3)
    registrar.until_made(6)
    registrar.until_all_are_replaced(registrar.made[:3])
    assert min(registrar.counts) >= 3


def test_lifetimes_are_jittered():
    """Else all registrations of all hidden servers would come at one moment, again and again."""
    made = [hidden_server.Registration(None) for _ in range(500)]
    lifetimes = [(each.ends - each.began) / hidden_server.LIFETIME_SECONDS for each in made]
    assert 0.9 <= min(lifetimes) < 0.93
    assert 0.97 < max(lifetimes) <= 1


def test_request_that_comes_while_its_registration_is_being_replaced_is_answered(
    server, uuid, hide, listen, connect, monkeypatch
):
    gets, successor_asks, store_answers = [], Event(), Event()
    get_entry = Entries.get

    def slow(entries, uuid):
        gets.append(uuid)
        if len(gets) > 1:
            successor_asks.set()
            store_answers.wait()
        return get_entry(entries, uuid)

    monkeypatch.setattr(Entries, 'get', slow)
    monkeypatch.setattr(hidden_server, 'LIFETIME_SECONDS', 0.1)
    hide(server, listen(hello), count=1)
    successor_asks.wait()
    monkeypatch.undo()
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert waiting(server, uuid) == 0
    store_answers.set()
    until_waiting(server, uuid, 1)
    assert asked(connect, server, uuid).answer().body == b'hello'


def test_replacing_adds_no_registration(stranger, hide, listen, monkeypatch):
    """... though the new one is taken, and through, before the old one goes."""
    monkeypatch.setattr(hidden_server, 'LIFETIME_SECONDS', 0.1)
    made, waiting = [], []

    def register(peer):
        peer.until(HEAD_ENDS)
        made.append(peer)
        if len(made) == 2:
            monkeypatch.undo()
            peer.send(OK + b'GET / HTTP/1.1\r\n\r\n')
            assert peer.rest() == HELLO
        else:
            peer.send(OK)
            waiting.append(peer)
            peer.rest()
            waiting.remove(peer)

    hide(stranger(register), listen(hello), count=1)
    until(lambda: len(made) == 3 and made[0] not in waiting, 'the old one goes')
    gevent.sleep(0.1)
    assert len(made) == 3
    assert waiting == made[2:]


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
def test_registration_that_breaks_is_replaced_and_those_beside_it(registrar, hide, breaks):
    """What broke one may have broken the others silently."""
    hide(registrar, count=2)
    registrar.until_made(2)
    first, beside = registrar.made
    breaks(first)
    registrar.until_made(4)
    registrar.until_all_are_replaced([beside])


def test_request_that_meets_the_end_of_a_replaced_registration_is_not_acknowledged(
    stranger, hide, monkeypatch
):
    """So the server knows that nobody has read it, and gives it to another registration."""
    monkeypatch.setattr(hidden_server, 'LIFETIME_SECONDS', 0.1)
    acknowledged = []

    def register(peer):
        peer.until(HEAD_ENDS)
        peer.send(OK)
        assert peer.rest() == b''  # the close_notify has come
        before = sockets.tcp_info(peer.sock).octets_acked
        peer.send(b'request')
        error = partial(peer.sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
        until(error, 'an RST')
        acknowledged.append(sockets.tcp_info(peer.sock).octets_acked - before)

    hide(stranger(register), count=1)
    until(lambda: acknowledged, 'the first one is replaced')
    assert acknowledged[0] == 0


NIGHT_SECONDS = 8 * 3600


@pytest.mark.parametrize(
    ('clock', 'says'),
    [('clock_gettime', 'this machine was suspended'), ('time', "this machine's clock was set")],
)
def test_suspension_has_all_registrations_replaced(
    registrar, hide, monkeypatch, caplog, clock, says
):
    caplog.set_level('INFO', 'hidden')
    hide(registrar, count=3)
    registrar.until_made(3)
    tell = getattr(time, clock)
    monkeypatch.setattr(time, clock, lambda *which: tell(*which) + 20)
    registrar.until_all_are_replaced(registrar.made[:3])
    assert any(sentence.startswith(says) for sentence in said(caplog))


def test_pause_ends_with_a_suspension(stranger, hide, monkeypatch):
    """The clock may have been set then, or the hotel's login page be behind us."""
    monkeypatch.setattr(hidden_server, 'REFUSED_PAUSES_SECONDS', (60, 60))
    refusing = stranger(refuses(b'401 Unauthorized'))
    hide(refusing)
    until(lambda: refusing.tries, 'it is refused')
    tell = time.clock_gettime
    monkeypatch.setattr(time, 'clock_gettime', lambda which: tell(which) + NIGHT_SECONDS)
    until(lambda: len(refusing.tries) == 2, 'it tries again')


def test_another_address_has_all_registrations_replaced(registrar, hide, monkeypatch, caplog):
    caplog.set_level('INFO', 'hidden')
    told = []
    hide(registrar, count=3)
    registrar.until_made(3)
    for own in ('127.0.0.1', '', '192.0.2.7'):  # the network is gone, and another one is there
        assert registrar.waiting == registrar.made
        monkeypatch.setattr(dial.Addresses, 'own', lambda _, own=own: told.append(own) or own)
        until(lambda own=own: own in told, 'it has checked')
    registrar.until_all_are_replaced(registrar.made[:3])
    sentence = 'this machine has another address, 192.0.2.7: all registrations are replaced'
    assert sentence in said(caplog)


# Bugs of ours


@pytest.mark.parametrize(
    'where',
    [
        'rendezvous.hidden.dial.RendezvousServer.register',
        'rendezvous.hidden.hidden_server.jittered',
        'rendezvous.hidden.local_server.LocalServer.pipe',
    ],
)
def test_bug_in_a_registration_is_logged_and_the_next_one_made(
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


@pytest.mark.parametrize(
    'where',
    [
        'rendezvous.wire.sockets.keep_watch',
        'rendezvous.hidden.surroundings.Surroundings.change',
    ],
)
def test_bug_in_what_watches_is_logged_and_it_goes_on(server, hide, monkeypatch, caplog, where):
    monkeypatch.setattr(where, lambda *_: 1 / 0)
    monkeypatch.setattr(hidden_server, 'BUG_SECONDS', 0.01)
    hide(server)
    until(lambda: caplog.text.count('ZeroDivisionError') > 2, 'it runs again and again')
