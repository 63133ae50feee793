"""Manages the entries of hidden servers.

Without a command it serves a page, on which a browser does the same as the commands.

Exit status: 0 if it is done, 1 if it cannot be done, 2 if the command line is wrong, 78 if local.py
or Redis needs a correction.
"""

import functools
import importlib
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import click

from rendezvous.admin import actions, atomic, entry_files, listing, nedis
from rendezvous.admin import pack as packing
from rendezvous.admin.actions import Unable
from rendezvous.store import options as local
from rendezvous.store import presence
from rendezvous.store.entries import DIGITS, Entries
from rendezvous.store.options import Options
from rendezvous.wire import addresses
from rendezvous.wire.programs import HERE

HOST, PORT, PORTS = '127.0.0.1', 8893, click.IntRange(0, 65535)
SKIPPED_LINES = 20  # of an imported file that are shown; the others are counted


@click.group(invoke_without_command=True, help=__doc__)
@click.option('--port', type=PORTS, default=PORT, show_default=True, help='The port of the page.')
@click.option('--host', default=HOST, show_default=True, help='The address of the page.')
@click.option('--no-login', is_flag=True, help='Everybody who can connect may use the page.')
@click.pass_context
def cli(context: click.Context, port: int, host: str, no_login: bool) -> None:
    os.umask(0o077)
    if isinstance(sys.stdout, io.TextIOWrapper):  # None if it is closed
        sys.stdout.reconfigure(errors='replace')  # a terminal may lack the letters of a label
    if context.invoked_subcommand:
        default = click.core.ParameterSource.DEFAULT
        if any(context.get_parameter_source(name) != default for name in context.params):
            raise click.UsageError('--port, --host and --no-login are options of the page only')
        return
    if not host:
        raise click.UsageError('--host must be an address, like 127.0.0.1')
    if no_login and not addresses.is_loopback(host):
        raise click.UsageError('--no-login needs a loopback --host: the network could use the page')
    # As click's LazyGroup: the commands start without Flask, which takes 0.2 s to import.
    page = importlib.import_module('rendezvous.admin.page')
    page.serve(local.load(), host, port, login=not no_login)


def command(function: Callable[..., None]) -> click.Command:
    """Makes a function a command. It is given the entries, the options and its arguments."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        options = local.load()
        entries = Entries(options)
        try:
            entries.open()
            function(entries, options, **arguments)
        finally:
            entries.close()

    return cli.command(function.__name__.removesuffix('_entries'))(run)


uuid_argument = click.argument('uuid')
yes_option = click.option('--yes', is_flag=True, help='Do not ask.')
digits_option = functools.partial(click.option, '--digits', type=click.IntRange(6, 8))


@command
@click.option('--uuid', default='', help='The UUID of the entry, instead of a random one.')
@digits_option(default=DIGITS, show_default=True, help='Digits of its codes.')
@click.argument('label', default='')
def add(entries: Entries, options: Options, uuid: str, digits: int, label: str) -> None:
    """Makes an entry, and its files for the hidden server.

    For a program that was written for node-rendezvous, its codes must have 6 digits.
    """
    files = actions.create(entries, options, uuid, label, digits)
    _show_files(files)
    user = '' if options.names_domain else f', with any password and the user name {files.name}'
    click.echo(f'{entry_files.url(options, files.name)}  for mobile clients{user}')
    click.echo(entries.where())


@command
@uuid_argument
@click.option('-o', 'file', type=click.Path(path_type=Path), help='[default: LABEL.pyz]')
def pack(entries: Entries, options: Options, uuid: str, file: Path | None) -> None:
    """Makes one file of an entry and hidden.py, for the hidden server."""
    document = entry_files.document(actions.find(entries, uuid), options)
    file = file or Path(packing.file_name(document))
    try:
        atomic.write(file, packing.build(document), 0o600)
    except (OSError, ValueError) as error:
        raise Unable(f'cannot write {file}: {getattr(error, "strerror", error)}') from None
    click.echo(f'made {file}, with all that the hidden server needs: copy it there, and')
    click.echo(f'    python3 {shlex.quote(file.name)} 127.0.0.1:8000')
    click.echo('It holds the secret: keep it private.')


@command
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
def list_entries(entries: Entries, options: Options, as_json: bool) -> None:
    """Lists all entries, and which hidden servers are online."""
    now, listed = presence.now(entries), []
    name_of = actions.all_names(entries, options)
    for entry in entries.all():
        uuid = entry['uuid']
        shown = listing.with_url(entry, name_of.get(uuid, ''), options)
        listed.append((shown, now.get(uuid, presence.Now())))
    if as_json:
        click.echo(json.dumps([listing.known(*each) for each in listed], indent=2))
    elif listed:
        columns = shutil.get_terminal_size().columns if _is_terminal(sys.stdout) else None
        click.echo('\n'.join(listing.table(listed, columns)))
    else:
        click.echo('there are no entries yet: users_app.py add LABEL makes one', err=True)


@command
@uuid_argument
@click.option('--secret', is_flag=True, help='Show the secret too.')
def show(entries: Entries, options: Options, uuid: str, secret: bool) -> None:
    """Shows an entry, its last rendezvous and how to connect."""
    entry = actions.find(entries, uuid)
    now = presence.now_of(entries, entry['uuid'])
    name = actions.name_of(entries, options, entry['uuid'])
    lines = listing.about(entry, now, options, name, secret)
    lines += listing.history(presence.history(entries, entry['uuid']))
    click.echo('\n'.join(lines))


@command
@uuid_argument
@click.argument('label')
def rename(entries: Entries, options: Options, uuid: str, label: str) -> None:
    """Gives an entry another label; '' removes it. A host name that is its label changes too."""
    name = actions.rename(entries, options, uuid, label)
    click.echo(f'renamed {uuid.lower()}')
    if name and options.names_domain:
        click.echo(f'its address is now {entry_files.url(options, uuid, name)}')


@command
@uuid_argument
@click.option('--off', is_flag=True, help='Its label is no host name any more.')
def name(entries: Entries, options: Options, uuid: str, off: bool) -> None:
    """Makes the label of an entry its host name, too.

    A label can be guessed, and a UUID cannot. Whoever guesses it reaches the hidden server, which
    must ask who is there.
    """
    if off:
        actions.name_off(entries, uuid)
        click.echo(f'the label of {uuid.lower()} is no host name any more')
    else:
        name = actions.name_on(entries, options, uuid)
        click.echo(f'its address is now {entry_files.url(options, uuid, name)}')
        click.echo('Whoever guesses it reaches the hidden server, which must ask who is there.')


@command
@uuid_argument
@yes_option
def disable(entries: Entries, options: Options, uuid: str, yes: bool) -> None:
    """Disables an entry: its hidden server cannot register."""
    _confirm(entries, uuid, 'Disable it?', yes)
    actions.disable(entries, uuid)
    click.echo(f'disabled {uuid.lower()}')


@command
@uuid_argument
def enable(entries: Entries, options: Options, uuid: str) -> None:
    """Enables an entry that was disabled or had too many wrong codes."""
    actions.enable(entries, uuid)
    click.echo(f'enabled {uuid.lower()}')


@command
@uuid_argument
@digits_option(help='Digits of its codes.  [default: as before]')
@yes_option
def rekey(entries: Entries, options: Options, uuid: str, digits: int | None, yes: bool) -> None:
    """Replaces the secret of an entry, and its files."""
    _confirm(entries, uuid, 'Give it a new secret?', yes)
    files = actions.rekey(entries, options, uuid, digits)
    click.echo(f'the old secret of {files.name} does not work any more')
    _show_files(files)


@command
@uuid_argument
@yes_option
def delete(entries: Entries, options: Options, uuid: str, yes: bool) -> None:
    """Deletes an entry and its files on this machine."""
    _confirm(entries, uuid, 'Delete it and its secret?', yes)
    actions.remove(entries, uuid)
    click.echo(f'deleted {uuid.lower()}')


@command
@click.argument('file', type=click.Path(path_type=Path))
def import_entries(entries: Entries, options: Options, file: Path) -> None:
    """Imports the entries of node-rendezvous from its nedis.db."""
    found = nedis.read(file)
    skipped = list(found.skipped)
    for uuid, (line, entry) in found.entries.items():
        if entries.get(uuid) is None and entries.insert(uuid, entry):
            click.echo(f'imported {uuid}')
        else:
            skipped.append((line, f'there is already an entry {uuid}'))
    for line, why in sorted(skipped)[:SKIPPED_LINES]:
        click.echo(f'skipped line {line}: {why}', err=True)
    if len(skipped) > SKIPPED_LINES:
        click.echo(f'skipped {len(skipped) - SKIPPED_LINES} more', err=True)
    if found.unreadable:
        raise Unable(f'{file} holds no Redis commands from line {found.unreadable} on')


def _confirm(entries: Entries, uuid: str, question: str, yes: bool) -> None:
    """Shows what will end, and asks on a terminal. Raises Unable, UsageError or Abort."""
    if not yes and not _is_terminal(sys.stdin):
        raise click.UsageError('there is no terminal to ask on: confirm with --yes')
    entry = actions.find(entries, uuid)
    now = presence.now_of(entries, entry['uuid'])
    click.echo(listing.ending(entry, now), err=True)
    if not yes:
        click.confirm(question, abort=True, err=True)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None if it is closed


def _show_files(files: Path) -> None:
    python, hidden, app = (
        _here(HERE / name) for name in ('.venv/bin/python', 'hidden.py', 'users_app.py')
    )
    json_file = _here(files.with_suffix('.json'))
    click.echo(f'{files}.json  for: {python} {hidden} {json_file} 127.0.0.1:8000')
    click.echo(f"{files}.js  for a program in Node.js beside it: require('./{files.name}').params")
    click.echo(f'One file with all that the hidden server needs: {python} {app} pack {files.name}')
    click.echo('Copy one of the three there. It holds the secret: keep it private.')


def _here(path: Path) -> str:
    """A path as a shell has it that is where this program was started."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
