"""The names that an administrator has switched on: NAME.names_domain means a hidden server.

They are in one hash, both ways: the UUID of each name, and the name of each UUID. No name has the
form of a UUID, so the two are never mixed up. An entry has one name at most. Each change is told
to the servers as a change of the entry.
"""

import re
from typing import Any

from redis import Redis

from rendezvous.store import scripts
from rendezvous.store.entries import NAMES, Entries, fields_of, slices
from rendezvous.wire.codes import UUID
from rendezvous.wire.programs import Mistake

# RFC 1123 section 2.1, and 63 octets as in RFC 1035 section 2.3.4. Without underscores: browsers
# and certificates disagree about them.
_NAME = re.compile('[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?', re.I | re.A)


def checked(label: str) -> str:
    """The label as a name, in lower case. Raises Mistake where it cannot be one."""
    if UUID.fullmatch(label):
        raise Mistake('a UUID is a name by itself: switch on a label of another form')
    if not _NAME.fullmatch(label):
        what = 'a name has 1 to 63 characters: a to z, 0 to 9, and hyphens between them'
        raise Mistake(f'{what}; rename the entry, for example kitchen-2')
    return label.lower()


def known(entries: Entries) -> dict[str, str]:
    """The UUID of each name that is switched on. Raises StoreDown."""
    found = entries.ask(lambda redis: fields_of(redis, NAMES)).items()
    return {
        name: uuid
        for some in slices(found)
        for name, uuid in some
        if UUID.fullmatch(uuid) and not UUID.fullmatch(name) and _NAME.fullmatch(name)
    }


def of(entries: Entries, uuid: str) -> str:
    """The name of an entry; '' where it has none. Raises StoreDown."""
    return entries.ask(lambda redis: read(redis, uuid))


def read(redis: Redis, uuid: str) -> str:
    """The same, of a client or of a transaction that watches."""
    if redis.type(NAMES) != 'hash':  # another program's key, or none
        return ''
    name: Any = redis.hget(NAMES, uuid)
    is_ours = name and _NAME.fullmatch(name) and redis.hget(NAMES, name) == uuid
    return name if is_ours else ''


def switch_on(entries: Entries, uuid: str, name: str) -> str:
    """Gives the entry that name, a checked one, in place of the one that it has.

    The UUID of another entry that has that name already, and nothing is changed; else ''. Nothing
    is switched on where there is no entry of that UUID. Raises StoreDown.
    """
    return entries.ask(lambda redis: redis.eval(scripts.SWITCH_NAME, 2, NAMES, uuid, name))


def switch_off(entries: Entries, uuid: str) -> None:
    """Takes the entry's name away, if it has one. Raises StoreDown."""
    switch_on(entries, uuid, '')
