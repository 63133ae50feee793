"""The entries in Redis: the only file that knows its keys and the JSON in them."""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice

import redis
from gevent.lock import Semaphore
from redis.backoff import NoBackoff
from redis.retry import Retry

from rendezvous.store import embedded as store
from rendezvous.store import entry_json
from rendezvous.store import rations as guesses
from rendezvous.store.entry_json import DIGITS
from rendezvous.store.options import Options
from rendezvous.wire import sockets
from rendezvous.wire.codes import UUID
from rendezvous.wire.programs import Mistake

log = logging.getLogger('entries')

CONNECTIONS = 16  # as many questions to Redis at a time, however many register
PLACE_SECONDS = 10  # that a question may wait for those before it: a slow disk is no dead Redis
ANEW_SECONDS = 1  # between two times that all connections are made anew
ANSWER_SECONDS = 2  # a local Redis answers in under a millisecond; more is no answer
CHANGES = 'entries'  # the channel on which changed UUIDs are published
SILENT_SECONDS = 5  # then it is asked whether it is still there
SLICE = 100  # entries that are looked at without a pause, some 3 ms
ANY_UUID = '-'.join('?' * count for count in (8, 4, 4, 4, 12))  # as Redis matches keys
EVICTS = 'Redis may delete entries where its memory is full: set maxmemory-policy %s to noeviction'


class StoreDown(Mistake):
    """Redis does not answer, or not as it should."""


class StoreRefuses(StoreDown):
    """Redis answers and does not do what it is asked: it is read-only, full, or we may not."""


class WrongPassword(StoreDown):
    """Redis answers, but not to us."""


class Entries:
    """The entries, by UUID in lower case; keys that are not UUIDs are nobody's and left alone."""

    def __init__(self, options: Options, starts_store: bool = True):
        self._options, self._issuer = options, options.rendezvous_host
        self._places = Semaphore(CONNECTIONS)
        self._anew_at = -math.inf
        pool = redis.ConnectionPool(
            host=options.redis_host,
            port=options.redis_port,
            password=options.redis_auth or None,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            decode_responses=True,
            encoding_errors='replace',  # in keys that are nobody's entries
            protocol=2,
            redis_connect_func=None if options.redis_auth else store.vet,
            # once more at once: a connection that waited in the pool may be dead
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = redis.Redis(connection_pool=pool)
        self._count_try = self._redis.register_script(guesses.SCRIPT)
        self._store = store.Store(options, self._redis)

    def open(self) -> None:
        """Brings the store up where that is ours to do. Raises Mistake or StoreDown."""
        try:
            self._ask(self._redis.ping)
        except WrongPassword as error:
            raise Mistake(str(error)) from None  # unlike a Redis that is down, it stays so
        self._store.look()
        with suppress(StoreDown):  # it does not say
            policy = self._ask(self._redis.info, 'memory').get('maxmemory_policy', '')
            if policy.startswith('allkeys'):
                log.warning(EVICTS, policy)

    def close(self) -> None:
        """Ends the embedded store if this process started it."""
        self._redis.connection_pool.disconnect()
        self._store.stop()

    def get(self, uuid: str) -> dict | None:
        """The entry, or None; raises StoreDown."""
        (value,) = self._ask(self._redis.mget, uuid)  # which is None where GET refuses the type
        entry = entry_json.read(value)
        return entry and entry | {'uuid': uuid}

    def count_try(
        self, uuid: str, place: str, code: str, known: bool, now: float
    ) -> guesses.Verdict:
        """Counts a try to register `uuid` at `now`, in seconds since 1970, and what comes of it.

        `place` is what guesses.network gives, or '' where addresses say nothing. `code` is what it
        is: 'wrong', 'right', or 'long', which is a right one, too. Raises StoreDown.
        """
        most = self._options.wrong_codes_per_address, self._options.wrong_codes_per_day
        record = guesses.record(uuid) if known else guesses.NOBODY
        keys = guesses.ADDRESSES, guesses.LATEST, record
        more = *most, now, guesses.MOST, guesses.MAX_SHARED
        ration, seconds, used_up, refused = self._ask(
            self._count_try, keys, [uuid, place, code, *more]
        )
        if 'READONLY' in refused:
            self._connect_anew(time.monotonic())
        return guesses.Verdict(ration, seconds, bool(used_up), _said(refused))

    def used_up(self, uuid: str) -> float | None:
        """When strangers used up their wrong codes for it, in seconds since 1970, if that is not
        over or forgiven. Raises StoreDown.
        """
        with suppress(StoreRefuses, ValueError):  # somebody else made another thing of it
            at = float(self.ask(lambda redis: redis.hget(guesses.record(uuid), 'used_up')) or 0)
            return at if abs(time.time() - at) < guesses.DAY else None

    def all(self) -> list[dict]:
        """UUID, labels and state of each entry, sorted by label; raises StoreDown.

        `created` is in seconds since 1970, or None: nobody knows.
        """
        keys = self._ask(scan, self._redis, ANY_UUID)
        found = {}
        for some in slices(keys):
            uuids = [key for key in some if UUID.fullmatch(key) and key == key.lower()]
            values = self._ask(self._redis.mget, uuids) if uuids else []
            for uuid, value in zip(uuids, values, strict=True):
                if value is not None:  # it was deleted just now
                    shown = _shown(uuid, value)
                    found['\0'.join([*shown['labels'], uuid])] = shown
        return [found[key] for key in sorted(found)]  # texts: 10,000 in some milliseconds

    def shown(self, uuid: str) -> dict | None:
        """What `all` gives of one entry, or None: there is none. Raises StoreDown."""
        (value,) = self._ask(self._redis.mget, uuid)
        return None if value is None else _shown(uuid, value)

    def add(self, uuid: str, labels: list[str], digits: int = DIGITS) -> dict | None:
        """Makes and keeps a new entry, or None: that UUID has one. Raises StoreDown."""
        entry = {'uuid': uuid, **entry_json.secret(uuid, digits, self._issuer)}
        entry |= {'labels': labels, 'created': time.time()}
        return entry if self.adopt(uuid, entry) else None

    def adopt(self, uuid: str, entry: dict) -> bool:
        """Keeps an entry as it is, unless that UUID has one; raises StoreDown."""
        value = json.dumps(entry)
        made = self._ask(self._redis.set, uuid, value, nx=True)
        # Where the first answer got lost and the question was asked again, what is there is ours.
        return bool(made) or self._ask(self._redis.mget, uuid) == [value]

    def rename(self, uuid: str, labels: list[str]) -> bool:
        """Whether there was one, as of those that follow; each is atomic and raises StoreDown."""
        return bool(self._change(uuid, lambda entry: entry | {'labels': labels}, tell=False))

    def disable(self, uuid: str) -> bool:
        def disabled(entry: dict) -> dict:
            return entry | {'disabled': entry.get('disabled') or time.time()}

        return bool(self._change(uuid, disabled))

    def enable(self, uuid: str) -> bool:
        def enabled(entry: dict) -> dict:
            if entry.pop('disabled', None):
                entry['enabled'] = time.time()
            return entry

        return bool(self._change(uuid, enabled))

    def forgive(self, uuid: str) -> None:
        """Forgets the wrong codes that were tried for it; raises StoreDown."""
        keys = uuid, guesses.record(uuid)
        self.ask(lambda redis: redis.eval(guesses.FORGIVE, len(keys), *keys, time.time()))

    def rekey(self, uuid: str, digits: int | None = None) -> dict | None:
        """The entry with a new secret; `digits` of its codes: None means as many as before."""

        def with_secret(entry: dict) -> dict:
            entry.pop('qrcodeURL', None)  # node-rendezvous put the old secret there
            # It registers nobody; the log says of who tries it that it is the old one.
            entry['formerly'] = entry.get('authParams')
            return entry | entry_json.secret(uuid, digits or entry_json.digits(entry), self._issuer)

        return self._change(uuid, with_secret)

    def delete(self, uuid: str) -> bool:
        keys = [f'{name}:{uuid}' for name in ('seen', 'rendezvous', 'refused')]

        def forget(client: redis.Redis) -> bool:
            with client.pipeline() as transaction:
                transaction.delete(uuid).delete(*keys)
                return bool(transaction.publish(CHANGES, uuid).execute()[0])

        return self.ask(forget)

    def _change(self, uuid: str, change: Callable[[dict], dict], tell: bool = True) -> dict | None:
        """Keeps what `change` makes of an entry, and tells the servers; None: there is none."""

        def exchange(transaction) -> dict | None:
            (value,) = transaction.mget(uuid)
            transaction.multi()
            if value is None:
                return None
            entry = change((entry_json.read(value) or {}) | {'uuid': uuid})
            transaction.set(uuid, json.dumps(entry))
            if tell:
                transaction.publish(CHANGES, uuid)
            return entry

        # It watches the key, and begins again where somebody else changed it.
        return self._ask(self._redis.transaction, exchange, uuid, value_from_callable=True)

    def changes(self) -> Iterator[str]:
        """For ever: each UUID whose entry is changed, '' where some may have been missed.

        Raises StoreDown.
        """
        with self._redis.pubsub() as subscription:
            self._ask(subscription.subscribe, CHANGES)
            asked = False
            while True:
                message = self._ask(subscription.get_message, timeout=SILENT_SECONDS)
                if message is None and asked:
                    raise StoreDown('Redis does not answer: it said nothing for too long')
                if message is None:
                    self._ask(subscription.ping)
                elif message['type'] != 'pong':
                    # It subscribes again, too, when it lost the connection in between.
                    yield message['data'] if message['type'] == 'message' else ''
                asked = message is None

    def ask(self, question):
        """What `question` answers, a function of the client; raises StoreDown."""
        return self._ask(question, self._redis)

    def _ask(self, command, *args, **kwargs):
        if not self._places.acquire(timeout=PLACE_SECONDS):
            raise StoreDown(
                f'Redis is busy: no turn for this question within {PLACE_SECONDS} seconds'
            )
        try:
            return self._try(command, *args, **kwargs)
        except redis.AuthenticationError as error:
            sentence = 'set redis_auth in local.py to its password, or redis_port to another one'
            raise WrongPassword(f'Redis refuses us ({_said(error)}): {sentence}') from None
        except redis.ResponseError as error:
            sentence = 'mend that there, or set redis_host and redis_port in local.py'
            raise StoreRefuses(f'Redis refuses ({_said(error)}): {sentence}') from None
        except (redis.RedisError, OSError, ValueError) as error:  # it may be no Redis at all
            sentence = 'start it, or set redis_host and redis_port in local.py'
            raise StoreDown(f'Redis does not answer ({_said(error)}): {sentence}') from None
        finally:
            self._places.release()

    def _try(self, command, *args, **kwargs):
        """What it answers; where that is ours to mend, at the second try or the third."""
        began = time.monotonic()
        for tries_left in (2, 1, 0):
            try:
                return command(*args, **kwargs)
            except (redis.ConnectionError, redis.ResponseError) as error:
                if not tries_left or not self._mend(error, began):
                    raise

    def _mend(self, error: redis.RedisError, began: float) -> bool:
        """Whether a question that began then is worth another try."""
        if isinstance(error, redis.AuthenticationError):
            return self._learn_password()
        if isinstance(error, redis.ConnectionError):
            return self._store.start()
        return 'READONLY' in _said(error) and self._connect_anew(began)

    def _connect_anew(self, began: float) -> bool:
        """After a fail-over: the connections that there are lead to the primary of before."""
        if time.monotonic() > self._anew_at + ANEW_SECONDS:
            self._anew_at = time.monotonic()
            self._redis.connection_pool.disconnect(inuse_connections=False)
            self._redis.connection_pool.reset()
        return began <= self._anew_at

    def _learn_password(self) -> bool:
        """Whether what we lacked is the embedded server's own password."""
        pool = self._redis.connection_pool
        if self._options.redis_auth or pool.connection_kwargs['password'] == store.password():
            return False
        pool.connection_kwargs['password'] = store.password()
        pool.reset()  # those that there are go on without
        return True


def slices(items: Iterable, size: int = SLICE) -> Iterator[list]:
    """The items, some at a time; before each some others have their turn."""
    items = iter(items)
    while some := list(islice(items, size)):
        sockets.take_turn()
        yield some


def scan(client: redis.Redis, pattern: str, at_once: int = 500) -> set[str]:
    """The keys that match; a set: SCAN may return one more than once.

    `at_once` is how many keys Redis looks at for an answer: more where few of them match.
    """
    found = client.scan_iter(pattern, count=at_once)
    return {key for some in slices(found) for key in some}


def _shown(uuid: str, value: str) -> dict:
    return {'uuid': uuid, **entry_json.summary(entry_json.read(value) or {})}


def _said(error: Exception | str) -> str:
    """What Redis or the system says, for a line of the log; nothing of what was asked: a secret."""
    text = str(error).rpartition(' of pipeline caused error: ')[2].partition(', with args')[0]
    code = getattr(error, 'status_code', None) or ''
    return re.sub('[^ -~]', '?', f'{code} {text}'.strip())[:200]
