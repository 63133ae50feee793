"""The commands of users_app.py that change entries."""

import click

from rendezvous.admin import actions, entry_files
from rendezvous.admin.command import (
    ask,
    command,
    digits_option,
    each_of,
    entries_argument,
    entry_argument,
    find_all,
    say,
    show_files,
    who,
    yes_option,
)
from rendezvous.store.entries import DIGITS, Entries
from rendezvous.store.entry_json import Json
from rendezvous.store.options import Options

# Questions before something ends, of one entry and of several
_DISABLE = 'Disable it?', 'Disable these {}?'
_REKEY = 'Give it a new secret?', 'Give these {} new secrets?'
_DELETE = 'Delete it and its secret?', 'Delete these {} and their secrets?'


@command
@click.option('--uuid', default='', help='The UUID of the entry, instead of a random one.')
@digits_option(default=DIGITS, show_default=True, help='Digits of its codes.')
@click.argument('label', default='')
def add(entries: Entries, options: Options, uuid: str, digits: int, label: str) -> None:
    """Makes an entry, and its files for the hidden server.

    For a program that was written for node-rendezvous, its codes must have 6 digits.
    """
    files = actions.create(entries, options, uuid, label, digits, who())
    show_files(files)
    user = '' if options.names_domain else f', with any password and the user name {files.name}'
    click.echo(f'{entry_files.url(options, files.name)}  for mobile clients{user}')
    click.echo(entries.where())
    if wanted := label.strip():
        same = [each for each in entries.all() if actions.has_label(each, wanted)]
        say(filter(None, [actions.same_label(len(same) - 1)]))


@command
@entry_argument
@click.argument('label')
def rename(entries: Entries, options: Options, entry: str, label: str) -> None:
    """Gives an entry another label; '' removes it. A host name that is its label changes too."""
    uuid = actions.find_by(entries, entry)['uuid']
    name = actions.rename(entries, options, uuid, label, who())
    click.echo(f'renamed {uuid}')
    if name and options.names_domain:
        click.echo(f'its address is now {entry_files.url(options, uuid, name)}')


@command
@entry_argument
@click.argument('text')
def note(entries: Entries, options: Options, entry: str, text: str) -> None:
    """Writes a note of a line or two to an entry; '' removes it."""
    uuid = actions.find_by(entries, entry)['uuid']
    actions.note(entries, options, uuid, text, who())
    click.echo(f'noted {uuid}' if text.strip() else f'the note of {uuid} is gone')


@command
@entries_argument
@click.option('--off', is_flag=True, help='Its label is no host name any more.')
def name(entries: Entries, options: Options, chosen: tuple[str, ...], off: bool) -> None:
    """Makes the label of an entry its host name, too.

    A label can be guessed, and a UUID cannot. Whoever guesses it reaches the hidden server, which
    must ask who is there.
    """

    def switch(entry: Json) -> None:
        uuid = entry['uuid']
        if off:
            actions.name_off(entries, options, uuid, who())
            click.echo(f'the label of {uuid} is no host name any more')
        else:
            made = actions.name_on(entries, options, uuid, who())
            click.echo(f'its address is now {entry_files.url(options, uuid, made)}')

    each_of(find_all(entries, chosen), switch)
    if not off:
        click.echo('Whoever guesses it reaches the hidden server, which must ask who is there.')


@command
@entries_argument
@yes_option
def disable(entries: Entries, options: Options, chosen: tuple[str, ...], yes: bool) -> None:
    """Disables entries: their hidden servers cannot register."""

    def off(entry: Json) -> None:
        actions.disable(entries, entry['uuid'], who())
        click.echo(f'disabled {entry["uuid"]}')

    each_of(ask(entries, chosen, _DISABLE, yes), off)


@command
@entries_argument
def enable(entries: Entries, options: Options, chosen: tuple[str, ...]) -> None:
    """Enables entries that were disabled or had too many wrong codes."""

    def on(entry: Json) -> None:
        actions.enable(entries, entry['uuid'], who())
        click.echo(f'enabled {entry["uuid"]}')

    each_of(find_all(entries, chosen), on)


@command
@entries_argument
@digits_option(help='Digits of its codes.  [default: as before]')
@yes_option
def rekey(
    entries: Entries, options: Options, chosen: tuple[str, ...], digits: int | None, yes: bool
) -> None:
    """Replaces the secret of entries, and their files."""

    def replace(entry: Json) -> None:
        files = actions.rekey(entries, options, entry['uuid'], who(), digits)
        click.echo(f'the old secret of {files.name} does not work any more')
        show_files(files)

    each_of(ask(entries, chosen, _REKEY, yes), replace)


@command
@entries_argument
@yes_option
def delete(entries: Entries, options: Options, chosen: tuple[str, ...], yes: bool) -> None:
    """Deletes entries and their files on this machine."""

    def remove(entry: Json) -> None:
        actions.remove(entries, entry['uuid'], who())
        click.echo(f'deleted {entry["uuid"]}')

    each_of(ask(entries, chosen, _DELETE, yes), remove)
