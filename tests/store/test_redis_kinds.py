"""Redis of each kind: what redis_url names, and what happens when it moves."""

import os
import signal
import time
import uuid as uuids
from contextlib import closing, suppress

import gevent
import pytest
from conftest import descriptors, until

from rendezvous.store.client import mget
from rendezvous.store.entries import CHANGES, Entries, StoreDown, fields_of, scan
from rendezvous.store.options import DEFAULTS


def test_cluster_answers_as_one_redis(redis_cluster):
    with closing(Entries(DEFAULTS | redis_cluster)) as entries:
        assert entries.is_cluster
        entries.open()
        names = [f'key{{{number}}}' for number in range(30)]

        def fill(redis):
            with redis.pipeline(transaction=False) as questions:
                for number, name in enumerate(names):
                    questions.set(name, str(number))
                return questions.execute()

        assert all(entries.ask(fill))
        assert entries.ask(lambda redis: mget(redis, [*names, 'none'])) == [
            *map(str, range(30)),
            None,
        ]
        assert entries.ask(lambda redis: scan(redis, 'key*')) == set(names)
        script = "return redis.call('GET', KEYS[1]) .. ARGV[1]"
        assert entries.run(script, [names[3]], ['!']) == '3!'
        calls = [((name,), ('?',)) for name in names]
        for _ in range(2):
            assert entries.run_all(script, calls) == [f'{number}?' for number in range(30)]
        entries.ask(lambda redis: redis.hset('hash', mapping={'a': '1', 'b': '2'}))
        assert entries.ask(lambda redis: fields_of(redis, 'hash')) == {'a': '1', 'b': '2'}
        assert entries.ask(lambda redis: redis.time())[0] > 1.7e9
        assert entries.ask(lambda redis: redis.delete(*names, 'hash')) == 31


def test_after_a_fail_over_the_primary_that_sentinels_name_is_asked(sentinels):
    with closing(Entries(DEFAULTS | sentinels.options)) as entries:
        entries.open()
        before = sentinels.primary()
        assert entries.ask(lambda redis: redis.set('a', '1'))
        sentinels.fail_over()
        assert sentinels.primary() != before
        began = time.monotonic()
        assert entries.ask(lambda redis: redis.set('a', '2'))
        assert time.monotonic() - began < 5
        assert entries.ask(lambda redis: redis.get('a')) == '2'


class Listener:
    """Who follows the changes for as long as Redis answers, and then begins anew, as a worker."""

    def __init__(self, entries: Entries):
        self.heard, self._entries = set(), entries
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            with suppress(StoreDown):
                for _, uuid in self._entries.changes():
                    self.heard.add(uuid)
            gevent.sleep(0.1)

    def hears(self) -> None:
        """Returns when a change is told that is made now."""
        self.heard.clear()
        until(lambda: self._made(str(uuids.uuid4())), 'a change is told', 15)

    def _made(self, uuid: str) -> bool:
        with suppress(StoreDown):
            self._entries.add(uuid, [])
            gevent.sleep(0.1)
        return uuid in self.heard

    def stop(self) -> None:
        self._greenlet.kill()


FAULTS = {
    'killed': lambda watched, primary: primary.kill(),
    'frozen': lambda watched, primary: os.kill(primary.pid, signal.SIGSTOP),
    'demoted': lambda watched, primary: watched.sentinels[0].ask(
        'SENTINEL', 'FAILOVER', watched.service
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_after_a_fault_the_primary_that_sentinels_name_answers_and_tells(sentinels, fault):
    before, counted = sentinels.primary(), descriptors()
    with closing(Entries(DEFAULTS | sentinels.options)) as entries:
        listener = Listener(entries)
        listener.hears()
        FAULTS[fault](sentinels, sentinels.nodes[0])
        sentinels.until_moved(before)
        began = time.monotonic()
        listener.hears()
        count = 'PUBSUB', 'NUMSUB', CHANGES
        until(lambda: sentinels.nodes[1].ask(*count) == [CHANGES, 1], 'it listens there', 15)
        print('SECONDS', fault, time.monotonic() - began)
        listener.stop()
    until(lambda: descriptors() <= counted, 'no descriptor is left')
