"""What workers know of each other's connections: each has a row of numbers in shared memory."""

import os

import pytest

from rendezvous.server import shares
from rendezvous.server.shares import AHEAD, MOST, Shares

SEED = b'seed'


@pytest.fixture
def rows():
    """The shares of three workers."""
    descriptor = shares.create(3)
    yield [Shares(descriptor, 3, number, SEED) for number in (1, 2, 3)]
    os.close(descriptor)


def test_count_is_that_of_all_workers(rows):
    for row, change in zip(rows, (1, 2, 3), strict=True):
        row.add(row.place('192.0.2.7'), change)
    assert [row.count(row.place('192.0.2.7')) for row in rows] == [6, 6, 6]
    rows[2].add(rows[2].place('192.0.2.7'), -1)
    assert rows[0].count(rows[0].place('192.0.2.7')) == 5
    assert rows[0].count(rows[0].place('192.0.2.8')) == 0


def test_connections_in_all_are_no_address(rows):
    rows[0].add_connection(1)
    assert not any(rows[0].count(rows[0].place(f'192.0.2.{number}')) for number in range(256))


def test_worker_is_ahead_of_the_least_loaded_one(rows):
    first, second, _ = rows
    first.add_connection(AHEAD)
    second.add_connection(AHEAD + 1)
    assert [row.is_ahead() for row in rows] == [False, True, False]
    second.add_connection(-1)
    assert not second.is_ahead()


def test_worker_alone_is_never_ahead():
    descriptor = shares.create(1)
    alone = Shares(descriptor, 1, 1, SEED)
    os.close(descriptor)  # the memory stays
    alone.add_connection(100)
    assert not alone.is_ahead()


def test_worker_that_begins_clears_what_a_killed_one_has_left_and_nothing_else(rows):
    for row in rows:
        row.add(row.place('192.0.2.7'), 5)
        row.add_connection(10)
    rows[1].clear()
    assert rows[0].count(rows[0].place('192.0.2.7')) == 10
    assert [row.is_ahead() for row in rows] == [True, False, True]


def test_number_is_never_below_0_and_never_too_large_for_its_place(rows):
    """A connection that ends where nothing is counted any more must not count as 65,535."""
    rows[0].add(rows[0].place('192.0.2.7'), -1)
    assert rows[1].count(rows[1].place('192.0.2.7')) == 0
    rows[0].add(rows[0].place('192.0.2.7'), MOST)
    rows[0].add(rows[0].place('192.0.2.7'), 1)
    assert rows[1].count(rows[1].place('192.0.2.7')) == MOST


def test_another_seed_gives_addresses_other_places(rows):
    """Nobody outside can know which addresses share a place."""
    descriptor = shares.create(1)
    one, other = (Shares(descriptor, 1, 1, seed) for seed in (SEED, b'another'))
    os.close(descriptor)
    one.add(one.place('192.0.2.7'), 1)
    assert (one.count(one.place('192.0.2.7')), other.count(other.place('192.0.2.7'))) == (1, 0)
