"""Manages the entries of hidden servers.

Without a command it serves a page, on which a browser does the same as the commands. ENTRY is a
UUID, the beginning of one, or a label that no other entry has.

Exit status: 0 if it is done, 1 if it cannot be done or `check` finds something, 2 if the command
line is wrong, 78 if local.py or Redis needs a correction.
"""

import importlib
import io
import os
import sys

import click

from rendezvous.admin import shell_change, shell_drain, shell_files, shell_look
from rendezvous.store import options as local
from rendezvous.wire import addresses
from rendezvous.wire.programs import VERSION

HOST, PORT, PORTS = '127.0.0.1', 8893, click.IntRange(0, 65535)


@click.group(invoke_without_command=True, help=__doc__)
@click.option('--port', type=PORTS, default=PORT, show_default=True, help='The port of the page.')
@click.option('--host', default=HOST, show_default=True, help='The address of the page.')
@click.option('--no-login', is_flag=True, help='Everybody who can connect may use the page.')
@click.version_option(VERSION, message='%(version)s')
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
    options = local.load()
    if no_login and (options.page_url or options.page_host):
        raise click.UsageError(
            '--no-login needs a local.py without page_url and page_host: '
            'whoever reaches the proxy there could use the page'
        )
    # As click's LazyGroup: the commands start without Flask, which takes 0.2 s to import.
    page = importlib.import_module('rendezvous.admin.page')
    page.serve(options, host, port, login=not no_login)


for each in (
    *(shell_look.list_entries, shell_look.show, shell_look.status_server),
    *(shell_look.check, shell_look.log_server),
    *(shell_change.add, shell_change.rename, shell_change.note, shell_change.name),
    *(shell_change.disable, shell_change.enable, shell_change.rekey, shell_change.delete),
    *(shell_files.pack, shell_files.export_entries, shell_files.import_entries),
    *(shell_files.backup, shell_files.link, shell_drain.drain_node),
):
    cli.add_command(each)
