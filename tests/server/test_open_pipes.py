"""The page sees the open pipes of a hidden server, and ends one."""

import json
import logging
import time

import gevent
import pytest
from asking import follows, open_pipes, server_of
from conftest import cut_off, get, until

from rendezvous.server import connection
from rendezvous.store import presence, questions, state
from rendezvous.store.entries import CHANGES

HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n'


def test_octets_of_a_running_download_are_seen(server, join, entries, uuid):
    began = time.time()
    hidden, mobile = join(server)
    sent = len(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    (pipe,) = open_pipes(entries, uuid, server)
    assert (pipe.address, pipe.sent, pipe.received) == ('127.0.0.1', sent, 0)
    assert began <= pipe.at <= time.time()
    hidden.send(HEAD + b'x' * 500_000)
    mobile.receive(len(HEAD) + 500_000)
    (later,) = open_pipes(entries, uuid, server)
    assert later == pipe._replace(received=len(HEAD) + 500_000)


def test_octets_of_a_running_download_are_in_its_hour_and_count_once(
    server, join, entries, uuid, monkeypatch
):
    monkeypatch.setattr(presence, 'WRITE_SECONDS', 0.02)
    monkeypatch.setattr(presence, 'HEARTBEAT_SECONDS', 0.02)
    monkeypatch.setattr(connection, 'OCTETS_SECONDS', 0.02)

    def down() -> int:
        _, hours = state.past(entries, [uuid], time.time() - 3600, time.time())[uuid]
        return sum(hour.down for hour in hours)

    hidden, mobile = join(server)
    for halves in (1, 2):
        hidden.send(b'x' * 500_000)
        mobile.receive(500_000)
        until(lambda h=halves: down() == h * 500_000, 'it is written while the pipe is open')
    hidden.send(b'end')
    hidden.close()
    assert mobile.rest() == b'end'
    until(lambda: state.history(entries, uuid), 'the rendezvous is over')
    until(lambda: down() == 1_000_003, 'what came last is added')


def test_pipes_of_others_and_registrations_are_none(server, join, register, entries, uuid):
    join(server)
    register(server, uuid)
    other = '0' * 8 + uuid[8:]
    assert open_pipes(entries, other, server) == []
    assert len(open_pipes(entries, uuid, server)) == 1


def test_pipe_that_is_ended_on_the_page_is_cut_off(server, join, entries, uuid, caplog):
    caplog.set_level(logging.INFO)
    hidden, mobile = join(server)
    hidden.send(HEAD + b'half')
    mobile.until(b'half')
    (pipe,) = open_pipes(entries, uuid, server)
    assert questions.end_pipe(entries, pipe.worker, pipe.id)
    mobile.sock.suppress_ragged_eofs = False
    with cut_off():
        mobile.rest()
    until(lambda: 'closed after' in caplog.text, 'it is in the log')
    assert ' s: ended on the page; ' in caplog.text
    assert f'{uuid}: its pipe with 127.0.0.1 is ended on the page' in caplog.text
    assert open_pipes(entries, uuid, server) == []
    assert not questions.end_pipe(entries, pipe.worker, pipe.id)


def test_one_of_several_pipes_is_ended(server, join, entries, uuid):
    ends = [join(server) for _ in range(3)]
    pipes = open_pipes(entries, uuid, server)
    assert len({pipe.id for pipe in pipes}) == 3
    assert sorted(pipes, key=lambda pipe: pipe.at) == pipes
    assert questions.end_pipe(entries, pipes[1].worker, pipes[1].id)
    until(lambda: len(server.connections) == 4, 'both ends are closed')
    assert open_pipes(entries, uuid, server) == [pipes[0], pipes[2]]
    for hidden, mobile in (ends[0], ends[2]):
        hidden.send(b'on')
        mobile.receive(2)


@pytest.fixture
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('meet')


@pytest.fixture
def workers(start, place):
    return [start(meeting_place=place / str(number), which=f'{number}/2') for number in (1, 2)]


def test_pipe_with_the_hidden_server_of_another_worker_is_seen_once_and_ended(
    workers, register, connect, entries, uuid, caplog
):
    """The worker of the mobile client tells it: it also writes down how it ended."""
    caplog.set_level(logging.INFO)
    hidden, mobile = register(workers[0], uuid), connect(workers[1])
    mobile.send(get(uuid))
    hidden.until(b'\r\n\r\n')
    hidden.send(HEAD + b'half')
    mobile.until(b'half')
    (pipe,) = open_pipes(entries, uuid, *workers)
    assert pipe.worker == workers[1].rendezvous.presence.name
    assert (pipe.address, pipe.received) == ('127.0.0.1', len(HEAD + b'half'))
    assert questions.end_pipe(entries, pipe.worker, pipe.id)
    mobile.sock.suppress_ragged_eofs = False
    with cut_off():
        mobile.rest()
    assert hidden.rest() == b''
    until(lambda: 'closed after' in caplog.text, 'it is in the log')
    assert ' s: ended on the page; ' in caplog.text


@pytest.mark.parametrize(
    'text',
    [
        *('', 'x', '[]', '{}', '"answers:x"', '{"to": "answers:x"}', '{"to": 1, "pipes": "x"}'),
        *('{"to": "answers:x", "pipes": 1}', '{"to": "answers:x", "end": {}}', '[' * 99_999),
        '{"pipes": "x"}',
    ],
)
def test_message_that_is_no_question_is_ignored(server, join, entries, uuid, caplog, text):
    caplog.set_level(logging.DEBUG, 'questions')
    join(server)
    channel = f'live:{follows(entries, server)}'
    entries.ask(lambda redis: redis.publish(channel, text))
    assert len(open_pipes(entries, uuid, server)) == 1
    (record,) = [each for each in caplog.records if each.name == 'questions']
    assert (record.levelname, record.exc_info) == ('DEBUG', None)


def test_answers_go_to_channels_of_answers_alone(server, join, entries, uuid):
    """A question cannot make a worker tell the others that an entry was changed."""
    join(server)
    name, heard = follows(entries, server), []
    with entries.ask(lambda redis: redis.pubsub()) as subscription:
        entries.ask(lambda redis: subscription.subscribe(CHANGES))
        for to in (CHANGES, f'live:{name}'):
            question = json.dumps({'to': to, 'pipes': uuid})
            entries.ask(lambda redis, text=question: redis.publish(f'live:{name}', text))
        assert len(open_pipes(entries, uuid, server)) == 1  # the others were read before this one
        while message := subscription.get_message(timeout=0.05):
            heard.append(message['type'])
    assert heard == ['subscribe']


def test_worker_that_says_nothing_is_left_out(server, join, entries, uuid):
    join(server)
    name, hangs = follows(entries, server), '0' * 16
    with entries.ask(lambda redis: redis.pubsub()) as subscription:
        entries.ask(lambda redis: subscription.subscribe(f'live:{hangs}'))
        subscription.get_message(timeout=5)
        began = time.monotonic()
        found = questions.open_pipes(entries, server_of(name, hangs, 'f' * 16), uuid)
        assert len(found) == 1
        assert 0.4 < time.monotonic() - began < 2
    began = time.monotonic()
    assert len(questions.open_pipes(entries, server_of(name, 'f' * 16), uuid)) == 1
    assert time.monotonic() - began < 0.4  # it has been killed: nobody waits for it


@pytest.mark.parametrize(
    'said',
    [
        '1',
        '{"pipes": 1}',
        '{"pipes": [1, [], {}]}',
        '{"pipes": [["1", "x", 0, 0]]}',
        '{"pipes": [["1", "x", -1, 0, 0]]}',
        '{"pipes": [["1", "x", 1e999, 0, 0]]}',
        '{"pipes": [["1", "x", 0, true, 0]]}',
        '{"pipes": [["1", "x", 0, 0, "0"]]}',
        '{"ended": 1}',
    ],
)
def test_answer_that_is_none_is_ignored(entries, uuid, said):
    """Another program listens on a worker's channel, and answers what it likes."""
    name = 'e' * 16

    def answer(subscription) -> None:
        while not (message := subscription.get_message(timeout=5)) or message['type'] != 'message':
            pass
        to = json.loads(message['data'])['to']
        entries.ask(lambda redis: redis.publish(to, said))

    with entries.ask(lambda redis: redis.pubsub()) as subscription:
        entries.ask(lambda redis: subscription.subscribe(f'live:{name}'))
        subscription.get_message(timeout=5)
        for ask in (
            lambda: questions.open_pipes(entries, server_of(name), uuid) == [],
            lambda: not questions.end_pipe(entries, name, '1'),
        ):
            answering = gevent.spawn(answer, subscription)
            assert ask()
            answering.get(timeout=5)


def test_only_the_oldest_of_very_many_pipes_are_told(server, join, entries, uuid, monkeypatch):
    monkeypatch.setattr(questions, 'MOST', 2)
    for _ in range(3):
        join(server)
    told = open_pipes(entries, uuid, server)
    assert [pipe.id for pipe in told] == sorted(pipe.id for pipe in told)
    assert len(told) == 2
