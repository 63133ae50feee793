"""The entries in Redis: the only file that knows its keys and the JSON in them."""

import json
from collections.abc import Iterator

import pyotp
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import guesses
import store
from auth import UUID
from options import Mistake

CONNECTIONS = 16  # as many questions to Redis at a time, however many register
ANSWER_SECONDS = 2  # a local Redis answers in under a millisecond; more is no answer
CHANGES = 'entries'  # the channel on which changed UUIDs are published
SILENT_SECONDS = 5  # then it is asked whether it is still there
DIGITS = 6  # of a code: all that programs for node-rendezvous know
SECRET_CHARACTERS = 64  # of base32: 40 octets, as node-rendezvous made them


class StoreDown(Mistake):
    """Redis does not answer, or not as it should."""


class WrongPassword(StoreDown):
    """Redis answers, but not to us."""


class Entries:
    """The entries, by UUID in lower case; keys that are not UUIDs are nobody's and left alone."""

    def __init__(self, options: dict):
        self._options = options
        pool = redis.BlockingConnectionPool(
            max_connections=CONNECTIONS,
            timeout=ANSWER_SECONDS,
            host=options['redis_host'],
            port=options['redis_port'],
            password=options['redis_auth'] or None,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            decode_responses=True,
            encoding_errors='replace',  # in keys that are nobody's entries
            protocol=2,
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

    def close(self) -> None:
        """Ends the embedded store if this process started it."""
        self._redis.connection_pool.disconnect()
        self._store.stop()

    def get(self, uuid: str) -> dict | None:
        """The entry, or None; raises StoreDown."""
        return _entry(self._ask(self._redis.get, uuid))

    def count_try(self, uuid: str, address: str, known: bool, right: bool, now: float) -> int:
        """Counts a try of `address` to register `uuid` at `now`, in seconds since 1970.

        The seconds to wait where there were too many wrong ones, else 0; raises StoreDown.
        """
        limits = self._options['wrong_codes_per_address'], self._options['wrong_codes_per_day']
        keys = guesses.keys(uuid, address, known)
        return self._ask(self._count_try, keys, [*limits, int(right), now])

    def all(self) -> list[dict]:
        """UUID and labels of each entry, sorted by label; raises StoreDown."""
        # A set: SCAN may return a key more than once.
        keys = self._ask(lambda: set(self._redis.scan_iter(match='*-*-*-*-*', count=1000)))
        uuids = [key for key in keys if UUID.fullmatch(key) and key == key.lower()]
        values = self._ask(self._redis.mget, uuids) if uuids else []
        entries = [
            {'uuid': uuid, 'labels': _labels(value)}
            for uuid, value in zip(uuids, values, strict=True)
            if value is not None  # it was deleted just now
        ]
        return sorted(entries, key=lambda entry: (entry['labels'], entry['uuid']))

    def add(self, uuid: str, labels: list[str], digits: int = DIGITS) -> dict | None:
        """Makes and keeps a new entry, or None: that UUID has one. Raises StoreDown."""
        secret = pyotp.random_base32(SECRET_CHARACTERS)
        name, issuer = uuid, self._options['rendezvous_host']
        totp = pyotp.TOTP(secret, digits=digits, name=name, issuer=issuer)
        entry = {
            'uuid': uuid,
            'authURL': totp.provisioning_uri(),
            'authParams': {
                'protocol': 'totp',
                'algorithm': 'sha1',
                'length': 40,  # of the secret, in octets
                'step': 30,
                'base32': secret,
                'name': name,
                'issuer': issuer,
            },
            'labels': labels,
        }
        if digits != DIGITS:
            entry['authParams']['digits'] = digits
        value = json.dumps(entry)
        made = self._ask(self._redis.set, uuid, value, nx=True)
        # Where the first answer got lost and the question was asked again, what is there is ours.
        return entry if made or self._ask(self._redis.get, uuid) == value else None

    def delete(self, uuid: str) -> bool:
        """Whether there was one; raises StoreDown."""
        return bool(self._ask(self._redis.delete, uuid))

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
        try:
            try:
                return command(*args, **kwargs)
            except redis.ConnectionError:
                if not self._store.start():
                    raise
                return command(*args, **kwargs)
        except redis.AuthenticationError as error:
            sentence = 'set redis_auth in local.py to its password'
            raise WrongPassword(f'Redis refuses us ({error}): {sentence}') from None
        except (redis.RedisError, OSError) as error:
            sentence = 'start it, or set redis_host and redis_port in local.py'
            raise StoreDown(f'Redis does not answer ({error}): {sentence}') from None


def _entry(value: str | None) -> dict | None:
    """What Redis holds as an entry; one that is no JSON object is none."""
    try:
        entry = json.loads(value or 'null')
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _labels(value: str) -> list[str]:
    """The labels of an entry as they can be shown, whoever wrote them."""
    labels = (_entry(value) or {}).get('labels')
    if not isinstance(labels, list):
        return []
    return [''.join(c if c.isprintable() else '\ufffd' for c in str(label)) for label in labels]
