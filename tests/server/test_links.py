"""Links between the workers of two nodes: who gets one, and how they are kept."""

import json
import logging
import socket
import ssl
import time
from contextlib import suppress

import gevent
import pytest
from conftest import free_port, get, until
from gevent.server import StreamServer

from rendezvous.admin.membership import pem_for
from rendezvous.server import links, listening, membership, nodes
from rendezvous.server.hop import EXPECTED, NO, YES
from rendezvous.store import keys
from rendezvous.store.options import DEFAULTS
from rendezvous.wire.programs import Mistake

SECRET = 'the secret of the nodes of these tests'


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def node(start, port, monkeypatch):
    """Starts nodes of one worker each, on addresses of their own."""
    monkeypatch.setattr(nodes, 'LOOK_SECONDS', 0.1)

    def node(host: str, **options):
        given = {'node_port': port, 'node_secret': SECRET} | options
        return start(node_host=host, **given)

    return node


@pytest.fixture
def pair_of_nodes(node):
    """Two nodes that have links to each other."""
    one, two = node('127.0.0.1'), node('127.0.0.2')
    until(lambda: has_links(one, two) and has_links(two, one), 'both have links')
    return one, two


@pytest.fixture(scope='module')
def members():
    """What a node has that knows the secret."""
    return membership.contexts(SECRET)


@pytest.fixture(scope='module')
def strangers():
    """What one has that knows another one."""
    return membership.contexts(SECRET + '!')


@pytest.fixture
def call(port):
    """Calls a node as another node does; all links are closed at the end."""
    made = []

    def call(contexts, host='127.0.0.2', session=None):
        link, _ = links.call(contexts, host, port, session)
        made.append(link)
        return link

    yield call
    for link in made:
        link.close()


def name(server) -> str:
    return server.rendezvous.presence.name


def has_links(one, two) -> bool:
    """Whether a node has all its links to another one in advance."""
    far = one.rendezvous.nodes._far.get(name(two))
    return bool(far and len(far.kept) >= nodes.FIRST)


def kept(one, two) -> list:
    return one.rendezvous.nodes._far[name(two)].kept


def question(uuid: str, seconds: float = 0) -> bytes:
    return f'{uuid} {seconds} 192.0.2.1 40000\n'.encode()


def test_nodes_find_each_other_with_the_secret_that_the_first_puts_into_redis(node, entries):
    entries.ask(lambda redis: redis.delete(keys.NODE_SECRET))
    one, two = node('127.0.0.1', node_secret=''), node('127.0.0.2', node_secret='')
    until(lambda: has_links(one, two) and has_links(two, one), 'both have links')
    times = one.rendezvous.nodes.workers()
    assert 0 < times[name(two)] < 1
    assert name(one) not in times


def test_a_visit_over_a_link(pair_of_nodes, register, uuid):
    one, two = pair_of_nodes
    hidden = register(two, uuid)
    link = one.rendezvous.nodes.connect(name(two))
    assert link.worker == name(two)
    assert link.node == '127.0.0.2'
    link.send(question(uuid))
    assert link.answer() == YES
    link.send(get(uuid))
    assert b'GET / HTTP/1.1' in hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
    assert link.receive().startswith(b'HTTP/1.1 200 OK')
    hidden.close()
    assert link.receive() == b''
    link.close()


def test_an_answer_that_is_cut_off_ends_so(pair_of_nodes, register, uuid):
    one, two = pair_of_nodes
    hidden = register(two, uuid)
    link = one.rendezvous.nodes.connect(name(two))
    link.send(question(uuid))
    assert link.answer() == YES
    link.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n')
    assert link.receive()
    hidden.reset()
    with pytest.raises(ConnectionError):
        link.receive()
    link.close()


def test_a_link_that_breaks_is_a_cut(guarded, members, port, register, uuid):
    """As of a node that is killed: the system ends its connections, and TLS says nothing."""
    hidden, recorder = register(guarded, uuid), Recorder(('127.0.0.2', port))
    link, _ = links.call(members, '127.0.0.1', recorder.port, None)
    link.send(question(uuid))
    assert link.answer() == YES
    link.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\n\r\nand more')
    assert b'and more' in link.receive()
    recorder.close()
    with pytest.raises(ConnectionError):
        link.receive()
    link.close()


def test_a_link_is_used_again_after_a_no_and_replaced_after_a_visit(pair_of_nodes, uuid):
    one, two = pair_of_nodes
    two.rendezvous.registry._since = -1000
    ours = one.rendezvous.nodes
    link = ours.connect(name(two))
    link.send(question(uuid))
    assert link.answer() == NO
    ours.keep(link)
    assert ours.connect(name(two)) is link
    link.close()
    until(lambda: has_links(one, two), 'another one takes its place')
    assert link not in kept(one, two)


def test_many_needed_at_once_are_many_kept(pair_of_nodes):
    one, two = pair_of_nodes
    ours = one.rendezvous.nodes
    taken = [ours.connect(name(two)) for _ in range(12)]
    until(lambda: len(kept(one, two)) > nodes.FIRST, 'more are kept')
    assert len({*taken}) == 12
    for link in taken:
        link.close()
    assert len(kept(one, two)) <= nodes.MOST


def test_more_are_kept_where_they_are_used_quickly(pair_of_nodes):
    """Though there was always one."""
    one, two = pair_of_nodes
    ours = one.rendezvous.nodes

    def use() -> bool:
        if kept(one, two):
            ours.connect(name(two)).close()
        return len(kept(one, two)) > nodes.FIRST

    until(use, 'more are kept')


def test_calls_in_vain_at_a_time_count_as_one(pair_of_nodes, monkeypatch):
    monkeypatch.setattr(nodes, 'CALL_SECONDS', 0.2)
    monkeypatch.setattr(nodes, 'FIRST', 8)
    monkeypatch.setattr(nodes, 'PAUSES_SECONDS', (60, 60))
    one, two = pair_of_nodes
    far = one.rendezvous.nodes._far[name(two)]
    two.rendezvous.nodes._door._accepting.kill()
    one.rendezvous.nodes._tend()
    until(lambda: far.is_silent, 'they were in vain')
    assert far.failures == 1


def test_a_link_whose_other_end_is_gone_is_not_used(pair_of_nodes):
    one, two = pair_of_nodes
    ours, before = one.rendezvous.nodes, [*kept(one, two)]
    two.rendezvous.nodes._door._greenlets.kill()  # and nobody accepts any more
    with pytest.raises(OSError):  # noqa: PT011
        ours.connect(name(two))
    began = time.monotonic()
    with pytest.raises(ConnectionError, match='does not answer'):
        ours.connect(name(two))  # at once
    assert time.monotonic() - began < 0.2
    assert ours.workers()[name(two)] == float('inf')
    assert all(link.fileno() < 0 for link in before)


def test_a_silent_worker_is_known_as_such_until_it_answers(pair_of_nodes):
    one, two = pair_of_nodes
    ours, before = one.rendezvous.nodes, [*kept(one, two)]
    ours.failed(name(two))
    assert ours.workers()[name(two)] == float('inf')
    until(lambda: ours.workers()[name(two)] < 1, 'it answers a new call')
    assert before == kept(one, two)[: len(before)], 'it was busy, and its links are good'


def test_links_to_one_that_is_silent_go_with_a_call_in_vain(pair_of_nodes, monkeypatch):
    """As of a machine that has lost its power: no link to it ends by itself."""
    monkeypatch.setattr(nodes, 'CALL_SECONDS', 0.2)
    one, two = pair_of_nodes
    ours, before = one.rendezvous.nodes, [*kept(one, two)]
    two.rendezvous.nodes._door._accepting.kill()
    ours.failed(name(two))
    until(lambda: all(link.fileno() < 0 for link in before), 'they are closed')
    assert ours.workers()[name(two)] == float('inf')


def test_a_worker_that_redis_forgets_stays_as_long_as_it_answers(pair_of_nodes, entries):
    one, two = pair_of_nodes
    ours = one.rendezvous.nodes
    far = ours._far[name(two)]
    entries.ask(lambda redis: redis.zrem(keys.SERVERS, name(two)))
    until(lambda: not far.is_listed, 'Redis does not know it')
    far.close()
    ours._tend()
    until(lambda: far.kept, 'it is called again')
    assert name(two) in ours.workers()
    two.stop()
    until(lambda: name(two) not in ours.workers(), 'it is forgotten')


def names_in(entries) -> list:
    return entries.ask(lambda redis: redis.zrange(keys.SERVERS, 0, -1))


def test_a_new_worker_is_found_at_once_by_its_name(node):
    one = node('127.0.0.1')
    two = node('127.0.0.2')
    ours = one.rendezvous.nodes
    until(lambda: name(two) in names_in(one.entries), 'it is in Redis')
    until(lambda: one.rendezvous.nodes._membership.contexts, 'the key is made')
    until(lambda: two.rendezvous.nodes._membership.contexts, 'the key is made')
    ours._far.pop(name(two), None)
    link = ours.connect(name(two))
    assert link.worker == name(two)
    link.close()
    with pytest.raises(ConnectionError, match='not known'):
        ours.connect('0' * 16)


def test_nodes_reach_each_other_over_ipv6(node, register, uuid):
    one, two = node('::1'), node('::1', node_port=free_port())
    until(lambda: has_links(one, two) and has_links(two, one), 'both have links')
    register(two, uuid)
    link = one.rendezvous.nodes.connect(name(two))
    assert link.node == '::1'
    link.send(question(uuid))
    assert link.answer() == YES
    link.close()


def test_nobody_calls_workers_of_its_own_node(node):
    one, other = node('127.0.0.1'), node('127.0.0.1')
    ours = one.rendezvous.nodes
    until(lambda: ours.is_near(name(other)), 'it is found')
    assert ours.is_near(name(one))
    assert not {name(one), name(other)} & ours.workers().keys()


def test_two_nodes_with_one_host_are_two(node):
    """They should not be: but hidden servers of the one are to be found by the other."""
    one, two = node('127.0.0.1'), node('127.0.0.1', node_port=free_port())
    until(lambda: has_links(one, two) and has_links(two, one), 'both have links')
    assert not one.rendezvous.nodes.is_near(name(two))


@pytest.fixture
def told(entries):
    """Has Redis say, for the time of a test, that a worker of that name lives there."""
    names = []

    def told(name: str, address: str, **more) -> None:
        about = json.dumps({'node': 'other', 'number': 1, 'address': address} | more)
        entries.ask(lambda redis: redis.hset(keys.live(name), 'about', about))
        entries.ask(lambda redis: redis.zadd(keys.SERVERS, {name: time.time() + 3600}))
        names.append(name)

    yield told
    for name in names:
        entries.ask(lambda redis, name=name: redis.zrem(keys.SERVERS, name))
        entries.ask(lambda redis, name=name: redis.delete(keys.live(name)))


@pytest.mark.parametrize('host', ['a' * 64, 'a..b', '\ud800', 'x\n', ''])
def test_a_host_that_is_none_is_not_called(pair_of_nodes, told, host):
    one, _ = pair_of_nodes
    ours = one.rendezvous.nodes
    told('0' * 16, f'{host}:8900')
    until(lambda: '0' * 16 in ours._apart, 'it is known as none')
    assert '0' * 16 not in ours.workers()


def test_the_log_tells_of_a_node_with_another_secret(node, monkeypatch, caplog):
    monkeypatch.setattr(nodes, 'PAUSES_SECONDS', (0.01, 0.01))
    monkeypatch.setattr(nodes, 'TEND_SECONDS', 0.05)
    node('127.0.0.1'), node('127.0.0.2', node_secret=SECRET + '!')
    until(lambda: caplog.text.count('is not reached: ') == 2, 'each tells of the other')


def test_the_log_tells_once_of_a_server_that_has_no_node_host(node, told, caplog):
    for number in '12':
        told(number * 16, '', host='vps7')
    ours = node('127.0.0.1').rendezvous.nodes
    until(lambda: len(ours._apart) == 2, 'they are known')
    said = 'another server in this Redis, on vps7, has no node_host: its hidden servers are not '
    assert [said in message for message in caplog.messages].count(True) == 1


def test_a_key_of_another_program_hides_no_worker(node, told, entries):
    one = node('127.0.0.1')
    told('0' * 16, '127.0.0.3:8900')
    entries.ask(lambda redis: redis.delete(keys.live('0' * 16)))
    entries.ask(lambda redis: redis.set(keys.live('0' * 16), 'something else'))
    two = node('127.0.0.2')
    until(lambda: name(two) in one.rendezvous.nodes.workers(), 'it is found')


def test_the_log_tells_once_of_a_worker_that_is_not_reached(node, told, monkeypatch, caplog):
    monkeypatch.setattr(nodes, 'PAUSES_SECONDS', (0.01, 0.01))
    monkeypatch.setattr(nodes, 'TEND_SECONDS', 0.05)
    port = free_port()
    told('0' * 16, f'127.0.0.3:{port}')
    one = node('127.0.0.1')
    ours = one.rendezvous.nodes
    until(lambda: '0' * 16 in ours.workers(), 'it is known')
    far = ours._far['0' * 16]
    until(lambda: far.failures > nodes.LOST, 'it was called in vain')
    (said,) = [each for each in caplog.messages if 'is not reached' in each]
    assert f'127.0.0.3, port {port}' in said
    assert far.more == 0, 'no more links are wanted to it'
    assert ours.not_reached() == one.rendezvous.about()['not_reached'] == ['0' * 16]


def test_one_that_is_gone_is_forgotten_where_no_links_are_kept(pair_of_nodes, monkeypatch, port):
    """There may be hundreds of workers."""
    one, _ = pair_of_nodes
    ours = one.rendezvous.nodes
    monkeypatch.setattr(nodes, 'KEPT', 0)
    ours._far['0' * 16] = nodes.Far('0' * 16, '127.0.0.3', port)
    until(lambda: '0' * 16 not in ours.workers(), 'it is forgotten')


def test_one_that_has_taken_the_place_of_another_is_not_used_for_it(pair_of_nodes):
    one, two = pair_of_nodes
    ours = one.rendezvous.nodes
    there = ours._far[name(two)]
    ours._far['0' * 16] = before = nodes.Far('0' * 16, there.host, there.port)
    with pytest.raises(ConnectionError, match='in place of'):
        ours.connect('0' * 16)
    assert not before.kept
    before.is_listed = False
    until(lambda: '0' * 16 not in ours.workers(), 'it is forgotten')


# Who is no node.


def test_who_knows_the_secret_is_a_node(node, members, call):
    two = node('127.0.0.2')
    until(lambda: two.rendezvous.nodes._membership.contexts, 'the key is made')
    assert call(members).worker == name(two)


def said_to(sock) -> bytes:
    """All that comes up to the end."""
    said = b''
    while True:
        try:
            came = sock.recv(65536)
        except ConnectionError:
            return said
        if not came:
            return said
        said += came


@pytest.fixture
def guarded(node, caplog):
    """A node, and what it said."""
    caplog.set_level(logging.DEBUG, 'nodes')
    two = node('127.0.0.2')
    until(lambda: two.rendezvous.nodes._membership.contexts, 'the key is made')
    return two


@pytest.mark.parametrize(
    'octets', [b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', bytes(2000), b'\x16\x03\x01\xff\xff' * 9000]
)
def test_garbage_gets_an_alert_at_the_most(guarded, port, octets, caplog):
    with socket.create_connection(('127.0.0.2', port)) as sock:
        sock.sendall(octets)
        said = said_to(sock)
    assert said == b'' or (said[0] == 21 and len(said) <= 7)  # an alert (RFC 8446 section 6)
    until(lambda: 'firewall' in caplog.text, 'the log says what to do')


def context_of_stranger() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_no_certificate_another_one_or_an_old_tls_gets_nothing(guarded, port, strangers, pair):
    none, old, ours, other = (context_of_stranger() for _ in range(4))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    ours.load_cert_chain(pair['crt_file'], pair['key_file'])
    for context in (none, old, ours, other, strangers.asks):
        raw = socket.create_connection(('127.0.0.2', port))
        with pytest.raises(ssl.SSLError), raw:  # noqa: PT012
            sock = context.wrap_socket(raw, server_hostname=membership.NAME)
            with sock:
                sock.sendall(question('0' * 32))
                assert sock.recv(100) == b'not even this'
    assert guarded.rendezvous.nodes.count() == 0


def test_a_node_does_not_talk_to_a_stranger(node, port, tmp_path):
    """Somebody else listens where a node is said to be, and takes whoever comes."""
    file, heard = tmp_path / 'pem', []
    file.write_bytes(pem_for(SECRET.encode() + b'!'))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    def serve(raw, _):
        with suppress(OSError), context.wrap_socket(raw, server_side=True) as sock:
            sock.sendall(b'rendezvous 1 0000000000000000\n')
            heard.append(sock.recv(100))

    listener = StreamServer(('127.0.0.3', port), serve)
    listener.start()
    one = node('127.0.0.1')
    ours = one.rendezvous.nodes
    until(lambda: ours._membership.contexts, 'the key is made')
    ours._far['0' * 16] = nodes.Far('0' * 16, '127.0.0.3', port)
    with pytest.raises(ssl.SSLError):
        ours.connect('0' * 16)
    listener.stop()
    assert not any(heard)


def test_one_that_takes_too_long_is_closed(guarded, port, monkeypatch):
    monkeypatch.setattr(links, 'PROVE_SECONDS', 0.2)
    with socket.create_connection(('127.0.0.2', port)) as sock:
        sock.sendall(b'\x16\x03\x01')
        assert said_to(sock) == b''


def test_a_thousand_strangers_do_not_keep_a_node_out(guarded, port, members, call, join):
    hidden, mobile = join(guarded)
    crowd = [socket.create_connection(('127.0.0.2', port)) for _ in range(1000)]
    began = time.monotonic()
    assert call(members).worker == name(guarded)
    hidden.send(b'HTTP/1.1 204 No Content\r\n\r\n')
    assert mobile.answer().status == 204
    assert time.monotonic() - began < 5
    assert len(guarded.rendezvous.nodes._door._unproven) <= links.UNPROVEN
    assert guarded.rendezvous.nodes.count() == 1
    for sock in crowd:
        sock.close()
    hidden.close()
    mobile.close()


def test_a_node_that_opens_links_without_end_has_its_oldest_ones_closed(
    guarded, members, call, monkeypatch, register, uuid
):
    monkeypatch.setattr(links, 'IDLE', 3)
    guarded.rendezvous.registry._since = time.monotonic()  # so it expects everybody
    asked = call(members)
    asked.send(question(uuid, 30))
    until(lambda: guarded.rendezvous.registry.wanted(), 'it waits')
    some = [call(members) for _ in range(5)]
    until(lambda: all(map(nodes._is_over, some[:2])), 'the oldest are closed')
    register(guarded, uuid)
    assert asked.answer() == EXPECTED
    assert asked.answer() == YES, 'one that waits for an answer is none of them'
    assert not any(map(nodes._is_over, some[2:]))


class Recorder:
    """Between a caller and a node: passes on what both say, and keeps it."""

    def __init__(self, to: tuple[str, int]):
        self._listener, self._to = socket.create_server(('127.0.0.1', 0)), to
        self.port = self._listener.getsockname()[1]
        self.said, self.heard = bytearray(), bytearray()  # by the caller, by the node
        self._greenlets = [gevent.spawn(self._accept)]
        self._socks: list = []

    def _accept(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            there = socket.create_connection(self._to)
            self._socks += [caller, there]
            self._greenlets.append(gevent.spawn(self._pass, caller, there, self.said))
            self._greenlets.append(gevent.spawn(self._pass, there, caller, self.heard))

    def _pass(self, source, sink, kept: bytearray) -> None:
        while octets := source.recv(65536):
            kept += octets
            sink.sendall(octets)
        sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        gevent.killall(self._greenlets)
        for sock in [self._listener, *self._socks]:
            sock.close()


def test_who_passes_octets_on_learns_nothing_and_cannot_use_them_again(
    guarded, port, members, register, uuid
):
    hidden = register(guarded, uuid)
    recorder = Recorder(('127.0.0.2', port))
    link, _ = links.call(members, '127.0.0.1', recorder.port, None)
    link.send(question(uuid))
    assert link.answer() == YES
    link.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\n\r\nthe answer')
    assert b'the answer' in link.receive()
    for octets in (recorder.said, recorder.heard):
        for known in (uuid, SECRET, name(guarded), 'the answer', 'rendezvous 1'):
            assert known.encode() not in octets
    link.close()
    hidden.close()
    recorder.close()

    register(guarded, uuid)
    until(lambda: guarded.rendezvous.registry.count(uuid), 'it waits')
    with socket.create_connection(('127.0.0.2', port)) as sock:
        sock.sendall(recorder.said)
        said_to(sock)
    assert guarded.rendezvous.registry.count(uuid) == 1
    assert guarded.rendezvous.nodes.count() == 0


def test_a_node_that_talks_nonsense_is_closed(guarded, members, call):
    for octets in (b'nonsense\n', b'\xff\xfe\n', bytes(5000), b'a b c d\n'):
        link = call(members)
        link.send(octets)
        assert link.receive() == b''


# Sessions.


def test_the_second_link_resumes_a_session(guarded, members, call):
    first = call(members)
    assert not first.tls.session_reused
    second = call(members, session=first.tls.session)
    assert second.tls.session_reused
    third = call(members, session=second.tls.session)
    assert third.tls.session_reused
    assert third.worker == name(guarded)


def test_who_has_a_session_gets_no_ticket(guarded, members, call):
    answers = guarded.rendezvous.nodes._membership.contexts.answers
    session, count = call(members).tls.session, []
    assert session.has_ticket
    for _ in range(4):
        assert call(members, session=session).tls.session_reused
        count.append(answers.session_stats()['number'])
    assert count[1:] == count[:1] * 3, 'the first had been prepared before'
    assert call(members).tls.session.has_ticket is False
    assert call(members).tls.session.has_ticket, 'one came without a session just now'


def test_a_session_outlives_a_link_that_ends_without_a_goodbye(guarded, members, call):
    session = call(members).tls.session
    for _ in range(3):
        link = call(members, session=session)
        assert link.tls.session_reused
        link.close()
        until(lambda: guarded.rendezvous.nodes.count() == 1, 'it has ended')


def test_a_session_of_another_secret_is_none(node, call, members, port):
    """The caller of before is a stranger, as soon as the node has another secret."""
    two = node('127.0.0.2')
    until(lambda: two.rendezvous.nodes._membership.contexts, 'the key is made')
    session = call(members).tls.session
    two.rendezvous.nodes._membership.contexts = membership.contexts(SECRET + '?')
    with pytest.raises(OSError, match=r'(?i)certificate'):
        call(members, session=session)
    two.rendezvous.nodes._membership.contexts = membership.contexts(SECRET)  # as after a restart
    assert not call(members, session=session).tls.session_reused


def test_links_in_advance_resume_sessions(pair_of_nodes):
    one, two = pair_of_nodes
    assert [link.tls.session_reused for link in kept(one, two)][-1]


# The secret.


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(nodes, 'SECRET_SECONDS', 0.1)


def test_the_secret_is_put_back_into_redis_and_another_one_is_taken(node, entries, quick, caplog):
    entries.ask(lambda redis: redis.delete(keys.NODE_SECRET))
    one, two = node('127.0.0.1', node_secret=''), node('127.0.0.2', node_secret='')
    until(lambda: has_links(one, two), 'there are links')
    secret = entries.ask(lambda redis: redis.get(keys.NODE_SECRET))
    assert len(secret) >= 43  # 256 bits
    entries.ask(lambda redis: redis.delete(keys.NODE_SECRET))
    until(lambda: entries.ask(lambda redis: redis.get(keys.NODE_SECRET)) == secret, 'it is back')

    before = [one.rendezvous.nodes._membership.contexts, two.rendezvous.nodes._membership.contexts]
    entries.ask(lambda redis: redis.set(keys.NODE_SECRET, secret[::-1]))
    until(
        lambda: (
            one.rendezvous.nodes._membership.contexts not in before
            and two.rendezvous.nodes._membership.contexts not in before
        ),
        'both have the new one',
    )
    one.rendezvous.nodes.failed(name(two))
    until(lambda: has_links(one, two), 'there are links again')
    assert secret not in caplog.text
    assert secret[::-1] not in caplog.text


def test_another_secret_is_looked_for_as_soon_as_a_proof_is_not_accepted(
    node, entries, monkeypatch
):
    """Redis was flushed, and a node that started in that moment has put a new one there."""
    monkeypatch.setattr(nodes, 'SECRET_SECONDS', 3600)
    one = node('127.0.0.1', node_secret='')
    until(lambda: one.rendezvous.nodes._membership.contexts, 'it has the secret')
    entries.ask(lambda redis: redis.set(keys.NODE_SECRET, SECRET + '?'))
    two = node('127.0.0.2', node_secret='')
    until(lambda: has_links(one, two), 'there are links')
    assert entries.ask(lambda redis: redis.get(keys.NODE_SECRET)) == SECRET + '?'


def test_a_secret_that_is_no_secret_is_not_taken(node, entries, quick, caplog):
    entries.ask(lambda redis: redis.set(keys.NODE_SECRET, ''))
    one = node('127.0.0.1', node_secret='')
    until(lambda: 'DEL node-secret' in caplog.text, 'the log says what to do')
    assert one.rendezvous.nodes._membership.contexts is None
    entries.ask(lambda redis: redis.delete(keys.NODE_SECRET))
    until(lambda: one.rendezvous.nodes._membership.contexts, 'there is a new one')


# The place.


def test_a_port_that_another_program_has_is_a_mistake(folder, redis_options, port):
    listener = socket.create_server(('127.0.0.1', port))
    folder.set(**redis_options, node_host='127.0.0.1', node_port=port, workers=1)
    sentence = folder.run('server.py', '--check').sentence()
    listener.close()
    assert f'port {port}' in sentence
    assert 'node_port' in sentence


def test_at_a_first_start_nobody_else_has_the_port(port, monkeypatch):
    """Two servers of one user: the system would let them share it."""
    monkeypatch.setattr(listening, 'IN_USE_SECONDS', 0.1)
    options = DEFAULTS | {'node_host': '127.0.0.1', 'node_port': port}
    with (
        listening.node_listener(options, 1, is_first=True),
        pytest.raises(Mistake, match='node_port'),
    ):
        listening.node_listener(options, 1, is_first=True)
    with (
        listening.node_listener(options, 1),
        listening.node_listener(options, 1),
        pytest.raises(Mistake, match='node_port'),
    ):
        listening.node_listener(options, 1, is_first=True)


def test_the_old_and_the_new_worker_listen_at_the_same_place_for_a_moment(node, members, call):
    old, new = node('127.0.0.2'), node('127.0.0.2')
    for each in (old, new):
        until(lambda each=each: each.rendezvous.nodes._membership.contexts, 'the key is made')
    old.rendezvous.nodes.close()
    assert {call(members).worker for _ in range(8)} == {name(new)}


def test_a_node_needs_descriptors_for_links(monkeypatch):
    monkeypatch.setattr(listening.resource, 'getrlimit', lambda _: (4096, 4096))
    alone = DEFAULTS | {'workers': 1, 'max_connections': 100_000}
    assert listening.connections(alone) == 4096 - listening.DESCRIPTORS
    expected = (4096 - listening.DESCRIPTORS - listening.LINKS) / listening.CROSSING
    assert listening.connections(alone | {'node_host': '192.0.2.1'}) == int(expected)
