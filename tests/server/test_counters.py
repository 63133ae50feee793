"""What a worker counts and says of itself."""

import ast
import os
import re
import socket
import ssl
import time

import pytest
from conftest import ROOT, code, connect_request, get, until

from rendezvous.server import counters
from rendezvous.wire.programs import VERSION

HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n'


def counted(server) -> dict[str, float]:
    return server.rendezvous.about()['counters']


def test_worker_says_who_it_is(start, connect):
    before = time.time()
    server = start(which='2/3', max_connections=77)
    about = server.rendezvous.about()
    assert (about['number'], about['workers'], about['pid']) == (2, 3, os.getppid())
    assert (about['node'], about['version']) == (socket.gethostname(), VERSION)
    assert (about['connections'], about['most']) == (0, 77)
    assert before <= about['since'] <= time.time()
    assert before <= about['counters']['began'] <= time.time()
    assert 2**20 < about['memory'] < 2**32
    connect(server)
    until(lambda: server.rendezvous.about()['connections'] == 1, 'it is counted')


def test_worker_of_a_node_says_where_others_reach_it(start):
    alone = start(which='2/3').rendezvous.about()
    assert (alone['host'], alone['node'], alone['address']) == (*[socket.gethostname()] * 2, '')
    for host, address in ('192.0.2.7', '192.0.2.7:9001'), ('2001:db8::1', '[2001:db8::1]:9001'):
        server = start(which='2/3')
        server.rendezvous.options |= {'node_host': host, 'node_port': 9000}
        about = server.rendezvous.about()
        assert (about['host'], about['node']) == (socket.gethostname(), host)
        assert about['address'] == address


def test_worker_says_how_many_wait_and_how_many_pipes_there_are(server, join, register, uuid):
    join(server)
    register(server, uuid)
    register(server, uuid)
    about = server.rendezvous.about()
    assert (about['waiting'], about['pipes'], about['draining']) == (2, 1, 0)


def test_handshakes_are_counted_and_so_are_those_that_fail(start, connect):
    server = start()
    connect(server)
    until(lambda: counted(server)['handshakes'] == 1, 'it is counted')
    for octets in (b'', b'\x16\x03\x01\x00\x05hello'):
        with socket.create_connection(('127.0.0.1', server.port)) as sock:
            sock.sendall(octets)
    with socket.create_connection(('127.0.0.1', server.port)) as sock, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(sock, server_hostname='127.0.0.1')
    until(lambda: counted(server)['handshakes_failed'] == 3, 'they are counted')
    assert counted(server)['handshakes'] == 1


def test_registrations_and_rendezvous_are_counted(server, join, register, uuid):
    join(server)
    register(server, uuid)
    assert (counted(server)['registrations'], counted(server)['rendezvous']) == (2, 1)


def test_octets_count_while_the_pipe_is_open_and_never_go_back(server, join):
    hidden, mobile = join(server)
    hidden.send(HEAD + b'x' * 500_000)
    mobile.receive(len(HEAD) + 500_000)
    up = len(get('0' * 36)) - len(f'Authorization: Digest username="{"0" * 36}"\r\n')
    expected = {'octets_up': up, 'octets_down': len(HEAD) + 500_000}
    assert counted(server).items() >= expected.items()
    hidden.close()
    assert mobile.rest() == b''
    mobile.close()
    until(lambda: not server.connections, 'it is over')
    assert counted(server).items() >= expected.items()


def test_octets_of_a_rendezvous_count_with_the_worker_of_the_mobile_client(
    start, tmp_path, register, connect, uuid
):
    """And so does the rendezvous: with two workers nothing counts twice."""
    holder, other = [start(meeting_place=tmp_path / 'meet' / name) for name in '12']
    hidden, mobile = register(holder, uuid), connect(other)
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'answer')
    mobile.receive(6)
    assert (counted(other)['octets_down'], counted(other)['rendezvous']) == (6, 1)
    assert (counted(holder)['octets_down'], counted(holder)['rendezvous']) == (0, 0)


def test_registration_that_was_dead_makes_no_count_go_back(server, register, connect, uuid):
    register(server, uuid).vanish()
    mobile = connect(server)
    mobile.send(get(uuid))
    until(lambda: counted(server)['octets_up'], 'the first one is tried')
    before = counted(server)
    hidden = register(server, uuid)
    hidden.until(b'\r\n\r\n')
    after = counted(server)
    assert all(after[name] >= count for name, count in before.items())
    assert after['rendezvous'] == 2


def test_refusals_are_counted_by_what_they_say(server, connect, entries, uuid):
    wrong = f'{(int(code(entries, uuid)) + 500_000) % 1_000_000:06}'
    for octets in (connect_request(uuid, wrong), connect_request(uuid, wrong), get(uuid)):
        peer = connect(server)
        peer.send(octets)
        peer.answer()
    assert {name: count for name, count in counted(server).items() if 'refused' in name} == {
        'refused 401 no such UUID, or not its code of this moment': 2,
        'refused 503 the hidden server is not connected': 1,
    }


MARK = 'mark4711'
HOSTILE = [
    f'{MARK}\r\n\r\n',
    f'GET / HTTP/1.1\r\nHost: {MARK}\x00\r\n\r\n',
    f'GET /{MARK} {MARK}/2.0\r\n\r\n',
    f'GET /{MARK} HTTP/3.0\r\nHost: x\r\n\r\n',
    f'GET / HTTP/1.1\r\nHost: a {MARK}\r\n\r\n',
    f'GET / HTTP/1.1\r\n{MARK} x: 1\r\n\r\n',
    f'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {MARK}\r\n\r\n',
    f'GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {MARK}\r\n\r\n',
    f'GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Digest {MARK}\r\n\r\n',
    f'GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {MARK}=\r\n\r\n',
    f'CONNECT {MARK} HTTP/1.1\r\n\r\n',
    f'CONNECT uuid:{MARK} HTTP/1.1\r\n\r\n',
    f'CONNECT uuid:{MARK}?response={MARK} HTTP/1.1\r\n\r\n',
    f'GET /{"x" * 20_000}{MARK} HTTP/1.1\r\n\r\n',
]


def test_nothing_that_a_client_sends_gets_into_the_names(server, connect):
    for octets in HOSTILE:
        peer = connect(server)
        peer.send(octets.encode())
        assert peer.answer().status >= 400
    names = [name for name in counted(server) if name.startswith('refused ')]
    assert len(names) >= 10
    assert MARK not in str(names)
    assert set(map(str.isascii, names)) == {True}


def test_names_are_bounded(server, connect, monkeypatch):
    monkeypatch.setattr(counters, 'KINDS', 2)
    for octets in HOSTILE:
        peer = connect(server)
        peer.send(octets.encode())
        peer.answer()
    counts = {name: count for name, count in counted(server).items() if 'refused' in name}
    assert sum(counts.values()) == len(HOSTILE)
    others = [name for name in counts if name.endswith(' other')]
    assert len(counts) - len(others) == 2
    assert 'refused 400 other' in others


def test_names_are_those_that_are_documented(server):
    named = counters.__doc__ or ''
    assert all(name in named for name in counted(server))


def test_store_that_does_not_answer_is_counted(start, connect, entries, uuid):
    server = start(redis_port=1)
    before = counted(server)['store_errors']
    peer = connect(server)
    peer.send(connect_request(uuid, code(entries, uuid)))
    assert peer.answer().status == 503
    assert counted(server)['store_errors'] > before


def is_fixed(text: ast.expr) -> bool:
    """Whether it is a text of ours, at most with a constant in it."""
    if isinstance(text, ast.JoinedStr):
        values = [each.value for each in text.values if isinstance(each, ast.FormattedValue)]
        return all(isinstance(value, ast.Name) and value.id.isupper() for value in values)
    named = isinstance(text, ast.Name) and (text.id == 'sentence' or text.id.isupper())
    return isinstance(text, ast.Constant) or named


def test_diagnostics_are_texts_of_ours_alone():
    """And so is each `sentence`, which some of them are: nothing else has that name there."""
    texts, sentences = [], []
    for file in (ROOT / 'rendezvous').glob('[sw]*/*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'Refusal':
                texts.append(node.args[1])
                if getattr(node.args[1], 'id', '') == 'sentence':
                    sentences.append(file.read_text())
    assert len(texts) > 30
    assert [ast.unparse(text) for text in texts if not is_fixed(text)] == []
    for source in sentences:
        assigned = re.findall(r'^ +(?:sentence|sentence, .*) = (.)', source, re.M)
        assert set(assigned) == {"'"}
