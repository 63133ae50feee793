"""A hidden server registers: section 1, row by row, on real connections."""

import json
import re
import socket
import time
import uuid as uuids
from contextlib import suppress

import gevent.event
import pyotp
import pytest
from conftest import OK, Peer, code, connect_request, get, until

from rendezvous.server import dialogue
from rendezvous.wire import codes


def ask(connect, server, octets: bytes):
    peer = connect(server)
    peer.send(octets)
    answer = peer.answer()
    assert peer.rest() == b''
    return answer


def refused(answer, status: int, permanent: bool) -> str:
    """Holds a refusal against the form that each has; answers with its diagnostic."""
    assert answer.status == status
    assert answer.fields['Content-Type'] == 'application/json'
    assert answer.fields['Connection'] == 'close'
    error = json.loads(answer.body)
    assert error == {'error': {'permanent': permanent, 'diagnostic': error['error']['diagnostic']}}
    return error['error']['diagnostic']


def test_right_code_gets_200_and_silence(server, register, uuid):
    peer = register(server, uuid)
    peer.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        peer.sock.recv(1)


def test_two_machines_with_one_entry_are_told_to_those_that_ask(server, connect, entries, uuid):
    def register(instance: str) -> str:
        peer = connect(server)
        request = connect_request(uuid, code(entries, uuid)).decode()
        field = f'Instance: {instance}\r\n\r\n' if instance else '\r\n'
        peer.send((request.removesuffix('\r\n') + field).encode())
        return peer.until(b'\r\n\r\n').decode()

    alone = OK.decode()
    other = 'HTTP/1.1 200 OK\r\nOther-Instance: 127.0.0.1\r\n\r\n'
    instances = ['', 'a', 'a', 'b', '', 'a']
    assert [register(each) for each in instances] == [alone, alone, alone, other, alone, other]


@pytest.mark.parametrize('change', [str.upper, str.title])
def test_uuid_may_have_any_case(server, connect, entries, uuid, change):
    peer = connect(server)
    peer.send(connect_request(change(uuid), code(entries, uuid)))
    assert peer.receive(len(OK)) == OK


def test_connect_needs_no_host_and_takes_any_headers(server, connect, entries, uuid):
    peer = connect(server)
    peer.send(
        f'CONNECT uuid:{uuid}?response={code(entries, uuid)} HTTP/1.1\r\n'
        'Connection: keep-alive\r\nX-Any: thing\r\n\r\n'.encode()
    )
    assert peer.receive(len(OK)) == OK


@pytest.mark.parametrize('target', ['example.com:443', '/', 'http://x/', 'urn:uuid:1', '*'])
def test_other_targets_get_403(server, connect, target):
    answer = ask(connect, server, f'CONNECT {target} HTTP/1.1\r\n\r\n'.encode())
    refused(answer, 403, permanent=True)


@pytest.mark.parametrize('query', ['', '?', '?code=123456', '?response'])
def test_no_response_gets_407(server, connect, uuid, query):
    answer = ask(connect, server, f'CONNECT uuid:{uuid}{query} HTTP/1.1\r\n\r\n'.encode())
    if query == '?response':  # it is there, and empty
        refused(answer, 400, permanent=True)
    else:
        refused(answer, 407, permanent=True)
        assert answer.fields['Proxy-Authenticate'] == 'TOTP realm="rendezvous"'


@pytest.mark.parametrize(
    'target',
    [
        'uuid:?response=123456',
        'uuid:kitchen?response=123456',
        'uuid:{uuid}0?response=123456',
        'uuid:{bare}?response=123456',
        'uuid:{{{uuid}}}?response=123456',
        'uuid:{uuid}?response=12345',
        'uuid:{uuid}?response=123456789',
        'uuid:{uuid}?response=12345x',
        'uuid:{uuid}?response=%D9%A1%D9%A2%D9%A3%D9%A4%D9%A5%D9%A6',
        'uuid:{uuid}?response=123456&response=123456',
        'uuid:{uuid}?response=' + 39 * '0',
        'uuid:{uuid}?response=' + 41 * '0',
        'uuid:{uuid}?response=' + 40 * 'A',
        'uuid:{uuid}?response=' + 63 * 'a' + 'g',
        'uuid:{uuid}?response=' + 129 * 'a',
    ],
)
def test_malformed_gets_400(server, connect, uuid, target):
    target = target.format(uuid=uuid, bare=uuid.replace('-', ''))
    answer = ask(connect, server, f'CONNECT {target} HTTP/1.1\r\n\r\n'.encode())
    refused(answer, 400, permanent=True)


def test_wrong_code_and_unknown_uuid_get_the_same_401(server, connect, entries, uuid):
    wrong = f'{(int(code(entries, uuid)) + 500_000) % 1_000_000:06}'
    answers = [
        ask(connect, server, connect_request(each, wrong)) for each in (uuid, str(uuids.uuid4()))
    ]
    for answer in answers:
        answer.fields.pop('Date')  # the seconds go on
    assert answers[0] == answers[1]
    refused(answers[0], 401, permanent=False)
    assert answers[0].fields['WWW-Authenticate'] == 'TOTP realm="rendezvous"'
    assert wrong not in str(answers[0])


def test_unknown_uuid_costs_the_same_work(server, connect, uuid, monkeypatch):
    checked = []
    check = codes.code_is_right
    monkeypatch.setattr(
        codes, 'code_is_right', lambda *arguments: checked.append(1) or check(*arguments)
    )
    for each in (uuid, str(uuids.uuid4())):
        ask(connect, server, connect_request(each, '000000'))
    assert len(checked) == 2


def test_codes_of_the_steps_beside_this_one_are_right(entries, uuid):
    parameters = entries.get(uuid)['authParams']
    now, totp = 1_800_000_015.0, codes.totp(parameters)
    right = [
        step
        for step in range(-4, 5)
        if codes.code_is_right(parameters, totp.at(now + 30 * step), now)
    ]
    assert right == [-1, 0, 1]


@pytest.mark.parametrize('digits', [6, 7, 8])
@pytest.mark.parametrize('algorithm', ['sha1', 'SHA256', 'sha512'])
def test_entry_says_digits_algorithm_and_step(digits, algorithm):
    parameters = {'base32': 'A' * 32, 'digits': digits, 'algorithm': algorithm, 'step': 60}
    right = codes.totp(parameters).at(600)
    assert len(right) == digits
    assert codes.code_is_right(parameters, right, 659)
    assert not codes.code_is_right(parameters, right, 720)


def test_long_code_registers(server, connect, entries, uuid):
    peer = connect(server)
    long = codes.long_code(entries.get(uuid)['authParams'], time.time())
    peer.send(connect_request(uuid, long))
    assert peer.receive(len(OK)) == OK


@pytest.mark.parametrize(('algorithm', 'count'), [('sha1', 40), ('SHA256', 64), ('sha512', 128)])
def test_long_code_is_the_whole_hmac_of_a_step_beside_this_one(algorithm, count):
    parameters = {'base32': 'A' * 32, 'digits': 8, 'algorithm': algorithm, 'step': 30}
    now = 1_800_000_015.0
    found = {step: codes.long_code(parameters, now + 30 * step) for step in range(-4, 5)}
    assert {len(long) for long in found.values()} == {count}
    right = [step for step, long in found.items() if codes.code_is_right(parameters, long, now)]
    assert right == [-1, 0, 1]
    assert codes.long_code(codes.totp(parameters), now) == found[0]
    other = parameters | {'algorithm': 'sha1' if count != 40 else 'sha256'}
    assert not codes.code_is_right(other, found[0], now)


def test_rfc_4226_vectors():
    """Appendix D: the HMAC of each count, before it is truncated."""
    parameters = {'base32': 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ'}
    wholes = [
        'cc93cf18508d94934c64b65d8ba7667fb7cde4b0',
        '75a48a19d4cbe100644e8ac1397eea747a2d33ab',
        '0bacb7fa082fef30782211938bc1c5e70416ff44',
    ]
    assert [codes.long_code(parameters, 30 * count) for count in range(3)] == wholes
    assert [codes.code_is_right(parameters, whole, 30) for whole in wholes] == [True] * 3


def test_long_code_of_decimal_digits_alone_is_no_malformed_one(server, connect, uuid):
    refused(ask(connect, server, connect_request(uuid, '1' * 40)), 401, permanent=False)


def test_rfc_6238_vectors():
    parameters = {'base32': 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', 'digits': 8}
    for seconds, right in [(59, '94287082'), (1111111109, '07081804'), (20000000000, '65353130')]:
        assert codes.code_is_right(parameters, right, seconds)


def test_one_code_registers_more_than_once(server, connect, entries, uuid):
    same = code(entries, uuid)
    for _ in range(3):
        peer = connect(server)
        peer.send(connect_request(uuid, same))
        assert peer.receive(len(OK)) == OK


@pytest.mark.parametrize('form', ['as words', 'as RESP'])
def test_entry_that_node_rendezvous_wrote_authenticates(
    server, connect, entries, redis_options, form
):
    """From its nedis.db, a file of Redis commands, sent as `redis-cli --pipe` sends it."""
    uuid, base32 = str(uuids.uuid4()), 'GEZDGNBVGY3TQOJQ' * 4
    parameters = {'protocol': 'totp', 'algorithm': 'sha1', 'length': 40, 'step': 30}
    parameters |= {'base32': base32, 'name': 'x', 'issuer': 'y'}
    parameters |= {'qrcodeURL': 'https://chart.example/'}
    entry = {'uuid': uuid, 'authURL': 'otpauth://totp/x', 'authParams': parameters, 'labels': []}
    value = json.dumps(entry)
    if form == 'as words':
        commands = f'set {uuid} {json.dumps(value)}\r\n'
    else:
        commands = f'*3\r\n$3\r\nset\r\n$36\r\n{uuid}\r\n${len(value)}\r\n{value}\r\n'
    with socket.create_connection(('127.0.0.1', redis_options['redis_port'])) as sock:
        sock.sendall(f'auth {redis_options["redis_auth"]}\r\n{commands}'.encode())
        assert Peer(sock).receive(10) == b'+OK\r\n' * 2
    peer = connect(server)
    peer.send(connect_request(uuid, pyotp.TOTP(base32).now()))
    assert peer.receive(len(OK)) == OK
    entries.delete(uuid)


@pytest.mark.parametrize(
    'value',
    [
        '[]',
        '{}',
        'no json',
        '{"authParams": {"base32": "!"}}',
        '{"authParams": {"base32": "AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHH", "step": 1e-320}}',
    ],
)
def test_entry_that_makes_no_sense_is_refused_and_logged(
    server, connect, entries, uuid, value, caplog
):
    entries.ask(lambda redis: redis.set(uuid, value))
    refused(ask(connect, server, connect_request(uuid, '123456')), 401, permanent=False)
    assert 'Traceback' not in caplog.text


def test_octets_behind_the_connect_get_409(server, connect, entries, uuid):
    octets = connect_request(uuid, code(entries, uuid)) + b'x'
    refused(ask(connect, server, octets), 409, permanent=False)


def test_octets_while_redis_is_asked_get_409(server, connect, entries, uuid, monkeypatch):
    asked, answered = gevent.event.Event(), gevent.event.Event()
    get_entry = server.entries.get

    def slow(uuid):
        asked.set()
        answered.wait()
        return get_entry(uuid)

    monkeypatch.setattr(server.entries, 'get', slow)
    peer = connect(server)
    peer.send(connect_request(uuid, code(entries, uuid)))
    asked.wait()
    peer.send(b'x')
    answered.set()
    refused(peer.answer(), 409, permanent=False)


def test_octets_before_the_rendezvous_end_the_registration(server, register, uuid, caplog):
    caplog.set_level('INFO')
    peer = register(server, uuid)
    peer.send(b'x')
    assert peer.rest() == b''
    assert server.rendezvous.registry.count(uuid) == 0
    assert f'no longer waits for {uuid}: it sent octets before a mobile client came' in caplog.text


def test_newest_registration_is_taken_first(server, register, connect, uuid):
    peers = [register(server, uuid) for _ in range(3)]
    for peer in reversed(peers):
        connect(server).send(get(uuid))
        assert peer.until(b'\r\n\r\n').startswith(b'GET / HTTP/1.1\r\n')


def test_one_more_than_max_waiting_ends_the_oldest(start, register, uuid, caplog):
    caplog.set_level('INFO')
    server = start(max_waiting=2)
    oldest, *others = (register(server, uuid) for _ in range(3))
    assert oldest.rest() == b''
    assert f'{uuid} has max_waiting registrations: the oldest is ended' in caplog.messages
    assert server.rendezvous.registry.count(uuid) == 2
    for peer in others:
        peer.sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            peer.sock.recv(1)


@pytest.mark.parametrize('end', ['close', 'reset', 'shut_sending'])
def test_registration_that_ends_is_forgotten_and_only_that_one(server, register, uuid, end):
    waiting = server.rendezvous.registry
    register(server, uuid)
    (staying,) = waiting.all(uuid)
    getattr(register(server, uuid), end)()
    until(lambda: waiting.count(uuid) == 1, 'one is forgotten')
    assert waiting.all(uuid) == [staying]


def test_dead_peers_are_found_by_keepalive(server, register, uuid):
    register(server, uuid)
    (registration,) = server.rendezvous.registry.all(uuid)
    option = registration.sock.getsockopt
    assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, interval, count = (
        option(socket.IPPROTO_TCP, name)
        for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle == 30
    assert idle + interval * count == 60
    assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_no_log_line_and_no_answer_holds_a_code(server, connect, entries, uuid, caplog):
    caplog.set_level('DEBUG')
    right = code(entries, uuid)
    wrong = f'{(int(right) + 500_000) % 1_000_000:06}'
    long = codes.long_code(entries.get(uuid)['authParams'], time.time())
    for tried in (right, wrong, long, long[::-1]):
        peer = connect(server)
        peer.send(connect_request(uuid, tried))
        peer.until(b'\r\n\r\n')
        peer.close()
    until(lambda: 'no longer waits' in caplog.text, 'the log tells of the end')
    assert right not in caplog.text
    assert wrong not in caplog.text
    assert not {long, long[::-1]} & set(re.findall('[0-9a-f]{40}', caplog.text))
    assert entries.get(uuid)['authParams']['base32'] not in caplog.text


def test_hidden_server_that_hangs_up_before_the_200_is_no_registration(
    server, connect, entries, uuid, monkeypatch
):
    peer = connect(server)
    peer.send(connect_request(uuid, code(entries, uuid)))
    peer.reset()
    until(lambda: not server.connections, 'its handler ends')
    assert server.rendezvous.registry.count(uuid) == 0


def test_client_that_does_not_read_is_not_registered(start, connect, entries, uuid, monkeypatch):
    """Between the code and the registration nothing may yield: the entry may change meanwhile."""
    server, spoke = start(key_file=None), dialogue.spoke

    def fill(sock) -> bool:
        sock.settimeout(0.0)
        with suppress(BlockingIOError):
            while True:
                sock.send(b'x' * 65536)
        return spoke(sock)

    monkeypatch.setattr(dialogue, 'spoke', fill)
    peer = connect(server)
    peer.send(connect_request(uuid, code(entries, uuid)))
    assert peer.rest().strip(b'x') == b''
    assert not server.rendezvous.registry.count(uuid)
