"""What a worker tells of its hidden servers: it writes it to Redis, in batches. state.py reads it.

No rendezvous waits for it: a greenlet looks once a second at what has changed, and at once where a
hidden server comes after a quiet second: other nodes are to know of it. What a worker that was
killed left behind is taken over by the others, and by those that start after it.
"""

import json
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import gevent
from gevent.event import Event

from rendezvous.store import batches, keys, upkeep
from rendezvous.store.batches import Batch, HourRow, Refused, Sign
from rendezvous.store.entries import Entries, StoreDown, StoreRefuses, slices
from rendezvous.store.entry_json import Json
from rendezvous.store.state import HISTORY, HOUR_SECONDS, KINDS, Why, channel, living

log = logging.getLogger('presence')

WRITE_SECONDS = 1  # between two batches
DOWN_SECONDS = 5  # the same, after a failure: each write to a full disk ends the embedded store
HEARTBEAT_SECONDS = 10  # a worker without changes signs as often; each time costs a disk write
MISSED_SECONDS = 2  # more, and it is overdue
FROZEN_SECONDS = 30  # a worker that was away for longer may have been away with all others
PATIENCE_SECONDS = 5  # a hidden server that has left comes back at once after each rendezvous
OUTAGE_SECONDS = 2  # a shorter one is none
BACKLOG = 10_000  # rendezvous that wait in memory while Redis is down, some 3 MB
REFUSED = 1000  # UUIDs whose refusals wait in memory until they are written, some 6 MB
# Refusals that who has no secret gets, too: where there are too many, these are dropped first.
COMMON = dict.fromkeys(('wrong', 'address', 'strangers'), True)
ABSENT = 1000  # hidden servers that have left, and more are taken for it
FAILED = 1000  # UUIDs whose failures do: anybody may ask for any UUID
HOURS = 100_000  # hours of all hidden servers that do, some 20 MB
BATCH = 200  # of each kind in a batch: it blocks Redis for 10 ms at most


class Lost(NamedTuple):
    """A hidden server that has left."""

    at: float  # seconds since 1970
    noticed: float  # by a monotonic clock


Counts = dict[str, tuple[int, int]]  # by UUID: registrations that wait, and pipes
LOST = -1, -1  # counts that Redis has lost
HARMLESS = 'disabled', 'twins'  # refusals that say nothing of the state


class Presence:
    """What one worker writes about itself, its registrations and its pipes."""

    def __init__(self, entries: Entries, about: Callable[[], Json] = dict):
        """`about`: what this worker says of itself at each batch, as state.Worker has it."""
        self._entries, self._about = entries, about
        self.name = secrets.token_hex(8)
        self.channel, self.key = channel(self.name), keys.live(self.name)
        self._number = 0  # of the last batch
        self._is_new = Event()  # there is a hidden server that nobody knows to be here
        self._written: Counts = {}  # as Redis holds them
        self._alive: dict[str, bool] = {}  # the workers that live; {}: it is not known
        self._marks: dict[str, str] = {}  # in a cluster: by node, the UUID that it was told last
        self._has_arrived = self._has_written = False
        self.complete_since = math.inf  # by a monotonic clock; Redis has all that is here
        self._outages: list[list[float]] = []  # the newest first
        self._heartbeat_at = self._hours_at = self._look_at = -math.inf
        self._others: set[str] | None = None  # as they were at the last look; None: there was none
        self._sweep_at = math.inf
        self._lost: dict[str, Lost] = {}
        self._seen: dict[str, Sign] = {}
        self._due: dict[str, Sign] = {}  # what was seen before the counts were taken
        self._rendezvous: deque[tuple[str, str]] = deque(maxlen=BACKLOG)
        self._refused: dict[str, dict[tuple[str, str], Refused]] = {}  # the oldest UUID first
        self._hours: dict[tuple[str, int], list[int]] = {}
        self._failed: dict[tuple[str, int], int] = {}
        self._unanswered: Batch | None = None  # it was sent, and no answer came
        self._changes: Iterator | None = None  # what is not written yet; None: all is to be seen

    def note_online(self, uuid: str, address: str) -> None:
        """It was seen just now: a registration began or ended."""
        self._seen[uuid] = {'at': time.time(), 'address': address}
        if uuid not in self._written and uuid not in self._lost:
            self._is_new.set()

    def note_rendezvous(
        self,
        uuid: str,
        *,
        at: float,
        address: str,
        seconds: float,
        sent: int,
        received: int,
        how: str,
        counted: tuple[int, int] = (0, 0),
    ) -> None:
        """A rendezvous is over, as state.Rendezvous has it. Its octets count in this hour, without
        those that note_octets has `counted` before.
        """
        kept = {'at': at, 'address': address, 'seconds': seconds}
        kept |= {'sent': sent, 'received': received, 'how': how}
        self._rendezvous.append((uuid, json.dumps(kept)))
        self._count(uuid, max(0, sent - counted[0]), max(0, received - counted[1]), 1)

    def note_octets(self, uuid: str, sent: int, received: int) -> None:
        """So many more went through a pipe that is not over; they count in this hour."""
        self._count(uuid, sent, received)

    def note_failure(self, uuid: str, is_known: bool = False) -> None:
        """A mobile client got no registration of it; unless `is_known`, there may be no such entry.

        Many that are made up push out no known one.
        """
        if is_known:
            self._count(uuid, failures=1)
            return
        key = uuid, int(time.time() // HOUR_SECONDS)
        self._failed[key] = self._failed.pop(key, 0) + 1
        if len(self._failed) > FAILED:
            del self._failed[next(iter(self._failed))]

    def note_absent(self, uuid: str) -> None:
        """Another worker thought that it is here: Redis may say so after a fail-over. Soon that is
        mended, where it has not come.
        """
        if len(self._lost) < ABSENT:
            self._lose({uuid: time.time()})

    def note_refusal(self, uuid: str, address: str, why: Why, until: float = 0) -> None:
        """A registration was refused; `until`: when a ration that is used up allows a try again.

        What kind it is decides what follows: see state.Why.
        """
        rows, key, now = self._refused.pop(uuid, {}), (why.kind, address), time.time()
        before = rows.pop(key, None)
        first, count = (before['first'], before['count']) if before else (now, 0)
        rows[key] = {'why': why, 'first': first, 'last': now, 'count': count + 1, 'until': until}
        if len(rows) > KINDS:
            common = (each for each in rows if each[0] in COMMON)
            del rows[next(common, next(iter(rows)))]
        self._refused[uuid] = rows
        if len(self._refused) > REFUSED:
            del self._refused[next(iter(self._refused))]

    def run(self, counts: Callable[[], Counts]) -> None:
        """Without end: writes what has changed, and looks after what others have left behind."""
        failures, is_told = 0, False
        while True:
            self._is_new.clear()
            before = self._number
            try:
                self.write(counts())
                self._look_around()
                failures, is_told = 0, False
            except StoreDown as error:
                failures += 1
                # At its start the server looks for the store, too, and says why it ends.
                if not is_told and (self._has_arrived or failures > 1):
                    log.error('%s; until the store answers, the page shows nothing new', error)
                    is_told = True
            if failures or self._number > before:
                gevent.sleep(DOWN_SECONDS if failures else WRITE_SECONDS)
            else:
                self._is_new.wait(WRITE_SECONDS)

    def write(self, counts: Counts) -> None:
        """Writes what has changed since the last time. Raises StoreDown, and nothing is lost.

        What happens meanwhile is for the next time: each batch costs a disk write.
        """
        # Who comes while Redis is asked is not in `counts`: then it would seem to have left.
        self._due, self._seen = self._due | self._seen, {}
        if not self._has_arrived:
            upkeep.migrate(self._entries)  # the last outages, too
            self._arrive(OUTAGE_SECONDS)
            self._has_arrived = True
        self._alive = {}
        if self._unanswered:
            self._send(self._unanswered)
        if self._has_written and self._has_lost():
            self._start_over()
        was_full, self._changes = True, None
        while batch := self._batch(counts, was_full):
            self._send(batch)
            gevent.sleep(0)
            was_full = _may_be_full(batch)
        self.complete_since = min(self.complete_since, time.monotonic())

    def stop(self) -> None:
        """A clean end: writes what is left, and that this worker is gone. Raises StoreDown."""
        self._hours_at = -math.inf
        self.write({})
        upkeep.leave(self._entries, self.name, self._heard(self._about(), stopped=True))

    def _arrive(self, least: float) -> None:
        heard = self._heard(self._about())
        self._outages = upkeep.arrive(self._entries, self.name, least, heard)

    def _count(
        self, uuid: str, sent: int = 0, received: int = 0, rendezvous: int = 0, failures: int = 0
    ) -> None:
        key = uuid, int(time.time() // HOUR_SECONDS)
        hour = self._hours.get(key)
        if hour is None:
            hour = self._hours[key] = [0, 0, 0, 0]
            if len(self._hours) > HOURS:
                del self._hours[next(iter(self._hours))]
        hour[0] += sent
        hour[1] += received
        hour[2] += rendezvous
        hour[3] += failures

    def _batch(self, counts: Counts, with_news: bool) -> Batch | None:
        """What is to be written, or a part of it; None: there is nothing, or nothing but news."""
        if self._changes is None:
            self._changes = self._changed(counts)
        changed = dict(islice(self._changes, BATCH))
        now = time.monotonic()
        is_due = with_news and now - self._heartbeat_at > HEARTBEAT_SECONDS
        # Each time costs an entry's whole day: so it is not done each second.
        hours = bool(self._hours or self._failed) and now - self._hours_at > HEARTBEAT_SECONDS
        news = with_news and (self._due or self._rendezvous or self._refused or hours)
        gone = self._gone(counts)
        if not (changed or gone or news or is_due):
            return None
        self._number += 1
        return {
            'counts': changed,
            'gone': gone,
            'seen': {uuid: self._due.pop(uuid) for uuid in list(islice(self._due, BATCH))},
            'rows': [self._rendezvous.popleft() for _ in range(min(BATCH, len(self._rendezvous)))],
            'refusals': self._refusals(),
            'hours': self._hour_rows() if hours else [],
            'number': self._number,
        }

    def _changed(self, counts: Counts) -> Iterator[tuple[str, tuple[int, int] | None]]:
        for some in slices(counts.items()):
            yield from (each for each in some if self._written.get(each[0]) != each[1])
        yield from dict.fromkeys(self._written.keys() - counts.keys()).items()

    def _gone(self, counts: Counts) -> dict[str, float]:
        """Some that have left so long ago that it is told, and when that was."""
        before = time.monotonic() - PATIENCE_SECONDS
        lost = self._lost.items()
        gone = ((uuid, at) for uuid, (at, then) in lost if then < before and uuid not in counts)
        return dict(islice(gone, BATCH))

    def _refusals(self) -> list[tuple[str, str, str, Refused]]:
        return [
            (uuid, kind, address, refused)
            for uuid in list(islice(self._refused, BATCH // KINDS))
            for (kind, address), refused in self._refused.pop(uuid).items()
        ]

    def _hour_rows(self) -> list[HourRow]:
        rows = [(*key, self._hours.pop(key)) for key in list(islice(self._hours, BATCH))]
        failed = list(islice(self._failed, BATCH))
        return rows + [(*key, [0, 0, 0, self._failed.pop(key)]) for key in failed]

    def _send(self, batch: Batch) -> None:
        """Sends it until it is written; what comes meanwhile goes into the next one."""
        self._unanswered = batch
        written = self._ask(batch)
        if written.is_lost:
            self._start_over()
            written = self._ask(batch)
        self._has_written = True
        if written.strangers:
            upkeep.forget_strangers(self._entries, written.strangers)
        self._unanswered = None
        self._heartbeat_at = time.monotonic()
        if 0 < len(batch['hours']) < BATCH:
            self._hours_at = self._heartbeat_at
        for uuid, count in batch['counts'].items():
            if count:
                self._written[uuid] = count
                self._lost.pop(uuid, None)
            elif self._written.pop(uuid, None):
                seen = batch['seen'].get(uuid)  # its last registration ended, or a pipe did now
                self._lost[uuid] = Lost(seen['at'] if seen else time.time(), time.monotonic())
        for uuid in batch['gone']:
            self._lost.pop(uuid, None)
        if self._entries.is_cluster:
            told = batch['counts'].keys() & self._written.keys()
            self._marks |= {batches.node(self._entries, uuid): uuid for uuid in told}

    def _start_over(self) -> None:
        """Redis has lost what was written, or the end of it: all counts are written once more."""
        self.complete_since = math.inf
        self._arrive(FROZEN_SECONDS)
        self._sweep_at = time.monotonic() + PATIENCE_SECONDS
        # What had gone may be there again.
        left = upkeep.had(self._entries, self.name).keys() - self._written.keys()
        self._lose(dict.fromkeys(left, time.time()))
        self._written, self._marks, self._changes = dict.fromkeys(self._written, LOST), {}, None
        self._has_written, self._heartbeat_at = False, -math.inf

    def _has_lost(self) -> bool:
        if self._entries.is_embedded:  # it loses nothing, and no other node needs it
            return False
        marks = {uuid: self._written.get(uuid, LOST) for uuid in self._marks.values()}
        there = {uuid: count for uuid, count in marks.items() if count != LOST}
        return batches.has_lost(self._entries, self.name, self._number, there)

    def _ask(self, batch: Batch) -> batches.Written:
        about, now = self._about(), time.time()
        before = self._written
        of_worker = {
            'about': json.dumps(about | {'at': now}),
            'heard': self._heard(about),
            'arrived': [uuid for uuid in batch['counts'] if before.get(uuid, LOST) == LOST],
            'whole': not self._has_written,
        }
        how = {'now': now, 'patience': PATIENCE_SECONDS, 'outages': self._outages}
        how |= {'kinds': KINDS, 'common': COMMON, 'history': HISTORY}
        if batch['gone'] or any(kind not in HARMLESS for _, kind, _, _ in batch['refusals']):
            self._alive = self._alive or dict.fromkeys(self._entries.ask(living), True)
            how['alive'] = self._alive
        return batches.write(self._entries, self.name, batch, how, of_worker)

    def _heard(self, about: Json, stopped: bool = False) -> str:
        """The last sign of any worker, as state.Heard has it."""
        known = {name: about.get(name) for name in ('node', 'pid', 'version', 'since')}
        return json.dumps(known | {'at': time.time(), 'stopped': stopped})

    def _look_around(self) -> None:
        """Takes over from workers that are gone."""
        now = time.monotonic()
        if now > self._look_at:
            self._look_at = now + HEARTBEAT_SECONDS
            with suppress(StoreRefuses):  # we may lack a permission
                self._look_for_the_dead()
        if now > self._sweep_at:
            self._sweep_at = math.inf
            upkeep.migrate(self._entries)  # an older version may have ended
            self._lose(upkeep.lost(self._entries))

    def _look_for_the_dead(self) -> None:
        overdue = HEARTBEAT_SECONDS + MISSED_SECONDS
        alive, dead = upkeep.others(self._entries, self.name, overdue)
        if self._others is None or self._others - alive:
            self._sweep_at = time.monotonic() + PATIENCE_SECONDS
        self._others = alive
        for name in dead:
            self._lose(upkeep.bury(self._entries, name))

    def _lose(self, uuids: dict[str, float]) -> None:
        for uuid, at in uuids.items():
            if uuid not in self._written:
                self._lost.setdefault(uuid, Lost(at, time.monotonic()))


def _may_be_full(batch: Batch) -> bool:
    """Whether there may have been more than the batch holds."""
    each = [len(batch['counts']), len(batch['gone']), len(batch['seen'])]
    each += [len(batch['rows']), len(batch['hours'])]
    return max(each) >= BATCH or len(batch['refusals']) >= BATCH // KINDS
