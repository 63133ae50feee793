"""A mobile client gets a hidden server that waits on another node.

The own machine is asked first, as ever. Then Redis is asked for hints, and the workers that these
name: those first that have one that waits, and of them the nearest. One that says no, or nothing
for a moment, is followed by the next; one that expects the hidden server keeps its question, and
the next is asked, too. While the mobile client waits, the hints are read again and again.

Redis may be wrong, slow or gone. No hint is a claim: the worker that holds a registration decides,
as in meeting.py. A Redis that does not answer soon, or has lost its data, is done without: all
workers of all nodes are asked.
"""

import logging
import math
import time
from functools import partial

import gevent
from gevent.event import AsyncResult, Event

from rendezvous.server.hop import Asked
from rendezvous.server.meeting import ANSWER_SECONDS, Meeting, Question
from rendezvous.server.nodes import Nodes
from rendezvous.server.registry import AskOthers
from rendezvous.store import hints
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.hints import Hints
from rendezvous.wire.addresses import Peer

log = logging.getLogger('crossing')

REDIS_SECONDS = 0.3  # a Redis that has not answered by then is done without
ROUND_SECONDS = 2  # the first round of questions takes less: nobody is waited for twice
AGAIN_SECONDS = 0.5  # between two readings of hints, which change once a second
REDIS = ''  # among the names of workers that have not said anything


class Crossing:
    """What the questions of a worker to other nodes share."""

    def __init__(self, meeting: Meeting, nodes: Nodes, entries: Entries, name: str):
        """`name`: of this worker, in Redis."""
        self.meeting, self.nodes = meeting, nodes
        self._entries, self._name = entries, name
        self._late: set[gevent.Greenlet] = set()  # questions that Redis did not answer in time

    def ask_for(self, seconds: float, peer: Peer) -> AskOthers:
        """What asks all others on behalf of a mobile client that waits for so long."""
        return partial(FarQuestion, self, seconds, peer)

    def hints(self, uuid: str) -> Hints | None:
        """What Redis knows; None where it does not answer soon, or has lost its data.

        While a question is late nobody waits for another one.
        """
        if self._late:
            return None
        reading = gevent.spawn(self._read, uuid)
        reading.join(REDIS_SECONDS)
        if not reading.ready():
            self._late.add(reading)
            reading.link(self._late.discard)
        return reading.value

    def _read(self, uuid: str) -> Hints | None:
        try:
            found = hints.where(self._entries, uuid, self._name)
        except StoreDown as error:
            log.debug('no hints: %s', error)
            return None
        return found if found.is_complete else None

    # What a Question needs of a place.

    def others(self) -> set[str]:
        return set(self.nodes.workers())

    def connect(self, name: str) -> Asked:
        return self.nodes.connect(name)

    def keep(self, name: str, sock: Asked) -> None:
        self.nodes.keep(sock)


class FarQuestion(Question):
    """One mobile client's question to the own machine, and then to other nodes."""

    def __init__(
        self, crossing: Crossing, seconds: float, peer: Peer, uuid: str, result: AsyncResult
    ):
        super().__init__(crossing, seconds, peer, uuid, result)
        self._crossing, self._nodes = crossing, crossing.nodes
        self._near = crossing.meeting.ask_for(seconds, peer)(uuid, result)
        self._silent.add(REDIS)
        self._hinted: set[str] = set()
        self._said, self._is_over = Event(), False
        self._asking: gevent.Greenlet | None = None

    def ask(self) -> None:
        self._near.ask()
        if self._asking is None:
            self._asking = gevent.spawn(self._ask_nodes)

    def is_expected(self) -> bool:
        if not self._near.is_expected():
            self._known.wait(ROUND_SECONDS)
            return self._expected
        return True

    def end(self) -> None:
        self._is_over = True
        self._near.end()
        if self._asking is not None:
            self._asking.kill(block=False)
        super().end()

    def _ask_nodes(self) -> None:
        """Until the mobile client has one, or leaves."""
        self._near.is_expected()  # they have said yes or no, or hang
        while not self._result.ready():
            found = self._crossing.hints(self._uuid)
            if found:
                self._ask_hinted(found)
            else:
                self._ask_all()
            self._heard(REDIS, b'')
            gevent.sleep(AGAIN_SECONDS)

    def _ask_hinted(self, found: Hints) -> None:
        """One after the other, until one says yes."""
        seconds = self._nodes.workers()
        self._hinted = {name for name in found.workers if not self._nodes.is_near(name)}

        def order(name: str) -> tuple:
            far = seconds.get(name, math.inf)  # it is silent, or new, or gone
            return far == math.inf, not found.workers[name][0], far

        self._expected |= found.is_expected
        for name in sorted(self._hinted, key=order):
            if self._result.ready():
                return
            self._ask_some([name], seconds)

    def _ask_all(self) -> None:
        seconds = self._nodes.workers()
        self._ask_some(list(seconds), seconds)

    def _ask_some(self, names: list[str], seconds: dict[str, float]) -> None:
        """Asks those that have no question yet; returns when they have said something, or do not.

        `seconds`: to them and back; those that are silent are not waited for.
        """
        new = [name for name in names if name not in self._asked]
        awaited = [name for name in new if seconds.get(name, math.inf) < math.inf]
        self._silent.update(awaited)
        for name in new:
            self._asked[name] = gevent.spawn(self._ask, name)
        until = (
            time.monotonic() + ANSWER_SECONDS + max(map(seconds.__getitem__, awaited), default=0)
        )
        while not self._silent.isdisjoint(awaited) and (left := until - time.monotonic()) > 0:
            self._said.clear()
            self._said.wait(left)
        for name in self._silent.intersection(awaited):
            self._heard(name, b'')
        # One that had it says nothing: the hidden server is about to come back.
        self._expected |= not self._hinted.isdisjoint(set(new) - set(awaited))

    def _heard(self, name: str, answer: bytes) -> None:
        if not (answer or name == REDIS or self._is_over):
            self._nodes.failed(name)
            self._expected |= name in self._hinted
        super()._heard(name, answer)
        self._said.set()
