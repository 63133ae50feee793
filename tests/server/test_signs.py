"""The page knows which workers live: of a real server, in a Redis of its own."""

import os
import signal
import socket
import time
import uuid as uuids

import pytest
from conftest import OK, Peer, client_context, code, connect_request, free_port, until
from programs import Folder, Outside

from rendezvous.store import questions, state
from rendezvous.store.entries import Entries
from rendezvous.store.options import DEFAULTS
from rendezvous.wire.programs import VERSION

pytestmark = pytest.mark.deadline(120)


@pytest.fixture
def outside(tmp_path):
    (tmp_path / 'redis').mkdir()
    with Outside(tmp_path / 'redis', free_port(), 'secret') as outside:
        yield outside


@pytest.fixture
def entries(outside):
    entries = Entries(DEFAULTS | outside.options)
    yield entries
    entries.close()


@pytest.fixture
def folder(outside, tmp_path):
    with Folder(tmp_path, workers=2, **outside.options) as folder:
        folder.pair()
        yield folder


@pytest.fixture
def register(folder, entries):
    """Registers a new entry; its UUID and the connection."""
    peers = []

    def register(port: int) -> tuple[str, Peer]:
        uuid = str(uuids.uuid4())
        entries.add(uuid, ['kitchen'])
        context = client_context(str(folder.path / 'registrar.crt'))
        sock = socket.create_connection(('127.0.0.1', port))
        peer = Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))
        peers.append(peer)
        peer.send(connect_request(uuid, code(entries, uuid)))
        assert peer.receive(len(OK)) == OK
        return uuid, peer

    yield register
    for peer in peers:
        peer.close()


def until_workers_sign(entries: Entries, but: tuple = ()) -> list[state.Worker]:
    """Both of them, and none of `but`, whose names are given."""

    def signed() -> list[state.Worker] | None:
        found = state.server(entries).workers
        is_done = len(found) == 2 and not any(each.name in but for each in found)
        return found if is_done else None

    return until(signed, 'two workers have signed')


def known(entries: Entries, uuid: str) -> state.Known:
    return state.known_of(entries, state.server(entries), uuid)


def test_version_is_said(folder):
    for program in ('server.py', 'hidden.py'):
        assert folder.run(program, '--version') == (0, f'{VERSION}\n', '')


def test_workers_sign_though_nobody_is_registered(folder, entries):
    before = time.time()
    program, _ = folder.serve()
    workers = until_workers_sign(entries)
    assert [(each.number, each.workers, each.pid) for each in workers] == [
        (1, 2, program.pid),
        (2, 2, program.pid),
    ]
    for worker in workers:
        assert (worker.node, worker.version) == (socket.gethostname(), VERSION)
        assert before <= worker.since <= worker.counters['began'] <= worker.at <= time.time()
        assert worker.most == DEFAULTS.max_connections // 2
        assert 2**20 < worker.memory < 2**30


def test_up_since_stays_and_nothing_has_stopped_when_a_new_version_takes_over(folder, entries):
    program, _ = folder.serve()
    old = until_workers_sign(entries)
    processes = folder.workers()
    os.kill(program.pid, signal.SIGUSR2)
    new = until_workers_sign(entries, but=tuple(each.name for each in old))
    until(lambda: not set(processes) & set(folder.workers()), 'the old workers have ended')
    assert {each.since for each in old} == {each.since for each in new}
    assert {each.pid for each in new} == {program.pid}
    after = state.server(entries)
    assert [each.name for each in after.workers] == [each.name for each in new]
    assert after.heard
    assert not after.heard.stopped
    assert after.outages == []


def test_killed_server_is_known_to_be_down_within_seconds(folder, entries, register):
    program, port = folder.serve()
    uuid, _ = register(port)
    until_workers_sign(entries)
    until(lambda: known(entries, uuid).waiting == 1, 'it is online')
    os.kill(program.pid, signal.SIGKILL)
    until(lambda: not state.server(entries).workers, 'no worker lives', seconds=5)
    until(lambda: known(entries, uuid).state == state.OFFLINE, 'it is offline', seconds=5)
    assert known(entries, uuid).waiting == 0
    down = state.server(entries)
    assert down.heard
    assert not down.heard.stopped
    assert down.down_since == down.heard.at
    assert questions.open_pipes(entries, down, uuid) == []


def test_server_that_an_administrator_stops_says_so(folder, entries, register):
    program, port = folder.serve()
    uuid, _ = register(port)
    until_workers_sign(entries)
    until(lambda: known(entries, uuid).waiting == 1, 'it is online')
    program.end(signal.SIGTERM)
    stopped = state.server(entries)
    assert stopped.workers == []
    assert stopped.heard
    assert stopped.heard.stopped
    assert known(entries, uuid).state == state.OFFLINE
