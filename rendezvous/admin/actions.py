"""What the page and the shell do with an entry: check the input, change Redis, write the files.

Each function may raise Unable, Mistake or StoreDown. What it has done is in the log of changes,
with who did it; no secret and no note is.
"""

import logging
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click

from rendezvous.admin import entry_files as files
from rendezvous.admin import words
from rendezvous.store import action_log, entry_json, names, questions, saving, state
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.options import Options
from rendezvous.store.saving import Saved
from rendezvous.wire import codes
from rendezvous.wire.programs import Mistake

log = logging.getLogger('actions')

LABEL_CHARACTERS = 100
BEGINNING = 4  # characters of a UUID that may stand for it; fewer are a slip of the finger
CANDIDATES = 5  # entries that an error names; the others are counted

# What was done, as the log of changes says it
MADE, RENAMED, NOTED, NAMED, UNNAMED = 'made', 'renamed', 'notes', 'host name on', 'host name off'
DISABLED, ENABLED, REKEYED, DELETED = 'disabled', 'enabled', 'new secret', 'deleted'
CLEARED, ENDED, IMPORTED = 'wrong codes cleared', 'connection ended', 'imported'
LOGGED_IN, LOGGED_OUT = 'logged in', 'logged out'
DRAINED = 'node drained'
# Somebody has a secret now: they saw it, or got a file that holds it
SECRET_SHOWN, FILE_GIVEN = 'secret shown', 'file given out'
EXPORTED, BACKED_UP = 'exported', 'backup made'


class Unable(click.ClickException):
    """A sentence that says why the request cannot be carried out."""


class Who(NamedTuple):
    """Who does something, as the log of changes names them."""

    door: str  # 'page' or 'shell'
    name: str  # of a session, or of a user

    def __str__(self) -> str:
        return f'{self.door}, {self.name}'


def create(
    entries: Entries, options: Options, uuid: str, label: str, digits: int, who: Who
) -> Path:
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
        written = files.write(entry, options)
    except Mistake:
        entries.delete(uuid)
        with suppress(Mistake):
            files.remove(uuid)
        raise
    noted(entries, MADE, uuid, ', '.join(labels), who)
    return written


def save(
    entries: Entries,
    options: Options,
    uuid: str,
    who: Who,
    *,
    label: str | None = None,
    note: str | None = None,
    named: bool | None = None,
) -> Saved:
    """Changes label, note and host name of an entry at once, those that are not None.

    `named`: whether its label is its host name, too. Where it is and the label changes, the host
    name changes with it. With a label, the entry's files are written again, if they are here.
    """
    uuid = _checked_uuid(uuid)
    labels = None if label is None else _checked_labels(label)
    if named and not options.names_domain:
        raise Unable('there are no host names yet: set names_domain in local.py')
    note = None if note is None else _checked_note(note)
    saved = saving.save(entries, uuid, labels, note, named)
    before = saved.before or _no_entry(uuid)
    if saved.why:
        raise Unable(saved.why)
    _note_saved(entries, saved, labels, note, who)
    # With the same label, too: they have where the server is, which may have changed.
    if labels is not None and (files.FILES / f'{uuid}.json').exists():
        with _mistake_adds('the entry has its new label, but not its files: rename it again'):
            files.write(entries.get(uuid) or before, options)
    return saved


def rename(entries: Entries, options: Options, uuid: str, label: str, who: Who) -> str:
    """Gives an entry another label. If its label is its host name, the new one is.

    Returns the host name, '' where it has none.
    """
    return save(entries, options, uuid, who, label=label).name


def note(entries: Entries, options: Options, uuid: str, text: str, who: Who) -> None:
    """Gives an entry another note: a line or two. '' removes it."""
    save(entries, options, uuid, who, note=text)


def name_on(entries: Entries, options: Options, uuid: str, who: Who) -> str:
    """Makes the label of an entry its host name, too. Returns the name."""
    return save(entries, options, uuid, who, named=True).name


def name_off(entries: Entries, options: Options, uuid: str, who: Who) -> None:
    """Its label is not its host name any more."""
    save(entries, options, uuid, who, named=False)


def name_of(entries: Entries, options: Options, uuid: str) -> str:
    """The host name of an entry; '' where it has none, or there is no `names_domain`."""
    return names.of(entries, uuid) if options.names_domain else ''


def all_names(entries: Entries, options: Options) -> dict[str, str]:
    """The host names by UUID."""
    known = names.known(entries) if options.names_domain else {}
    return {uuid: name for name, uuid in known.items()}


def disable(entries: Entries, uuid: str, who: Who) -> None:
    """Ends its registrations and pipes. It cannot register until it is enabled."""
    uuid = _checked_uuid(uuid)
    entries.disable(uuid) or _no_entry(uuid)
    noted(entries, DISABLED, uuid, _label(entries, uuid), who)


def enable(entries: Entries, uuid: str, who: Who) -> None:
    """Lets it register again, also after too many wrong codes."""
    uuid = _checked_uuid(uuid)
    entries.enable(uuid) or _no_entry(uuid)
    entries.clear_wrong_codes(uuid)
    noted(entries, ENABLED, uuid, _label(entries, uuid), who)


def clear(entries: Entries, uuid: str, who: Who) -> None:
    """Forgets the wrong codes that were tried for it: who has to wait may try again now."""
    uuid = find(entries, uuid)['uuid']
    entries.clear_wrong_codes(uuid)
    noted(entries, CLEARED, uuid, _label(entries, uuid), who)


def end_pipe(entries: Entries, uuid: str, worker: str, pipe: str, who: Who) -> None:
    """Ends one open pipe of a hidden server."""
    uuid = find(entries, uuid)['uuid']
    known = questions.open_pipes(entries, state.server(entries), uuid)
    found = [each for each in known if (each.worker, each.id) == (worker, pipe)]
    if not found or not questions.end_pipe(entries, worker, pipe):
        raise Unable('that connection is over already')
    noted(entries, ENDED, uuid, _label(entries, uuid), who, f'of {found[0].address}')


def rekey(
    entries: Entries, options: Options, uuid: str, who: Who, digits: int | None = None
) -> Path:
    """Gives an entry a new secret and new files. Returns their path without the suffix.

    The old secret stops working at once. Without `digits`, codes have as many as before.
    """
    uuid = _checked_uuid(uuid)
    files.how_to_reach(options)
    entry = entries.rekey(uuid, digits) or _no_entry(uuid)
    entries.clear_wrong_codes(uuid)
    noted(entries, REKEYED, uuid, ', '.join(entry_json.summary(entry)['labels']), who)
    with _mistake_adds('the secret is new, but is not in the files: rekey the entry again'):
        return files.write(entry, options)


def remove(entries: Entries, uuid: str, who: Who) -> None:
    """Deletes an entry and its files."""
    uuid = _checked_uuid(uuid)
    label = _label(entries, uuid)
    existed = entries.delete(uuid)
    entries.clear_wrong_codes(uuid)
    if existed:
        noted(entries, DELETED, uuid, label, who)
    with _mistake_adds('the entry is deleted, but not its files: delete them'):
        files.remove(uuid)
    existed or _no_entry(uuid)


def find(entries: Entries, uuid: str) -> dict[str, Any]:
    """The entry. If its value in Redis makes no sense, only its UUID."""
    uuid = _checked_uuid(uuid)
    entry = entries.get(uuid)
    entry or is_there(entries, uuid) or _no_entry(uuid)
    return entry or {'uuid': uuid}


def is_there(entries: Entries, uuid: str) -> bool:
    """Whether that UUID has an entry, even one that makes no sense."""
    return bool(entries.ask(lambda redis: redis.exists(uuid)))


def has_label(entry: dict[str, Any], wanted: str) -> bool:
    """Whether it is one of an entry's labels, or all of them, in any case of letters."""
    labels = entry['labels']
    return wanted.casefold() in {each.casefold() for each in (*labels, ', '.join(labels))}


def same_label(count: int) -> str:
    """That so many others have the label of an entry; '' where none has."""
    if not count:
        return ''
    has = 'has' if count == 1 else 'have'
    others = words.plural(count, 'other entry', 'other entries')
    return f'{others} {has} this label: commands need the UUID then.'


def find_by(entries: Entries, text: str) -> dict[str, Any]:
    """The entry that a UUID, the beginning of one, or a label means, in any case of letters.

    It is as `find` gives it. A label that is the beginning of another's UUID means the label.
    """
    wanted = text.strip()
    if codes.UUID.fullmatch(wanted.lower()):
        return find(entries, wanted)
    if not wanted:
        raise Unable('give the UUID of an entry, the beginning of it, or the label')
    every = entries.all()
    found = [each for each in every if has_label(each, wanted)]
    if not found and len(wanted) >= BEGINNING:
        found = [each for each in every if each['uuid'].startswith(wanted.lower())]
    if len(found) == 1:
        return find(entries, found[0]['uuid'])
    if found:
        raise Unable(_several(wanted, found))
    raise Unable(
        f'no entry has the label {wanted[:50]!r}, and no UUID begins so (with {BEGINNING} '
        'characters or more): users_app.py list shows all entries'
    )


def secret_left(entries: Entries, what: str, uuid: str, who: Who, detail: str = '') -> None:
    """Notes that the secret of an entry was shown, or in which file it was given out."""
    noted(entries, what, uuid, _label(entries, uuid), who, detail)


def noted(entries: Entries, what: str, uuid: str, label: str, who: Who, detail: str = '') -> None:
    """Puts what was done into the log of changes. It is done, so that fails with a line alone."""
    try:
        action_log.note(entries, what, uuid, label, str(who), detail)
    except StoreDown as error:
        log.warning('the log of changes lacks: %s %s by %s (%s)', what, uuid, who, error)


@contextmanager
def _mistake_adds(done: str) -> Iterator[None]:
    """Adds what is already done to a Mistake about the files."""
    try:
        yield
    except Mistake as mistake:
        raise Mistake(f'{mistake}; {done}') from None


def _note_saved(
    entries: Entries, saved: Saved, labels: list[str] | None, text: str | None, who: Who
) -> None:
    """Each of the three that has changed is a line of the log."""
    before = saved.before or {}
    uuid, shown = before['uuid'], entry_json.summary(before)['labels']
    label = ', '.join(shown if labels is None else labels)
    if labels is not None and labels != shown:
        noted(entries, RENAMED, uuid, label, who, f'from {", ".join(shown) or "no label"}')
    if text is not None and text != (before.get('note') or ''):
        noted(entries, NOTED, uuid, label, who)
    if saved.name != saved.former:
        what = NAMED if saved.name else UNNAMED
        noted(entries, what, uuid, label, who, saved.name or saved.former)


def _label(entries: Entries, uuid: str) -> str:
    """Of an entry, for the log; '' where it has none, or Redis does not answer."""
    with suppress(StoreDown):
        return ', '.join((entries.shown(uuid) or {}).get('labels', ()))
    return ''


def _several(wanted: str, found: list[dict[str, Any]]) -> str:
    shown = [
        f'{each["uuid"]} ({", ".join(each["labels"]) or "without a label"})'
        for each in found[:CANDIDATES]
    ]
    more = f' and {len(found) - CANDIDATES} more' if len(found) > CANDIDATES else ''
    return f'{wanted[:50]!r} may be {", ".join(shown)}{more}: give more of the UUID'


def _checked_uuid(uuid: str) -> str:
    uuid = uuid.strip().lower()
    if not codes.UUID.fullmatch(uuid):
        raise Unable(f'{uuid[:50]!r} is not a UUID: users_app.py list shows those of all entries')
    return uuid


def _no_entry(uuid: str) -> NoReturn:
    raise Unable(f'there is no entry {uuid}')


def _checked_labels(label: str) -> list[str]:
    label = label.strip().strip(entry_json.JOINERS).strip()
    if len(label) > LABEL_CHARACTERS:
        raise Unable(f'a label has at most {LABEL_CHARACTERS} characters, not {len(label)}')
    if entry_json.printable(label) != label:
        raise Unable('a label must not contain control characters or invisible characters')
    return [label] if label else []


def _checked_note(text: str) -> str:
    """With \n between its lines, where browsers send \r\n."""
    text = text.replace('\r\n', '\n').replace('\r', '\n').replace('\t', ' ')
    lines = [line.rstrip() for line in text.split('\n')]
    text = '\n'.join(lines).strip().strip(entry_json.JOINERS).strip()
    if len(text) > entry_json.NOTE:
        raise Unable(f'notes have at most {entry_json.NOTE} characters, not {len(text)}')
    if any(entry_json.printable(line) != line for line in lines):
        raise Unable('notes must not contain control characters or invisible characters')
    return text
