"""Visits, from the first octet to the end: the local server, and the pipe to it."""

import hashlib
import json
import re
import ssl
from contextlib import suppress
from pathlib import Path

import gevent
import pytest
from conftest import OK, until
from gevent.event import AsyncResult, Event
from hiding import (
    HEAD_ENDS,
    MEGABYTE,
    asked,
    hello,
    said,
    says,
    silent,
    speak_at_once,
    until_waiting,
    waiting,
)

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
    sentence = f'the local server {near.address} wants TLS, and gets plain HTTP: '
    assert sum(line.startswith(sentence) for line in said(caplog)) == 1


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
    assert f'cannot connect to the local server {near.address}: Connection refused' in said(caplog)
    listen(hello, near.port)
    assert asked(connect, server, uuid).answer().body == b'hello'


def test_connection_that_breaks_before_the_502_costs_nothing(stranger, hide, capfd):
    def register(peer):
        peer.until(HEAD_ENDS)
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
            peer.until(HEAD_ENDS)
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
hidden.programs.main(hidden.command.main)
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
        peer.until(HEAD_ENDS)
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
    speak_at_once(joined)


def test_rendezvous_server_that_stops_ends_the_local_connection(server, joined):
    near, mobile = joined
    near.send(b'words')
    assert mobile.receive(5) == b'words'
    stopping = gevent.spawn(server.stop, seconds=0)
    assert near.rest() == b''
    mobile.close()
    stopping.get()


def test_request_and_end_in_one_go_end_the_local_connection(stranger, hide, listen):
    """Both are there before the local connection is."""
    hanging_up, heard = [b'request'], AsyncResult()

    def register(peer):
        peer.until(HEAD_ENDS)
        peer.send(OK)
        if hanging_up:
            peer.send(hanging_up.pop())
        else:
            peer.rest()

    hide(stranger(register), listen(lambda peer: heard.set(peer.rest())), count=1)
    assert heard.get(timeout=5) == b'request'
