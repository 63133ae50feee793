"""A server with several nodes behind one name: hidden.py registers with those that take it."""

import re
import socket
from functools import partial

import gevent
import pytest
from conftest import Answer, code, connect_request, free_port, until
from hiding import Listener, Registrar, hello, refuses, said
from three import free_ports

from rendezvous.hidden import dial, hidden_server
from rendezvous.wire.http_head import Refusal

ONE, TWO, THREE = '127.0.0.1', '127.0.0.2', '127.0.0.3'
LEAVES = Refusal(503, 'this node is being drained: connect to another one', 'Retry-After: 0')
REQUEST = b'GET / HTTP/1.1\r\n\r\n'
MOMENT_SECONDS = 0.2  # in which nothing more is to happen


class Node(Registrar):
    """A stranger at one address, with workers of which the next one takes each connection."""

    def __init__(self, stranger, host: str, port: int, workers: int = 1, is_named: bool = True):
        self.answers: list[bytes] = []  # in place of a 200
        self._turn, self._workers = 0, workers
        self._name = f'Node: {host.replace(".", "")}\r\n' if is_named else ''
        self.where = partial(stranger, port=port, host=host)
        self.listener: Listener
        super().__init__(self._listening)

    def _listening(self, handle) -> Listener:
        self.listener = self.where(handle)
        return self.listener

    def _register(self, peer) -> None:
        number, self._turn = self._turn % self._workers + 1, self._turn + 1
        which = f'Worker: {number}/{self._workers}\r\n{self._name}'
        self._answer = lambda: f'HTTP/1.1 200 OK\r\n{which}\r\n'.encode()
        super()._register(peer)

    def refuses(self, peer, head: bytes) -> bytes:
        return self.answers.pop(0) if self.answers else b''

    def kill(self) -> None:
        self.listener.stop()
        for peer in self.waiting:
            peer.reset()


@pytest.fixture
def nodes(stranger, monkeypatch):
    """Strangers at several addresses of one name."""

    def nodes(*hosts: str, **how) -> list[Node]:
        port = free_ports(hosts, 1)
        found = [(socket.AF_INET, 1, 6, '', (host, port)) for host in hosts]
        monkeypatch.setattr(dial.socket, 'getaddrinfo', lambda *_, **__: found)
        return [Node(stranger, host, port, **how) for host in hosts]

    return nodes


def until_waiting(nodes: list[Node], condition) -> list[int]:
    """... and stays so: how many wait at each."""
    for _ in range(2):
        until(lambda: condition([len(each.waiting) for each in nodes]), 'they wait so')
        gevent.sleep(MOMENT_SECONDS)
    return [len(each.waiting) for each in nodes]


def test_registrations_are_with_two_nodes_at_least(nodes, hide):
    found = nodes(ONE, TWO, THREE)
    hide(found[0], count=4)
    waiting = until_waiting(found, lambda counts: sum(counts) == 4)
    assert len(list(filter(None, waiting))) >= 2


def test_node_with_the_fewest_gets_the_next_one(nodes, hide, listen):
    found = nodes(ONE, TWO)
    hide(found[0], listen(hello), count=4)
    until_waiting(found, lambda counts: sum(counts) == 4)
    for _ in range(4):  # visits
        most = max(found, key=lambda each: len(each.waiting))
        most.waiting[-1].send(REQUEST)
        until_waiting(found, lambda counts: sum(counts) == 4)
    assert [len(each.waiting) for each in found] == [2, 2]


def test_server_that_names_no_node_is_one_whatever_addresses_it_has(nodes, hide):
    found = nodes(ONE, TWO, is_named=False)
    hide(found[0], count=4)
    assert until_waiting(found, lambda counts: sum(counts) == 4) == [4, 0]


def test_each_worker_of_a_node_has_one(nodes, hide):
    """They have the same numbers at each node."""
    found = nodes(ONE, TWO, workers=2)
    hide(found[0], count=4)
    until_waiting(found, lambda counts: sum(counts) == 4)
    name = {ONE: '127001', TWO: '127002'}
    has = [dial.Worker(1, 2, name[ONE]), dial.Worker(1, 2, name[TWO])]
    assert hidden_server._covered(has) == has
    assert hidden_server._covered([*has, dial.Worker(2, 2, name[ONE])])
    all_of_them = [*has, dial.Worker(2, 2, name[ONE]), dial.Worker(2, 2, name[TWO])]
    assert hidden_server._covered(all_of_them) == []
    heads = b''.join(head for each in found for head in each.heads)
    assert b'\r\nHas-Worker: 1@12700' in heads


def test_node_says_which_it_is_and_what_it_has_already_is_refused(start, connect, entries, uuid):
    server = start(node_host=ONE, node_port=free_port(), which='1/2')

    def register(has: str) -> Answer:
        hidden = connect(server)
        head = connect_request(uuid, code(entries, uuid)).removesuffix(b'\r\n')
        hidden.send(head + f'Which-Worker: 1\r\nHas-Worker: {has}\r\n\r\n'.encode())
        answer = hidden.answer()
        hidden.close()
        return answer

    answer = register('1, 2, 1@1, 1@')  # of an older hidden.py, and of other nodes
    assert (answer.status, answer.fields['Worker']) == (200, '1/2')
    node = answer.fields['Node']
    assert re.fullmatch('[0-9a-f]{8}', node)
    refused = register(f'1@{node}, 2@{node}')
    assert (refused.status, refused.fields['Node']) == (503, node)
    assert register(f'2@{node}').status == 200


@pytest.mark.parametrize(
    'fails',
    [LEAVES.octets(), b'', b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n'],
    ids=['it leaves', 'it hangs up', 'it is another server'],
)
def test_node_that_takes_none_is_passed_over_at_once(nodes, hide, fails, monkeypatch, caplog):
    monkeypatch.setattr(hidden_server, 'LOST_PAUSES_SECONDS', (60, 60))
    caplog.set_level('INFO', 'hidden')
    one, two = nodes(ONE, TWO)
    monkeypatch.setattr(one, 'refuses', lambda peer, _: fails or peer.close() or b'x')
    hide(one, count=4)
    until_waiting([one, two], lambda counts: counts == [0, 4])
    assert len(one.heads) == 1, 'nor is it asked again and again'
    assert len(said(caplog)) == 2  # that it is registered, and its URL


def test_killed_node_is_made_up_for_by_the_others(nodes, hide):
    found = nodes(ONE, TWO, THREE)
    hide(found[0], count=4)
    until_waiting(found, lambda counts: sum(counts) == 4)
    killed = max(found, key=lambda each: len(each.waiting))
    others = [each for each in found if each is not killed]
    killed.kill()
    until(lambda: sum(len(each.waiting) for each in others) == 4, 'all are back', seconds=2)


def test_balancer_may_lead_to_the_node_that_leaves_for_a_while(
    registrar, hide, monkeypatch, caplog
):
    """So long the hidden server is not lost."""
    caplog.set_level('INFO', 'hidden')
    leaving = [LEAVES.octets()] * 6
    monkeypatch.setattr(registrar, 'refuses', lambda *_: leaving.pop() if leaving else b'')
    hide(registrar, count=1)
    registrar.until_made(1)
    assert len(registrar.heads) == 7
    until(lambda: len(said(caplog)) == 2, 'it is said')


def test_server_that_leaves_for_longer_is_said_to_be_lost(stranger, hide, caplog):
    hide(stranger(refuses(b'503 x', b'Retry-After: 0')), count=1)
    until(lambda: 'not registered at' in caplog.text, 'it is said')
