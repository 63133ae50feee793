"""The entries: a page for a browser on this machine, and the same from the shell."""

from gevent import monkey

monkey.patch_all()

import os

import click

import actions
import options as local
import page
from entries import Entries

HOST, PORT = '127.0.0.1', 8893


@click.group(invoke_without_command=True, help=__doc__)
@click.option(
    '--port', type=click.IntRange(0, 65535), default=PORT, show_default=True, help='Of the page.'
)
@click.option('--host', default=HOST, show_default=True, help='Where the page listens.')
@click.option('--no-login', is_flag=True, help='Whoever reaches the page may use it.')
@click.pass_context
def cli(context: click.Context, port: int, host: str, no_login: bool) -> None:
    os.umask(0o077)
    if not context.invoked_subcommand:
        page.serve(local.load(), host, port, login=not no_login)
        return
    context.obj = Entries(local.load())
    context.call_on_close(context.obj.close)
    context.obj.open()


@cli.command('add')
@click.option('--uuid', default='', help='Made up when left out.')
@click.option(
    '--digits',
    type=click.IntRange(6, 8),
    default=8,
    show_default=True,
    help='Of its codes; programs for node-rendezvous know only 6.',
)
@click.argument('label', default='')
@click.pass_obj
def add_entry(entries: Entries, uuid: str, digits: int, label: str) -> None:
    """Makes an entry, and its files for the hidden server."""
    files = actions.create(entries, local.load(), uuid, label, digits)
    click.echo(f'{files}.json  for: python hidden.py {files.name}.json 127.0.0.1:8000')
    click.echo(f"{files}.js  for Node.js: require('./{files.name}').params")
    click.echo('Copy one of them to the hidden server; it holds the secret.')


@cli.command('list')
@click.pass_obj
def list_entries(entries: Entries) -> None:
    """Lists the entries: UUID and label."""
    for entry in entries.all():
        click.echo(f'{entry["uuid"]}  {", ".join(entry["labels"])}'.rstrip())


@cli.command('delete')
@click.argument('uuid')
@click.pass_obj
def delete_entry(entries: Entries, uuid: str) -> None:
    """Deletes an entry, and its files here."""
    actions.remove(entries, uuid)
    click.echo(f'deleted {uuid.lower()}')


if __name__ == '__main__':
    local.main(cli)
