"""How a batch of a worker gets into Redis.

On one Redis that is one script: all of it is written, or nothing. In a cluster a script touches one
slot: what is new of each UUID is written whole or not at all, and a batch of which a part is
missing comes again until all of it is written. What adds up must not be added twice: the number of
the batch is kept beside it. On one Redis that is one key for the worker. In a cluster it is one
more write for each UUID that has a visit, a refusal, or hours; it is kept for ten minutes, and
where the cluster is away for longer in the midst of a batch, that batch may count twice.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, TypedDict

from redis import Redis

from rendezvous.store import keys, scripts
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json
from rendezvous.store.facts import Why

REMEMBER_SECONDS = 86_400  # the number of the last batch
COUNTS_SECONDS = 600  # the same in a cluster, for each UUID


class Refused(TypedDict):
    """The refusals of one kind that one address got, since the last batch."""

    why: Why
    first: float  # seconds since 1970
    last: float
    count: int
    until: float


class Sign(TypedDict):
    """When and where a hidden server was seen; times are in seconds since 1970."""

    at: float
    address: str


HourRow = tuple[str, int, list[int]]  # UUID, hours since 1970, what is to be added


class Batch(TypedDict):
    """What is new."""

    counts: dict[str, tuple[int, int] | None]  # None: the hidden server has left
    gone: dict[str, float]  # it has gone for good, and when
    seen: dict[str, Sign]
    rows: list[tuple[str, str]]  # UUIDs, and rendezvous that are over, as JSON
    refusals: list[tuple[str, str, str, Refused]]  # UUID, kind, address
    hours: list[HourRow]
    number: int


class Written(NamedTuple):
    """What became of a batch."""

    is_lost: bool  # nothing was written: Redis has lost what was written before
    strangers: list[tuple[str, str]]  # UUIDs, and workers that are said to have it and do not live


def write(entries: Entries, worker: str, batch: Batch, how: Json, about: Json) -> Written:
    """Writes a batch of the worker of that name. Raises StoreDown: it is to be sent again.

    `how` is what the scripts take to write it, `about` what the worker says of itself.
    """
    counts = {uuid: '{} {}'.format(*count or (0, 0)) for uuid, count in batch['counts'].items()}
    news: Json = {**batch, 'counts': counts}
    more = {'name': worker, 'number': str(batch['number']), 'before': str(batch['number'] - 1)}
    how, about = how | more, about | more | {'remember': REMEMBER_SECONDS}
    if entries.is_cluster:
        return _in_a_cluster(entries, news, how | {'remember_counts': COUNTS_SECONDS}, about)
    of_worker = keys.live(worker), keys.batch(worker)
    of_all = keys.SERVERS, keys.HEARD, keys.of('hours', keys.ALL)
    texts = json.dumps(news), json.dumps(about | how)
    return _written(entries.run(scripts.WRITE, [*of_worker, *of_all], texts))


def node(entries: Entries, uuid: str) -> str:
    """The node of a cluster that has what is known of it."""

    def name(cluster: Any) -> str:
        return cluster.get_node_from_key(uuid).name

    return entries.ask(name)


def has_lost(
    entries: Entries, worker: str, number: int, counts: dict[str, tuple[int, int]]
) -> bool:
    """Whether Redis has lost the last batch of that worker, or more. In a cluster each node can
    lose its part: `counts` are what was written last to each. Raises StoreDown.
    """

    def read(redis: Redis) -> list:
        with redis.pipeline(transaction=False) as questions:
            questions.get(keys.batch(worker))
            for uuid in counts:
                questions.hget(keys.of(keys.PLACES, uuid), worker)
            return questions.execute(raise_on_error=False)  # a key may be another program's

    last, *found = entries.ask(read)
    texts = ['{} {}'.format(*count) for count in counts.values()]
    lost = (
        each != text
        for each, text in zip(found, texts, strict=False)
        if not isinstance(each, Exception)
    )
    return last != str(number) or any(lost)


def _written(answer: list) -> Written:
    found, *strangers = answer
    return Written(not found, list(zip(strangers[::2], strangers[1::2], strict=True)))


def _in_a_cluster(entries: Entries, news: Json, how: Json, about: Json) -> Written:
    worker, number = how['name'], how['number']
    of_worker = keys.live(worker), keys.batch(worker)
    early = entries.run(scripts.WRITE_LIVE, of_worker, [json.dumps(about)])
    if early != '':
        return Written(not early, [])
    parts, text = list(_by_uuid(news)), json.dumps(how)
    answers = entries.run_all(
        scripts.WRITE_NEWS,
        [([uuid, keys.batch(uuid) + worker], [json.dumps(part), text]) for uuid, part in parts],
    )
    hours: dict[int, list[int]] = {}
    for (_, part), (is_there, *_) in zip(parts, answers, strict=True):
        for _, hour, more in part['hours'] if is_there else ():
            before = hours.get(hour, [0, 0, 0, 0])
            hours[hour] = [a + b for a, b in zip(before, more, strict=True)]
    if hours:
        of_all = keys.of('hours', keys.ALL), keys.batch(keys.ALL) + worker
        rows = json.dumps(list(hours.items()))
        entries.run(scripts.WRITE_HOURS, of_all, [number, rows, REMEMBER_SECONDS])
    entries.run(scripts.SIGN, [keys.SERVERS, keys.HEARD], [worker, how['now'], about['heard']])

    def end(redis: Redis) -> None:
        if news['gone']:
            redis.hdel(of_worker[0], *news['gone'])
        redis.set(of_worker[1], number, ex=REMEMBER_SECONDS)

    entries.ask(end)
    return _written([1, *(each for _, *strangers in answers for each in strangers)])


def _by_uuid(news: Json) -> Iterator[tuple[str, Json]]:
    """What is new of each UUID, as a batch of its own."""
    found: dict[str, Json] = defaultdict(
        lambda: {
            **{kind: {} for kind in ('counts', 'gone', 'seen')},
            **{kind: [] for kind in ('rows', 'refusals', 'hours')},
        }
    )
    for kind in ('counts', 'gone', 'seen'):
        for uuid, value in news[kind].items():
            found[uuid][kind][uuid] = value
    for kind in ('rows', 'refusals', 'hours'):
        for row in news[kind]:
            found[row[0]][kind].append(row)
    yield from found.items()
