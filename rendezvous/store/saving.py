"""Label, note and host name of an entry, changed at once: all three or none.

The entry is written in one step, if it is as it was read: that is when all three change. Another
host name needs a plan before it and an end after it, see names.py. An entry is read before its
field in the hash of names, and each change of a name changes the entry, too: so who has read an old
name writes nothing, and starts over.
"""

import secrets
from contextlib import suppress
from typing import NamedTuple

import gevent

from rendezvous.store import entry_json, names
from rendezvous.store.entries import Entries, Read, StoreDown
from rendezvous.store.entry_json import Json
from rendezvous.store.names import Field
from rendezvous.wire.programs import Mistake

PLAN_SECONDS = 0.1  # that another one's plan is waited for: it takes some milliseconds


class Saved(NamedTuple):
    """What came of it."""

    before: Json | None  # the entry as it was; None: there is none
    name: str = ''  # its host name now; '' where it has none
    former: str = ''  # its host name before
    why: str = ''  # nothing was changed: a sentence


class Wish(NamedTuple):
    """What is to be changed, where it is not None."""

    labels: list[str] | None
    note: str | None
    named: bool | None


def save(
    entries: Entries,
    uuid: str,
    labels: list[str] | None = None,
    note: str | None = None,
    named: bool | None = None,
) -> Saved:
    """Changes those that are not None. `named`: whether its first label is its host name, too.

    Where it has a host name and gets another label, that is its host name. Raises StoreDown.
    """
    wish = Wish(labels, note, named)
    while not (saved := _save(entries, uuid, wish)):
        pass
    return saved


def _save(entries: Entries, uuid: str, wish: Wish) -> Saved | None:
    """None: another program changed something meanwhile."""
    read = entries.read(uuid)
    if read is None:
        return Saved(None)
    field = names.read(entries, uuid)
    if field.token:
        _await(entries, uuid, field)
        return None
    after, former = _changed(read.entry, wish), field.now
    try:
        name = _name(read.entry, after, former, wish.named)
        if name != former:
            return _rename(entries, uuid, read, after, field, name)
    except names.Unfit as unfit:
        instead = f', or first switch off its host name {former}' if former else ''
        return Saved(read.entry, former, former, f'{unfit}{instead}')
    return Saved(read.entry, former, former) if entries.replace(uuid, read, after) else None


def _rename(
    entries: Entries, uuid: str, read: Read, after: Json, field: Field, name: str
) -> Saved | None:
    """Writes the entry and its host name, too. Raises names.Unfit."""
    token = secrets.token_hex(8)
    plan = names.plan(field.now, name, token)
    try:
        if not names.put(entries, uuid, field, plan):
            return None
    except names.Taken as taken:
        other = names.read(entries, taken.holder)
        if not other.token:
            raise
        _await(entries, taken.holder, other)  # it may give the name back, or not get it
        return None
    if not entries.replace(uuid, read, after | {'saved': token}):
        _settle(entries, uuid, plan)
        return None
    with suppress(StoreDown):  # it is done, and the plan says so
        names.put(entries, uuid, plan, names.plain(name))
    return Saved(read.entry, name, field.now)


def _await(entries: Entries, uuid: str, plan: Field) -> None:
    """Lets another one carry out its plan, and ends it where that one was killed, or is slow."""
    gevent.sleep(PLAN_SECONDS)
    if names.read(entries, uuid) == plan:
        _settle(entries, uuid, plan)


def _settle(entries: Entries, uuid: str, plan: Field) -> None:
    """A plan that was carried out is over; another one never will be: the entry is changed first,
    so that who made the plan, and may be only slow, cannot write what it has read.
    """
    read = entries.read(uuid)
    if read is None:
        name = ''
    elif plan.is_done(read.entry):
        name = plan.then
    elif entries.replace(uuid, read, read.entry | {'saved': secrets.token_hex(8)}):
        name = plan.now
    else:
        return  # somebody else has changed it just now
    names.put(entries, uuid, plan, names.plain(name))


def _changed(entry: Json, wish: Wish) -> Json:
    after = entry | ({} if wish.labels is None else {'labels': wish.labels})
    after |= {} if wish.note is None else {'note': wish.note}
    return after if wish.note != '' else {name: after[name] for name in after if name != 'note'}


def _name(before: Json, after: Json, former: str, named: bool | None) -> str:
    """The host name that it is to have; '' is none. Raises names.Unfit where it cannot be one."""
    labels = entry_json.summary(after)['labels']
    if not (former if named is None else named):
        return ''
    if former and labels == entry_json.summary(before)['labels']:
        return former
    if not labels:
        raise names.Unfit('an entry without a label has no host name: give it a label')
    try:
        return names.checked(labels[0])
    except Mistake as mistake:
        raise names.Unfit(f'{labels[0]!r} cannot be a host name: {mistake}') from None
