"""A server with several workers: hidden.py has a registration with each of them.

It is told by the field `Worker: N/M` of the 200 which of them it has reached, and a worker that has
one of its already refuses: so no registration is closed in which a request may be on its way.
"""

import random
import re
from collections import Counter
from itertools import chain, repeat

import gevent
import pytest
from conftest import until
from hiding import Registrar, hello, said

REQUEST = b'GET / HTTP/1.1\r\n\r\n'
MOMENT_SECONDS = 0.2  # in which nothing more is to happen


def told(*fields: bytes) -> bytes:
    return b'\r\n'.join([b'HTTP/1.1 200 OK', *fields, b'', b''])


class Workers(Registrar):
    """A stranger that leads one connection after the other to these workers, of so many."""

    def __init__(self, stranger, numbers, count: int):
        self.dials: list[int] = []
        self._numbers, self._count, self._of = numbers, count, {}
        super().__init__(stranger)

    def _register(self, peer) -> None:
        number = next(self._numbers)
        self.dials.append(number)
        self._answer = lambda: told(b'Worker: %d/%d' % (number, self._count))
        self._of[peer] = number
        super()._register(peer)

    def refuses(self, peer, head: bytes) -> bytes:
        covered = re.search(rb'\r\nHas-Worker: ([0-9, ]+)\r\n', head)
        number = self._of[peer]
        if covered and number in map(int, covered[1].split(b',')):
            worker = b'Worker: %d/%d' % (number, self._count)
            return b'\r\n'.join([b'HTTP/1.1 503 x', worker, b'Content-Length: 0', b'', b''])
        return b''

    def spread(self) -> dict[int, int]:
        """How many wait with each."""
        return Counter(self._of[peer] for peer in self.waiting)

    def until_spread(self, expected: dict[int, int], dials: int) -> None:
        """... and stays so."""
        for _ in range(2):
            until(lambda: (self.spread(), len(self.dials)) == (expected, dials), f'{expected}')
            gevent.sleep(MOMENT_SECONDS)


def test_server_is_asked_which_worker_it_is(registrar, hide):
    hide(registrar, count=1)
    registrar.until_made(1)
    assert b'\r\nWhich-Worker: 1\r\n' in registrar.heads[0]


@pytest.mark.parametrize(
    ('registrations', 'workers', 'numbers', 'expected'),
    [
        (4, 2, [1, 2, 1, 2], {1: 2, 2: 2}),
        (4, 2, [2, 1, 1, 1], {1: 3, 2: 1}),
        (2, 2, [1, 1, 1, 2], {1: 1, 2: 1}),
        (2, 4, [3, 3, 1], {1: 1, 3: 1}),  # two of four are better than one
        (4, 4, [1, 2, 3, 4], {1: 1, 2: 1, 3: 1, 4: 1}),
        (1, 4, [2], {2: 1}),
        (3, 1, [1, 1, 1], {1: 3}),
    ],
)
def test_each_worker_has_one_after_as_few_dials_as_that_takes(
    stranger, hide, caplog, registrations, workers, numbers, expected
):
    caplog.set_level('INFO', 'hidden')
    server = Workers(stranger, iter(numbers), workers)
    hide(server, count=registrations)
    server.until_spread(expected, len(numbers))
    assert len(said(caplog)) == 2  # that it is registered, and its URL


@pytest.mark.parametrize(('workers', 'least', 'most_dials'), [(2, 36, 100), (4, 64, 280)])
def test_few_dials_reach_most_workers_where_chance_decides(
    stranger, hide, workers, least, most_dials
):
    """Twenty hidden servers, as many registrations as workers: without a search they reach 30, 55.

    With one they reach 40 and 75. The bounds leave five standard deviations for chance.
    """
    numbers = iter(lambda: random.randint(1, workers), 0)
    servers = [Workers(stranger, numbers, workers) for _ in range(20)]
    for server in servers:
        hide(server, count=workers)
    before, now = None, []
    while before != now or {waiting for _, waiting in now} != {workers}:
        gevent.sleep(MOMENT_SECONDS)
        before, now = now, [(len(server.dials), len(server.waiting)) for server in servers]
    assert sum(len(server.spread()) for server in servers) >= least
    assert sum(len(server.dials) for server in servers) <= most_dials


def test_worker_whose_registration_was_taken_gets_the_next_one(stranger, hide, listen):
    server = Workers(stranger, iter([1, 1, 2, 1, 1, 2]), 2)
    hide(server, listen(hello), count=2)
    server.until_spread({1: 1, 2: 1}, 3)
    server.made[1].send(REQUEST)
    server.until_spread({1: 1, 2: 1}, 6)


def test_search_in_vain_ends_and_later_ones_are_shorter(stranger, hide, listen):
    """Something in front of the server may lead us to the same worker each time."""
    server = Workers(stranger, chain(repeat(1, 60), [2], repeat(1)), 2)
    hide(server, listen(hello), count=2)
    server.until_spread({1: 2}, 1 + 8)
    for dials in (4, 2, 2, 2):
        before = len(server.dials)
        server.waiting[-1].send(REQUEST)
        server.until_spread({1: 2}, before + dials)


@pytest.mark.parametrize(
    'fields',
    [
        [b'Worker: ' + value]
        for value in (
            *(b'0/0', b'0/2', b'5/2', b'-1/2', b'1/99999999999', b'1', b'1/', b'/2', b'1/2/3'),
            *(b'one/two', b'1.0/2', '\u0661/\u0662'.encode(), b'', b'1/2, 1/2', b'\0'),
        )
    ]
    + [[b'Worker: 1/2', b'Worker: 1/2'], [b'X-Worker: 1/2'], []],
)
def test_what_makes_no_sense_is_ignored(stranger, hide, caplog, fields):
    caplog.set_level('INFO', 'hidden')
    server = Registrar(stranger, lambda: told(*fields))
    hide(server, count=3)
    server.until_made(3)
    gevent.sleep(0.1)
    assert (len(server.made), len(server.waiting), len(said(caplog))) == (3, 3, 2)
