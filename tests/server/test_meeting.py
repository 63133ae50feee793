"""Two workers of one machine: a hidden server with the one, its mobile client with the other."""

import logging
import os
import re
import shutil
import socket
from contextlib import suppress

import gevent
import pytest
from conftest import code, connect_request, cut_off, get, until

from rendezvous.server import hop

HELLO = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello'


@pytest.fixture
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('meet')


@pytest.fixture
def workers(start, place):
    return [
        start(meeting_place=place / str(number), which=f'{number}/2', rendezvous_wait=30)
        for number in (1, 2)
    ]


@pytest.fixture
def new_workers(start, place):
    """Two that began only now: each hidden server may have been there a moment ago."""
    return [start(meeting_place=place / name, rendezvous_wait=30, is_new=True) for name in '12']


def ask(worker_socket, uuid: str, seconds: float = 0) -> bytes:
    """Sends a question as a worker does; the first octet of the answer."""
    worker_socket.sendall(f'{uuid} {seconds} 192.0.2.7 5000\n'.encode())
    return worker_socket.recv(1)


@pytest.fixture
def colleague(place, workers):
    """A connection to the first worker, as another one has it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(place / '1'))
        sock.settimeout(30)
        yield sock


@pytest.mark.parametrize(('hidden_at', 'mobile_at'), [(0, 1), (1, 0)])
def test_mobile_client_gets_the_hidden_server_of_another_worker(
    workers, register, connect, uuid, hidden_at, mobile_at, caplog
):
    caplog.set_level(logging.INFO)
    hidden, mobile = register(workers[hidden_at], uuid), connect(workers[mobile_at])
    mobile.send(get(uuid, '/path') + b'body')
    assert hidden.until(b'\r\n\r\n') == b'GET /path HTTP/1.1\r\nHost: x\r\n\r\n'
    assert hidden.receive(4) == b'body'
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'
    mobile.send(b'more')
    assert hidden.receive(4) == b'more'
    hidden.close()
    assert mobile.rest() == b''
    until(lambda: 'closed after' in caplog.text, 'it is in the log')
    lines = [line for line in caplog.messages if 'rendezvous with' in line]
    assert len({line.split()[0] for line in lines}) == 1
    assert len(lines) == 2  # one search for the client's address and port finds both workers' lines


def test_own_registration_is_taken_first(workers, register, connect, uuid):
    theirs, own = register(workers[0], uuid), register(workers[1], uuid)
    mobile = connect(workers[1])
    mobile.send(get(uuid))
    own.until(b'\r\n\r\n')
    assert workers[0].rendezvous.registry.count(uuid) == 1
    theirs.close()


def test_mobile_client_that_waits_gets_the_next_registration_of_another_worker(
    new_workers, register, connect, uuid
):
    first, second = new_workers
    mobile = connect(second)
    mobile.send(get(uuid))
    until(lambda: first.rendezvous.registry.wanted(), 'the first one knows that it waits')
    hidden = register(first, uuid)
    hidden.until(b'\r\n\r\n')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_worker_that_starts_later_is_asked_too(start, place, register, connect, uuid):
    first = start(meeting_place=place / 'first', rendezvous_wait=30)
    register(first, uuid).close()
    until(lambda: not first.rendezvous.registry.count(uuid), 'it is gone')
    mobile = connect(first)
    mobile.send(get(uuid))
    until(lambda: first.rendezvous.registry.wanted(), 'it waits')
    second = start(meeting_place=place / 'second')
    hidden = register(second, uuid)
    hidden.until(b'\r\n\r\n')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_mobile_client_that_leaves_while_it_waits_gets_no_registration(
    new_workers, register, connect, uuid
):
    first, second = new_workers
    mobile = connect(second)
    mobile.send(get(uuid))
    until(lambda: first.rendezvous.registry.wanted(), 'the first one knows that it waits')
    mobile.close()
    until(lambda: not first.rendezvous.registry.wanted(), 'and that it has left')
    register(first, uuid)
    assert first.rendezvous.registry.count(uuid) == 1


def test_hidden_server_that_is_nowhere_is_absent_at_once(workers, connect, uuid):
    mobile = connect(workers[0])
    mobile.send(get(uuid))
    assert mobile.answer().status == 503


def test_registration_is_given_to_one_of_many(new_workers, register, connect, uuid):
    """Each of 40 heads reaches a hidden server, and none gets two."""
    heads = []

    def live(worker) -> None:
        hidden = register(worker, uuid)
        heads.append(hidden.until(b'\r\n\r\n'))
        hidden.send(HELLO)
        hidden.close()

    def visit(number: int) -> bytes:
        mobile = connect(new_workers[number % 2])
        mobile.send(get(uuid, f'/{number}'))
        return mobile.answer().body

    visits = [gevent.spawn(visit, number) for number in range(40)]
    lives = [gevent.spawn(live, new_workers[number // 20]) for number in range(40)]
    gevent.joinall(visits + lives, timeout=60, raise_error=True)
    assert {visit.value for visit in visits} == {b'hello'}
    assert sorted(int(head.split()[1][1:]) for head in heads) == list(range(40))


@pytest.mark.parametrize('end', ['reset', 'close'])
def test_answer_that_is_cut_off_looks_so_behind_the_hop(workers, register, connect, uuid, end):
    hidden, mobile = register(workers[0], uuid), connect(workers[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(b'HTTP/1.1 200 OK\r\n\r\nhalf')
    mobile.until(b'half')
    getattr(hidden, end)()
    mobile.sock.suppress_ragged_eofs = False
    if end == 'reset':
        with cut_off():
            mobile.rest()
    else:
        assert mobile.rest() == b''


def test_change_of_the_entry_ends_a_pipe_that_crosses(workers, register, connect, entries, uuid):
    hidden, mobile = register(workers[0], uuid), connect(workers[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    entries.disable(uuid)
    mobile.sock.suppress_ragged_eofs = False
    with cut_off():
        mobile.rest()


def test_slow_reader_slows_the_writer_behind_the_hop(workers, register, connect, uuid):
    hidden, mobile = register(workers[0], uuid), connect(workers[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    octets = b'x' * 100 * 2**20
    sending = gevent.spawn(hidden.send, octets)
    sending.join(timeout=1)  # in which so much would have gone ten times
    assert not sending.ready()
    mobile.receive(len(octets))
    sending.get(timeout=30)


def test_answer_is_delivered_to_a_client_that_has_shut_its_sending_side(
    workers, register, connect, uuid
):
    hidden, mobile = register(workers[0], uuid), connect(workers[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    mobile.shut_sending()
    hidden.send(HELLO)
    hidden.close()
    assert mobile.answer().body == b'hello'


def test_dead_registration_of_another_worker_costs_the_mobile_client_nothing(
    new_workers, register, connect, uuid
):
    """It has left without a word; the next one is with the worker of the mobile client."""
    first, second = new_workers
    register(first, uuid).vanish()
    mobile = connect(second)
    mobile.send(get(uuid, '/again'))
    until(lambda: second.rendezvous.registry.wanted(), 'it waits for the next one')
    hidden = register(second, uuid)
    assert hidden.until(b'\r\n\r\n').startswith(b'GET /again ')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'


def test_registrations_of_another_worker_that_died_in_silence_are_not_all_tried(
    workers, register, connect, uuid, monkeypatch
):
    """Each would take a minute: the first one that did is the last."""
    monkeypatch.setattr('rendezvous.server.connection.RETRY_SECONDS', 0)
    for _ in range(2):
        register(workers[0], uuid).vanish()
    mobile = connect(workers[1])
    mobile.send(get(uuid))
    assert mobile.answer().status == 503
    assert workers[0].rendezvous.registry.count(uuid) == 1


def test_reservation_that_is_not_used_goes_back(workers, register, colleague, connect, uuid):
    hidden = register(workers[0], uuid)
    assert ask(colleague, uuid) == hop.YES
    assert workers[0].rendezvous.registry.count(uuid) == 0
    colleague.close()
    until(lambda: workers[0].rendezvous.registry.count(uuid) == 1, 'it waits on')
    mobile = connect(workers[0])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')


def test_registration_that_ends_while_it_is_reserved_is_not_used(
    workers, register, colleague, uuid
):
    first, second = register(workers[0], uuid), register(workers[0], uuid)
    assert ask(colleague, uuid) == hop.YES
    second.close()  # hidden.py replaces a registration so: the newest was the reserved one
    until(lambda: len(workers[0].connections) == 1, 'the worker has noticed')
    colleague.sendall(get(uuid))
    first.until(b'\r\n\r\n')
    first.send(HELLO)
    assert colleague.recv(1000) == hop.ANSWER + HELLO


def test_connection_is_kept_for_the_next_question(workers, register, colleague, uuid):
    assert [ask(colleague, uuid) for _ in range(3)] == [hop.NO] * 3
    register(workers[0], uuid)
    assert ask(colleague, uuid) == hop.YES


def test_expected_hidden_server_is_said_and_waited_for(workers, register, colleague, uuid):
    register(workers[0], uuid).close()
    until(lambda: not workers[0].rendezvous.registry.count(uuid), 'it is gone')
    assert ask(colleague, uuid, 30) == hop.EXPECTED
    hidden = register(workers[0], uuid)
    assert colleague.recv(1) == hop.YES
    colleague.sendall(b'GET / HTTP/1.1\r\n\r\n')
    hidden.until(b'\r\n\r\n')
    hidden.send(b'answer')
    assert colleague.recv(7) == hop.ANSWER + b'answer'


@pytest.mark.parametrize('line', [b'\n', b'{}\n', b'["x"]\n', b'[1,2,3,4]\n', b'x' * 9999])
def test_nonsense_ends_the_connection_and_nothing_else(workers, colleague, connect, line):
    colleague.sendall(line)
    with suppress(ConnectionResetError):  # it has not read all of it
        assert colleague.recv(1) in (b'', hop.NO)
    mobile = connect(workers[0])
    mobile.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert mobile.answer().status == 401


def test_worker_that_hangs_or_has_died_holds_up_nobody(start, place, connect, uuid):
    """Its socket is there, and nobody answers."""
    worker = start(meeting_place=place / 'worker')
    dead, hangs = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with dead, hangs:
        dead.bind(str(place / 'dead'))
        hangs.bind(str(place / 'hangs'))
        hangs.listen()
        mobile = connect(worker)
        mobile.send(get(uuid))
        assert mobile.answer().status == 503
        assert not (place / 'dead').exists()
        assert (place / 'hangs').exists()


def test_folder_is_closed_to_other_users(workers, place):
    assert not place.stat().st_mode & 0o077


def test_folder_that_was_deleted_is_made_again(workers, place, register, connect, uuid, caplog):
    shutil.rmtree(place)
    place.write_text('')  # nothing can be made there for a while
    until(lambda: 'cannot be made: File exists' in caplog.text, 'it is complained of')
    place.unlink()
    until(lambda: place.exists() and len(os.listdir(place)) == 2, 'both are back')
    hidden, mobile = register(workers[0], uuid), connect(workers[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    assert 'Traceback' not in caplog.text


def test_hidden_server_is_told_its_worker_where_it_asks(workers, connect, entries, uuid):
    for number, worker in enumerate(workers, 1):
        hidden = connect(worker)
        head = connect_request(uuid, code(entries, uuid))
        hidden.send(head.replace(b'\r\n\r\n', b'\r\nWhich-Worker: 1\r\n\r\n'))
        answer = hidden.until(b'\r\n\r\n')
        assert re.search(rb'\r\nWorker: (\d/\d)\r\n', answer)[1] == f'{number}/2'.encode()


def test_worker_that_has_a_registration_already_refuses_another_one(
    workers, connect, entries, uuid, caplog
):
    """Where the hidden server says that it looks for another worker."""
    caplog.set_level('DEBUG')
    head = connect_request(uuid, code(entries, uuid))
    for worker, covered, status in zip(workers, (b'2, 3', b'2'), (200, 503), strict=True):
        hidden = connect(worker)
        hidden.send(head.replace(b'\r\n\r\n', b'\r\nHas-Worker: ' + covered + b'\r\n\r\n'))
        answer = hidden.answer()
        assert answer.status == status
    assert (answer.fields['Worker'], answer.fields['Retry-After']) == ('2/2', '0')
    assert [worker.rendezvous.registry.count(uuid) for worker in workers] == [1, 0]
    (record,) = [record for record in caplog.records if 'refused' in record.getMessage()]
    assert record.getMessage().endswith('refused: 503 this worker has a registration of it already')
    assert record.levelname == 'DEBUG', 'hidden.py gets some for each visit'


def test_registrations_go_to_the_new_worker_and_no_request_is_lost(
    workers, register, connect, entries, uuid
):
    old, new = workers
    hidden, mobile, late = register(old, uuid), connect(old), connect(old)
    mobile.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert mobile.answer().status == 401
    ending = gevent.spawn(old.stop, hand_over=True)
    assert hidden.rest() == b''
    hidden.close()
    late.send(connect_request(uuid, code(entries, uuid)))
    answer = late.answer()
    assert (answer.status, answer.fields['Retry-After']) == (503, '0')
    mobile.send(get(uuid, '/asked-the-old-one'))
    hidden = register(new, uuid)
    assert hidden.until(b'\r\n\r\n').startswith(b'GET /asked-the-old-one ')
    hidden.send(HELLO)
    assert mobile.answer().body == b'hello'
    mobile.close()
    hidden.close()
    ending.get(timeout=30)


def test_registration_can_be_claimed_from_a_worker_that_hands_over(
    workers, register, connect, entries, uuid, monkeypatch
):
    """With thousands it takes a while until the last one has been ended."""
    monkeypatch.setattr('rendezvous.server.connection.PACE_SECONDS', 3600)
    old, new = workers
    first, second = register(old, uuid), register(old, uuid)
    ending = gevent.spawn(old.stop, hand_over=True)
    assert first.rest() == b''
    mobile = connect(new)
    mobile.send(get(uuid))
    second.until(b'\r\n\r\n')
    second.send(HELLO)
    assert mobile.answer().body == b'hello'
    mobile.close()
    ending.kill()


def test_registration_that_is_reserved_ends_with_its_entry(
    workers, register, colleague, entries, uuid
):
    hidden = register(workers[0], uuid)
    assert ask(colleague, uuid) == hop.YES
    entries.disable(uuid)
    assert hidden.rest() == b''
    colleague.sendall(b'GET / HTTP/1.1\r\n\r\n')
    assert colleague.recv(1) == hop.RETRY
