"""hidden.py, the hidden server's end: in this process, where it can be looked at, and as its own.

The rendezvous server is real; where it is to misbehave, a stranger answers in its place.
"""

import gc
import hashlib
import json
import os
import signal
import socket
import ssl
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import gevent
import pytest
from conftest import OK, Peer, free_port, get, until
from gevent.event import AsyncResult, Event
from gevent.pool import Pool
from gevent.server import StreamServer
from programs import Folder

import auth
import hidden
import make_cert
import options as local

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
        hidden_server.stop()
        assert not hidden_server._greenlets


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
    codes, check = [], auth.code_is_right

    def code_is_right(parameters, code, now):
        codes.append(code)
        return check(parameters, code, now)

    monkeypatch.setattr(auth, 'code_is_right', code_is_right)
    return codes


def waiting(server, uuid: str) -> int:
    return server.rendezvous.waiting.count(uuid)


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
    counts = server.rendezvous.waiting.counts
    for open_pipes in range(1, 9):
        asked(connect, server, uuid)
        until(lambda n=open_pipes: counts()[uuid] == (3, n), 'a pipe, and three wait', seconds=1)


def test_registration_is_replaced_after_its_lifetime_the_new_one_first(
    server, uuid, hide, monkeypatch
):
    monkeypatch.setattr(hidden, 'LIFETIME_SECONDS', 0.3)
    hide(server, count=3)
    until_waiting(server, uuid, 3)
    first = list(server.rendezvous.waiting._registrations[uuid])
    counts, discard = [], server.rendezvous.waiting.discard

    def count_what_is_left(registration):
        discard(registration)
        counts.append(waiting(server, uuid))

    monkeypatch.setattr(server.rendezvous.waiting, 'discard', count_what_is_left)
    until(lambda: all(registration.over for registration in first), 'they are replaced')
    assert min(counts) >= 3


def test_lifetimes_are_jittered(server, uuid, hide, monkeypatch):
    """Else all registrations of all hidden servers would come at one moment, again and again."""
    monkeypatch.setattr(hidden, 'LIFETIME_SECONDS', 1)
    hide(server, count=8)
    until_waiting(server, uuid, 8)
    came, add = [], server.rendezvous.waiting.add
    monkeypatch.setattr(
        server.rendezvous.waiting, 'add', lambda one: came.append(time.monotonic()) or add(one)
    )
    until(lambda: len(came) == 8, 'each is replaced')
    assert max(came) - min(came) > 0.02


def test_request_that_comes_while_its_registration_is_being_replaced_is_answered(
    server, uuid, hide, listen, connect, monkeypatch
):
    gets, successor_asks, store_answers = [], Event(), Event()
    get_entry = server._entries.get

    def slow(uuid):
        gets.append(uuid)
        if len(gets) > 1:
            successor_asks.set()
            store_answers.wait()
        return get_entry(uuid)

    monkeypatch.setattr(server._entries, 'get', slow)
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
    until(lambda: hidden_server._said, 'it is registered, and knows it')
    (old,) = server.rendezvous.waiting._registrations[uuid]
    monkeypatch.undo()
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).answer().body == b'hello'
    until(lambda: old.over, 'the old one goes')
    gevent.sleep(0.1)
    assert waiting(server, uuid) == 1


def test_sockets_notice_a_dead_peer(server, uuid, hide, listen, connect):
    """The one that waits, and both of a pipe."""
    near = listen(silent)
    hide(server, near, count=1)
    until_waiting(server, uuid, 1)
    mobile = asked(connect, server, uuid)
    until(lambda: near.tries and waiting(server, uuid), 'one pipes and one waits')
    peers = []
    for sock in [each for each in gc.get_objects() if issubclass(type(each), socket.socket)]:
        with suppress(OSError):
            port = sock.getpeername()[1]
            if sock is not mobile.sock and port in (near.port, server.port):
                peers.append(port)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                of_tcp = [
                    sock.getsockopt(socket.IPPROTO_TCP, name)
                    for name in (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
                ]
                assert of_tcp == [30, 60_000]
    assert sorted(peers) == sorted([near.port, server.port, server.port])


# The rendezvous server makes trouble


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


def test_pause_between_tries_grows_up_to_a_bound_and_is_jittered(stranger, hide, monkeypatch):
    assert hidden.LOST_PAUSES_SECONDS[1] < 2  # it is back within two seconds
    monkeypatch.setattr(hidden, 'LOST_PAUSES_SECONDS', (0.04, 0.16))
    monkeypatch.setattr(hidden, 'LOST_SHARE', 1)
    strange = stranger(lambda peer: None, tls=False)
    hide(strange)  # one tries for all
    until(lambda: len(strange.tries) >= 8, 'it tries again and again')
    pauses = [after - before for before, after in pairwise(strange.tries)]
    for pause, before in zip(pauses, strange.tries, strict=False):
        longest = min(0.16, max(0.04, before - strange.tries[0]))
        assert longest / 2 <= pause < longest + 0.5
    assert len({round(pause, 4) for pause in pauses}) > 4


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
    until(lambda: said(caplog), 'it says so', seconds=2)
    assert said(caplog) == [f'not registered at 127.0.0.1:{refusing.port}: 405 {why}']


def test_wrong_secret_is_said_in_one_sentence_and_tried_slowly(server, entry, run_hidden, shown):
    entry['authParams']['base32'] = 'A' * 64
    program = run_hidden(server)
    sentence = program.until_it_says('WARNING (not registered.*)\n')[1]
    why = '401 no such UUID, or not its code of this moment'
    assert sentence.startswith(f'not registered at 127.0.0.1:{server.port}: {why}')
    assert 'clock' in sentence
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
    monkeypatch.setattr('dial.CONNECT_SECONDS', 0.1)
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


# The local server makes trouble


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


@pytest.mark.parametrize('which', ['near', 'mobile'])
def test_reset_at_one_end_ends_the_other(joined, which):
    near, mobile = joined
    leaving, staying = (near, mobile) if which == 'near' else (mobile, near)
    leaving.send(b'words')
    assert staying.receive(5) == b'words'
    leaving.reset()
    assert staying.rest() == b''


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
def test_signal_ends_it_with_a_goodbye_on_each_connection(stranger, listen, run_hidden, number):
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
        goodbyes.append(peer.rest())  # which raises where there is no close_notify

    def echo(peer):
        while octets := peer.receive(4):
            peer.send(octets)

    program = run_hidden(stranger(register), listen(echo), '--registrations', '2')
    assert passed.wait(5)
    began = time.monotonic()
    assert program.end(number) == 0
    assert time.monotonic() - began < 2
    until(lambda: goodbyes == [b''] * 3, 'each says goodbye')
    assert program.said().count('\n') == 1


def test_mobile_client_that_does_not_read_delays_no_end(server, uuid, run_hidden, listen, connect):
    full = Event()

    def answer(peer):
        peer.sock.settimeout(0.2)
        with suppress(TimeoutError):
            peer.send(MEGABYTE * 32)
        full.set()
        deaf(peer)

    program = run_hidden(server, listen(answer))
    until_waiting(server, uuid, 4)
    asked(connect, server, uuid)
    full.wait()
    began = time.monotonic()
    assert program.end() == 0
    assert time.monotonic() - began < 2


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
        local.main(hidden.main)
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
