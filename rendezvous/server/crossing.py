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
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

from rendezvous.server.hop import YES, Asked
from rendezvous.server.links import Link
from rendezvous.server.meeting import ANSWER_SECONDS, Meeting, Question
from rendezvous.server.nodes import Nodes
from rendezvous.server.registry import AskOthers
from rendezvous.store import hints
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.hints import Places
from rendezvous.store.presence import Presence
from rendezvous.wire.addresses import Peer

log = logging.getLogger('crossing')

REDIS_SECONDS = 0.3  # a Redis that has not answered by then is done without
COMPLETE_SECONDS = 3  # behind a loss of its data Redis has the hints of all workers again
RIGHT_SECONDS = 1  # a hint that was right is used for so long, as a page loads: hints are as old
ROUND_SECONDS = 2  # the first round of questions takes less: nobody is waited for twice
AGAIN_SECONDS = 0.5  # between two readings of hints, which change once a second
REDIS = ''  # among the names of workers that have not said anything


class Crossing:
    """What the questions of a worker to other nodes share."""

    def __init__(self, meeting: Meeting, nodes: Nodes, entries: Entries, presence: Presence):
        self.meeting, self.nodes = meeting, nodes
        self._entries, self._presence = entries, presence
        self._late: set[gevent.Greenlet] = set()  # questions that Redis did not answer in time
        # Who said yes to a hint, by UUID, the oldest first; with time.monotonic() of the hint.
        self._right: dict[str, tuple[str, float]] = {}

    def ask_for(self, seconds: float, peer: Peer) -> AskOthers:
        """What asks all others on behalf of a mobile client that waits for so long."""
        return partial(FarQuestion, self, seconds, peer)

    def right(self, uuid: str) -> str:
        """The worker that had it a moment ago, '' for none: as good as a hint."""
        while self._right:
            oldest = next(iter(self._right))
            if time.monotonic() - self._right[oldest][1] < RIGHT_SECONDS:
                break
            del self._right[oldest]
        return self._right.get(uuid, ('', 0))[0]

    def note(self, uuid: str, name: str, is_right: bool) -> None:
        """A worker has said yes, or something else."""
        if is_right:
            self._right.setdefault(uuid, (name, time.monotonic()))
        elif uuid in self._right and self._right[uuid][0] == name:
            del self._right[uuid]

    def places(self, uuid: str) -> Places | None:
        """The hints; None where Redis does not answer soon."""
        return self._ask(hints.places, uuid)

    def is_expected(self, uuid: str) -> bool | None:
        """Whether a hidden server without a place is about to come back; None where Redis does not
        answer soon, or has lost its data: the other workers write theirs again, and that takes a
        while.
        """
        signs = self._ask(hints.signs, uuid, self._presence.name)
        if not signs or time.monotonic() - self._presence.complete_since < COMPLETE_SECONDS:
            return None
        return signs.is_expected if signs.is_complete else None

    def _ask(self, question: Callable[..., Any], *about: str) -> Any:
        """The answer of Redis, None where it is late. Then nobody waits for another one until it
        has come.
        """
        if self._late:
            return None
        asking = gevent.spawn(self._answer, question, about)
        asking.join(REDIS_SECONDS)
        if not asking.ready():
            self._late.add(asking)
            asking.link(self._late.discard)
        return asking.value

    def _answer(self, question: Callable[..., Any], about: tuple[str, ...]) -> Any:
        try:
            return question(self._entries, *about)
        except StoreDown as error:
            log.debug('no hints: %s', error)
            return None

    # What a Question needs of a place.

    def others(self) -> set[str]:
        return set(self.nodes.workers())

    def connect(self, name: str) -> Asked:
        return self.nodes.connect(name)

    def keep(self, name: str, sock: Asked) -> None:
        assert isinstance(sock, Link)  # it came from `connect`
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
        if not self._result.ready() and (right := self._crossing.right(self._uuid)):
            self._hinted = {right}
            self._ask_some([right], self._nodes.workers())
        while not self._result.ready():
            places = self._crossing.places(self._uuid)
            if places:
                self._ask_hinted(places)
            if not (self._result.ready() or (places and self._expected)):
                is_expected = self._crossing.is_expected(self._uuid)
                if places is None or is_expected is None:
                    self._ask_all()
                self._expected |= bool(is_expected)
            self._heard(REDIS, b'')
            gevent.sleep(AGAIN_SECONDS)

    def _ask_hinted(self, places: Places) -> None:
        """One after the other, until one says yes."""
        seconds = self._nodes.workers()
        self._hinted = {name for name in places if not self._nodes.is_near(name)}

        def order(name: str) -> tuple:
            far = seconds.get(name, math.inf)  # it is silent, or new, or gone
            return far == math.inf, not places[name][0], far

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
        self._crossing.note(self._uuid, name, answer == YES)
        super()._heard(name, answer)
        self._said.set()
