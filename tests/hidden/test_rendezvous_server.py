"""What hidden.py does where the rendezvous server makes trouble."""

import os
import re
import signal
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import partial
from itertools import pairwise

import gevent
import pytest
import self_signed
from conftest import OK, Answer, Peer, client_context, free_port, get, until
from hiding import (
    HEAD_ENDS,
    HELLO,
    Registrar,
    deaf,
    hello,
    refuses,
    said,
    says,
    until_waiting,
    waiting,
)
from test_dial import answers_no_syn

from rendezvous.hidden import dial, hidden_server


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


def test_comes_back_within_two_seconds_of_a_server_that_was_killed(folder, listen):
    folder.set(rendezvous_port=free_port())
    (uuid,) = folder.add('kitchen')['uuid']
    program, _ = folder.serve()
    hiding = folder.start('hidden.py', f'entries/{uuid}.json', listen(hello).address)
    hiding.until_it_says('registered')
    for seconds in (0, 1):  # the second time the pauses have grown
        program.end(signal.SIGKILL)
        hiding.until_it_says(r'WARNING not registered at 127\.0\.0\.1:\d+: Connection refused\n\Z')
        gevent.sleep(seconds)
        program, port = folder.serve()
        began = time.monotonic()
        assert first_answer(folder, port, uuid).body == b'hello'  # it is waited for, without a 503
        hiding.until_it_says(r'INFO registered at .*\n\Z')
        assert time.monotonic() - began < 2
    assert hiding.end() == 0


def first_answer(folder, port: int, uuid: str) -> Answer:
    context = client_context(folder.path / 'registrar.crt')
    raw = socket.create_connection(('127.0.0.1', port))
    with context.wrap_socket(raw, server_hostname='127.0.0.1') as sock:
        peer = Peer(sock)
        peer.send(get(uuid))
        return peer.answer()


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
        f'mobile clients use https://127.0.0.1:{port}/ and the user name {uuid}',
        f'not registered at 127.0.0.1:{port}: Connection refused',
    }


@pytest.mark.parametrize(
    ('error', 'gone_seconds', 'least', 'most'),
    [
        (ConnectionRefusedError(), 0, 0.05, 0.1),
        (ConnectionRefusedError(), 60, 0.12, 0.24),
        (ConnectionRefusedError(), 3600, 0.75, 1.5),
        (dial.HungUp(), 50, 0.5, 1),
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
    pauses = [hidden_server.pause_after(error, gone_seconds) for _ in range(500)]
    assert least <= min(pauses) <= least + 0.1 * (most - least)
    assert most - 0.1 * (most - least) <= max(pauses) <= most


def test_one_tries_for_all_and_pauses_between_tries(stranger, hide, monkeypatch):
    monkeypatch.setattr(hidden_server, 'LOST_PAUSES_SECONDS', (0.04, 0.16))
    monkeypatch.setattr(hidden_server, 'LOST_SHARE', 1)
    strange = stranger(lambda peer: None, tls=False)
    hide(strange)
    until(lambda: len(strange.tries) >= 6, 'it tries again and again')
    pauses = [after - before for before, after in pairwise(strange.tries)]
    assert min(pauses) >= 0.02


def test_retry_after_is_honoured(stranger, hide, monkeypatch, caplog):
    monkeypatch.setattr(hidden_server, 'REFUSED_PAUSES_SECONDS', (0.02, 0.02))
    body = b'{"error": {"permanent": false, "diagnostic": "so many"}}'
    refusing = stranger(refuses(b'429 Too Many Requests', b'Retry-After: 1', body=body))
    hide(refusing, count=1)
    until(lambda: len(refusing.tries) == 2, 'it tries again')
    assert 1 < refusing.tries[1] - refusing.tries[0] < 3
    assert said(caplog) == [f'not registered at 127.0.0.1:{refusing.port}: 429 so many']


@pytest.mark.parametrize(
    ('body', 'why', 'stays'),
    [
        (b'', 'without a reason', False),
        (b'<html>', 'without a reason', True),
        (b'[]', 'without a reason', False),
        (b'[' * 10_000, 'without a reason', False),
        (b'{"error": "no"}', 'without a reason', False),
        (b'{"error": {"diagnostic": "a\\nb"}}', 'a?b', False),
    ],
)
def test_refusal_of_a_stranger_is_one_sentence(stranger, hide, caplog, body, why, stays):
    refusing = stranger(refuses(b'405 Method Not Allowed', body=body, stays=stays))
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
    assert 'is its file the newest?' in sentence
    until(lambda: len(shown) == 1, 'one has tried')
    gevent.sleep(0.5)
    assert len(shown) == 1
    assert program.end() == 0
    assert program.said().count('\n') == 1


def test_refused_ones_are_back_when_the_entry_is(server, uuid, hide, entries, monkeypatch, caplog):
    monkeypatch.setattr(hidden_server, 'REFUSED_PAUSES_SECONDS', (0.1, 0.2))
    value = entries.ask(lambda redis: redis.getdel(uuid))
    hide(server)
    until(lambda: said(caplog), 'they are refused')
    entries.ask(lambda redis: redis.set(uuid, value))
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
    entry['server']['ca'] = self_signed.pair()[1].decode()
    caplog.set_level('INFO', 'rendezvous')
    hide(server)
    until(lambda: caplog.text.count('alert') == 1, 'one tries')
    gevent.sleep(0.5)
    assert caplog.text.count('alert') == 1
    assert said(caplog) == [
        f'not registered at 127.0.0.1:{server.port}: its certificate is not the one it should be '
        '(self-signed certificate in certificate chain)'
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
        (5, 'is the entry still there, and is its file the newest?'),
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
    why = f': 401 without a reason: {says}; the next try is in '
    assert re.search(why.replace('?', '[?]'), said(caplog)[0])


@pytest.fixture
def served(listen, entry, tmp_path):
    """Starts strangers whose certificate begins and ends so many days from now."""

    def served(begins: float, ends: float) -> Registrar:
        key, pem = self_signed.pair(begins, ends)
        (tmp_path / 'key').write_bytes(key)
        (tmp_path / 'crt').write_bytes(pem)
        entry['server']['ca'] = pem.decode()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / 'crt', tmp_path / 'key')
        return Registrar(partial(listen, context=context))

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
    server.until_made(3)
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
    answer = b'HTTP/1.1 200 OK\r\nOther-Instance: 192.0.2.7\r\n\r\n'
    server = Registrar(stranger, lambda: answer)
    hide(server, count=3)
    server.until_made(3)
    until(lambda: len(said(caplog)) == 1 or seconds > 0, 'it is told')
    instances = [re.search(rb'\r\nInstance: ([0-9a-f]{16})\r\n', each)[1] for each in server.heads]
    assert len({*instances}) == 1
    sentence = 'a machine at 192.0.2.7 has the same file, and gets some of the visits'
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
    peer.until(HEAD_ENDS)
    peer.send(HELLO)
    peer.rest()


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
        monkeypatch.setattr(hidden_server, name, (0.04, 0.08))
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
