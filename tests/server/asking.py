"""What a worker says over Redis, asked as the page does."""

from conftest import until

from rendezvous.server.worker import Worker
from rendezvous.store import questions, state
from rendezvous.store.entries import Entries
from rendezvous.store.questions import OpenPipe


def follows(entries: Entries, worker: Worker) -> str:
    """Waits until the worker follows; its name."""
    presence = worker.rendezvous.presence

    def listeners() -> int:
        ((_, count),) = entries.ask(lambda redis: redis.pubsub_numsub(presence.channel))
        return count

    until(listeners, 'it follows')
    return presence.name


def server_of(*names: str) -> state.Server:
    """As `state.server` gives it, with workers of these names."""
    told = {
        'at': 0.0,
        'node': 'x',
        'number': 1,
        'workers': 1,
        'pid': 1,
        'version': '1',
        'since': 0.0,
    }
    told |= {'connections': 0, 'most': 1, 'memory': 0, 'counters': {}}
    return state.Server([state.Worker(name=name, **told) for name in names], None, [])


def open_pipes(entries: Entries, uuid: str, *workers: Worker) -> list[OpenPipe]:
    names = [follows(entries, worker) for worker in workers]
    return questions.open_pipes(entries, server_of(*names), uuid)
