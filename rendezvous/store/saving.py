"""Label, note and host name of an entry, changed at once: all three or none."""

import json
from functools import partial
from typing import Any, NamedTuple

from rendezvous.store import entry_json, names, scripts
from rendezvous.store.entries import CHANGES, NAMES, Entries
from rendezvous.store.entry_json import Json
from rendezvous.wire.programs import Mistake


class Saved(NamedTuple):
    """What came of it."""

    before: Json | None  # the entry as it was; None: there is none
    name: str = ''  # its host name now; '' where it has none
    former: str = ''  # its host name before
    why: str = ''  # nothing was changed: a sentence


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

    def change(redis: Any) -> Any:
        # It watches both keys, and starts over where another program changed one meanwhile.
        func = partial(_exchange, uuid=uuid, labels=labels, note=note, named=named)
        return redis.transaction(func, uuid, NAMES, value_from_callable=True)

    return entries.ask(change)


def _exchange(
    transaction: Any, uuid: str, labels: list[str] | None, note: str | None, named: bool | None
) -> Saved:
    (value,) = transaction.mget(uuid)
    former = names.read(transaction, uuid)
    if value is None:
        transaction.multi()
        return Saved(None)
    before = (entry_json.read(value) or {}) | {'uuid': uuid}
    after = _changed(before, labels, note)
    wanted = bool(former) if named is None else named
    is_same = entry_json.summary(after)['labels'] == entry_json.summary(before)['labels']
    name = former if wanted else ''
    try:
        if wanted and not (former and is_same):
            name = _of_label(transaction, uuid, after)
    except Mistake as mistake:
        transaction.multi()
        instead = f', or first switch off its host name {former}' if former else ''
        return Saved(before, former, former, f'{mistake}{instead}')
    transaction.multi()
    transaction.set(uuid, json.dumps(after))
    if name != former:
        transaction.eval(scripts.SWITCH_NAME, 2, NAMES, uuid, name)
    transaction.publish(CHANGES, uuid)
    return Saved(before, name, former)


def _changed(entry: Json, labels: list[str] | None, note: str | None) -> Json:
    after = entry | ({} if labels is None else {'labels': labels})
    after |= {} if note is None else {'note': note}
    return after if note != '' else {name: after[name] for name in after if name != 'note'}


def _of_label(transaction: Any, uuid: str, entry: Json) -> str:
    """The host name that its first label makes. Raises Mistake where it cannot have that one."""
    labels = entry_json.summary(entry)['labels']
    if not labels:
        raise Mistake('an entry without a label has no host name: give it a label')
    try:
        name = names.checked(labels[0])
    except Mistake as mistake:
        raise Mistake(f'{labels[0]!r} cannot be a host name: {mistake}') from None
    if transaction.type(NAMES) not in ('hash', 'none'):
        raise Mistake(f'another program uses the key {NAMES!r} of this Redis: no name can be kept')
    holder = transaction.hget(NAMES, name)
    # A name that points to a deleted entry is free.
    if holder and holder != uuid and transaction.exists(holder):
        raise Mistake(f'{name} is the host name of the entry {holder}: choose another label')
    return name
