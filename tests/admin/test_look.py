"""One look at Redis a second for all tabs, whatever they show: what it sees, and what it costs."""

import json
import time
import uuid as uuids

import gevent
import pytest
from conftest import until
from pages import WORKER, Page, make, served

from rendezvous.admin import book, look
from rendezvous.store import keys, saving, state
from rendezvous.store import options as local
from rendezvous.store.entries import StoreDown


@pytest.fixture
def page(redis_options):
    with served(local.DEFAULTS | redis_options | {'key_file': None}) as page:
        yield page


def commands(page: Page) -> int:
    """Those that Redis has got, with this one."""
    return page.entries.ask(lambda redis: redis.info('stats')['total_commands_processed'])


def followers(page: Page) -> int:
    return page.entries.ask(lambda redis: redis.pubsub_numsub('entries')[0][1])


def test_nothing_is_read_while_nobody_asks(page, monkeypatch):
    monkeypatch.setattr(book, 'REST_SECONDS', 0.2)
    (uuid,) = make(page, 1)
    others = followers(page)  # pages of earlier tests
    assert [*page.rows()] == ['Machine 0']
    assert followers(page) > others
    until(lambda: followers(page) <= others, 'it does not listen any more', 5)
    before = commands(page)
    gevent.sleep(0.05)
    assert commands(page) == before + 1  # the one that asks how many
    saving.save(page.entries, uuid, labels=['garage'])
    page.looks.changed([])
    assert [*page.rows()] == ['garage']  # what was missed meanwhile is read at once


def test_change_is_heard_and_costs_no_scan(page, monkeypatch):
    monkeypatch.setattr(book, 'SCAN_SHARE', 1e-9)
    monkeypatch.setattr(book, 'SCAN_SECONDS', 600)
    kitchen, _ = make(page, 2)
    assert [*page.rows()] == ['Machine 0', 'Machine 1']
    saving.save(page.entries, kitchen, labels=['kitchen'])
    until(lambda: 'kitchen' in page.rows(), 'the change is heard')
    other = str(uuids.uuid4())
    page.entries.ask(lambda redis: redis.set(other, '{}'))  # without a word
    page.looks.changed([])
    assert '' not in page.rows()
    page.entries.ask(lambda redis: redis.publish('entries', ''))  # some may have been missed
    until(lambda: '' in page.rows(), 'a scan finds it')


def test_entry_that_another_program_writes_without_a_word_is_found(page):
    assert page.rows() == {}
    uuid = str(uuids.uuid4())
    page.entries.ask(lambda redis: redis.set(uuid, json.dumps({'labels': ['silent']})))
    until(lambda: 'silent' in page.rows(), 'a scan finds it')
    page.entries.ask(lambda redis: redis.delete(uuid))
    until(lambda: not page.rows(), 'a scan misses it')


def test_what_is_refused_lapses_by_itself(page):
    (uuid,) = make(page, 1)
    refused = time.time() - state.REFUSED_SECONDS + 1.5
    why = ['wrong', 0, True, '']
    record = {'state': state.REFUSED, 'since': refused, 'refused': refused, 'why': why}
    page.entries.ask(lambda redis: redis.set(f'state:{{{uuid}}}', json.dumps(record)))
    until(lambda: 'Refused' in page.rows().get('Machine 0', ''), 'it is refused', 5)
    until(lambda: 'Never seen' in page.rows()['Machine 0'], 'nobody knows of it any more', 5)


def test_every_form_is_followed_by_a_new_look(page):
    made = page.send('/entries', label='kitchen')
    assert 'kitchen' in page.rows()  # although a look was taken just before
    assert page.send(f'{made.split("?")[0]}/disable')
    assert 'Disabled' in page.rows()['kitchen']


@pytest.mark.parametrize(
    'key',
    [
        *(keys.SERVERS, keys.HEARD, keys.NAMES, keys.live(WORKER)),
        *(keys.of(kind, 'UUID') for kind in (keys.STATE, keys.PLACES)),
    ],
)
@pytest.mark.parametrize('kind', ['text', 'list', 'hash'])
def test_keys_that_another_program_wrote_break_nothing(page, key, kind):
    key = key.replace('UUID', make(page, 2)[1])

    def write(redis) -> None:
        redis.delete(key)
        if kind == 'text':
            redis.set(key, 'no such thing')
        elif kind == 'list':
            redis.rpush(key, 'a', 'b')
        else:
            redis.hset(key, mapping={'a': 'b', str(uuids.uuid4()): '[', WORKER: '\0'})

    page.entries.ask(write)
    page.looks.changed([])
    assert [*page.rows()] == ['Machine 0', 'Machine 1']


def test_who_waits_for_a_look_is_not_given_an_older_one():
    made, go = [], gevent.event.Event()

    def make_one() -> int:
        made.append(len(made))
        go.wait()
        return made[-1]

    shared = look.Shared(make_one)
    first, second = gevent.spawn(shared.get), gevent.spawn(shared.get)
    gevent.sleep(0)
    shared.expire()  # a form was sent while the first look was taken
    third = gevent.spawn(shared.get)
    go.set()
    gevent.joinall([first, second, third], raise_error=True)
    assert (first.value, third.value) == (0, 1)
    assert made == [0, 1]


def test_each_look_reads_anew_what_was(page):
    _, uuid = make(page, 2)
    assert '2 MB' in page.rows()['Machine 1']
    day = int(time.time() // state.DAY_SECONDS)
    page.entries.ask(lambda redis: redis.hset(f'hours:{{{uuid}}}', day, '0 1000 77000000 3 0'))
    page.looks.changed([])
    assert '77 MB' in page.rows()['Machine 1']


def test_all_who_wait_for_a_slow_look_share_it_or_its_error():
    made, go = [], gevent.event.Event()

    def make_one() -> None:
        made.append(len(made))
        go.wait()
        raise StoreDown('Redis does not answer')

    shared = look.Shared(make_one, 0.04)
    waiting = [gevent.spawn(shared.get) for _ in range(5)]
    gevent.sleep(0.05)  # it takes longer than an error is shared that comes at once
    go.set()
    gevent.joinall(waiting)
    assert [type(each.exception) for each in waiting] == [StoreDown] * 5
    assert made == [0]
