"""Redis of each kind: what redis_url names, and what happens when it moves."""

import time
from contextlib import closing

from rendezvous.store.client import mget
from rendezvous.store.entries import Entries, fields_of, scan
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
