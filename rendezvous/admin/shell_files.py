"""The commands of users_app.py that write files, read them, or let a browser in."""

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from rendezvous.admin import actions, atomic, entry_files, export, login_link, nedis, words
from rendezvous.admin import pack as packing
from rendezvous.admin.actions import Unable
from rendezvous.admin.command import (
    command,
    each_of,
    entries_argument,
    find_all,
    some_argument,
    who,
)
from rendezvous.store import embedded, names
from rendezvous.store import export as store
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json
from rendezvous.store.options import Options

SKIPPED_LINES = 20  # of an imported file that are shown; the others are counted
_FILE = click.Path(path_type=Path)


@command
@entries_argument
@click.option('-o', 'file', type=_FILE, help='[default: LABEL.pyz]')
def pack(entries: Entries, options: Options, chosen: tuple[str, ...], file: Path | None) -> None:
    """Makes one file of an entry and hidden.py, for the hidden server."""
    found = find_all(entries, chosen)
    if file and len(found) > 1:
        raise click.UsageError('-o is for one entry: without it, each gets a file of its label')
    made: set[Path] = set()

    def build(entry: Json) -> None:
        document = entry_files.document(entry, options)
        path = file or Path(packing.file_name(document))
        if path in made:  # two entries have that label
            path = path.with_stem(f'{path.stem}-{entry["uuid"][:8]}')
        made.add(path)
        with _writes(path):
            atomic.write(path, packing.build(document), 0o600)
        actions.secret_left(entries, actions.FILE_GIVEN, entry['uuid'], who(), path.name)
        click.echo(f'made {path}, with all that the hidden server needs: copy it there, and')
        click.echo(f'    python3 {shlex.quote(path.name)} 127.0.0.1:8000')

    each_of(found, build)
    click.echo('It holds the secret: keep it private.')


@command
@click.option('--out', 'file', type=_FILE, help='[default: rendezvous-DATE-TIME.jsonl]')
@some_argument
def export_entries(
    entries: Entries, options: Options, file: Path | None, chosen: tuple[str, ...]
) -> None:
    """Writes all entries, or some, into a file that `import` takes.

    Their secrets, host names, notes and history are in it.
    """
    file = file or Path(time.strftime('rendezvous-%Y-%m-%d-%H%M%S.jsonl'))
    found = find_all(entries, chosen) if chosen else entries.all()
    with _writes(file):
        count = export.write(file, (store.whole(entries, each['uuid']) for each in found))
    said = words.plural(count, 'entry', 'entries')
    for uuid in (entry['uuid'] for entry in found if chosen):
        actions.secret_left(entries, actions.EXPORTED, uuid, who())
    if not chosen:
        actions.noted(entries, actions.EXPORTED, '', '', who(), said)
    click.echo(f'made {file} with {said}; import takes it')
    click.echo('It holds their secrets: keep it private.')


@command
@click.argument('file', type=_FILE)
def import_entries(entries: Entries, options: Options, file: Path) -> None:
    """Imports what `export` wrote, or the nedis.db of node-rendezvous.

    An entry that is there already stays as it is.
    """
    imported: list[str] = []
    try:
        for uuid in _put_back(entries, file) if export.is_one(file) else _nedis(entries, file):
            click.echo(f'imported {uuid}')
            imported.append(uuid)
    finally:
        _note_imported(entries, imported)


def _put_back(entries: Entries, file: Path) -> Iterator[str]:
    for whole in export.read(file):
        uuid, name = whole['uuid'], whole.get('name')
        # put_back itself is tried again where Redis has not answered, and takes an equal entry as
        # the one that it has just written.
        if actions.is_there(entries, uuid) or not store.put_back(entries, whole):
            click.echo(f'skipped {uuid}: there is already an entry of that UUID', err=True)
            continue
        yield uuid
        if name and names.of(entries, uuid) != name:
            why = f'is without its host name {name}: another entry has it by now'
            click.echo(f'{uuid} {why}', err=True)


def _nedis(entries: Entries, file: Path) -> Iterator[str]:
    found = nedis.read(file)
    skipped = list(found.skipped)
    for uuid, (line, entry) in found.entries.items():
        if entries.get(uuid) is None and entries.insert(uuid, entry):
            yield uuid
        else:
            skipped.append((line, f'there is already an entry {uuid}'))
    for line, why in sorted(skipped)[:SKIPPED_LINES]:
        click.echo(f'skipped line {line}: {why}', err=True)
    if len(skipped) > SKIPPED_LINES:
        click.echo(f'skipped {len(skipped) - SKIPPED_LINES} more', err=True)
    if found.unreadable:
        raise Unable(f'{file} holds no Redis commands from line {found.unreadable} on')


def _note_imported(entries: Entries, uuids: list[str]) -> None:
    """One line in the log of changes: thousands would leave no room there for anything else."""
    if len(uuids) == 1:
        labels = (entries.shown(uuids[0]) or {}).get('labels', [])
        actions.noted(entries, actions.IMPORTED, uuids[0], ', '.join(labels), who())
    elif uuids:
        actions.noted(entries, actions.IMPORTED, '', '', who(), f'{len(uuids):,} entries')


@command
@click.argument('file', type=_FILE)
def backup(entries: Entries, options: Options, file: Path) -> None:
    """Copies the embedded store into a file, while it runs."""
    data, path = map(os.path.realpath, (embedded.DATA, file))
    if entries.is_embedded and path.startswith(f'{data}/'):
        raise Unable(f'{file} is in the folder of the store: choose another one')
    with _writes(file), store.backup(entries) as copy, atomic.writing(file, 0o600) as made:
        shutil.copyfileobj(copy, made)
    actions.noted(entries, actions.BACKED_UP, '', '', who(), file.name)
    click.echo(f'made {file}, with all entries and their history. To restore it, end all programs')
    click.echo('of this folder, and then:')
    click.echo('    mv data data.old')
    click.echo('    mkdir -m 700 data')
    click.echo(f'    cp {shlex.quote(str(file))} data/appendonly.aof')
    click.echo('It holds the secrets: keep it private.')


@click.command()
def link() -> None:
    """Prints a fresh link to log in, for a page that runs as a service."""
    click.echo(login_link.make_link())


@contextmanager
def _writes(path: Path) -> Iterator[None]:
    """Raises Unable where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise Unable(f'cannot write {path}: {error.strerror}') from None
