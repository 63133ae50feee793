"""Workers as they are seen over Redis."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conftest import until

from rendezvous.store.entries import scan
from rendezvous.store.presence import Presence
from rendezvous.store.state import Why

ADDRESS = '192.0.2.1'
WRONG = Why('wrong')
ABOUT = {
    'node': 'attic',
    'number': 1,
    'workers': 2,
    'pid': 77,
    'version': '1.0',
    'since': 1000.0,
    'connections': 5,
    'most': 1000,
    'memory': 2**24,
    'counters': {'handshakes': 3, 'refused 401 no such UUID': 1},
}


class Told:
    """A worker as it is seen over Redis: what it writes, and whether it listens to its channel."""

    def __init__(self, entries, **about):
        self.entries = entries
        self.presence = Presence(entries, lambda: ABOUT | about)
        self.name = self.presence.name
        self.subscription = entries.ask(lambda redis: redis.pubsub())
        self.subscription.subscribe(self.presence.channel)
        self.subscription.get_message(timeout=5)

    def online(self, *uuids: str) -> None:
        for uuid in uuids:
            self.presence.note_online(uuid, ADDRESS)
        self.write(*uuids)

    def write(self, *uuids: str) -> None:
        self.presence.write(dict.fromkeys(uuids, (1, 0)))

    def refuse(self, uuid: str, why: Why, until: float = 0) -> None:
        self.presence.note_refusal(uuid, ADDRESS, why, until)
        self.write()

    def kill(self) -> None:
        self.subscription.close()

        def listeners() -> int:
            channel = self.presence.channel
            ((_, count),) = self.entries.ask(lambda redis: redis.pubsub_numsub(channel))
            return count

        until(lambda: not listeners(), 'Redis has noticed')


@contextmanager
def working(entries) -> Iterator[Callable[..., Told]]:
    """Starts workers; at the end they are killed."""
    workers: list[Told] = []

    def work(**about) -> Told:
        workers.append(Told(entries, **about))
        return workers[-1]

    yield work
    for worker in workers:
        worker.kill()


def keys_of(entries, uuid: str) -> set[str]:
    """But for those that say for ten minutes what a cluster was told last."""
    found = entries.ask(lambda redis: scan(redis, f'*{uuid}*'))
    return {key for key in found if not key.startswith('batch:')}


def everywhere(entries, *command: str) -> list:
    """What Redis answers to a command, or each primary of a cluster."""

    def ask(redis) -> list:
        if not entries.is_cluster:
            return [redis.execute_command(*command)]
        return [redis.execute_command(*command, target_nodes=n) for n in redis.get_primaries()]

    return entries.ask(ask)
