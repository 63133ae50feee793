"""The client that asks Redis, and what a Redis Cluster needs beside what redis-py gives."""

import hashlib
import re
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import redis
from gevent.lock import Semaphore
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import ClusterError, NoScriptError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from rendezvous.store import embedded, keys, redis_url
from rendezvous.store.options import Options
from rendezvous.store.redis_url import Place
from rendezvous.wire.addresses import is_loopback, is_number
from rendezvous.wire.programs import HERE

ANSWER_SECONDS = 2  # a local Redis answers in under a millisecond
RESOLVE_SECONDS = 1.5  # between two looks where a name leads
SENTINEL_SECONDS = 0.5  # the next Sentinel is asked then

Client = redis.Redis  # or a Cluster, which answers the same
ERRORS = redis.RedisError, RedisClusterException
# What may be well a moment later, on a new connection: a cluster tells by answers that it is not.
BROKEN = redis.ConnectionError, redis.TimeoutError, ClusterError, RedisClusterException
_KINDS = re.compile(r'- \w+:(\w+)')  # of errors, in what it says of each Sentinel
Call = tuple[Sequence[str], Sequence]  # of a script: keys and arguments


class Cluster(redis.RedisCluster):
    """A Redis Cluster, as one Redis answers: by methods alone, for it is asked from many places."""

    def time(self, **_: Any) -> Any:
        """By the clock of that one which notes when workers gave a sign."""
        return super().time(target_nodes=self.get_node_from_key(keys.SERVERS))

    def give_up(self) -> None:
        """Closes all connections, those of questions under way with their answers."""
        for node in self.get_nodes():
            if node.redis_connection:
                pool = node.redis_connection.connection_pool
                pool.update_active_connections_for_reconnect()
                pool.disconnect(inuse_connections=False)

    def publish(self, channel: Any, message: Any, **_: Any) -> int:
        """How many hear it: its answer counts those of one node alone."""
        super().publish(channel, message)
        return self.pubsub_numsub(channel)[0][1]

    def pubsub_numsub(self, *channels: Any, **_: Any) -> list:
        """In the order of `channels`, from all primaries: each knows its own subscribers alone."""
        counted = dict(super().pubsub_numsub(*channels, target_nodes=self.PRIMARIES))
        return [(channel, counted.get(channel, 0)) for channel in channels]


class SafeAnswers:
    """For a connection to what Sentinels name: it is closed where a question is given up, by a
    time limit or the end of its greenlet, as all others are. Else the answer, which is still to
    come, would be taken for that of the next question.
    """

    def read_response(self, *args: Any, disconnect_on_error: bool = True, **more: Any) -> Any:
        return super().read_response(  # type: ignore[misc]
            *args, disconnect_on_error=disconnect_on_error, **more
        )


class SafeConnection(SafeAnswers, SentinelManagedConnection):  # type: ignore[misc]
    pass


class SafeTLSConnection(SafeAnswers, SentinelManagedSSLConnection):  # type: ignore[misc]
    pass


class Closing:
    """For a pool: connections that it has given up are closed when their questions are over, where
    redis-py leaves them open.
    """

    def release(self: Any, connection: Any) -> None:
        is_given_up = connection not in self._in_use_connections
        super().release(connection)  # type: ignore[misc]
        if is_given_up:
            connection.disconnect()


class Pool(Closing, redis.ConnectionPool):
    """Of one Redis."""


class PoolOfSentinels(Closing, SentinelConnectionPool):
    """Of the primary that they name."""


def place(options: Options) -> Place:
    """Where the Redis is that the options name; the embedded store has a Unix socket."""
    if options.redis_url:
        return redis_url.place(options.redis_url)
    if options.redis_host is None:
        return Place(redis_url.UNIX, [], str(embedded.socket_path()))
    host = options.redis_host, options.redis_port
    return Place('', [host], password=options.redis_auth or None)


class Line:
    """The connections to one Redis, to the primary that Sentinels name, or to a cluster.

    They leave it to `Entries` to ask again.
    """

    def __init__(self, place: Place):
        self._place = place
        self._client: Any = None
        self._making = Semaphore()
        self.is_cluster = place.kind == redis_url.CLUSTER
        self._resolved_at, self._strange = time.monotonic(), 0

    @property
    def client(self) -> Client:
        """Raises redis.RedisError or RedisClusterException where it has to ask for a cluster."""
        if self._client is not None:
            return self._client
        if not self._making.acquire(timeout=ANSWER_SECONDS):  # a cluster's connects meanwhile
            raise redis.ConnectionError('no node of the cluster answers')
        try:
            self._client = self._client or _client(self._place)
            return self._client
        finally:
            self._making.release()

    def renew(self, error: Exception | None = None) -> None:
        """The next questions get new connections; those under way keep theirs.

        A cluster's client has done so by itself, unless the error says that it knows no way.
        """
        client = self._client
        if client is None:
            return
        if not self.is_cluster:
            client.connection_pool.disconnect(inuse_connections=False)
            client.connection_pool.reset()
        elif isinstance(error, RedisClusterException) and error.__cause__:
            self._client = None  # the hosts that the options name may know more
            client.give_up()

    def leads_elsewhere(self, subscription: Any, channel: str) -> bool:
        """Whether a subscription to `channel`, which nobody else has, is not where questions go.

        Where they went to a replica, a primary before a fail-over, they get new connections.
        Raises what redis-py raises.
        """
        if self.is_cluster:
            return not self.client.pubsub_numsub(channel)[0][1]
        if self._has_moved(subscription):
            self.renew()
            return True
        is_replica, is_heard = self._look(channel)
        if is_replica:
            self.renew()
            _, is_heard = self._look(channel)
        return not is_heard

    def _look(self, channel: str) -> tuple[bool, bool]:
        """Whether a replica answers, and whether somebody hears the channel there; without a
        permission no and yes.
        """
        with self.client.pipeline(transaction=False) as questions:
            questions.execute_command('HELLO')
            questions.pubsub_numsub(channel)
            about, counted = questions.execute(raise_on_error=False)
        is_replica = isinstance(about, list) and 'replica' in about
        return is_replica, not isinstance(counted, list) or bool(counted[0][1])

    def _has_moved(self, subscription: Any) -> bool:
        """Whether the Sentinels, or the DNS twice in a row, say another address now."""
        if self._place.kind == redis_url.SENTINEL:
            pool: Any = self.client.connection_pool
            before = pool.master_address
            with suppress(redis.ConnectionError, redis.TimeoutError):  # the primary goes on
                return pool.get_master_address() != before is not None
            return False
        host, port = self._place.hosts[0] if self._place.hosts else ('', 0)
        if is_number(host) or is_loopback(host) or not host:
            return False
        if time.monotonic() - self._resolved_at < RESOLVE_SECONDS:
            return False
        self._resolved_at = time.monotonic()
        self._strange = 0 if _leads_to(host, port, subscription) else self._strange + 1
        return self._strange > 1

    def close(self) -> None:
        client, self._client = self._client, None
        if isinstance(client, Cluster):
            client.close()
        elif client is not None:
            client.connection_pool.disconnect()
            if self._place.kind == redis_url.SENTINEL:
                client.connection_pool.sentinel_manager.close()


def _leads_to(host: str, port: int, subscription: Any) -> bool:
    """Whether a name has the address of that connection, as far as is known."""
    try:
        there = subscription.connection._sock.getpeername()[0]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, AttributeError):  # it is lost just now
        return True
    return there in {address[0] for *_, address in found}


def _client(place: Place) -> Any:
    settings = _settings(place)
    if place.kind == redis_url.UNIX:
        settings |= {'connection_class': redis.UnixDomainSocketConnection, 'path': place.path}
        return redis.Redis(connection_pool=Pool(db=place.database, **settings))
    tls = _tls(place)
    if place.kind == redis_url.CLUSTER:
        seeds = [ClusterNode(*host) for host in place.hosts]
        only_once = Retry(NoBackoff(), 0)
        return Cluster(
            startup_nodes=seeds,
            retry=only_once,
            require_full_coverage=False,
            ssl=place.has_tls,
            **settings,
            **tls,
        )
    if place.kind == redis_url.SENTINEL:
        return redis.Redis(
            connection_pool=_sentinels(place, settings | {'db': place.database}, tls)
        )
    ((host, port),) = place.hosts
    kind = redis.SSLConnection if place.has_tls else redis.Connection
    settings |= {'connection_class': kind, 'host': host, 'port': port, 'db': place.database} | tls
    return redis.Redis(connection_pool=Pool(**settings))


def _settings(place: Place) -> dict[str, Any]:
    return {
        'socket_timeout': ANSWER_SECONDS,
        'socket_connect_timeout': ANSWER_SECONDS,
        'decode_responses': True,
        'encoding_errors': 'replace',  # in keys that are no entries
        'protocol': 2,
        'username': place.user,
        'password': place.password,
    }


def _tls(place: Place) -> dict[str, Any]:
    return {name: str(HERE / file) for name, file in place.files.items()}


def _sentinels(
    place: Place, settings: dict[str, Any], tls: dict[str, Any]
) -> SentinelConnectionPool:
    to_sentinels = {
        'socket_timeout': SENTINEL_SECONDS,
        'socket_connect_timeout': SENTINEL_SECONDS,
        'username': place.more.get('sentinel_username'),
        'password': place.more.get('sentinel_password'),
        'ssl': place.has_tls,
        'retry': Retry(NoBackoff(), 0),
    }
    sentinel = Sentinel(place.hosts, sentinel_kwargs=to_sentinels | tls)
    settings |= {'connection_class': SafeTLSConnection if place.has_tls else SafeConnection}
    return PoolOfSentinels(place.service, sentinel, **settings, **tls)


def why(error: BaseException) -> BaseException | str:
    """What is to be told of an error: redis-py wraps it where it asked several hosts in vain."""
    if isinstance(error, RedisClusterException) and error.__cause__:
        return error.__cause__
    if isinstance(error, MasterNotFoundError):
        kinds = sorted(set(_KINDS.findall(str(error))))
        said = f'no Sentinel names a primary: {", ".join(kinds) or "they know none"}'
        wants = '; a Sentinel wants a password, see ?sentinel_password= in local.example.py'
        return said + wants if 'AuthenticationError' in kinds else said
    return error


def mget(client: Client, keys: Iterable[str]) -> list[str | None]:
    """The values of keys of any slots; None where there is none, or it is no string."""
    asked = list(keys)
    if not asked:
        return []
    read: Any = client.mget_nonatomic if isinstance(client, Cluster) else client.mget
    return read(asked)


def run(client: Client, script: str, keys: Sequence[str], arguments: Sequence) -> Any:
    """What a script in Lua answers; Redis gets its text once."""
    call = len(keys), *keys, *arguments
    try:
        return client.evalsha(_sha(script), *call)
    except NoScriptError:
        return client.eval(script, *call)


def run_all(client: Client, script: str, calls: list[Call]) -> list:
    """What a script answers to each call, in one pipeline; see Entries.run_all."""
    answers = _run_all(client, ('EVALSHA', _sha(script)), calls)
    left = [number for number, each in enumerate(answers) if isinstance(each, NoScriptError)]
    again = _run_all(client, ('EVAL', script), [calls[number] for number in left])
    for number, answer in zip(left, again, strict=True):
        answers[number] = answer
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _run_all(client: Client, command: tuple[str, str], calls: list[Call]) -> list:
    with client.pipeline(transaction=False) as questions:
        for named, arguments in calls:
            # Unless redis-py is told, it asks a cluster what the keys of each script are.
            to: dict[str, Any] = {}
            if isinstance(client, Cluster):
                to = {'target_nodes': client.get_node_from_key(named[0])}
            questions.execute_command(*command, len(named), *named, *arguments, **to)
        return questions.execute(raise_on_error=False)


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode()).hexdigest()
