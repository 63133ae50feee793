"""What the page and the shell do with an entry: the input looked at, then Redis, then the files.

Each function raises Unable, a Mistake or StoreDown.
"""

import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from rendezvous.admin import entry_files as files
from rendezvous.store import entry_json
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options
from rendezvous.wire import codes
from rendezvous.wire.programs import Mistake

LABEL_CHARACTERS = 100


class Unable(click.ClickException):
    """What was asked for cannot be done, and why: a sentence."""


def create(entries: Entries, options: Options, uuid: str, label: str, digits: int) -> Path:
    """Makes an entry and its two files: their path less the suffix; its name is the UUID.

    `uuid` may be empty: one is made up.
    """
    uuid, labels = uuid.strip().lower() or str(uuids.uuid4()), _labels(label)
    if not codes.UUID.fullmatch(uuid):
        example = uuids.uuid4()
        raise Unable(f'{uuid[:50]!r} is no UUID; {example} is one, and left out, one is made up')
    files.how_to_reach(options)  # a mistake in that, before there is an entry
    entry = entries.add(uuid, labels, digits)
    if not entry:
        raise Unable(f'{uuid} has an entry already: delete it first, or take another UUID')
    try:
        return files.write(entry, options)
    except Mistake:
        entries.delete(uuid)
        with suppress(Mistake):
            files.remove(uuid)
        raise


def rename(entries: Entries, options: Options, uuid: str, label: str) -> None:
    """Gives an entry another label, in its files, too, where they are here."""
    uuid, labels = _known(uuid), _labels(label)
    _done(entries.rename(uuid, labels), uuid)
    entry = entries.get(uuid)
    if entry and (files.FILES / f'{uuid}.json').exists():
        with _saying('it has its new label all the same: mend that, rename it again'):
            files.write(entry, options)


def disable(entries: Entries, uuid: str) -> None:
    """Ends its registrations and pipes; no more until it is enabled."""
    uuid = _known(uuid)
    _done(entries.disable(uuid), uuid)


def enable(entries: Entries, uuid: str) -> None:
    """Lets it register again, also where too many wrong codes were tried."""
    uuid = _known(uuid)
    _done(entries.enable(uuid), uuid)
    entries.clear_wrong_codes(uuid)


def rekey(entries: Entries, options: Options, uuid: str, digits: int | None = None) -> Path:
    """Gives an entry a new secret and writes its files: their path less the suffix.

    The old secret stops working at once. `digits`: None means as many as before.
    """
    uuid = _known(uuid)
    files.how_to_reach(options)
    entry = entries.rekey(uuid, digits)
    _done(entry, uuid)
    entries.clear_wrong_codes(uuid)
    with _saying('the secret is new all the same: mend that, rekey again'):
        return files.write(entry, options)


def remove(entries: Entries, uuid: str) -> None:
    """Deletes an entry and its files."""
    uuid = _known(uuid)
    there_was_one = entries.delete(uuid)
    entries.clear_wrong_codes(uuid)
    with _saying('the entry is gone all the same: delete its files'):
        files.remove(uuid)
    _done(there_was_one, uuid)


def found(entries: Entries, uuid: str) -> dict:
    """The entry; of one that is no JSON object the UUID."""
    uuid = _known(uuid)
    entry = entries.get(uuid)
    _done(entry or entries.ask(lambda redis: redis.exists(uuid)), uuid)
    return entry or {'uuid': uuid}


@contextmanager
def _saying(done: str) -> Iterator[None]:
    """Has a Mistake with the files tell what is done already, too."""
    try:
        yield
    except Mistake as mistake:
        raise Mistake(f'{mistake}; {done}') from None


def _known(uuid: str) -> str:
    uuid = uuid.strip().lower()
    if not codes.UUID.fullmatch(uuid):
        raise Unable(f'{uuid[:50]!r} is no UUID: list shows those that there are')
    return uuid


def _done(there_was_one, uuid: str) -> None:
    if not there_was_one:
        raise Unable(f'there is no entry {uuid}')


def _labels(label: str) -> list[str]:
    label = label.strip().strip(entry_json.JOINERS)
    if len(label) > LABEL_CHARACTERS:
        raise Unable(f'a label has at most {LABEL_CHARACTERS} characters, not {len(label)}')
    if entry_json.printable(label) != label:
        raise Unable('a label has no control characters, nor others that are not there to be seen')
    return [label] if label else []
