"""What the page and the shell do with an entry: check the input, change Redis, write the files.

Each function may raise Unable, Mistake or StoreDown.
"""

import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from rendezvous.admin import entry_files as files
from rendezvous.store import entry_json, names
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options
from rendezvous.wire import codes
from rendezvous.wire.programs import Mistake

LABEL_CHARACTERS = 100


class Unable(click.ClickException):
    """A sentence that says why the request cannot be carried out."""


def create(entries: Entries, options: Options, uuid: str, label: str, digits: int) -> Path:
    """Makes an entry and its two files. Returns their path without the suffix.

    Without a `uuid` it gets a random one.
    """
    uuid, labels = uuid.strip().lower() or str(uuids.uuid4()), _checked_labels(label)
    if not codes.UUID.fullmatch(uuid):
        example = uuids.uuid4()
        raise Unable(f'{uuid[:50]!r} is not a UUID like {example}; without one, a new one is made')
    files.how_to_reach(options)  # raises a Mistake before there is an entry
    entry = entries.add(uuid, labels, digits)
    if not entry:
        raise Unable(f'there is already an entry {uuid}: delete it, or take another UUID')
    try:
        return files.write(entry, options)
    except Mistake:
        entries.delete(uuid)
        with suppress(Mistake):
            files.remove(uuid)
        raise


def rename(entries: Entries, options: Options, uuid: str, label: str) -> str:
    """Gives an entry another label, in its files too if they are on this machine.

    If its label is its host name, the new one is. Returns the host name, '' where it has none.
    """
    uuid, labels = _checked_uuid(uuid), _checked_labels(label)
    name = names.of(entries, uuid)
    if name:
        try:
            name = _take_name(entries, uuid, labels)
        except Unable as error:
            raise Unable(f'{error.message}, or first switch off its host name {name}') from None
    entries.rename(uuid, labels) or _no_entry(uuid)
    entry = entries.get(uuid)
    if entry and (files.FILES / f'{uuid}.json').exists():
        with _mistake_adds('the entry has its new label, but not its files: rename it again'):
            files.write(entry, options)
    return name


def name_on(entries: Entries, options: Options, uuid: str) -> str:
    """Makes the label of an entry its host name, too. Returns the name."""
    if not options.names_domain:
        raise Unable('there are no host names yet: set names_domain in local.py')
    entry = find(entries, uuid)
    return _take_name(entries, entry['uuid'], entry_json.summary(entry)['labels'])


def name_off(entries: Entries, uuid: str) -> None:
    """Its label is not its host name any more."""
    names.switch_off(entries, find(entries, uuid)['uuid'])


def name_of(entries: Entries, options: Options, uuid: str) -> str:
    """The host name of an entry; '' where it has none, or there is no `names_domain`."""
    return names.of(entries, uuid) if options.names_domain else ''


def all_names(entries: Entries, options: Options) -> dict[str, str]:
    """The host names by UUID."""
    known = names.known(entries) if options.names_domain else {}
    return {uuid: name for name, uuid in known.items()}


def disable(entries: Entries, uuid: str) -> None:
    """Ends its registrations and pipes. It cannot register until it is enabled."""
    uuid = _checked_uuid(uuid)
    entries.disable(uuid) or _no_entry(uuid)


def enable(entries: Entries, uuid: str) -> None:
    """Lets it register again, also after too many wrong codes."""
    uuid = _checked_uuid(uuid)
    entries.enable(uuid) or _no_entry(uuid)
    entries.clear_wrong_codes(uuid)


def rekey(entries: Entries, options: Options, uuid: str, digits: int | None = None) -> Path:
    """Gives an entry a new secret and new files. Returns their path without the suffix.

    The old secret stops working at once. Without `digits`, codes have as many as before.
    """
    uuid = _checked_uuid(uuid)
    files.how_to_reach(options)
    entry = entries.rekey(uuid, digits) or _no_entry(uuid)
    entries.clear_wrong_codes(uuid)
    with _mistake_adds('the secret is new, but is not in the files: rekey the entry again'):
        return files.write(entry, options)


def remove(entries: Entries, uuid: str) -> None:
    """Deletes an entry and its files."""
    uuid = _checked_uuid(uuid)
    existed = entries.delete(uuid)
    entries.clear_wrong_codes(uuid)
    with _mistake_adds('the entry is deleted, but not its files: delete them'):
        files.remove(uuid)
    existed or _no_entry(uuid)


def find(entries: Entries, uuid: str) -> dict[str, Any]:
    """The entry. If its value in Redis makes no sense, only its UUID."""
    uuid = _checked_uuid(uuid)
    entry = entries.get(uuid)
    entry or entries.ask(lambda redis: redis.exists(uuid)) or _no_entry(uuid)
    return entry or {'uuid': uuid}


@contextmanager
def _mistake_adds(done: str) -> Iterator[None]:
    """Adds what is already done to a Mistake about the files."""
    try:
        yield
    except Mistake as mistake:
        raise Mistake(f'{mistake}; {done}') from None


def _checked_uuid(uuid: str) -> str:
    uuid = uuid.strip().lower()
    if not codes.UUID.fullmatch(uuid):
        raise Unable(f'{uuid[:50]!r} is not a UUID: users_app.py list shows those of all entries')
    return uuid


def _take_name(entries: Entries, uuid: str, labels: list[str]) -> str:
    """Makes the first label the host name of an entry, in place of the one that it has."""
    if not labels:
        raise Unable('an entry without a label has no host name: give it a label')
    try:
        name = names.checked(labels[0])
    except Mistake as mistake:
        raise Unable(f'{labels[0]!r} cannot be a host name: {mistake}') from None
    holder = names.switch_on(entries, uuid, name)
    if holder:
        raise Unable(f'{name} is the host name of the entry {holder}: choose another label')
    return name


def _no_entry(uuid: str) -> NoReturn:
    raise Unable(f'there is no entry {uuid}')


def _checked_labels(label: str) -> list[str]:
    label = label.strip().strip(entry_json.JOINERS)
    if len(label) > LABEL_CHARACTERS:
        raise Unable(f'a label has at most {LABEL_CHARACTERS} characters, not {len(label)}')
    if entry_json.printable(label) != label:
        raise Unable('a label must not contain control characters or invisible characters')
    return [label] if label else []
