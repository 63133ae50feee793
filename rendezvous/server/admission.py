"""Whether a hidden server may register: its entry, its code and the rations, and why not."""

import logging
import time
from collections import Counter

import gevent

from rendezvous.server.admitted import Admitted, stamp_of
from rendezvous.server.reasons import Reasons, sentence
from rendezvous.store import rations
from rendezvous.store.entries import Entries, StoreDown, StoreRefuses
from rendezvous.store.options import Options
from rendezvous.store.presence import Presence
from rendezvous.store.rations import Verdict
from rendezvous.store.state import Why
from rendezvous.wire import codes
from rendezvous.wire.addresses import network
from rendezvous.wire.http_head import Refusal

log = logging.getLogger('admission')

# By the number of the ration that is used up: the kind of Why.
RATIONS = {1: 'address', 2: 'address', 3: 'strangers', 4: 'friend'}
KNOWN = 10_000  # UUIDs that are remembered to have an entry

# Stands in for an entry that there is not: a wrong UUID costs the same work as a wrong code.
_DECOY = {'authParams': {'base32': 'A' * 64, 'algorithm': 'sha1', 'step': 30}}


class Admission:
    """What the registrations of a server have in common."""

    def __init__(self, options: Options, entries: Entries, presence: Presence):
        self._entries, self._presence = entries, presence
        self._per_address = options.wrong_codes_per_address
        self._per_day = options.wrong_codes_per_day
        self._by_address = bool(options.knows_addresses and self._per_address)
        self._tries, self._reasons = rations.Tries(), Reasons()
        self._known: dict[str, None] = {}
        self.admitted = Admitted()
        self._unwritten: Counter[str] = Counter()  # wrong codes that Redis did not write down
        self._down = Trouble('the store answers again')
        self._refuses = Trouble('the store writes again')

    def admit(self, uuid: str, code: str, address: str) -> int:
        """The stamp of the entry, as it is now. Raises Refusal, which says why to the log alone."""
        place = network(address) if self._by_address else ''
        now, monotonic = time.time(), time.monotonic()
        known = self.admitted.stamp((uuid, place, code), now)
        if known is not None and not self._tries.to_wait(place, monotonic):
            return known
        changes, entry, right = self.admitted.changes, None, False
        with self._tries.turn(place):
            verdict = Verdict(1, self._tries.to_wait(place, monotonic))
            if not verdict.seconds:
                entry, right, verdict = self._look(uuid, code, place, now)
            if entry and right and not verdict.ration and not entry.get('disabled'):
                if not verdict.refused:  # or Redis has not written down that it is a friend
                    self.admitted.note((uuid, place, code), entry, now, changes)
                return stamp_of(entry)
            if not right or verdict.ration:
                self._tries.note(place, monotonic)
        why = _why(right, verdict)
        until = now + verdict.seconds if verdict.seconds else 0
        # When the answer is sent: how long this takes is nobody's business.
        gevent.spawn(self._afterwards, uuid, code, address, entry, why, until, now)
        said = f'{uuid}: {self._sentence(entry, why, verdict.ration, place)}'
        raise _refusal(right, verdict, said)  # by no name here: that makes a cycle

    def knows(self, uuid: str) -> bool:
        """Whether somebody tried to register it here, and it has an entry."""
        return uuid in self._known

    def forget_tries(self, place: str) -> None:
        """An administrator lets the address `place` try again."""
        self._tries.forget(place)

    def _look(self, uuid: str, code: str, place: str, now: float) -> tuple:
        """The entry, whether the code is right, and what the rations say; raises Refusal."""
        try:
            entry = self._entries.get(uuid)
            right = self._is_right(uuid, entry or _DECOY, code, now) and entry is not None
            verdict = self._count(uuid, code, place, entry is not None, right, now)
        except StoreDown as error:
            self._down.begins(str(error))
            raise Refusal(503, 'the store does not answer', 'Retry-After: 5') from None
        self._down.ends()
        self._remember(uuid, entry is not None)
        if verdict.used_up and entry:
            log.warning(
                '%s got %d wrong codes within a day: strangers cannot register it by a short code '
                'now; users_app.py enable %s lets them',
                *(uuid, self._per_day, uuid),
            )
        return entry, right, verdict

    def _is_right(self, uuid: str, entry: dict, code: str, now: float) -> bool:
        try:
            return codes.code_is_right(entry['authParams'], code, now)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.error('the entry %s cannot be used (%s): users_app.py rekey %s', uuid, error, uuid)
            return False

    def _count(
        self, uuid: str, code: str, place: str, known: bool, right: bool, now: float
    ) -> Verdict:
        """Where Redis does not write, what it does not is counted here."""
        short = len(code) <= codes.SHORT_DIGITS
        kind = 'wrong' if not right else 'right' if short else 'long'
        try:
            verdict = self._entries.count_try(uuid, place, kind, known, now)
        except StoreRefuses as error:
            verdict = Verdict(refused=str(error))
        if verdict.refused:
            self._refuses.begins(
                f'until Redis takes them, wrong codes are counted in memory: {verdict.refused}'
            )
            if self._per_day and known and short:
                if self._unwritten[uuid] >= self._per_day:
                    return verdict._replace(ration=verdict.ration or 3)
                self._unwritten[uuid] += not right
        elif not right:
            self._refuses.ends()
            self._unwritten.clear()
        return verdict

    def _remember(self, uuid: str, known: bool) -> None:
        self._known.pop(uuid, None)
        if known:
            self._known[uuid] = None
            if len(self._known) > KNOWN:
                del self._known[next(iter(self._known))]

    def _sentence(self, entry: dict | None, why: Why, ration: int, place: str) -> str:
        """For the log, at once: what takes longer to find out is said in another line."""
        if why.kind in RATIONS.values():
            day, address = f'{self._per_day} wrong codes within a day', f'of {place}'
            return {
                1: f'limit 1: {rations.MOST} wrong codes {address} within 15 minutes',
                2: f'limit 2: {self._per_address} wrong codes {address} within 15 minutes',
                3: f'limit 3: {day}; the code is right',
                4: f'limit 4: {day} {address}; the code is right',
            }[ration]
        if why.kind == 'disabled':
            return 'disabled'
        return sentence(why) if entry else 'no such entry'

    def _afterwards(
        self,
        uuid: str,
        code: str,
        address: str,
        entry: dict | None,
        why: Why,
        until: float,
        now: float,
    ) -> None:
        """Finds out why a code was wrong, where there is no entry, too; the page is told of those
        that there are.
        """
        if why.kind == 'wrong':
            why = self._reasons.find(uuid, network(address), entry or _DECOY, code, now)
            if entry and why.kind != 'wrong':
                log.info('the code for %s from %s was wrong: %s', uuid, address, sentence(why))
            elif not entry:
                return
        if uuid in self._known:
            self._presence.note_refusal(uuid, address, why, until)


class Trouble:
    """What is wrong for a while is said once, and so is that it is over."""

    def __init__(self, over: str):
        self._over, self._lasts = over, False

    def begins(self, sentence: str) -> None:
        if not self._lasts:
            log.error('%s', sentence)
        self._lasts = True

    def ends(self) -> None:
        if self._lasts:
            log.info('%s', self._over)
        self._lasts = False


def _why(right: bool, verdict: Verdict) -> Why:
    if verdict.seconds or (right and verdict.ration):
        return Why(RATIONS[verdict.ration])
    return Why('disabled' if right else 'wrong')


def _refusal(right: bool, verdict: Verdict, why: str) -> Refusal:
    refusal = _answer(right, verdict)
    refusal.why = why
    return refusal


def _answer(right: bool, verdict: Verdict) -> Refusal:
    if verdict.seconds:
        return Refusal(429, 'too many wrong codes', f'Retry-After: {verdict.seconds}')
    if right and not verdict.ration:
        return Refusal(503, 'the entry is disabled', 'Retry-After: 30')
    field = 'WWW-Authenticate: TOTP realm="rendezvous"'
    return Refusal(401, 'no such UUID, or not its code of this moment', field)
