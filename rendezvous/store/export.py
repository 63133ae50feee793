"""One entry as a whole, to be kept elsewhere and put back; a copy of the whole embedded store."""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import gevent
from redis import Redis

from rendezvous.store import embedded, keys, names, scripts
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import CHARACTERS, Json
from rendezvous.store.state import CHANGES, HISTORY, KEPT_DAYS
from rendezvous.wire.codes import UUID
from rendezvous.wire.programs import Mistake

SAVE_SECONDS = 10 * 60  # that a store may take for its copy; 200,000 entries take two
LOOK_SECONDS = 0.05  # between two looks whether it is done
DUMP = 'dump.rdb'  # in data/: what the store writes, and what it starts from where it is alone

ROW = 2000  # characters of a row; what we write has 400 at most
_DAY = re.compile('[0-9]{1,7}', re.A)
_SURROGATE = re.compile(r'[\ud800-\udfff]')


def whole(entries: Entries, uuid: str) -> Json | None:
    """Everything that is kept of an entry, its secret too; None: there is none.

    `uuid`, `entry` (as it is in Redis), `name` ('' is none), `state` ('' where it was never seen),
    `changes`, `hours` and `rendezvous`, as state.py says what Redis holds. Raises StoreDown.
    """

    def read(redis: Redis) -> list:
        with redis.pipeline(transaction=True) as questions:
            questions.get(uuid)
            questions.get(keys.of(keys.STATE, uuid))
            questions.lrange(keys.of('changes', uuid), 0, -1)
            questions.lrange(keys.of('rendezvous', uuid), 0, -1)
            questions.hgetall(keys.of('hours', uuid))
            return questions.execute(raise_on_error=False)  # a key may be another program's

    entry, state, changes, rendezvous, hours = entries.ask(read)
    if not isinstance(entry, str):
        return None
    if isinstance(hours, list):  # in a cluster redis-py leaves it as it came
        hours = dict(zip(hours[::2], hours[1::2], strict=True))
    return {
        'uuid': uuid,
        'entry': entry,
        'name': names.of(entries, uuid),
        'state': state if isinstance(state, str) else '',
        'changes': changes if isinstance(changes, list) else [],
        'rendezvous': rendezvous if isinstance(rendezvous, list) else [],
        'hours': hours if isinstance(hours, dict) else {},
    }


def checked(kept: object) -> Json:
    """What `whole` gave, as far as it can be put back. Raises ValueError with a sentence."""
    row = kept if isinstance(kept, dict) else {}
    uuid, entry, name = row.get('uuid'), row.get('entry'), row.get('name', '')
    if not isinstance(uuid, str) or not UUID.fullmatch(uuid) or uuid != uuid.lower():
        raise ValueError('it has no UUID in lower case')
    if not _is_text(entry, CHARACTERS):
        raise ValueError(f'{uuid} has no entry')
    return {
        'uuid': uuid,
        'entry': entry,
        'name': names.checked(name) if _is_name(name) else '',
        'state': ''.join(_texts([row.get('state')])),
        'changes': _texts(row.get('changes'))[-CHANGES:],
        'rendezvous': _texts(row.get('rendezvous'))[:HISTORY],
        'hours': _hours(row.get('hours')),
    }


def put_back(entries: Entries, kept: Json) -> bool:
    """Writes what `whole` gave, all of it or nothing; False: that UUID has an entry already.

    A name that another entry has by now is left out. Raises StoreDown, and ValueError as `checked`.
    """
    row = checked(kept)
    if not entries.run(scripts.PUT_BACK, [row['uuid']], [json.dumps(row)]):
        return False
    if row['name']:
        with suppress(names.Unfit):  # another program's key
            names.give(entries, row['uuid'], row['name'])
    return True


@contextmanager
def backup(entries: Entries) -> Iterator[BinaryIO]:
    """A copy of all that the embedded store holds, to be read; the store runs on.

    To restore it: the only file in `data/`, named appendonly.aof. A store that starts there takes
    it over. Raises StoreDown, and Mistake where the entries are in another Redis, or the store
    cannot write the copy.
    """
    if not entries.is_embedded:
        raise Mistake(f'{entries.where()}, and not here: make a backup there, with redis-cli --rdb')
    dump = embedded.DATA / DUMP
    with _one_at_a_time():
        try:
            _save(entries)
            with dump.open('rb') as copy:
                yield copy
        finally:
            with suppress(OSError):
                dump.unlink()  # it holds the secrets


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """All backups of this store come one after the other."""
    folder = os.open(embedded.DATA, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            gevent.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(folder)


def _save(entries: Entries) -> None:
    """Lets the store write all that it holds into data/dump.rdb."""
    deadline, before = time.monotonic() + SAVE_SECONDS, _saving(entries)
    while before['rdb_bgsave_in_progress']:  # an administrator's
        gevent.sleep(LOOK_SECONDS)
        before = _saving(entries)
    entries.ask(lambda redis: redis.bgsave(schedule=True))  # after a rewrite of the other file
    now = before
    while now['rdb_saves'] == before['rdb_saves'] or now['rdb_bgsave_in_progress']:
        if time.monotonic() > deadline:
            raise Mistake(f'the store has not written its copy within {SAVE_SECONDS} s')
        gevent.sleep(LOOK_SECONDS)
        now = _saving(entries)
    if now['rdb_last_bgsave_status'] != 'ok':
        raise Mistake(f'cannot write {embedded.DATA / DUMP}: see {embedded.DATA / embedded.LOG}')


def _saving(entries: Entries) -> dict[str, Any]:
    return entries.ask(lambda redis: redis.info('persistence'))


def _is_name(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return bool(names.checked(value))
    except Mistake:
        return False


def _texts(value: object) -> list[str]:
    """Those of a list that are texts of a sensible length."""
    rows = value if isinstance(value, list) else []
    return [row for row in rows if _is_text(row, ROW)]


def _is_text(value: object, characters: int) -> bool:
    """Whether Redis can keep it, too: half of a character of UTF-16 has no octets."""
    if not isinstance(value, str) or len(value) > characters:
        return False
    return not _SURROGATE.search(value)


def _hours(value: object) -> dict[str, str]:
    days = value.items() if isinstance(value, dict) else ()
    good = {day: text for day, text in days if _DAY.fullmatch(day) and _texts([text])}
    return {day: good[day] for day in sorted(good, key=int)[-KEPT_DAYS:]}
