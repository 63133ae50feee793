"""The names that an administrator has switched on: NAME.names_domain means a hidden server.

They are in one hash, both ways: the UUID of each name, and the name of each UUID. No name has the
form of a UUID, so the two are never mixed up. A name is an entry's where both ways say so, and then
no other entry has it. An entry has one name at most.

In a Redis Cluster the hash and an entry are on two machines, and no script can change both. So
where an entry is to get another name, and a label and a note with it (saving.py), its field in the
hash first becomes a plan, 'NOW THEN TOKEN', and both names are its own. Then the entry is written,
with the token in it: in this moment label, note and name are the new ones for all who look, because
who meets a plan looks into the entry. At last the field is the new name alone, which shows nowhere.
Whoever is killed between two of these steps leaves a plan that means one of both, all of it.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rendezvous.store import keys, scripts
from rendezvous.store.entries import CHANGES, Entries, fields_of, slices
from rendezvous.store.entry_json import Json
from rendezvous.wire.codes import UUID
from rendezvous.wire.programs import Mistake

# RFC 1123 section 2.1, and 63 octets as in RFC 1035 section 2.3.4. Without underscores: browsers
# and certificates disagree about them.
_NAME = re.compile('[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?', re.I | re.A)
_PLAN = re.compile(r'(\S+) (\S+) (\S+)', re.A)
CHANGED = 'changed'  # an answer of the script
_NONE = '-'  # in a plan; no name begins with one


class Field(NamedTuple):
    """What the hash says of a UUID."""

    text: str = ''
    now: str = ''  # its name
    then: str = ''  # with a plan: its name, once the entry has the token
    token: str = ''  # '': there is no plan

    def is_done(self, entry: Json | None) -> bool:
        """Whether that plan was carried out."""
        return bool(self.token) and (entry or {}).get('saved') == self.token


class Unfit(Mistake):
    """An entry cannot have that name."""


class Taken(Unfit):
    """Another entry has it."""

    def __init__(self, name: str, holder: str):
        super().__init__(f'{name} is the host name of the entry {holder}: choose another label')
        self.holder = holder


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
    fields = entries.ask(lambda redis: fields_of(redis, keys.NAMES))
    found = {}
    for some in slices(fields.items()):
        for uuid, text in some:
            if UUID.fullmatch(uuid):
                name = _name(entries, uuid, _field(uuid, text, fields.get))
                found[name] = uuid
    found.pop('', None)
    return found


def of(entries: Entries, uuid: str) -> str:
    """The name of an entry; '' where it has none. Raises StoreDown."""
    return _name(entries, uuid, read(entries, uuid))


def read(entries: Entries, uuid: str) -> Field:
    """What the hash says of it. Raises StoreDown."""
    return _field(uuid, _get(entries, uuid), partial(_get, entries))


def put(entries: Entries, uuid: str, before: Field, after: Field) -> bool:
    """Writes the field of an entry; False: it is not as it was read any more.

    A name that points to a deleted entry is free. Raises Taken and StoreDown, and Unfit where
    the key is another program's.
    """
    if entries.ask(lambda redis: redis.type(keys.NAMES)) not in ('hash', 'none'):
        why = f'another program uses the key {keys.NAMES!r} of this Redis: no name can be kept'
        raise Unfit(why)
    mine, wanted = {before.now, before.then} - {''}, {after.now, after.then} - {''}
    (name,) = wanted - mine or {''}
    holder = _get(entries, name) if name else ''
    is_taken = UUID.fullmatch(holder) and entries.exists(holder)
    gone = '' if is_taken else holder  # which may be anything that another program wrote
    # Not `mine`: between the two questions of a `read` another one may have given it that name.
    given_back = set(before.text.split()[:3]) - wanted
    arguments = uuid, before.text, after.text, CHANGES, name, gone, *given_back
    answer = entries.run(scripts.PUT_NAME, [keys.NAMES], arguments)
    if answer not in ('', CHANGED):
        raise Taken(name, answer)
    return not answer


def give(entries: Entries, uuid: str, name: str) -> bool:
    """Gives an entry that name in place of the one that it has; False: another one has it.

    Raises StoreDown, and Unfit where the key is another program's.
    """
    try:
        while not put(entries, uuid, read(entries, uuid), plain(name)):
            pass
    except Taken:
        return False
    return True


def plain(name: str) -> Field:
    """The field of an entry that has that name; '': none."""
    return Field(name, name)


def plan(now: str, then: str, token: str) -> Field:
    """The field of an entry that is to get the name `then`."""
    return Field(f'{now or _NONE} {then or _NONE} {token}', now, then, token)


def _get(entries: Entries, field: str) -> str:
    def get(redis: Any) -> str | None:
        return redis.hget(keys.NAMES, field) if redis.type(keys.NAMES) == 'hash' else None

    return entries.ask(get) or ''


def _name(entries: Entries, uuid: str, field: Field) -> str:
    if not field.token:
        return field.now
    return field.then if field.is_done(entries.get(uuid)) else field.now


def _field(uuid: str, text: str, holder: Callable[[str], str | None]) -> Field:
    """`holder`: whose a name is. Another program may have written anything there."""

    def own(name: str) -> str:
        return name if _NAME.fullmatch(name) and holder(name) == uuid else ''

    if ' ' in text and (parts := _PLAN.fullmatch(text)):
        now, then, token = parts.groups()
        return Field(text, own(now), own(then), token)
    return Field(text, own(text))
