"""What the page asks the workers themselves, over Redis, and nothing is written for it.

A worker listens on the channel live:WORKER. A question is JSON: `to`, the channel on which the
answer is awaited, `answers:` and something random; and one of `pipes`, the UUID of a hidden server,
`end`, the id of a pipe, and `drain`, true: the worker's node is to be drained. The answer is JSON,
too: `from`, the name of the worker, and `pipes`, a list of [id, address, at, sent, received], or
`ended`, true or false, or `left`, [registrations, other connections].
"""

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from redis import Redis

from rendezvous.store import entry_json
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json, number, text_in
from rendezvous.store.state import MAX_OCTETS, Server, channel

log = logging.getLogger('questions')

ANSWER_SECONDS = 0.5  # a worker answers within some milliseconds; one that is frozen never
MOST = 500  # pipes that a worker tells: the oldest ones; more make too long an answer to be read
ANSWERS = 'answers:'  # with what the channel of an answer begins: nobody makes us publish elsewhere


class OpenPipe(NamedTuple):
    """A rendezvous that is not over. Times are in seconds since 1970."""

    worker: str  # the name of the one that has it
    id: str  # among its pipes
    address: str  # of the mobile client
    at: float  # its start
    sent: int  # octets from the mobile client, so far
    received: int  # octets from the hidden server, so far


class Told(NamedTuple):
    """What the workers told."""

    pipes: list[OpenPipe]  # the oldest first
    silent: int  # workers that live and have not answered within half a second


def open_pipes(entries: Entries, of: Server, uuid: str) -> list[OpenPipe]:
    """The open pipes of a hidden server, the oldest first. Raises StoreDown.

    A worker that does not answer within half a second is left out.
    """
    return told(entries, of, uuid).pipes


def told(entries: Entries, of: Server, uuid: str) -> Told:
    """The same, and how many workers are left out. Raises StoreDown."""
    asked, answers = _ask(entries, [worker.name for worker in of.workers], {'pipes': uuid})
    pipes = [pipe for each in answers for pipe in _pipes(each)]
    return Told(sorted(pipes, key=lambda pipe: pipe.at), asked - len(answers))


def end_pipe(entries: Entries, worker: str, pipe: str) -> bool:
    """Ends a pipe; False: it is over already, or its worker is. Raises StoreDown."""
    return any(each.get('ended') is True for each in _ask(entries, [worker], {'end': pipe})[1])


def drain(entries: Entries, workers: list[str]) -> tuple[int, int]:
    """Has the node of these workers drained, or hears how far that is: how many registrations wait
    there, and how many other connections are left. Raises StoreDown.
    """
    left = [_left(each.get('left')) for each in _ask(entries, workers, {'drain': True})[1]]
    return sum(each[0] for each in left), sum(each[1] for each in left)


def answer(
    entries: Entries,
    name: str,
    text: str,
    pipes: Callable[[str], Iterable[OpenPipe]],
    end: Callable[[str], bool],
    drain: Callable[[], tuple[int, int]],
) -> None:
    """A worker's part: answers the question that came on its channel, if it is one.

    `pipes` gives the open pipes of a UUID, the oldest first; `end` ends the one with that id;
    `drain` drains this node, and gives what is left. Raises StoreDown.
    """
    question = entry_json.read(text) or {}
    to, uuid, pipe = (question.get(key) for key in ('to', 'pipes', 'end'))
    found: Json = {'from': name}
    if not isinstance(to, str) or not to.startswith(ANSWERS):
        return log.debug('no question: it does not say where the answer is to go')
    if isinstance(uuid, str):
        found['pipes'] = [each[1:] for each in islice(pipes(uuid), MOST)]
    elif isinstance(pipe, str):
        found['ended'] = end(pipe)
    elif question.get('drain') is True:
        found['left'] = drain()
    else:
        return log.debug('no question: it asks for nothing that is known')
    entries.ask(lambda redis: redis.publish(to, json.dumps(found)))


def _ask(entries: Entries, workers: list[str], question: Json) -> tuple[int, list[Json]]:
    """How many of these workers live, and their answers."""
    to = ANSWERS + secrets.token_hex(8)
    text = json.dumps(question | {'to': to})

    def ask(redis: Redis) -> tuple[int, list[Json]]:
        with redis.pubsub(ignore_subscribe_messages=True) as subscription:
            subscription.subscribe(to)
            subscription.get_message(timeout=ANSWER_SECONDS)  # from now on nothing is missed
            asked = sum(redis.publish(channel(name), text) for name in workers)
            return asked, _answers(subscription, asked)

    return entries.ask(ask) if workers else (0, [])


def _answers(subscription: Any, asked: int) -> list[Json]:
    """The answers of so many workers, or those that come in time."""
    found: dict[str, Json] = {}  # by the worker
    deadline = time.monotonic() + ANSWER_SECONDS
    while len(found) < asked and (left := deadline - time.monotonic()) > 0:
        message = subscription.get_message(timeout=left)
        said = entry_json.read(message['data']) if message else None
        if said:
            found[text_in(said.get('from'))] = said
    return list(found.values())


def _left(value: object) -> tuple[int, int]:
    numbers = [number(each, MAX_OCTETS) for each in value] if isinstance(value, list) else []
    return (int(numbers[0] or 0), int(numbers[1] or 0)) if len(numbers) == 2 else (0, 0)


def _pipes(answer: Json) -> list[OpenPipe]:
    rows, name = answer.get('pipes'), text_in(answer.get('from'))
    found = (_pipe(name, row) for row in rows) if isinstance(rows, list) else ()
    return [each for each in found if each]


def _pipe(worker: str, row: object) -> OpenPipe | None:
    if not isinstance(row, list) or len(row) != len(OpenPipe._fields) - 1:
        return None
    pipe, address, at, *octets = row
    sent, received = (number(each, MAX_OCTETS) for each in octets)
    if number(at) is None or sent is None or received is None:
        return None
    return OpenPipe(worker, text_in(pipe), text_in(address), at, int(sent), int(received))
