"""The entries in Redis. This is the only file that knows their keys and asks Redis.

Redis is the one that redis_host names, or the embedded store, on a Unix socket.
"""

import heapq
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import gevent
import redis
from gevent.lock import Semaphore

from rendezvous.store import client, embedded, entry_json, keys, rations, scripts
from rendezvous.store.client import Call, mget, run, run_all
from rendezvous.store.entry_json import DIGITS, Json
from rendezvous.store.options import Options
from rendezvous.wire import sockets
from rendezvous.wire.addresses import network
from rendezvous.wire.codes import UUID
from rendezvous.wire.programs import Mistake

log = logging.getLogger('entries')

CONNECTIONS = 16  # questions to Redis at a time, however many hidden servers register
TURN_SECONDS = 10  # that a question waits for others: a slow disk does not mean that Redis is down
PAUSES_SECONDS = 0.01, 0.2  # between two tries while the embedded store starts: first, longest
FAIL_FAST_SECONDS = 5  # after an embedded store that did not start in time: questions do not wait
CHANGES = 'entries'  # the channel on which changed UUIDs are published
SILENT_SECONDS = 5  # between two looks whether the embedded store still tells of changes
LOOK_SECONDS = 1  # the same of another Redis, which may be elsewhere after a fail-over
OWN = 'answers:'  # and random digits: a channel that nobody else has
SCANNED = 500  # keys that Redis looks at for an answer, which takes 1 ms to read
SLICE = 100  # entries that are processed without a pause, some 3 ms
ANY_UUID = '-'.join('?' * count for count in (8, 4, 4, 4, 12))  # as Redis matches keys
EVICTS = 'Redis may delete entries when its memory is full: set maxmemory-policy %s to noeviction'
# How it ends where one side speaks TLS, and the other one does not.
PERHAPS_TLS = re.compile('Timeout connecting|Timeout reading|reset by peer|closed by server|SSL')


class StoreDown(Mistake):
    """Redis does not answer, or not as it should."""


class StoreRefuses(StoreDown):
    """Redis answers, but refuses the question: it is read-only, full, or we lack a permission."""


class WrongPassword(StoreDown):
    """Redis refuses our password."""


class Shown(NamedTuple):
    """What may be shown of an entry, as it was read the last time."""

    text: int  # its hash
    summary: Json
    sort_key: tuple


class Read(NamedTuple):
    """An entry that is to be changed."""

    entry: Json  # {'uuid': UUID} where the text is no entry
    digest: str  # of the text: it may have octets that are no characters


class Entries:
    """The entries, by UUID in lower case; other keys belong to others and stay as they are."""

    def __init__(self, options: Options, starts_store: bool = True):
        """`starts_store`: this process starts the embedded store where nobody else has done so;
        without it, it waits for another process to start it. Raises Mistake.
        """
        self._options, self._issuer = options, options.rendezvous_host
        self.is_embedded = options.has_embedded_store
        self._launcher = embedded.Launcher() if self.is_embedded and starts_store else None
        self._turns = Semaphore(CONNECTIONS)
        self._down_since = -math.inf
        self._has_answered = False
        self.errors = 0  # questions that ended with StoreDown
        self._place = client.place(options)
        self._line = client.Line(self._place)
        self.is_cluster = self._line.is_cluster
        self._shown: dict[str, Shown] = {}

    def open(self) -> None:
        """Waits until Redis answers; starts the embedded store. Raises Mistake or StoreDown."""
        try:
            self.ask(lambda redis: redis.ping())
        except WrongPassword as error:
            raise Mistake(str(error)) from None  # a Redis that is down may come back by itself
        with suppress(StoreDown):  # we may lack the permission
            policy = self.ask(lambda redis: redis.info('memory')).get('maxmemory_policy', '')
            if policy.startswith('allkeys'):
                log.warning(EVICTS, policy)

    def close(self) -> None:
        """Ends the embedded store if this process started it."""
        self._line.close()
        if self._launcher:
            self._launcher.end()

    def where(self) -> str:
        """Where the entries are, for the log and the shell."""
        return f'the entries are in {embedded.DATA if self.is_embedded else self._place}'

    def get(self, uuid: str) -> Json | None:
        """The entry, or None; raises StoreDown."""
        (value,) = self.ask(partial(mget, keys=[uuid]))
        entry = entry_json.read(value)
        return entry and entry | {'uuid': uuid}

    def exists(self, uuid: str) -> bool:
        """Whether there is an entry, or whatever else under that key; raises StoreDown."""
        return bool(self.ask(lambda redis: redis.exists(uuid)))

    def count_try(
        self, uuid: str, place: str, code: str, known: bool, now: float
    ) -> rations.Verdict:
        """Counts a try to register `uuid` at `now`, in seconds since 1970; says what follows.

        `place` is what addresses.network gives, or '' where all clients seem to have one address.
        `code` is 'wrong', 'right', or 'long', which means a right one of more digits. `known`:
        there is an entry. Raises StoreDown.
        """
        most = self._options.wrong_codes_per_address, self._options.wrong_codes_per_day
        tried = rations.Try(uuid, place, code, known, now, *most)
        verdict = rations.judge(self.run, tried, is_cluster=self.is_cluster)
        if 'READONLY' in verdict.refused:
            self._reconnect()
        return verdict._replace(refused=_error_text(verdict.refused))

    def used_up(self, uuid: str) -> float | None:
        """When unknown addresses used up their wrong codes for it, in seconds since 1970; None
        where that is over, or the codes were cleared. Raises StoreDown.
        """
        return self.all_used_up([uuid]).get(uuid)

    def all_used_up(self, uuids: Iterable[str]) -> dict[str, float]:
        """The same of several entries, without those for which it is None. Raises StoreDown."""

        def read(some: list[str], client: redis.Redis) -> list:
            with client.pipeline(transaction=False) as questions:
                for uuid in some:
                    questions.hget(rations.record(uuid), 'used_up')
                return questions.execute(raise_on_error=False)

        found = {}
        for some in slices(uuids):
            for uuid, at in zip(some, self.ask(partial(read, some)), strict=True):
                with suppress(TypeError, ValueError):  # there is none, or another program wrote it
                    if abs(time.time() - float(at)) < rations.DAY:
                        found[uuid] = float(at)
        return found

    def all(self) -> list[Json]:
        """What may be shown of each entry, sorted as people do; raises StoreDown."""
        parts = [
            sorted((shown.sort_key, shown.summary) for shown in some)
            for some in self._read(self.uuids())
        ]
        # To sort 10,000 at once would keep others waiting.
        return [dict(summary) for some in slices(heapq.merge(*parts)) for _, summary in some]

    def uuids(self) -> list[str]:
        """Those of all entries. Redis looks at all its keys for it. Raises StoreDown."""
        keys = self.ask(partial(scan, pattern=ANY_UUID, at_once=SCANNED))
        uuids = [
            key
            for some in slices(keys)
            for key in some
            if UUID.fullmatch(key) and key == key.lower()
        ]
        for gone in self._shown.keys() - keys:
            del self._shown[gone]
        return uuids

    def some(self, uuids: Iterable[str]) -> list[Json]:
        """What may be shown of some entries: `uuid` and what entry_json.summary gives. Those that
        do not exist are left out. Only what has changed since the last time is parsed, which is
        most of the work. Raises StoreDown.
        """
        return [dict(shown.summary) for some in self._read(uuids) for shown in some]

    def shown(self, uuid: str) -> Json | None:
        """What `all` gives of one entry, or None: there is none. Raises StoreDown."""
        (value,) = self.ask(partial(mget, keys=[uuid]))
        return None if value is None else dict(self._show(uuid, value).summary)

    def _read(self, uuids: Iterable[str]) -> Iterator[list[Shown]]:
        for some in slices(uuids):
            values = self.ask(partial(mget, keys=some))
            pairs = zip(some, values, strict=True)  # None: it was deleted just now
            yield [self._show(uuid, value) for uuid, value in pairs if value is not None]

    def _show(self, uuid: str, value: str) -> Shown:
        text, shown = hash(value), self._shown.get(uuid)  # the text holds a secret: it is not kept
        if shown is None or shown.text != text:
            summary = {'uuid': uuid, **entry_json.summary(entry_json.read(value) or {})}
            shown = self._shown[uuid] = Shown(text, summary, (entry_json.sort_key(summary), uuid))
        return shown

    def add(self, uuid: str, labels: list[str], digits: int = DIGITS) -> Json | None:
        """Makes and keeps a new entry; None: that UUID has one already. Raises StoreDown."""
        secret = entry_json.secret(uuid, digits, self._issuer)
        entry = {'uuid': uuid, **secret, 'labels': labels, 'created': time.time()}
        return entry if self.insert(uuid, entry) else None

    def insert(self, uuid: str, entry: Json) -> bool:
        """Keeps an entry as it is, unless that UUID has one already; raises StoreDown."""
        value = json.dumps(entry)
        made = self.ask(lambda redis: redis.set(uuid, value, nx=True))
        # Where the first answer was lost and the question asked again, the value there is ours.
        if not made and self.ask(partial(mget, keys=[uuid])) != [value]:
            return False
        self.ask(lambda redis: redis.publish(CHANGES, uuid))
        return True

    def disable(self, uuid: str) -> bool:
        """Whether there was one; so does the next one. Both are atomic and raise StoreDown."""

        def disabled(entry: Json) -> Json:
            return entry | {'disabled': entry.get('disabled') or time.time()}

        return bool(self._change(uuid, disabled, 'disabled'))

    def enable(self, uuid: str) -> bool:
        def enabled(entry: Json) -> Json:
            if entry.pop('disabled', None):
                entry['enabled'] = time.time()
            return entry

        return bool(self._change(uuid, enabled, 'enabled'))

    def clear_wrong_codes(self, uuid: str) -> None:
        """Forgets the wrong codes that were tried for it, and lets the addresses that were refused
        for too many of them try again at once; raises StoreDown.
        """
        refusals, now = keys.of('refusals', uuid), time.time()
        kinds = [field.partition(' ') for field in self.ask(partial(fields_of, key=refusals))]
        places = {place for kind, _, of in kinds if kind == 'address' and (place := _place(of))}
        # The addresses first: what names them is removed with the rest.
        of_addresses = keys.ADDRESSES, keys.LATEST, keys.CLEARED
        self.run(scripts.CLEAR_ADDRESSES, of_addresses, [uuid, now, rations.QUARTER, *places])
        of_entry = uuid, rations.record(uuid), refusals, keys.of(keys.STATE, uuid)
        self.run(scripts.CLEAR, of_entry, [now])

    def rekey(self, uuid: str, digits: int | None = None) -> Json | None:
        """The entry with a new secret, whose codes have `digits`; None: as many as before."""

        def with_secret(entry: Json) -> Json:
            entry.pop('qrcodeURL', None)  # node-rendezvous put the old secret there
            # It registers nobody; the log says so of a hidden server that tries it.
            entry['formerly'] = entry.get('authParams')
            return entry | entry_json.secret(uuid, digits or entry_json.digits(entry), self._issuer)

        return self._change(uuid, with_secret)

    def delete(self, uuid: str) -> bool:
        """Whether there was one; all that is kept of it goes, and its name. Raises StoreDown."""
        kinds = *keys.HISTORY_OF, keys.STATE, keys.GUESSES
        of_entry = uuid, *(keys.of(kind, uuid) for kind in kinds)
        there = bool(self.run(scripts.DELETE, of_entry, [CHANGES]))
        # In another slot, so it goes afterwards: the name of a deleted entry is free meanwhile.
        self.run(scripts.DROP_NAMES, [keys.NAMES], [uuid, CHANGES])
        return there

    def _change(self, uuid: str, change: Callable[[Json], Json], state: str = '') -> Json | None:
        """Writes what `change` makes of an entry, and tells all; None: there is none.

        It starts over where another program changed the entry meanwhile. `state` as in `replace`.
        """
        while read := self.read(uuid):
            entry = change(read.entry)
            if self.replace(uuid, read, entry, state):
                return entry
        return None

    def read(self, uuid: str) -> Read | None:
        """An entry that is to be changed; None: there is none. Raises StoreDown."""
        found = self.run(scripts.READ, [uuid])
        if not found:
            return None
        text, digest = found
        return Read((entry_json.read(text) or {}) | {'uuid': uuid}, digest)

    def replace(self, uuid: str, read: Read, entry: Json, state: str = '') -> bool:
        """Writes an entry, and tells all; False: it is not as it was read any more.

        `state`: its new one, 'disabled' or 'enabled'. Raises StoreDown.
        """
        of_entry = uuid, keys.of(keys.STATE, uuid), keys.of('changes', uuid)
        more = read.digest, json.dumps(entry), CHANGES, state, time.time()
        return bool(self.run(scripts.REPLACE, of_entry, more))

    def changes(self, *channels: str) -> Iterator[tuple[str, str]]:
        """Without end: (CHANGES, the UUID of an entry that is changed), and (CHANNEL, the text) of
        each message on `channels`; (CHANGES, '') where some may have been missed.

        Raises StoreDown.
        """
        mine = OWN + secrets.token_hex(8)
        silent = SILENT_SECONDS if self.is_embedded else LOOK_SECONDS
        longest = silent + max(silent, client.ANSWER_SECONDS)
        with self.ask(lambda redis: redis.pubsub()) as subscription:
            self._ask(subscription.subscribe, mine, CHANGES, *channels)
            looked_at = heard_at = time.monotonic()
            while True:
                message = self._ask(subscription.get_message, timeout=silent)
                now = time.monotonic()
                heard_at = now if message else heard_at
                if now - heard_at > longest:
                    raise StoreDown('Redis does not answer: it was silent for too long')
                if now - looked_at >= silent:
                    looked_at = now
                    self._look(subscription, mine)
                if message and message['type'] == 'message':
                    yield message['channel'], message['data']
                elif message and message['type'] != 'pong' and message['channel'] == CHANGES:
                    # After a lost connection redis-py subscribes again, which is a message, too.
                    yield CHANGES, ''

    def _look(self, subscription: Any, mine: str) -> None:
        """Asks for a sign of a subscription, and whether it is still where the questions go: a
        primary before a fail-over tells no more of changes, and nobody counts who listens there.

        Raises StoreDown.
        """
        self._ask(subscription.ping)
        if self.is_embedded:
            return
        leads_elsewhere = False
        with suppress(StoreDown):  # the subscription may be well all the same
            leads_elsewhere = self._ask(self._line.leads_elsewhere, subscription, mine)
        if leads_elsewhere:
            raise StoreDown('Redis is elsewhere now')

    def ask(self, question: Callable[[redis.Redis], Any]) -> Any:
        """What `question` answers, a function of the client; raises StoreDown."""
        return self._ask(lambda: question(self._line.client))

    def run(self, script: str, names: Iterable[str] = (), arguments: Iterable = ()) -> Any:
        """What a script in Lua answers; Redis gets its text once. Raises StoreDown."""
        return self.ask(partial(run, script=script, keys=list(names), arguments=list(arguments)))

    def run_all(self, script: str, calls: Iterable[Call]) -> list:
        """What a script answers to each call, in one pipeline: to so many keys and arguments. Each
        call is whole or not at all; where one fails, others may be done. In a cluster the first key
        of a call says where it runs. Raises StoreDown.
        """
        return self.ask(partial(run_all, script=script, calls=list(calls)))

    def _ask(self, command: Callable[..., Any], *args, **kwargs) -> Any:
        try:
            return self._answer(command, *args, **kwargs)
        except StoreDown:
            self.errors += 1
            raise

    def _answer(self, command: Callable[..., Any], *args, **kwargs) -> Any:
        if not self._turns.acquire(timeout=TURN_SECONDS):
            raise StoreDown(f'Redis is busy: no turn for a question within {TURN_SECONDS} seconds')
        try:
            answer = self._try(command, *args, **kwargs)
            self._has_answered = True
            return answer
        except (*client.ERRORS, OSError, ValueError) as error:  # it may not even be a Redis
            raise self._failure(error) from None
        except Mistake as mistake:  # the embedded store cannot be started
            raise StoreDown(str(mistake)) from None
        finally:
            self._turns.release()

    def _failure(self, error: BaseException) -> StoreDown:
        told = client.why(error)
        why = _error_text(told)
        if isinstance(told, redis.AuthenticationError):
            sentence = 'set redis_auth in local.py to its password, or redis_port to another Redis'
            if self._options.redis_url:
                sentence = 'set user and password of redis_url in local.py to those it knows'
            return WrongPassword(f'Redis refuses us ({why}): {sentence}')
        if isinstance(error, redis.ResponseError) and not isinstance(error, client.BROKEN):
            sentence = f'mend that there, or set {self._set} in local.py'
            return StoreRefuses(f'Redis refuses ({why}): {sentence}')
        return StoreDown(self._down(why))

    def _down(self, why: str) -> str:
        if self.is_embedded:
            sentence = f'see {embedded.DATA / embedded.LOG}, or whether another program uses'
            return f'the embedded store does not answer ({why}): {sentence} that folder'
        sentence = f'start it, or set {self._set} in local.py'
        if not self._options.redis_url:
            sentence += ' (redis_host: None is the embedded store)'
        if self._place.hosts and not self._has_answered and PERHAPS_TLS.search(why):
            it = 'no TLS: redis://' if self._place.has_tls else 'TLS: rediss:// in redis_url'
            sentence += f'; or it has {it}'
        return f'Redis does not answer ({why}): {sentence}'

    @property
    def _set(self) -> str:
        return 'redis_url' if self._options.redis_url else 'redis_host and redis_port'

    def _try(self, command: Callable[..., Any], *args, **kwargs) -> Any:
        """The answer. A question is asked once more, on a new connection: the old one may be dead,
        or lead to the Redis that was the primary before a fail-over. An embedded store gets time to
        start. Nothing else asks again, and not more often: a full disk ends the store at each try.
        """
        try:
            return command(*args, **kwargs)
        except client.ERRORS as error:
            if not _may_answer_later(error):
                raise
            self._line.renew(error)
            if self.is_embedded and isinstance(error, redis.ConnectionError):
                self._await_store()
        return command(*args, **kwargs)

    def _await_store(self) -> None:
        """Returns when the embedded store answers; this process starts it where that is its part.

        Raises redis.RedisError after START_SECONDS, and in the seconds that follow at once.
        """
        pause, longest = PAUSES_SECONDS
        while True:
            try:
                self._line.client.ping()
                self._down_since = -math.inf
                return
            except redis.ConnectionError:
                if self._launcher:
                    self._launcher.start()
                if not self._has_time_to_start():
                    raise
            gevent.sleep(pause)
            pause = min(1.2 * pause, longest)

    def _has_time_to_start(self) -> bool:
        now = time.monotonic()
        if now - self._down_since > embedded.START_SECONDS + FAIL_FAST_SECONDS:
            self._down_since = now
        return now - self._down_since < embedded.START_SECONDS

    def _reconnect(self) -> None:
        """The next questions get new connections; those under way keep theirs."""
        self._line.renew()


def _may_answer_later(error: Exception) -> bool:
    if isinstance(error, redis.AuthenticationError):
        return False
    return isinstance(error, client.BROKEN) or 'READONLY' in _error_text(error)


def slices(items: Iterable, size: int = SLICE) -> Iterator[list]:
    """The items, some at a time; before each slice other greenlets get their turn."""
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


def fields_of(client: redis.Redis, key: str) -> dict[str, str]:
    """What a hash holds; {} where the key is something else.

    Redis joins its fields, 1,000 at a time: of 10,000, redis-py takes 30 ms to read one by one.
    """
    found: dict[str, str] = {}
    cursor = '0'
    while True:
        sockets.take_turn()
        cursor, count, text = client.eval(scripts.FIELDS, 1, key, cursor)
        parts = text.split('\0') if count else []
        if len(parts) != count:  # another program wrote a NUL there
            pairs = client.hscan_iter(key, count=SLICE)
            return {name: value for some in slices(pairs) for name, value in some}
        found |= dict(zip(parts[::2], parts[1::2], strict=True))
        if cursor == '0':
            return found


def _place(address: str) -> str:
    """What counts as one address; '' where another program wrote something else there."""
    try:
        return network(address)
    except ValueError:
        return ''


def _error_text(error: BaseException | str) -> str:
    """What Redis or the system says, for the log, without the command: that may hold a secret."""
    text = str(error).rpartition(' of pipeline caused error: ')[2].partition(', with args')[0]
    text = re.sub(',? script: [0-9a-f]{40}.*', '', text)  # of us all
    code = getattr(error, 'status_code', None) or ''
    return re.sub('[^ -~]', '?', f'{code} {text}'.strip())[:200]
