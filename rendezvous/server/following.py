"""What a worker is told over Redis: which entry was changed, whose wrong codes are forgotten, and
what the page asks.

It follows for as long as Redis answers, and then begins anew. While it does, others know that this
worker lives.
"""

import logging
from collections.abc import Callable, Iterator

import gevent

from rendezvous.server.admission import Admission, Trouble
from rendezvous.server.admitted import stamp_of
from rendezvous.server.names import Names
from rendezvous.server.registry import Registry
from rendezvous.server.visits import Visits
from rendezvous.store import questions
from rendezvous.store.entries import CHANGES, Entries, StoreDown, StoreRefuses
from rendezvous.store.presence import Presence
from rendezvous.store.questions import OpenPipe
from rendezvous.store.rations import CLEARED
from rendezvous.wire.pipe import How

log = logging.getLogger('rendezvous')

AGAIN_SECONDS = 1  # after Redis was lost


class Following:
    """It holds nothing of its own: it tells the parts of a worker what has come."""

    def __init__(
        self,
        entries: Entries,
        presence: Presence,
        registry: Registry,
        admission: Admission,
        names: Names,
        visits: Visits,
        drain: Callable[[], tuple[int, int]],
    ):
        """`drain`: see questions.answer."""
        self._entries, self._presence, self._registry = entries, presence, registry
        self._admission, self._names, self._visits = admission, names, visits
        self._drain = drain
        self._refused = Trouble('the store tells of changes again')

    def run(self) -> None:
        """Until Redis does not answer, and a moment longer."""
        try:
            for channel, text in self._entries.changes(self._presence.channel, CLEARED):
                if channel == CHANGES:
                    self._change(text)
                elif channel == CLEARED:
                    self._admission.forget_tries(text)
                else:
                    self._answer(text)
                self._refused.ends()
        except StoreRefuses as error:  # else nobody says so
            self._refused.begins(f'{error}; a change of an entry ends nothing until then')
        except StoreDown:
            pass
        finally:
            self._admission.admitted.forget(is_told=False)
        gevent.sleep(AGAIN_SECONDS)

    def _change(self, changed: str) -> None:
        """Ends registrations and pipes of an entry that is another one now, and learns its name.

        '': any may have been changed. Raises StoreDown.
        """
        self._admission.admitted.forget()
        for uuid in [changed] if changed else self._registry.counts():
            self._end_outdated(uuid)
        self._names.learn(changed)  # last: the others have to end, whatever becomes of it

    def _end_outdated(self, uuid: str) -> None:
        if not self._registry.all(uuid):
            return  # most changes are of entries of which nobody is here
        entry = self._entries.get(uuid)
        for registration in self._registry.all(uuid):
            if registration.stamp != stamp_of(entry):
                what = 'pipe' if registration.pipe else 'registration'
                log.info('the entry %s was changed: a %s is ended', uuid, what)
                if registration.pipe:
                    registration.pipe.cut(How.CHANGED)
                else:
                    self._registry.end(registration)

    def _answer(self, question: str) -> None:
        """Answers the page. Where Redis is lost just now, the page does not wait for it."""
        try:
            about = self._open_pipes, self._end_pipe, self._drain
            questions.answer(self._entries, self._presence.name, question, *about)
        except StoreDown as error:
            log.debug('a question of the page has no answer: %s', error)

    def _open_pipes(self, uuid: str) -> Iterator[OpenPipe]:
        for visit in self._visits.of(uuid):
            octets = visit.pipe.mobile.octets, visit.pipe.hidden.octets
            number, name = str(visit.number), self._presence.name
            yield OpenPipe(name, number, visit.address, visit.at, *octets)

    def _end_pipe(self, number: str) -> bool:
        visit = self._visits.find(number)
        if not visit or visit.pipe.over:
            return False
        log.info('%s: its pipe with %s is ended on the page', visit.uuid, visit.address)
        visit.pipe.cut(How.ON_PAGE)
        return True
