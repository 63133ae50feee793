"""The entries: a page for a browser on this machine, and the same from the shell.

Exit status: 0; 1 where it cannot be done, 2 where the command is wrong, 78 where local.py is.
"""

import functools
import json
import os
import shutil
import sys
from pathlib import Path

import click

from rendezvous.admin import actions, listing, nedis
from rendezvous.admin.actions import Unable
from rendezvous.store import options as local
from rendezvous.store import presence as live
from rendezvous.store.entries import DIGITS, Entries
from rendezvous.store.options import Options
from rendezvous.wire import addresses

HOST, PORT = '127.0.0.1', 8893
LEFT_LINES = 20  # of an import that are told one by one


@click.group(invoke_without_command=True, help=__doc__)
@click.option(
    '--port', type=click.IntRange(0, 65535), default=PORT, show_default=True, help='Of the page.'
)
@click.option('--host', default=HOST, show_default=True, help='Where the page listens.')
@click.option('--no-login', is_flag=True, help='Whoever reaches the page may use it.')
@click.pass_context
def cli(context: click.Context, port: int, host: str, no_login: bool) -> None:
    os.umask(0o077)
    if sys.stdout:  # labels may be in any writing, terminals may not
        sys.stdout.reconfigure(errors='replace')
    of_page = {'--port': port != PORT, '--host': host != HOST, '--no-login': no_login}
    if context.invoked_subcommand and any(of_page.values()):
        raise click.UsageError(f'{", ".join(of_page)} are of the page, not of a command')
    if not host:
        raise click.UsageError('--host must not be empty, but like 127.0.0.1')
    if no_login and not addresses.is_loopback(host):
        raise click.UsageError('--no-login is only for loopback: it would let in the network')
    if not context.invoked_subcommand:
        from rendezvous.admin import page  # only here: the shell need not wait for it

        page.serve(local.load(), host, port, login=not no_login)


def command(name: str):
    """A subcommand, that is given the entries and the options."""

    def made(function):
        @functools.wraps(function)
        def run(**given):
            options = local.load()
            entries = Entries(options)
            try:
                entries.open()
                function(entries, options, **given)
            finally:
                entries.close()

        return cli.command(name)(run)

    return made


uuid_argument = click.argument('uuid')
label_argument = click.argument('label', default='')
yes_option = click.option('--yes', is_flag=True, help='Do not ask.')


@command('add')
@click.option('--uuid', default='', help='Made up when left out.')
@click.option(
    '--digits',
    type=click.IntRange(6, 8),
    default=DIGITS,
    show_default=True,
    help='Of its codes; programs for node-rendezvous know only 6.',
)
@label_argument
def add(entries: Entries, options: Options, uuid: str, digits: int, label: str) -> None:
    """Makes an entry, and its files for the hidden server."""
    _tell_files(actions.create(entries, options, uuid, label, digits))


@command('list')
@click.option('--json', 'as_json', is_flag=True, help='For programs.')
def list_entries(entries: Entries, options: Options, as_json: bool) -> None:
    """Lists the entries, and what is known of their hidden servers."""
    listed, now = entries.all(), live.now(entries)
    if as_json:
        known = [listing.known(entry, now.get(entry['uuid'], live.Now())) for entry in listed]
        click.echo(json.dumps(known, indent=2))
    elif listed:
        columns = shutil.get_terminal_size().columns if _is_terminal(sys.stdout) else None
        click.echo('\n'.join(listing.table(listed, now, columns)))
    else:
        click.echo('there are no entries yet: users_app.py add LABEL makes one', err=True)


@command('show')
@uuid_argument
@click.option('--secret', is_flag=True, help='The secret, too.')
def show(entries: Entries, options: Options, uuid: str, secret: bool) -> None:
    """Shows all about an entry, and what to run."""
    entry = actions.found(entries, uuid)
    now = live.now_of(entries, entry['uuid'])
    lines = listing.about(entry, now, options, secret)
    lines += listing.history(live.history(entries, entry['uuid']))
    click.echo('\n'.join(lines))


@command('rename')
@uuid_argument
@click.argument('label')
def rename(entries: Entries, options: Options, uuid: str, label: str) -> None:
    """Gives an entry another label; '' takes it away."""
    actions.rename(entries, options, uuid, label)
    click.echo(f'renamed {uuid.lower()}')


@command('disable')
@uuid_argument
@yes_option
def disable(entries: Entries, options: Options, uuid: str, yes: bool) -> None:
    """Lets a hidden server register no more, until it is enabled."""
    _confirm(entries, uuid, 'Disable it?', yes)
    actions.disable(entries, uuid)
    click.echo(f'disabled {uuid.lower()}')


@command('enable')
@uuid_argument
def enable(entries: Entries, options: Options, uuid: str) -> None:
    """Lets a hidden server that was disabled register again."""
    actions.enable(entries, uuid)
    click.echo(f'enabled {uuid.lower()}')


@command('rekey')
@uuid_argument
@click.option('--digits', type=click.IntRange(6, 8), help='Of its codes; as many as before.')
@yes_option
def rekey(entries: Entries, options: Options, uuid: str, digits: int | None, yes: bool) -> None:
    """Gives an entry a new secret and new files. The old secret works no more."""
    _confirm(entries, uuid, 'Give it a new secret?', yes)
    files = actions.rekey(entries, options, uuid, digits)
    click.echo(f'the old secret of {files.name} works no more')
    _tell_files(files)


@command('delete')
@uuid_argument
@yes_option
def delete(entries: Entries, options: Options, uuid: str, yes: bool) -> None:
    """Deletes an entry, and its files here."""
    _confirm(entries, uuid, 'Delete it and its secret?', yes)
    actions.remove(entries, uuid)
    click.echo(f'deleted {uuid.lower()}')


@command('import')
@click.argument('file', type=click.Path(path_type=Path))
def import_entries(entries: Entries, options: Options, file: Path) -> None:
    """Takes the entries of node-rendezvous over from its nedis.db."""
    found = nedis.read(file)
    left = list(found.left)
    for uuid, (line, entry) in found.entries.items():
        if entries.get(uuid) is None and entries.insert(uuid, entry):
            click.echo(f'took {uuid}')
        else:
            left.append((line, f'{uuid} has an entry here already'))
    for line, why in sorted(left)[:LEFT_LINES]:
        click.echo(f'left line {line}: {why}', err=True)
    if len(left) > LEFT_LINES:
        click.echo(f'left {len(left) - LEFT_LINES} more', err=True)
    if found.unreadable:
        raise Unable(f'line {found.unreadable} of {file} is no Redis command; the rest is left')


def _confirm(entries: Entries, uuid: str, question: str, yes: bool) -> None:
    """Says what ends, and asks whether that is meant. Raises Unable or what click does."""
    if not yes and not _is_terminal(sys.stdin):
        # As for what cannot be undone elsewhere: a script has to say that it means it.
        raise click.UsageError('there is no terminal to ask on: --yes says that it is meant')
    entry = actions.found(entries, uuid)
    now = live.now_of(entries, entry['uuid'])
    click.echo(listing.ending(entry, now), err=True)
    if not yes:
        click.confirm(question, abort=True, err=True)


def _is_terminal(stream) -> bool:
    return stream is not None and stream.isatty()  # None: it is closed


def _tell_files(files: Path) -> None:
    click.echo(f'{files}.json  for: .venv/bin/python hidden.py {files.name}.json 127.0.0.1:8000')
    click.echo(f"{files}.js  for Node.js: require('./{files.name}').params")
    click.echo('Copy one of them to the hidden server; it holds the secret.')
