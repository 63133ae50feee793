"""Which hidden server a host name means, known in memory: no request waits for Redis.

A worker reads all names when it begins to follow the changes of entries, and the name of each entry
that is changed. While Redis is down, it goes on with those that it knows.
"""

import uuid as uuids

from gevent.event import Event

from rendezvous.server import credentials
from rendezvous.store import names
from rendezvous.store.entries import Entries
from rendezvous.wire.codes import UUID
from rendezvous.wire.http_head import Head


class Names:
    """The names under `domain`, names_domain of the options."""

    def __init__(self, entries: Entries, domain: str | None):
        self._entries, self._domain = entries, domain and domain.lower()
        self._known: dict[str, str] = {}
        self._nobody = uuids.uuid4()  # nobody can register what is made from it
        self.are_known = Event()
        if not domain:
            self.are_known.set()

    def wanted(self, head: Head) -> str:
        """The UUID that the host of a request means, in lower case; '' where it means none.

        A name that nobody has gets a UUID that nobody has: so it takes the same way as a hidden
        server that is not connected, and is counted and answered in the same way.
        """
        name = credentials.name_of_host(head, self._domain) if self._domain else ''
        if not name or UUID.fullmatch(name):
            return name
        nobody = str(uuids.uuid5(self._nobody, name))  # made in any case: no time tells names apart
        return self._known.get(name, nobody)

    def learn(self, changed: str) -> None:
        """The name of an entry that was changed, or with '' all names. Raises StoreDown."""
        if not self._domain:
            return
        if not changed:
            self._known = names.known(self._entries)
            self.are_known.set()
            return
        name = names.of(self._entries, changed)
        for old in [each for each, uuid in self._known.items() if uuid == changed]:
            del self._known[old]
        if name:
            self._known[name] = changed
