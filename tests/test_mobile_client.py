"""A mobile client asks: section 2, on real connections."""

import base64
import json
import re
import socket
import time
import uuid as uuids

import gevent
import pytest
from conftest import Peer, get, until

import rendezvous
from waiting import Registration

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi'


def joined(hidden: Peer, mobile: Peer, octets: bytes) -> bytes:
    """What of `octets` comes out at the hidden server, up to the end of the head."""
    mobile.send(octets)
    return hidden.until(b'\r\n\r\n')


def request(*fields: str, target: str = '/') -> bytes:
    return '\r\n'.join([f'GET {target} HTTP/1.1', 'Host: x', *fields, '', '']).encode()


def basic(text: str) -> str:
    return 'Basic ' + base64.b64encode(text.encode()).decode()


NAMING = {
    'as in the specification': 'Digest username="{id}" , realm="rendezvous" , qop=auth , nonce="1"'
    ' , opaque="2", uri="/", response="3"',
    'not quoted': 'Digest username={id}, realm=x',
    'upper case': 'DIGEST USERNAME="{ID}"',
    'last of all': 'Digest realm="a, username=b", nc=00000001, username="{id}"',
    'sha-256': 'Digest algorithm=SHA-256, username="{id}", response="x", userhash=false',
    'spaces round the sign': 'Digest username = "{id}"',
    'empty elements': 'Digest , ,username="{id}",,',
    'escaped': 'Digest username="\\{id}"',
    'space from a phone': 'Digest username="{id} "',
    'sloppy values': 'Digest uri=/a?b=c, opaque=ab==, username={id}',
    'basic': basic('{id}:any'),
    'basic, upper case': basic('{ID}:'),
    'basic, colon in the password': basic('{id}:a:b'),
}


@pytest.mark.parametrize('value', NAMING.values(), ids=NAMING)
def test_authorization_names_the_hidden_server(server, register, connect, uuid, value):
    if value.startswith('Basic'):
        text = base64.b64decode(value.split()[1]).decode()
        value = basic(text.format(id=uuid, ID=uuid.upper()))
    hidden = register(server, uuid)
    value = value.format(id=uuid, ID=uuid.upper())
    octets = request('Accept: */*', f'AUTHORIZATION:  {value}', 'X:y')
    assert joined(hidden, connect(server), octets) == request('Accept: */*', 'X:y')


@pytest.mark.parametrize(
    'target',
    [
        '/?rendezvous={id}',
        '/a/b?x=y&rendezvous={ID}&z',
        '*?rendezvous={id}',
        'https://h/?rendezvous={id}',
        '/?%72endezvous={id}',
        '/?rendezvous={escaped}',
        '/?rendezvous={id}&rendezvous={ID}',
        '/?rendezvous=kitchen&rendezvous={id}',
    ],
)
@pytest.mark.parametrize('field', ['Cookie: a', 'Authorization: Bearer x', 'Authorization: Digest'])
def test_query_names_it_and_the_head_goes_on_untouched(
    server, register, connect, uuid, target, field
):
    hidden = register(server, uuid)
    target = target.format(id=uuid, ID=uuid.upper(), escaped=uuid.replace('-', '%2d'))
    octets = request(field, target=target)
    assert joined(hidden, connect(server), octets) == octets


def test_authorization_comes_before_the_query(server, register, connect, uuid):
    hidden = register(server, uuid)
    target = f'/?rendezvous={uuids.uuid4()}'
    octets = request(f'Authorization: Digest username="{uuid}"', target=target)
    assert joined(hidden, connect(server), octets) == request(target=target)


def test_head_goes_on_octet_for_octet(server, register, connect, uuid):
    head = b'pAtCh  /%7Ea/../b;c?d HTTP/1.1\r\nhOST:x\r\nB:  1 \r\nA:\t\xff\r\nB: 2\r\n'
    head = head.replace(b'  /', b' /')
    named = f'authorization: digest username={uuid}\r\n'.encode()
    tail = b'Content-Length: 4\r\nTrailer:\r\n\r\nbody and more'
    hidden = register(server, uuid)
    connect(server).send(head + named + tail)
    assert hidden.receive(len(head + tail)) == head + tail


NAMELESS = {
    'nothing': [],
    'no uuid': ['Authorization: Digest username="kitchen", realm="rendezvous"'],
    'no user name': ['Authorization: Digest realm="rendezvous"'],
    'other form of user name': ["Authorization: Digest username*=UTF-8''{id}"],
    'no uuid in basic': [f'Authorization: {basic("kitchen:x")}'],
    'other scheme': ['Authorization: Bearer {id}'],
    'empty': ['Authorization:'],
}


@pytest.mark.parametrize('fields', NAMELESS.values(), ids=NAMELESS)
def test_nameless_request_is_asked_and_the_connection_stays(
    server, register, connect, uuid, fields
):
    hidden, mobile = register(server, uuid), connect(server)
    seen = set()
    for _ in range(2):
        mobile.send(request(*(field.format(id=uuid) for field in fields)))
        answer = mobile.answer()
        assert answer.status == 401
        assert set(answer.fields) == {'WWW-Authenticate', 'Content-Length'}
        challenge = answer.fields['WWW-Authenticate']
        form = 'Digest realm="rendezvous", qop="auth, auth-int", nonce="(.+)", opaque="(.+)"'
        seen |= set(re.fullmatch(form, challenge).groups())
    assert len(seen) == 4  # fresh each time
    assert joined(hidden, mobile, get(uuid)) == request()


UNREADABLE = {
    'no parameters': 'Digest',
    'no equals sign': 'Digest username',
    'unbalanced quotes': 'Digest username="{id}',
    'text behind quotes': 'Digest username="{id}"x',
    'user name twice': 'Digest username="{id}", username="{id}"',
    'user name twice, other case': 'Digest username="{id}", USERNAME="{id}"',
    'megabyte': 'Digest ' + 'a="' + '\\"' * 7000,
    'basic that is no base64': 'Basic {id}:x!',
    'basic without colon': basic('kitchen'),
}


@pytest.mark.parametrize('value', UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_authorization_gets_400(server, connect, uuid, value):
    mobile = connect(server)
    mobile.send(request('Authorization: ' + value.format(id=uuid)))
    answer = mobile.answer()
    assert answer.status == 400
    assert json.loads(answer.body)['error']['permanent'] is True
    assert uuid not in str(answer)
    assert mobile.rest() == b''


def test_two_authorizations_or_two_uuids_in_the_query_get_400(server, connect, uuid):
    field = f'Authorization: Digest username="{uuid}"'
    two = f'/?rendezvous={uuid}&rendezvous={uuids.uuid4()}'
    for octets in (request(field, field), request(target=two)):
        mobile = connect(server)
        mobile.send(octets)
        assert mobile.answer().status == 400


def test_small_body_behind_a_401_is_dropped(server, register, connect, uuid):
    hidden, mobile = register(server, uuid), connect(server)
    mobile.send(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n' + b'a' * 65536)
    assert mobile.answer().status == 401
    assert joined(hidden, mobile, get(uuid)) == request()


def test_pipelined_requests_stay_in_step(server, register, connect, uuid):
    hidden, mobile = register(server, uuid), connect(server)
    mobile.send(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc' + get(uuid))
    assert mobile.answer().status == 401
    assert hidden.until(b'\r\n\r\n') == request()


@pytest.mark.parametrize(
    'octets',
    [
        b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: x\r\nConnection: a, Close\r\n\r\n',
        b'GET / HTTP/1.0\r\n\r\n',
    ],
)
def test_connection_is_closed_behind_a_401_where_it_could_get_out_of_step(server, connect, octets):
    mobile = connect(server)
    mobile.send(octets)
    answer = mobile.answer()
    assert (answer.status, answer.fields['Connection']) == (401, 'close')
    assert mobile.rest() == b''


def test_401_arrives_though_a_large_upload_goes_on(server, connect):
    mobile = connect(server)
    mobile.send(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n')
    for _ in range(40):
        mobile.send(b'a' * 65536)
    assert mobile.answer().status == 401


def test_unknown_and_offline_get_the_same_answer_at_once(server, connect, uuid):
    answers = []
    for each in (uuid, str(uuids.uuid4())):
        mobile = connect(server)
        mobile.send(get(each))
        answers.append(mobile.answer())
        assert mobile.rest() == b''
    assert answers[0] == answers[1]
    assert answers[0].status == 503
    assert int(answers[0].fields['Retry-After']) > 0
    assert json.loads(answers[0].body)['error']['permanent'] is False


def test_mobile_client_waits_for_a_hidden_server_that_was_here(start, register, connect, uuid):
    server = start(rendezvous_wait=10)
    register(server, uuid).close()
    until(lambda: server.rendezvous.waiting.count(uuid) == 0, 'it is forgotten')
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: server.rendezvous.waiting._mobile_clients, 'the mobile client waits')
    hidden = register(server, uuid)
    assert hidden.until(b'\r\n\r\n') == request()
    hidden.send(ANSWER)
    assert mobile.answer().body == b'hi'


def test_wait_ends_with_503(start, register, connect, uuid):
    server = start(rendezvous_wait=0.2)
    register(server, uuid).close()
    mobile = connect(server)
    mobile.send(get(uuid))
    began = time.monotonic()
    assert mobile.answer().status == 503
    assert time.monotonic() - began < 5


def test_mobile_clients_that_wait_are_served_in_turn(start, register, connect, uuid):
    server = start(rendezvous_wait=10)
    register(server, uuid).close()
    mobiles = []
    for number in range(5):
        mobiles.append(connect(server))
        mobiles[-1].send(get(uuid, f'/{number}'))
        until(
            lambda n=number: len(server.rendezvous.waiting._mobile_clients.get(uuid, ())) == n + 1,
            'it waits',
        )
    for number in range(5):
        assert register(server, uuid).until(b'\r\n').startswith(b'GET /%d ' % number)


def test_registration_that_hangs_up_as_it_is_taken_is_not_the_last_word(
    start, register, connect, uuid
):
    """One is handed over and gone before the mobile client wakes; another one comes in between."""
    server = start(rendezvous_wait=10)
    waiting = server.rendezvous.waiting
    register(server, uuid).close()
    hidden = register(server, uuid)
    until(lambda: waiting.count(uuid) == 1, 'the first is forgotten')
    (living,) = waiting._registrations.pop(uuid)
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: waiting._mobile_clients, 'the mobile client waits')
    gone = Registration(uuid, {}, None)
    waiting.add(gone)
    waiting.discard(gone)
    waiting.add(living)
    assert hidden.until(b'\r\n\r\n') == request()


def test_only_so_many_mobile_clients_wait(start, register, connect, uuid, monkeypatch):
    monkeypatch.setattr('waiting.MAX_MOBILE_CLIENTS', 2)
    server = start(rendezvous_wait=10)
    register(server, uuid).close()
    until(lambda: server.rendezvous.waiting.count(uuid) == 0, 'it is forgotten')
    mobiles = [connect(server) for _ in range(2)]
    for mobile in mobiles:
        mobile.send(get(uuid))
    until(lambda: len(server.rendezvous.waiting._mobile_clients.get(uuid, ())) == 2, 'two wait')
    third = connect(server)
    third.send(get(uuid))
    assert third.answer().status == 503
    for mobile in mobiles:
        mobile.close()
    for _ in mobiles:
        register(server, uuid)


def test_one_that_pipes_counts_as_here(start, register, connect, uuid, monkeypatch):
    monkeypatch.setattr('waiting.RECENT_SECONDS', 0)
    server = start(rendezvous_wait=10)
    hidden, mobile, waiter = register(server, uuid), connect(server), connect(server)
    joined(hidden, mobile, get(uuid))
    waiter.send(get(uuid))
    until(lambda: server.rendezvous.waiting._mobile_clients, 'the second mobile client waits')
    assert register(server, uuid).until(b'\r\n\r\n') == request()


def test_one_that_was_here_long_ago_is_not_waited_for(start, register, connect, uuid, monkeypatch):
    monkeypatch.setattr('waiting.RECENT_SECONDS', 0)
    server = start(rendezvous_wait=20)
    register(server, uuid).close()
    until(lambda: server.rendezvous.waiting.count(uuid) == 0, 'it is forgotten')
    mobile = connect(server)
    mobile.send(get(uuid))
    assert mobile.answer().status == 503


def vanish(peer: Peer) -> None:
    """Is gone without a word, as a machine or a NAT that lost power: an RST answers."""
    try:
        peer.sock.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: close() sends nothing
    except PermissionError:
        pytest.skip('only root may vanish')
    peer.sock.close()


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_dead_registration_costs_the_mobile_client_nothing(server, register, connect, uuid, method):
    living = register(server, uuid)
    for _ in range(3):
        vanish(register(server, uuid))
    mobile = connect(server)
    mobile.send(get(uuid, '/', method) + b'and more')
    assert living.until(b'\r\n\r\nand more').startswith(method.encode())
    living.send(ANSWER)
    assert mobile.answer().body == b'hi'


def test_request_that_was_taken_is_not_sent_twice(server, register, connect, uuid):
    second, first = register(server, uuid), register(server, uuid)
    mobile = connect(server)
    joined(first, mobile, get(uuid, method='POST'))
    first.close()
    assert mobile.rest() == b''
    second.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        second.sock.recv(1)


def test_head_has_so_many_seconds_however_it_drips(server, connect, monkeypatch):
    monkeypatch.setattr(rendezvous, 'HEAD_SECONDS', 0.2)
    mobile = connect(server)
    octets = iter(b'GET / HTTP/1.1\r\nHost: ' + b'x' * 1000)

    def drip():
        for octet in octets:
            mobile.send(bytes([octet]))
            gevent.sleep(0.01)

    dripping = gevent.spawn(drip)
    assert mobile.answer().status == 408
    dripping.kill()


def test_body_has_so_many_seconds(server, connect, monkeypatch):
    monkeypatch.setattr(rendezvous, 'HEAD_SECONDS', 0.1)
    mobile = connect(server)
    mobile.send(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab')
    assert mobile.answer().status == 408


def test_idle_connection_is_closed_silently(server, connect, monkeypatch):
    monkeypatch.setattr(rendezvous, 'IDLE_SECONDS', 0.1)
    assert connect(server).rest() == b''
    mobile = connect(server)
    mobile.send(request())
    assert mobile.answer().status == 401
    assert mobile.rest() == b''


@pytest.mark.parametrize(
    ('octets', 'status'),
    [
        (b'GET / HTTP/1.1\n', 400),
        (b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 505),
        (b'GET /' + b'a' * 9000, 414),
        (b'GET / HTTP/1.1\r\nHost: x\r\n' + b'A: b\r\n' * 3000, 431),
    ],
)
def test_bad_head_is_refused_in_json(server, connect, octets, status):
    mobile = connect(server)
    mobile.send(octets)
    answer = mobile.answer()
    assert answer.status == status
    assert answer.fields['Connection'] == 'close'
    assert set(json.loads(answer.body)['error']) == {'permanent', 'diagnostic'}
    assert mobile.rest() == b''
