"""What administrators did is kept, the newest first, and nothing that could harm."""

import time

import pytest

from rendezvous.store import action_log
from rendezvous.store.action_log import Action


@pytest.fixture(params=['one', 'cluster'])
def redis_options(request, redis_options):
    """Of one Redis, and of a cluster."""
    is_one = request.param == 'one'
    return redis_options if is_one else request.getfixturevalue('redis_cluster')


@pytest.fixture(autouse=True)
def empty(entries):
    entries.ask(lambda redis: redis.delete(action_log.LOG))
    yield
    entries.ask(lambda redis: redis.delete(action_log.LOG))


def test_actions_are_kept_the_newest_first(entries):
    before = time.time()
    action_log.note(entries, 'made', 'u1', 'kitchen', 'page, session 3f2a')
    action_log.note(entries, 'renamed', 'u2', 'attic', 'shell, alice', 'before: cellar')
    second, first = action_log.last(entries)
    assert before <= first.when <= second.when <= time.time()
    assert first == Action('made', first.when, 'u1', 'kitchen', 'page, session 3f2a', '')
    assert second[2:] == ('u2', 'attic', 'shell, alice', 'before: cellar')
    assert action_log.last(entries, 1) == [second]
    assert action_log.last(entries, 5, 'u1') == [first]


def test_actions_of_one_entry_are_found_behind_many_of_others(entries, monkeypatch):
    monkeypatch.setattr(action_log, 'KEPT', 50)
    action_log.note(entries, 'made', 'u1', '', '')
    for _ in range(49):
        action_log.note(entries, 'made', 'u2', '', '')
    assert len(action_log.last(entries, 3, 'u1')) == 1
    action_log.note(entries, 'made', 'u2', '', '')
    assert action_log.last(entries, 3, 'u1') == []
    assert len(action_log.last(entries)) == 50


def test_long_and_hostile_texts_are_bounded_and_harmless(entries):
    action_log.note(entries, 'renamed', 'u', '\x1b[2J' + 'x' * 10_000, '\u202ewho', 'y' * 10_000)
    (action,) = action_log.last(entries)
    assert action.label == '\ufffd[2J' + 'x' * 196
    assert (action.who, action.detail) == ('\ufffdwho', 'y' * 200)


@pytest.mark.parametrize('value', ['x', '[]', '{}', '{"when": "x"}', '{"when": 1, "what": []}'])
def test_what_another_program_wrote_is_nothing(entries, value):
    entries.ask(lambda redis: redis.lpush(action_log.LOG, value))
    action_log.note(entries, 'made', 'u', '', '')
    assert [each.what for each in action_log.last(entries) if each.what] == ['made']


def test_key_of_another_kind_stays_as_it_is(entries):
    entries.ask(lambda redis: redis.set(action_log.LOG, 'mine'))
    action_log.note(entries, 'made', 'u', '', '')
    assert action_log.last(entries) == []
    assert entries.ask(lambda redis: redis.get(action_log.LOG)) == 'mine'
